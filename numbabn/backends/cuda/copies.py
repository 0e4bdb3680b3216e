"""Copies between arrays of any strides, and arrays of one value. Launched on the stream of the target."""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.gpu import (
    Kernel,
    device,
    load,
    load_parameter,
    store,
    store_parameter,
    thread_number,
)
from numbabn.backends.cuda.plan import parameter
from numbabn.backends.cuda.tiles import quotient
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import DeviceMemory

SMALL = 2**32  # elements of arrays whose indices are divided in 32 bits
_LIKE = {np.dtype(np.float32): np.float32(0), np.dtype(np.float64): np.float64(0)}


def copy(target: DeviceMemory, source: DeviceMemory) -> None:
    """Copy all elements to an array of the same shape, not empty; between float dtypes, convert."""
    shape, to, start = _axes(target, source)
    size = target.size
    blocks = plan.blocks(size)
    how = size, int(size < SMALL), shape, to, start
    if target.dtype == source.dtype and target.dtype in _LIKE:
        _copy.launch(target, blocks, target.address, source.address, *how, _LIKE[target.dtype])
    else:
        _convert.launch(target, blocks, parameter(target), parameter(source), *how)


def fill(target: DeviceMemory, value: float) -> None:
    """Set all elements of an array in C order without gaps."""
    _fill.launch(target, plan.blocks(target.size), parameter(target), target.size, float(value))


def _axes(target: DeviceMemory, source: DeviceMemory) -> tuple[tuple[int, ...], ...]:
    """(lengths, strides of target, strides of source) in elements: the slowest axis of target first.

    Axes of one element are left out, and axes that lie behind each other in both arrays become one.
    """
    axes: list[tuple[int, int, int]] = []
    for i in memory_order(target.strides):
        n, to, start = (
            target.shape[i],
            target.strides[i] // target.itemsize,
            source.strides[i] // source.itemsize,
        )
        if n == 1:
            continue
        if axes and axes[-1][1:] == (n * to, n * start):
            axes[-1] = axes[-1][0] * n, to, start
        else:
            axes.append((n, to, start))
    lengths, to_steps, start_steps = zip(*(axes or [(1, 1, 1)]), strict=True)
    return lengths, to_steps, start_steps


@device
def offset(i, shape, strides, small):
    """Where element i, counted with the last axis fastest, lies in an array; small: i is below `SMALL`."""
    place = np.int64(0)
    for k in range(len(shape)):
        axis = len(shape) - 1 - k
        rest = quotient(i, shape[axis]) if small else i // shape[axis]
        place += (i - rest * shape[axis]) * strides[axis]
        i = rest
    return place


@Kernel
def _copy(target, source, size, small, shape, to, start, like):
    i = thread_number()
    if i < size:
        store(target, offset(i, shape, to, small), load(source, offset(i, shape, start, small), like))


@Kernel
def _convert(target, source, size, small, shape, to, start):
    i = thread_number()
    if i < size:
        value = load_parameter(source, offset(i, shape, start, small), 0.0)
        store_parameter(target, offset(i, shape, to, small), value)


@Kernel
def _fill(target, size, value):
    i = thread_number()
    if i < size:
        store_parameter(target, i, value)
