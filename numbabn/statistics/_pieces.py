"""Large arrays in pieces: each a view, or a small copy, that kernels can read.

A piece is up to some hundred megabytes, cut along the slowest axes of the memory. So an array on disk is
read from its beginning to its end and never held whole, and where a copy is needed it is a copy of one piece.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import Array, View

# A piece that is a view takes no memory. Few pieces, because a thread that was idle may take 8 ms to start on
# each; but no more elements than `_cpu.statistics` can add up exactly.
VIEW_ELEMENTS = 1 << 26
# Of a copied piece, which may also become float64 beside weights. A quarter of it stays in the cache, but is
# started on 4 times as often: on two cores, 100 MB of float32 take 41 ms instead of 51 with weights, but 49
# instead of 18 as (100, 8, 32, 1000) with the channel axes (1, 3).
COPY_ELEMENTS = 1 << 20

Index = tuple[slice, ...]


class Piece(NamedTuple):
    """A piece of an array, how it is read, and where in the array it lies."""

    x: Array  # flat
    beside: list[Array]  # flat, in the same order
    view: View
    place: Index  # of the piece in the array
    kept: tuple[int, ...]  # the channel axes in the order of the piece


def pieces(x: Array, beside: Sequence[Array], kept: Sequence[int]) -> Iterator[Piece]:
    """Cut an array into pieces for its channel axes ``kept``, and with it others of its shape."""
    order = memory_order(x.strides)
    in_order = [axis for axis in order if x.shape[axis] != 1]
    adjacent = _arranged(x.shape, order, kept)[-len(in_order) :] == in_order
    copied = bool(beside) or not adjacent or not _is_view(x, order)
    most = COPY_ELEMENTS if copied else VIEW_ELEMENTS
    for index in cut(x.shape, order, x.itemsize, most * x.itemsize):
        part = x[index]
        axes = _arranged(part.shape, order, kept)
        yield Piece(
            _flat(part, axes),
            [_flat(other[index], axes) for other in beside],
            _view([part.shape[axis] for axis in axes], [axis in kept for axis in axes]),
            index,
            tuple(axis for axis in axes if axis in kept),
        )


def cut(shape: Sequence[int], order: Sequence[int], itemsize: int, most: int) -> Iterator[Index]:
    """Slices of about ``most`` bytes, along the axis ``order[0]`` first, and all of a size."""
    yield from _cut([slice(0, n) for n in shape], list(order), itemsize, most)


def _cut(index: list[slice], order: list[int], itemsize: int, most: int) -> Iterator[Index]:
    if not order:
        yield tuple(index)
        return
    axis, *faster = order
    length = index[axis].stop
    each = itemsize * math.prod(index[a].stop for a in faster)
    count = -(-length // max(1, most // max(1, each)))
    for i in range(count):
        index[axis] = slice(i * length // count, (i + 1) * length // count)
        if each > most:
            yield from _cut(index, faster, itemsize, most)
        else:
            yield tuple(index)
    index[axis] = slice(0, length)


def _is_view(x: Array, order: Sequence[int]) -> bool:
    return x.dtype.isnative and x.flags.aligned and x.transpose(order).flags.c_contiguous


def _arranged(shape: Sequence[int], order: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Axes in the order of the memory, or with the channel axes last where others lie between them."""
    axes = [axis for axis in order if shape[axis] != 1]  # an axis of length 1 lies anywhere
    single = [axis for axis in order if shape[axis] == 1]
    channels = [i for i, axis in enumerate(axes) if axis in kept]
    if channels and channels[-1] - channels[0] >= len(channels):
        axes = [axis for axis in axes if axis not in kept] + [axis for axis in axes if axis in kept]
    return single + axes


def _view(lengths: Sequence[int], kept: Sequence[bool]) -> View:
    """View of axes of which the kept ones are neighbours."""
    channels = [i for i, n in enumerate(lengths) if kept[i] and n != 1]
    if not channels:
        return View(1, 1, 1, 1, math.prod(lengths))
    first, end = channels[0], channels[-1] + 1
    return View(1, math.prod(lengths[:first]), math.prod(lengths[first:end]), 1, math.prod(lengths[end:]))


def _flat(part: Array, axes: Sequence[int]) -> Array:
    """Return the elements in the order of the axes: a view, or a copy."""
    flat = np.ascontiguousarray(part.transpose(axes), dtype=part.dtype.newbyteorder("="))
    flat = np.require(flat, requirements="A").reshape(-1)
    return flat if flat.flags.writeable else np.asarray(_Writable(flat))


class _Writable:
    """Read-only memory as an array of the usual type: kernels, which only read, are not compiled twice."""

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = interface["data"][0], False
        self.__array_interface__, self.array = interface, array
