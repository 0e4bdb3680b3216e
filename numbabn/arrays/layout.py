"""Any array and channel axis to the five numbers, and back.

Statistics do not depend on the order of the other axes, so whatever lies dense in memory, in any order of
axes, is a view: C order, Fortran order, a transposed batch. Everything else is copied once, dense and in the
order of its strides, as ``numpy.empty_like`` would lay it out.
"""

import functools
import math
from typing import NamedTuple

from numbabn._numbers import integer
from numbabn.arrays.door import library_of
from numbabn.arrays.library import AnyArray
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import View


def axis_number(value: object, ndim: int) -> int:
    """Return an axis of an array of rank ``ndim`` as a number from 0."""
    if type(value) is int and 0 <= value < ndim:  # most often; 1 % of a call with a small array
        return value
    number = integer(value, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for an array of rank {ndim}, not {number}")
    return number % ndim


class Layout(NamedTuple):
    """How arrays of one shape and memory order are read as five numbers."""

    order: tuple[int, ...] | None  # axes from the slowest to the fastest; None is C order
    view: View
    # Shape of the statistics, the slowest axes first, where every sample has its own; None in batch norm.
    batch: tuple[int, ...] | None = None

    def matches(self, array: AnyArray) -> bool:
        """Whether kernels can take ``flat`` of an array of the right shape: a view, native and aligned.

        An array that is read-only does not match: see ``Library.writable``.
        """
        flags = (array if self.order is None else array.transpose(self.order)).flags
        return bool(flags.carray and array.dtype.isnative)

    def flat(self, array: AnyArray) -> AnyArray:
        """Return the array, which has this memory order, as one dimension: a view, never a copy."""
        if self.order is None:
            return array.ravel()
        in_order = array.transpose(self.order)
        if not in_order.flags.c_contiguous:
            raise RuntimeError(f"an array with strides {array.strides} is not laid out as {self}")
        return in_order.ravel()

    def per_statistic(self, values: AnyArray) -> AnyArray:
        """Return values of all statistics, which are flat in memory order, shaped as the axes they are of."""
        if self.batch is None:
            return values
        shaped = values.reshape(self.batch)
        if self.order is None:
            return shaped
        slowest = self.order[: len(self.batch)]
        return shaped.transpose(sorted(range(len(slowest)), key=slowest.__getitem__))

    def restored(self, flat: AnyArray, shape: tuple[int, ...]) -> AnyArray:
        """Inverse of `flat`: return an array of this shape and memory order over one dimension."""
        if self.order is None:
            return flat.reshape(shape)
        back = tuple(sorted(range(len(shape)), key=self.order.__getitem__))
        return flat.reshape([shape[i] for i in self.order]).transpose(back)


def channels_layout(x: AnyArray, axis: int) -> Layout:
    """Layout of a dense array whose channels, on ``axis`` >= 0, are the groups of the statistics."""
    if x.flags.c_contiguous:
        return _channels_layout(None, x.shape, axis)
    order = memory_order(x.strides)
    return _channels_layout(order, tuple(x.shape[i] for i in order), order.index(axis))


@functools.lru_cache(1024)
def _channels_layout(order: tuple[int, ...] | None, shape: tuple[int, ...], axis: int) -> Layout:
    channels = shape[axis]
    if channels == 1:
        return Layout(order, View(1, 1, 1, 1, math.prod(shape)))
    return Layout(order, View(1, math.prod(shape[:axis]), channels, 1, math.prod(shape[axis + 1 :])))


def samples_layout(x: AnyArray, axis: int, groups: int) -> Layout:
    """Layout whose statistics are over the channels of a group, of every sample by itself.

    Samples are on axis 0 and channels on ``axis`` > 0. The samples are one after the other, and the other
    axes in their order in the memory of x. If that is not how x is laid out, it must be copied.
    """
    if x.flags.c_contiguous:
        return _samples_layout(None, x.shape, axis, groups)
    order = (0, *(i for i in memory_order(x.strides) if i != 0))
    return _samples_layout(order, tuple(x.shape[i] for i in order), order.index(axis), groups)


@functools.lru_cache(1024)
def _samples_layout(order: tuple[int, ...] | None, shape: tuple[int, ...], axis: int, groups: int) -> Layout:
    outer, inner = math.prod(shape[1:axis]), math.prod(shape[axis + 1 :])
    if shape[axis] == 1:
        outer, inner = 1, outer * inner
    members = shape[axis] // groups if groups else 1
    return Layout(order, View(shape[0], outer, groups, members, inner), (shape[0], groups))


def rows_layout(x: AnyArray, axes: tuple[int, ...]) -> Layout:
    """Layout whose statistics are over ``axes``, which ascend, and whose parameters vary along them.

    The axes are the fastest ones, in their own order; the others are in their order in the memory of x. If
    that is not how x is laid out, it does not match the layout, and must be copied.
    """
    order = None if x.flags.c_contiguous else memory_order(x.strides)
    return _rows_layout(order, x.shape, axes)


@functools.lru_cache(1024)
def _rows_layout(order: tuple[int, ...] | None, shape: tuple[int, ...], axes: tuple[int, ...]) -> Layout:
    others = tuple(axis for axis in (order or range(len(shape))) if axis not in axes)
    batch = tuple(shape[axis] for axis in others)
    members = math.prod(shape[axis] for axis in axes)
    whole = (*others, *axes)
    view = View(math.prod(batch), 1, 1, members, 1)
    return Layout(None if whole == tuple(range(len(shape))) else whole, view, batch)


def arranged(array: AnyArray, like: AnyArray, layout: Layout) -> AnyArray:
    """Return the array in the memory order of ``like``: itself, or a copy."""
    if layout.matches(array):
        return array
    library = library_of(like)
    array = library.writable(array)
    if layout.matches(array):
        return array
    copy = library.empty_like(like)
    library.assign(copy, array)
    return copy
