"""The promises about numbers, in figures: accuracy, constants, same bits, poison that does not spread."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import numbabn as nbn
from numbabn._cpu import column_kernels, jit, plan, row_kernels
from tests.support import reference
from tests.support.checks import assert_same_bits
from tests.support.jit import JIT
from tests.support.problems import Problem
from tests.support.strategies import PATHS, SMALL_PATHS, regime

# Interpreted kernels are NumPy scalars, which warn where the compiled ones are silent, as they should be.
quiet = contextlib.nullcontext if JIT else lambda: np.errstate(all="ignore")

# Shapes of several hundred thousand elements, and the same kinds of shapes smaller.
KINDS = {
    "NCHW, blocks of channels": ((8, 32, 32, 32) if JIT else (2, 4, 8, 8), 1),
    "NCHW, few channels": ((4, 3, 260, 260) if JIT else (2, 3, 40, 40), 1),
    "NCHW, small images": ((128, 64, 7, 7) if JIT else (16, 8, 7, 7), 1),
    "NCHW, tiny images": ((512, 64, 3, 3) if JIT else (32, 8, 3, 3), 1),
    "NHWC": ((8, 64, 64, 16) if JIT else (2, 16, 16, 5), -1),
    "NHWC, three channels": ((4, 128, 128, 3) if JIT else (2, 16, 16, 3), -1),
    "NHWC, many channels": ((32, 7, 7, 2048) if JIT else (4, 3, 3, 256), -1),
    "NC, small batch": ((64, 4096) if JIT else (16, 256), 1),
    "NC": ((20_000, 24) if JIT else (400, 24), 1),
    "NC, one channel": ((300_000, 1) if JIT else (4000, 1), 1),
}
kinds = pytest.mark.parametrize(("shape", "axis"), KINDS.values(), ids=KINDS.keys())


# Accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, -10, 100, 1e3, 1e4, 1e6])
@kinds
def test_forward_at_an_offset(shape, axis, offset):
    """Max |y - exact| <= 1e-6 for standard deviation 1 at offsets to 1e4, 2e-6 at 1e6."""
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    y, _ = nbn.batch_norm_forward(x, axis=axis)
    error = np.abs(y - reference.forward(x, axis=axis)).max()
    assert error <= (1e-6 if abs(offset) <= 1e4 else 2e-6)


@pytest.mark.parametrize("offset", [0, 1e4, 1e6])
@kinds
def test_inference_at_an_offset(shape, axis, offset):
    """The same with known statistics, which are wide too."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    mean = offset + 0.1 * rng.standard_normal(shape[axis])
    var = rng.uniform(0.8, 1.2, shape[axis])
    y = nbn.batch_norm_inference(x, mean, var, axis=axis)
    error = np.abs(y - reference.forward(x, axis=axis, mean=mean, var=var)).max()
    assert error <= (1e-6 if abs(offset) <= 1e4 else 2e-6)


@pytest.mark.parametrize("first", [16, 64])
@pytest.mark.parametrize("offset", [10, 1e4])
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (4, 4, 32, 32), (8, 4, 28, 28)])
def test_dark_border(shape, offset, first):
    """Values far from the others at the very beginning, as the border of an image, cost little accuracy.

    Sums are taken about a value of the data, and these are bad ones to take: up to 16 standard deviations
    from the mean, so that squares of 256 variances, rounded to float32 some at a time, cancel.
    """
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    x.reshape(shape[0], shape[1], -1)[:, :, :first] = 0
    y, saved = nbn.batch_norm_forward(x)
    count, mean, m2 = reference.moments(x, 1)
    exact = reference.forward(x)
    of_y = np.abs(y - exact).max() / np.abs(exact).max()
    of_var = np.abs(saved.var / (m2 / count) - 1).max()
    of_mean = np.abs((saved.mean - mean) / np.sqrt(saved.var)).max()
    assert max(of_y, of_var, of_mean) <= 4e-6


def relative_to_largest(actual, exact):
    return np.abs(actual - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("offset", [0, 1e4])
@kinds
def test_gradients(shape, axis, offset):
    """dx, dgamma and dbeta to 2e-6 of their largest entry."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    dy = rng.standard_normal(shape, np.float32)
    gamma, beta = (rng.uniform(0.5, 2, shape[axis]).astype(np.float32) for _ in range(2))
    given = {"mean": reference.moments(x, axis)[1], "var": np.ones(shape[axis])}
    for statistics in ({}, given):
        _, saved = nbn.batch_norm_forward(x, gamma, beta, axis=axis, **statistics)
        results = nbn.batch_norm_backward(dy, saved)
        exact = reference.backward(dy, x, gamma, axis=axis, **statistics)
        for name, result, value in zip(("dx", "dgamma", "dbeta"), results, exact, strict=True):
            assert relative_to_largest(result, value) <= 2e-6, name


@pytest.mark.skipif(not JIT, reason="twenty million elements")
@pytest.mark.parametrize("shape", [(10, 1, 1000, 1000), (10_000_000, 2)])
def test_gradients_of_ten_million(shape):
    """The same of 1e7 elements per channel, at an offset of 1e4, of a dy with a mean."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    dy = rng.standard_normal(shape, np.float32) + 0.5 * x + 0.25
    x += 1e4
    gamma = np.array([0.5, 2.0], np.float32)[: shape[1]]
    y, saved = nbn.batch_norm_forward(x, gamma, np.zeros(shape[1]))
    dx, dgamma, dbeta = nbn.batch_norm_backward(dy, saved)
    largest, exact_dgamma, exact_dbeta = [], [], []
    for c in range(shape[1]):  # one channel at a time, for the memory's sake
        part = (slice(None), slice(c, c + 1))
        assert np.abs(y[part] - reference.forward(x[part], gamma[c : c + 1])).max() <= 2e-6
        exact, *sums = reference.backward(dy[part], x[part], gamma[c : c + 1])
        largest.append((np.abs(dx[part] - exact).max(), np.abs(exact).max()))
        exact_dgamma.append(sums[0][0])
        exact_dbeta.append(sums[1][0])
    error, size = np.max(largest, axis=0)
    assert error <= 2e-6 * size
    assert relative_to_largest(dgamma, np.array(exact_dgamma)) <= 2e-6
    assert relative_to_largest(dbeta, np.array(exact_dbeta)) <= 2e-6


def test_moments_of_a_hundred_million():
    """Mean and variance of 1e8 float32 elements to 1e-12, however channels and rows divide them."""
    size = 100_000_000 if JIT else 90_000
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    x += 3
    count, mean, m2 = reference.chunked_moments(np.array_split(x, max(1, size // 1_000_000)))
    side = math.isqrt(size // 100)
    for shape, axis in (((1, 1, size), 1), ((25, 4, side, side), 1), ((size // 4, 4), 1)):
        part, means, m2s = nbn.moments(x.reshape(shape), axis=axis)
        # Over all channels, by the definition: all of them must be right for the whole to be.
        assert part * shape[axis] == count
        total = math.fsum(means) / len(means)
        assert abs(total - mean) <= 1e-12 * abs(mean)
        whole = math.fsum(m2s) + part * math.fsum((means - total) ** 2)
        assert abs(whole - m2) <= 1e-12 * m2


@pytest.mark.parametrize("scale", [1e25, 1e-25])
@kinds
def test_squares_out_of_range(shape, axis, scale):
    """Values whose squares float32 cannot hold have right statistics all the same, and a right result."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    with quiet():
        y, saved = nbn.batch_norm_forward(x, axis=axis, eps=0.0)
        moments = nbn.moments(x, axis=axis)
    count, mean, m2 = reference.moments(x, axis)
    error = np.abs(y - reference.forward(x, axis=axis, eps=0.0)).max()
    assert error <= 1e-6
    assert (np.abs(saved.var / (m2 / count) - 1) <= 1e-6).all()
    assert (np.abs(moments[2] / m2 - 1) <= 1e-12).all()
    assert (np.abs(moments[1] - mean) <= 1e-12 * np.sqrt(m2 / count)).all()


@pytest.mark.parametrize("scale", [1e12, 1e-12])
@kinds
def test_gradients_of_any_scale(shape, axis, scale):
    """Gradients to 2e-6 too, where the variance is far from 1 and from eps, and dy just as far."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    dy = (rng.standard_normal(shape) / scale).astype(np.float32)
    _, saved = nbn.batch_norm_forward(x, np.ones(shape[axis]), axis=axis, eps=0.0)
    dx, dgamma, _ = nbn.batch_norm_backward(dy, saved)
    exact_dx, exact_dgamma, _ = reference.backward(dy, x, axis=axis, eps=0.0)
    assert relative_to_largest(dx, exact_dx) <= 2e-6
    assert relative_to_largest(dgamma, exact_dgamma) <= 2e-6


@pytest.mark.parametrize("shape", [(400_000, 4), (1, 4, 400_000), (4000, 4, 100)])
def test_moments_with_an_outlier(shape):
    """The worst value to sum deviations about: 1e-12 all the same, wherever the outlier stands."""
    if not JIT:
        shape = tuple(n // 20 if n > 1000 else n for n in shape)
    for outlier, sample in itertools.product((1e3, 1e6), (0, shape[0] // 2)):
        x = np.random.default_rng(0).standard_normal(shape)
        x[sample].reshape(4, -1)[:, 0] = outlier
        _, mean, m2 = nbn.moments(x)
        count, exact_mean, exact_m2 = reference.moments(x, 1)
        assert (np.abs(mean - exact_mean) <= 1e-12 * np.sqrt(exact_m2 / count)).all()
        assert (np.abs(m2 / exact_m2 - 1) <= 1e-12).all()


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=24),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_finite_values_give_finite_results(x):
    """Whatever they are: no variance is negative, no root is NaN."""
    with quiet():
        y, saved = nbn.batch_norm_forward(x)
        dx, _, _ = nbn.batch_norm_backward(np.ones_like(x), saved)
    assert (saved.var >= 0).all()
    assert np.isfinite(saved.mean).all()
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


# Constant channels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1234.567, 0.1, -7.0, 0.0, 1e30, 1e-30] if JIT else [1234.567])
@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_constant_channel(shape, axis, value):
    """Exactly beta, with variance exactly 0, on every path; nothing flows through it but dy."""
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype, gamma_dtype=dtype, beta_dtype=dtype)
        x, dy, gamma, beta = problem.x(), problem.dy(), problem.gamma(), problem.beta()
        channels = np.moveaxis(x, axis, 0)
        constant = len(channels) // 2
        channels[constant] = value
        value = channels[constant].flat[0]  # as the dtype has it
        for how in ("as planned", "phases, streaming", "blocks"):
            with regime(how):
                y, saved = nbn.batch_norm_forward(x, gamma, beta, **problem.options)
                _, dgamma, _ = nbn.batch_norm_backward(dy, saved)
                _, mean, m2 = nbn.moments(x, axis=axis)
                inference = nbn.batch_norm_inference(x, saved.mean, saved.var, gamma, beta, **problem.options)
            assert saved.mean[constant] == mean[constant] == value
            assert saved.var[constant] == m2[constant] == 0
            assert (np.moveaxis(y, axis, 0)[constant] == beta[constant]).all()
            assert (np.moveaxis(inference, axis, 0)[constant] == beta[constant]).all()
            assert dgamma[constant] == 0


@kinds
def test_constant_channels_of_large_arrays(shape, axis):
    for dtype in (np.float32, np.float64):
        x = np.full(shape, 1234.567, dtype)
        beta = np.linspace(-1, 1, shape[axis]).astype(dtype)
        y, saved = nbn.batch_norm_forward(x, None, beta, axis=axis)
        assert (saved.var == 0).all()
        assert (np.moveaxis(y, axis, -1) == beta).all()


# The same bits ----------------------------------------------------------------------------------------------


def results_of(problem):
    """All results of one problem."""
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
    """A digest of every result of every path."""
    found = {}
    for shape, axis, how in PATHS:
        for dtype in (np.float32, np.float64) if (shape, axis) in SMALL_PATHS else (np.float32,):
            problem = Problem(shape, axis, dtype, offset=1.0)
            with regime(how):
                for name, result in results_of(problem).items():
                    digest = hashlib.blake2b(np.ascontiguousarray(result).tobytes(), digest_size=8)
                    found[f"{name} of {shape} on {axis}, {dtype.__name__}, {how}"] = digest.hexdigest()
    return found


def print_digests():
    """Print threads and layer that parallel kernels run on, and the digests."""
    found = digests()
    print(json.dumps([numba.get_num_threads(), jit.use_threads(1 << 40), found]))


@pytest.mark.skipif(not JIT, reason="interpreted kernels have no threads")
def test_same_bits_for_any_number_of_threads():
    """1, 2 and 4 threads, in processes of their own, and the serial path."""
    with mock.patch.object(jit, "use_threads", return_value=False):
        expected = digests()
    assert digests() == expected  # as many threads as there are; and it fills the cache for the others
    roots = [str(Path(module.__file__).parents[1]) for module in (nbn, sys.modules[__name__])]
    processes = {
        threads: subprocess.Popen(
            [sys.executable, "-c", "from tests.test_numbers import print_digests; print_digests()"],
            env={
                **os.environ,
                "NUMBA_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")]),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in (1, 2, 4)
    }
    outputs = {threads: process.communicate()[0] for threads, process in processes.items()}
    for threads, output in outputs.items():
        running, parallel, found = json.loads(output)
        assert running == threads
        assert parallel == (threads > 1 and numba.threading_layer() in ("omp", "tbb"))
        different = [name for name in expected if found[name] != expected[name]]
        assert found.keys() == expected.keys()
        assert not different, f"{threads} threads"


def test_same_bits_again():
    """Nothing depends on what memory held before, nor on where arrays lie."""
    problem = Problem((8, 5, 33))
    first = results_of(problem)
    for _ in range(5):
        for name, result in results_of(problem).items():
            assert_same_bits(result, first[name], name)


# Poison -----------------------------------------------------------------------------------------------------


def others(array, axis, poisoned):
    """Return the array without the poisoned channel."""
    return np.delete(array, poisoned, axis if array.ndim > 1 else 0)


SEVERAL_CHANNELS = [
    (shape, axis) for shape, axis in SMALL_PATHS if shape[axis] > 1 and (JIT or math.prod(shape) < 9000)
]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", ["as planned", "phases, streaming", "blocks, streaming"])
@pytest.mark.parametrize(("shape", "axis"), SEVERAL_CHANNELS)
def test_poison_stays_in_its_channel(shape, axis, how, poison):
    """Not a bit of another channel changes, whatever is spoilt: x, dy, gamma or the mean, at either end."""
    problem = Problem(shape, axis)
    clean, clean_dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    channels = shape[axis]
    with regime(how), quiet():
        expected = results_of(problem)
        for poisoned, position in ((0, 0), (channels // 2, -1), (channels - 1, -1)):
            x, dy, gamma, spoilt = clean.copy(), clean_dy.copy(), problem.gamma(), mean.copy()
            np.moveaxis(x, axis, 0)[poisoned].flat[position] = poison
            np.moveaxis(dy, axis, 0)[poisoned].flat[position] = poison
            gamma[poisoned] = spoilt[poisoned] = poison
            y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
            _, clean_saved = nbn.batch_norm_forward(clean, problem.gamma(), problem.beta(), **problem.options)
            _, spoilt_saved = nbn.batch_norm_forward(clean, gamma, problem.beta(), **problem.options)
            arguments = {"axis": axis, "eps": problem.eps}
            gradients = ("dx", "dgamma", "dbeta")
            found = [
                {"y": y, "saved.mean": saved.mean, "saved.var": saved.var},
                dict(zip(("mean", "m2"), nbn.moments(x, axis=axis)[1:], strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(clean_dy, saved), strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(dy, clean_saved), strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(clean_dy, spoilt_saved), strict=True)),
                {"dgamma alone": nbn.batch_norm_backward(dy, clean_saved, need_dx=False)[1]},
                {
                    "y of inference": nbn.batch_norm_inference(
                        clean, spoilt, var, gamma, problem.beta(), **arguments
                    )
                },
            ]
            for results in found:
                for name, result in results.items():
                    assert_same_bits(
                        others(result, axis, poisoned), others(expected[name], axis, poisoned), name
                    )
            assert np.isnan(np.moveaxis(y, axis, 0)[poisoned]).all()
            assert np.isnan(saved.var[poisoned])
            assert not np.isfinite(saved.mean[poisoned])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@kinds
def test_poison_in_large_arrays(shape, axis, poison):
    if shape[axis] == 1:
        pytest.skip("there is no other channel")
    problem = Problem(shape, axis)
    x = problem.x()
    y, _ = nbn.batch_norm_forward(x, axis=axis)
    np.moveaxis(x, axis, 0)[1].flat[7] = poison
    with quiet():
        again, _ = nbn.batch_norm_forward(x, axis=axis)
    assert_same_bits(others(again, axis, 1), others(y, axis, 1), "y")
    assert np.isnan(np.moveaxis(again, axis, 0)[1]).all()


# More than 2**31 elements -----------------------------------------------------------------------------------

HUGE = 2**31 + 3000


@numba.njit
def _apply_start(t, size, inner):
    return row_kernels.apply_start(t, size, inner)


@numba.njit
def _tile(k, chunks, part, x, copies, row):
    return column_kernels.tile(k, chunks, part, x, copies, row)


@pytest.mark.parametrize("shape", [(1, 1, HUGE), (1, 3, HUGE), (HUGE // 8, 5, 20), (3, HUGE // 64, 70)])
def test_tasks_beyond_two_to_31(shape):
    """The tasks that write tile the array to its last element: no index is 32 bits wide."""
    size, inner = math.prod(shape), shape[2]
    assert size > 2**31
    tasks = plan.apply_tasks(shape)
    starts = [_apply_start(t, size, inner) for t in (0, 1, tasks // 2, tasks - 1, tasks)]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-2] < size == starts[-1]


@pytest.mark.parametrize("channels", [2, 3, 75, 1024])
@pytest.mark.parametrize("inner", [1, 15])
def test_chunks_beyond_two_to_31(channels, inner):
    """Chunks do so too."""
    shape = (HUGE // (channels * inner) + 1, channels, inner)
    size, row = math.prod(shape), channels * inner
    copies, chunks = plan.columns(shape, 4 * size)
    # In the memory of one element.
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (size,), (0,))
    end = 0
    for k in range(chunks):
        for part in range(2):
            first, rows, across = _tile(k, chunks, part, x, copies, row)
            if rows:
                assert first == end
                end += rows * across * row
    assert end == size


def zeros_but_five(shape):
    """Return zeros, which take no memory until written to, with five other values in each channel."""
    try:
        x = np.zeros(shape, np.float32)
    except MemoryError:
        pytest.skip("this system does not give away memory that it does not have")
    channel = (shape[0], *shape[2:])
    count = math.prod(channel)
    places = [np.unravel_index(i, channel) for i in (0, count // 3, count // 2, count - 2, count - 1)]
    values = np.arange(1.0, 6.0) * 1e4
    for place, value in zip(places, values, strict=True):
        x[place[0], :, *place[1:]] = value
    return x, places, values, count


huge_shapes = pytest.mark.parametrize("shape", [(1, 1, HUGE), (2, 2, HUGE // 4), (HUGE // 2, 2)])


@pytest.mark.skipif(not JIT, reason="two thousand million elements")
@huge_shapes
def test_moments_of_more_than_two_to_31(shape):
    x, _, values, count = zeros_but_five(shape)
    assert x.size > 2**31
    found, mean, m2 = nbn.moments(x)
    assert found == count
    exact = values.sum() / count
    assert np.abs(mean / exact - 1).max() <= 1e-12
    assert np.abs(m2 / ((values**2).sum() - exact * values.sum()) - 1).max() <= 1e-12


@pytest.mark.large
@huge_shapes
def test_more_than_two_to_31(shape):
    x, places, values, count = zeros_but_five(shape)
    mean = values.sum() / count
    var = (values**2).sum() / count - mean**2
    invstd = 1 / np.sqrt(var + 1e-5)
    y, saved = nbn.batch_norm_forward(x, np.ones(shape[1]), np.zeros(shape[1]))
    assert np.abs(saved.var / var - 1).max() <= 1e-6
    for place, value in zip(places, values, strict=True):
        assert np.abs(y[place[0], :, *place[1:]] / ((value - mean) * invstd) - 1).max() <= 1e-6
    somewhere = y.reshape(-1)[1_000_000:-1_000_000:999_983]
    assert np.abs(somewhere / (-mean * invstd) - 1).max() <= 1e-6
    del y, somewhere
    dy = np.zeros(shape, np.float32)
    last = (places[-1][0], slice(None), *places[-1][1:])
    dy[last] = 1
    dx, dgamma, dbeta = nbn.batch_norm_backward(dy, saved, out=dy)
    xhat = (values[-1] - mean) * invstd
    assert (dbeta == 1).all()
    assert np.abs(dgamma / xhat - 1).max() <= 1e-6
    # At the place itself 1 - 1/n - xhat**2/n cancels: xhat**2 is n * 25/55.
    assert np.abs(dx[last] / (invstd * (1 - 1 / count - xhat * xhat / count)) - 1).max() <= 4e-6
