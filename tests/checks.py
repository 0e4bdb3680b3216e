"""What every result is asked: near enough, of the right make, and nothing else touched."""

import contextlib

import numpy as np


def assert_close(actual, expected, error, name):
    """Every element within its own error; both of the same shape."""
    assert actual.shape == expected.shape, name
    excess = np.abs(actual.astype(np.float64) - expected) - error
    if not (excess <= 0).all():  # not any(> 0), which would let NaN pass
        worst = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        allowed = np.broadcast_to(error, expected.shape)[worst]
        at = tuple(map(int, worst))
        raise AssertionError(
            f"{name}{list(at)} is {actual[worst]!r}, exactly {expected[worst]!r}; allowed is {allowed:.2e}"
        )


def assert_same_bits(actual, expected, name):
    """The same bytes in the same shape: also of NaN, and of the sign of 0."""
    assert actual.shape == expected.shape, name
    assert actual.dtype == expected.dtype, name
    assert actual.tobytes() == expected.tobytes(), f"{name} differs in some bit"


def assert_result_of(y, x, name):
    """A fresh array as ``numpy.empty_like(x)`` would make it, in native byte order."""
    assert type(y) is np.ndarray, name
    assert y.shape == x.shape, name
    assert y.dtype == x.dtype.newbyteorder("="), name
    assert y.flags.writeable, name
    assert y.flags.aligned, name
    if x.size:
        like = np.empty_like(x)
        # The stride of an axis of length 1 means nothing.
        strides = [(a, b) for a, b, n in zip(y.strides, like.strides, x.shape, strict=True) if n > 1]
        assert all(a == b for a, b in strides), f"{name} has strides {y.strides}, not {like.strides}"


@contextlib.contextmanager
def unchanged(*arrays):
    """Within the block, no byte of the arrays changes, nor of the memory around them."""
    memory = [_memory(array) for array in arrays if array is not None]
    before = [m.tobytes() for m in memory]
    yield
    assert [m.tobytes() for m in memory] == before, "an input was changed"


def _memory(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def assert_apart(result, *arrays):
    """No memory in common."""
    assert not any(np.may_share_memory(result, a) for a in arrays if a is not None)
