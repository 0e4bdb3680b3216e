"""Arrays of more than 2**31 elements: no index is 32 bits wide."""

import math

import numba
import numpy as np
import pytest

import numbabn as nbn
from numbabn.backends.cpu import column_sums, plan, row_kernels
from numbabn.backends.verbs import View
from tests.support.jit import JIT

HUGE = 2**31 + 3000


@numba.njit
def _apply_start(t, size, inner):
    return row_kernels.apply_start(t, size, inner)


@numba.njit
def _tile(k, chunks, part, x, copies, channels, inner):
    return column_sums.tile(k, chunks, part, x, copies, channels, inner)


@pytest.mark.parametrize("shape", [(1, 1, HUGE), (1, 3, HUGE), (HUGE // 8, 5, 20), (3, HUGE // 64, 70)])
def test_tasks_beyond_two_to_31(shape):
    """The tasks that write cover the array to its last element: no index is 32 bits wide."""
    size, inner = math.prod(shape), shape[2]
    assert size > 2**31
    tasks = plan.apply_tasks(View(1, shape[0], shape[1], 1, inner))
    starts = [_apply_start(t, size, inner) for t in (0, 1, tasks // 2, tasks - 1, tasks)]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-2] < size == starts[-1]


@pytest.mark.parametrize("channels", [2, 3, 75, 1024])
@pytest.mark.parametrize("inner", [1, 15])
def test_chunks_beyond_two_to_31(channels, inner):
    """The chunks of columns cover the array to its last element, each element once."""
    shape = (HUGE // (channels * inner) + 1, channels, inner)
    size, row = math.prod(shape), channels * inner
    copies, chunks = plan.columns(View(1, shape[0], channels, 1, inner), 4 * size)
    # In the memory of one element.
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (size,), (0,))
    end = 0
    for k in range(chunks):
        for part in range(2):
            first, rows, across, *_ = _tile(k, chunks, part, x, copies, channels, inner)
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
