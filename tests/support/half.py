"""float16 and bfloat16 as storage: arrays, and the errors allowed to what is computed in float32.

A problem is one of float32 whose arrays are rounded to the storage type. Oracles are those of the norms, in
float64, and so are their errors, which they count for float32. What is stored is rounded once more.
"""

import ml_dtypes
import numpy as np

from tests.support import reference
from tests.support.checks import NAMES, assert_close
from tests.support.problems import arrange

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float16), BFLOAT16)


def stored(array, dtype, layout="contiguous"):
    """Return a float32 array rounded to the storage type, in one of the layouts."""
    return arrange(array.astype(dtype), layout, np.random.default_rng(0))


def exactly(array):
    """Return half floats as float32, which the errors of the oracles are counted for."""
    return array.astype(np.float32)


def ulp(values, dtype):
    """Return the distance between neighbours of the storage type at values of float64."""
    kind = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(values)
    exponent = np.where(values == 0, kind.minexp, exponent - 1)
    return np.ldexp(1.0, np.maximum(exponent, kind.minexp) - kind.nmant)


def position(values):
    """Return how many numbers of the storage type lie between 0 and each value."""
    bits = values.view(np.int16).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def assert_rounded(actual, exact, error, name):
    """Each element is what a float32 within ``error`` of the exact one rounds to, and mostly within an ulp.

    One ulp off the exact result correctly rounded is what that is, unless terms cancelled to so little that
    the error of float32 is more than half an ulp there.
    """
    dtype = actual.dtype
    half = ulp(np.abs(exact) + error, dtype) / 2
    assert_close(actual, exact, error + half, name)
    with np.errstate(all="ignore"):
        steps = np.abs(position(actual) - position(exact.astype(dtype)))
    assert (steps[error <= ulp(exact, dtype) / 2] <= 1).all(), f"{name} is more than one ulp off"


def check_forward(y, problem, x, dtype, known=None):
    """y of batch norm is right."""
    options = dict(problem.options)
    if known is not None:
        options |= {"mean": known[0], "var": known[1]}
    parameters = problem.gamma(), problem.beta()
    wide = exactly(x)
    exact = reference.forward(wide, *parameters, **options)
    assert y.dtype == dtype, "y"
    assert_rounded(y, exact, reference.forward_error(wide, *parameters, **options), "y")


def check_backward(results, problem, x, dy, dtype, known=None):
    """dx, dgamma and dbeta of batch norm are right: of the parameters, which are float32, as for float32."""
    options = dict(problem.options)
    if known is not None:
        options |= {"mean": known[0], "var": known[1]}
    wide, wide_dy = exactly(x), exactly(dy)
    gamma, beta = problem.gamma(), problem.beta()
    expected = reference.backward(wide_dy, wide, gamma, **options)
    errors = reference.backward_error(wide_dy, wide, gamma, beta, **options)
    check_gradients(results, expected, errors, dtype)


def check_gradients(results, expected, errors, dtype):
    """dx is rounded to the storage type, and the gradients of parameters are not."""
    if results[0] is not None:
        assert results[0].dtype == dtype, "dx"
        assert_rounded(results[0], expected[0], errors[0], "dx")
    for name, result, exact, error in zip(NAMES[1:], results[1:], expected[1:], errors[1:], strict=True):
        if result is not None:
            assert result.dtype == np.float32
            assert_close(result, exact, error, name)
