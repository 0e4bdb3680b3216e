"""Checks of every result: it is near enough, of the right kind, and nothing else was touched."""

import contextlib

import numpy as np

import numbabn as nbn
from tests.support import reference


def assert_close(actual, expected, error, name):
    """Both arrays have the same shape, and every element is within its own error."""
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
    """Both arrays have the same shape, dtype and bytes, which tells NaNs and the signs of 0 apart."""
    assert actual.shape == expected.shape, name
    assert actual.dtype == expected.dtype, name
    assert actual.tobytes() == expected.tobytes(), f"{name} differs in some bit"


def assert_result_of(y, x, name):
    """The result is an array as ``numpy.empty_like(x)`` would make it, in native byte order."""
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
    """The result has no memory in common with the other arrays."""
    assert not any(np.may_share_memory(result, a) for a in arrays if a is not None)


def gaps_of(view):
    """Return the bytes of the memory that the view lies in, without its own elements."""
    memory = view
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    mask = np.zeros(memory.nbytes, bool)
    start = view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
    offsets = np.add.outer(_offsets(view), np.arange(view.itemsize)).reshape(-1)
    mask[start + offsets] = True
    # The memory may be in Fortran order: its bytes as they lie, through a one-dimensional view of them.
    flat = np.ndarray((memory.nbytes,), np.uint8, memory) if memory.flags.c_contiguous else memory.T
    return np.ascontiguousarray(flat).reshape(-1).view(np.uint8)[~mask].tobytes()


def _offsets(view):
    """Return the byte offset of every element from the first."""
    offsets = np.zeros(view.shape, np.intp)
    for axis, (n, stride) in enumerate(zip(view.shape, view.strides, strict=True)):
        offsets += (np.arange(n) * stride).reshape([-1 if i == axis else 1 for i in range(view.ndim)])
    return offsets.reshape(-1)


# Results against the reference ------------------------------------------------------------------------------

NAMES = ("dx", "dgamma", "dbeta")


def check_forward(y, saved, problem, x):
    gamma, beta, options = problem.gamma(), problem.beta(), problem.options
    expected = reference.forward(x, gamma, beta, **options)
    assert_close(y, expected, reference.forward_error(x, gamma, beta, **options), "y")
    count, mean, m2 = reference.moments(x, problem.axis)
    of_mean, of_var = reference.saved_error(x, problem.axis)
    assert saved.count == count
    assert saved.training
    assert_close(saved.mean, mean, of_mean, "saved.mean")
    assert_close(saved.var, m2 / count, of_var, "saved.var")
    assert (saved.var >= 0).all()


def check_inference(y, problem, x, mean, var):
    gamma, beta, options = problem.gamma(), problem.beta(), problem.options
    expected = reference.forward(x, gamma, beta, mean=mean, var=var, **options)
    error = reference.forward_error(x, gamma, beta, mean=mean, var=var, **options)
    assert_close(y, expected, error, "y")


def known_statistics(problem, frozen):
    """Return the arguments mean and var of a forward call."""
    return dict(zip(("mean", "var"), problem.given(), strict=True)) if frozen else {}


def saved_of(problem, frozen, x=None):
    """Return ``saved`` of a forward call, in training or with known statistics."""
    x = problem.x() if x is None else x
    known = known_statistics(problem, frozen)
    return nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options, **known)[1]


def check_backward(results, problem, frozen, x, dy):
    gamma, beta = problem.gamma(), problem.beta()
    options = {**problem.options, **known_statistics(problem, frozen)}
    expected = reference.backward(dy, x, gamma, **options)
    errors = reference.backward_error(dy, x, gamma, beta, **options)
    for name, result, value, error, parameter in zip(
        NAMES, results, expected, errors, (x, gamma, beta), strict=True
    ):
        if parameter is None:
            assert result is None, name
        elif result is not None:
            assert result.dtype == parameter.dtype.newbyteorder("="), name
            assert_close(result, value, error, name)


def check_moments(result, x, axis, exact=reference.moments):
    count, mean, m2 = result
    expected = exact(x, axis)
    errors = reference.moments_error(x, axis)
    assert type(count) is int
    assert count == expected[0]
    assert mean.dtype == m2.dtype == np.float64
    assert_close(mean, expected[1], errors[0], "mean")
    assert_close(m2, expected[2], errors[1], "m2")
    assert (m2 >= 0).all()
