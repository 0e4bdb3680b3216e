"""Every result of every path of the kernels, as digests: ``python -m tests.support.digests`` prints them."""

import hashlib
import json

import numba
import numpy as np

import numbabn as nbn
from numbabn.backends.cpu import jit
from tests.support.problems import Problem
from tests.support.strategies import PATHS, SMALL_PATHS, regime


def results_of(problem):
    """Return all results of one problem by name."""
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    parameters = problem.gamma(), problem.beta()
    y, saved = nbn.batch_norm_forward(x, *parameters, **problem.options)
    inference, frozen = nbn.batch_norm_forward(x, *parameters, mean=mean, var=var, **problem.options)
    return {
        "y": y,
        "saved.mean": saved.mean,
        "saved.var": saved.var,
        **dict(zip(("dx", "dgamma", "dbeta"), nbn.batch_norm_backward(dy, saved), strict=True)),
        "dgamma alone": nbn.batch_norm_backward(dy, saved, need_dx=False)[1],
        "y of inference": inference,
        "dx of inference": nbn.batch_norm_backward(dy, frozen)[0],
        **dict(zip(("mean", "m2"), nbn.moments(x, axis=problem.axis)[1:], strict=True)),
    }


def digests():
    """Return a digest of every result of every path, by name."""
    found = {}
    for shape, axis, how in PATHS:
        for dtype in (np.float32, np.float64) if (shape, axis) in SMALL_PATHS else (np.float32,):
            problem = Problem(shape, axis, dtype, offset=1.0)
            with regime(how):
                for name, result in results_of(problem).items():
                    digest = hashlib.blake2b(np.ascontiguousarray(result).tobytes(), digest_size=8)
                    found[f"{name} of {shape} on {axis}, {dtype.__name__}, {how}"] = digest.hexdigest()
    return found


def main():
    """Print the number of threads, whether parallel kernels may run on them, and the digests."""
    found = digests()
    print(json.dumps([numba.get_num_threads(), jit.use_threads(1 << 40), found]))


if __name__ == "__main__":
    main()
