"""Parameters and statistics of any float dtype, read and written in float64. Device functions.

The dtype is known at run time only, so that one kernel serves all combinations of dtypes. What belongs to
channel c of a group is read by thread c of a block.
"""

import numpy as np

from numbabn.backends.cuda.arguments import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import (
    array_load,
    array_store,
    cuda,
    device,
    load,
    peek,
    samples_of,
    store,
)
from numbabn.backends.cuda.tiles import channels_of


@device
def load_parameter(address, kind, index, default):
    """Return a value of an array of any float dtype in float64, or ``default`` where there is no array."""
    value = np.float64(default)
    if kind == FLOAT32:
        value = np.float64(load(address, index, np.float32(0)))
    elif kind == FLOAT64:
        value = load(address, index, np.float64(0))
    elif kind == FLOAT16:
        value = np.float64(array_load(address, index, np.uint16(0)))
    elif kind == BFLOAT16:
        value = np.float64(array_load(address, index, np.int16(0)))
    return value


@device
def store_parameter(address, kind, index, value):
    """Write a float64 to an array of any float dtype, or nowhere where there is no array."""
    if kind == FLOAT32:
        store(address, index, np.float32(value))
    elif kind == FLOAT64:
        store(address, index, np.float64(value))
    elif kind == FLOAT16:
        array_store(address, index, np.float32(value), np.uint16(0))
    elif kind == BFLOAT16:
        array_store(address, index, np.float32(value), np.int16(0))


@device
def statistic_of(geometry, n, c):
    """Return the index of the statistics of channel c of sample n."""
    _, _, members = samples_of(geometry)
    index = n * geometry.channels + c
    return index if members == 1 else quotient(index, members)


@device
def load_statistics(statistics, geometry, g):
    """Return (mean, variance) of channel c of group g in thread c, and (0, 1) in the other threads."""
    t = np.int64(cuda.threadIdx.x)
    n, first, across = channels_of(geometry, g)
    if t < across:
        c = statistic_of(geometry, n, first + t)
        mean = load_parameter(statistics.mean, statistics.mean_kind, c, 0.0)
        return mean, load_parameter(statistics.var, statistics.var_kind, c, 1.0)
    return np.float64(0), np.float64(1)


@device
def peek_pair(first, second, geometry, g):
    """Like `load_statistics` for the addresses of two float64 arrays that another block may have written."""
    t, zero = np.int64(cuda.threadIdx.x), np.float64(0)
    n, channel, across = channels_of(geometry, g)
    if t < across:
        c = statistic_of(geometry, n, channel + t)
        return peek(first, c, zero), peek(second, c, zero)
    return zero, np.float64(1)
