"""Arrays of float16 and bfloat16, and how far a result in one of them is from the exactly rounded one."""

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = np.dtype(np.float16), BFLOAT16


def rounded(values, dtype):
    """Return float64 values in a half type, rounded to nearest even."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def steps(actual, expected):
    """Return how many numbers of their half type lie between two arrays, the further one included."""
    places = []
    for array in (actual, expected):
        bits = array.view(np.int16).astype(np.int64)
        places.append(np.where(bits < 0, -(bits & 0x7FFF), bits))
    return np.abs(places[0] - places[1])


def assert_one_ulp(actual, exact, error, name):
    """A result in a half type is the exact one rounded, or a neighbour of that.

    ``error`` is what float32 arithmetic is allowed. Where it is more than half an ulp, as where terms cancel,
    it is allowed besides the ulp.
    """
    expected = rounded(exact, actual.dtype)
    size = np.abs(expected.astype(np.float64))
    info = ml_dtypes.finfo(actual.dtype)
    exponent = np.floor(np.log2(np.maximum(size, float(info.smallest_normal))))
    ulp = 2.0**exponent * float(info.eps)
    allowed = ulp + np.where(error > ulp / 2, error, 0.0)
    far = np.abs(actual.astype(np.float64) - expected.astype(np.float64)) > allowed
    wrong = ~((steps(actual, expected) <= 1) | ~far) | np.isnan(actual.astype(np.float32))
    assert actual.shape == expected.shape, name
    if wrong.any():
        at = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise AssertionError(
            f"{name}{list(map(int, at))} is {actual[at]}, exactly {exact[at]!r}, rounded {expected[at]}; "
            f"{wrong.sum()} of {wrong.size} elements are wrong"
        )
