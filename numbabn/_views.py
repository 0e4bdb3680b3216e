"""Any array and channel axis to the canonical view (outer, channels, inner), and back.

Statistics do not depend on the order of the other axes, so whatever lies dense in memory, in any order of
axes, is a view: C order, Fortran order, a transposed batch. Everything else is copied once, dense and in the
order of its strides, as ``numpy.empty_like`` would lay it out.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from numbabn import _memory
from numbabn._arrays import AnyArray, DeviceArray, assign, memory_order

_FLOAT64 = np.dtype(np.float64)  # made once: astype takes a fifth less time than with the type


class Layout(NamedTuple):
    """How arrays of one shape and memory order are read as (outer, channels, inner)."""

    order: tuple[int, ...] | None  # axes from the slowest to the fastest; None is C order
    shape: tuple[int, int, int]

    def matches(self, array: AnyArray) -> bool:
        """Whether an array of the right shape has this memory order, so that ``flat`` is a view."""
        flags = (array if self.order is None else array.transpose(self.order)).flags
        return flags.c_contiguous and flags.aligned and array.dtype.isnative

    def flat(self, array: AnyArray) -> AnyArray:
        """Return the array as one dimension: a view."""
        return (array if self.order is None else array.transpose(self.order)).ravel()


def dense(x: AnyArray) -> AnyArray:
    """Return x itself if its elements fill memory without gaps in native byte order, else such a copy."""
    flags = x.flags
    if not (flags.aligned and x.dtype.isnative):
        # Not of a DeviceArray, which cannot be made of such memory.
        return x.astype(x.dtype.newbyteorder("="), order="K")  # type: ignore[union-attr]
    if flags.c_contiguous or flags.f_contiguous or x.transpose(memory_order(x.strides)).flags.c_contiguous:
        return x
    return x.copy(order="K")


def layout(x: AnyArray, axis: int) -> Layout:
    """Layout of a dense array with its channels on ``axis``, which is not negative."""
    if x.flags.c_contiguous:
        return _layout(None, x.shape, axis)
    order = memory_order(x.strides)
    return _layout(order, tuple(x.shape[i] for i in order), order.index(axis))


@functools.lru_cache(1024)
def _layout(order: tuple[int, ...] | None, shape: tuple[int, ...], axis: int) -> Layout:
    channels = shape[axis]
    if channels == 1:
        return Layout(order, (1, 1, math.prod(shape)))
    return Layout(order, (math.prod(shape[:axis]), channels, math.prod(shape[axis + 1 :])))


def vector(values: AnyArray) -> AnyArray:
    """Return one value per channel as backends take them: a float64 copy, on a GPU the dense array itself."""
    return dense(values) if type(values) is DeviceArray else values.astype(_FLOAT64)


def as_layout(array: AnyArray, like: AnyArray, target: Layout) -> AnyArray:
    """Return the array in the memory order of ``like``: itself, or a copy."""
    if target.matches(array):
        return array
    copy = _memory.empty_like(like)
    assign(copy, array)
    return copy
