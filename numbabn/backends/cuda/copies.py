"""Copies between arrays of any strides, and arrays filled with a value; launched on the target's stream."""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.arguments import parameter, zero
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import Kernel, array_load, array_store, device, thread_number
from numbabn.backends.cuda.parameters import load_parameter, store_parameter
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import DeviceMemory

SMALL = 2**32  # the indices of arrays of fewer elements are divided in 32 bits


def copy(target: DeviceMemory, source: DeviceMemory) -> None:
    """Copy all elements to an array of the same shape, which is not empty, and convert them to its dtype."""
    shape, steps, source_steps = _axes(target, source)
    size = target.size
    blocks, cut = plan.blocks(size), (size, int(size < SMALL), shape, source_steps, steps)
    if target.dtype == source.dtype:
        _copy.launch(target, blocks, source.address, *cut, zero(target.dtype), target.address)
    else:
        _convert.launch(target, blocks, parameter(source), *cut, parameter(target))


def fill(target: DeviceMemory, value: float) -> None:
    """Set all elements of an array in C order without gaps."""
    _fill.launch(target, plan.blocks(target.size), target.size, float(value), parameter(target))


def _axes(target: DeviceMemory, source: DeviceMemory) -> tuple[tuple[int, ...], ...]:
    """Return (lengths, strides of target, strides of source) in elements, the slowest axis of target first.

    Axes of one element are left out, and axes that lie behind each other in both arrays become one.
    """
    axes: list[tuple[int, int, int]] = []
    for i in memory_order(target.strides):
        n = target.shape[i]
        step, source_step = target.strides[i] // target.itemsize, source.strides[i] // source.itemsize
        if n == 1:
            continue
        if axes and axes[-1][1:] == (n * step, n * source_step):
            axes[-1] = axes[-1][0] * n, step, source_step
        else:
            axes.append((n, step, source_step))
    lengths, steps, source_steps = zip(*(axes or [(1, 1, 1)]), strict=True)
    return lengths, steps, source_steps


@device
def offset(i, shape, steps, small):
    """Return how many elements from the first on element i lies, counted with the last axis fastest.

    ``small`` says that i is below `SMALL`.
    """
    result = np.int64(0)
    for k in range(len(shape)):
        axis = len(shape) - 1 - k
        rest = quotient(i, shape[axis]) if small else i // shape[axis]
        result += (i - rest * shape[axis]) * steps[axis]
        i = rest
    return result


@Kernel
def _copy(source, size, small, shape, source_steps, steps, like, target):
    i = thread_number()
    if i < size:
        value = array_load(source, offset(i, shape, source_steps, small), like)
        array_store(target, offset(i, shape, steps, small), value, like)


@Kernel
def _convert(source, size, small, shape, source_steps, steps, target):
    i = thread_number()
    if i < size:
        value = load_parameter(source[0], source[1], offset(i, shape, source_steps, small), 0.0)
        store_parameter(target[0], target[1], offset(i, shape, steps, small), value)


@Kernel
def _fill(size, value, target):
    i = thread_number()
    if i < size:
        store_parameter(target[0], target[1], i, value)
