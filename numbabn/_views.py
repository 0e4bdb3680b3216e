"""Any array and channel axis to the canonical view (outer, channels, inner), and back.

Statistics do not depend on the order of the other axes, so whatever lies dense in memory, in any order of
axes, is a view: C order, Fortran order, a transposed batch. Everything else is copied once, dense and in the
order of its strides, as ``numpy.empty_like`` would lay it out.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Layout(NamedTuple):
    """How arrays of one shape and memory order are read as (outer, channels, inner)."""

    order: tuple[int, ...] | None  # axes from the slowest to the fastest; None is C order
    shape: tuple[int, int, int]

    def matches(self, array: Array) -> bool:
        """Whether an array of the right shape has this memory order, so that ``flat`` is a view."""
        flags = (array if self.order is None else array.transpose(self.order)).flags
        return flags.c_contiguous and flags.aligned and array.dtype.isnative

    def flat(self, array: Array) -> Array:
        """Return the array as one dimension: a view."""
        return (array if self.order is None else array.transpose(self.order)).reshape(-1)


def dense(x: Array) -> Array:
    """Return x itself if its elements fill memory without gaps in native byte order, else such a copy."""
    flags = x.flags
    if not (flags.aligned and x.dtype.isnative):
        return x.astype(x.dtype.newbyteorder("="), order="K")
    if flags.c_contiguous or flags.f_contiguous or x.transpose(_order(x)).flags.c_contiguous:
        return x
    return x.copy(order="K")


def layout(x: Array, axis: int) -> Layout:
    """Layout of a dense array with its channels on ``axis``, which is not negative."""
    if x.flags.c_contiguous:
        return _layout(None, x.shape, axis)
    order = _order(x)
    return _layout(order, tuple(x.shape[i] for i in order), order.index(axis))


@functools.lru_cache(1024)
def _layout(order: tuple[int, ...] | None, shape: tuple[int, ...], axis: int) -> Layout:
    channels = shape[axis]
    if channels == 1:
        return Layout(order, (1, 1, math.prod(shape)))
    return Layout(order, (math.prod(shape[:axis]), channels, math.prod(shape[axis + 1 :])))


def as_layout(array: Array, like: Array, target: Layout) -> Array:
    """Return the array in the memory order of ``like``: itself, or a copy."""
    if target.matches(array):
        return array
    copy = np.empty_like(like)
    copy[...] = array
    return copy


def _order(x: Array) -> tuple[int, ...]:
    """Axes of x from the largest stride to the smallest."""
    return tuple(sorted(range(x.ndim), key=lambda i: -abs(x.strides[i])))
