"""Large arrays in pieces that kernels can read: each is a view, or a small copy.

A piece has up to some hundred megabytes, and the cuts are along the slowest axes of the memory. So an array
on disk is read from its beginning to its end and never held whole, and where a copy is needed it is a copy of
one piece.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from numbabn.arrays.numpy import writable
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import Array, View

# Elements of a piece that is a view, which takes no memory. There should be few pieces, because a thread that
# was idle may take 8 ms to start on each; but `streaming.statistics.integers` sums no more elements exactly.
VIEW_ELEMENTS = 1 << 26
# Elements of a piece that is a copy, which with weights becomes float64, too. A quarter of this would stay in
# the cache, but there would be 4 times as many pieces to start on: on two cores, 100 MB of float32 would take
# 41 ms instead of 51 with weights, but 49 instead of 18 as (100, 8, 32, 1000) with the channel axes (1, 3).
COPY_ELEMENTS = 1 << 20

Index = tuple[slice, ...]


class Piece(NamedTuple):
    """A piece of an array: its elements, how they are read, and where in the array it lies."""

    x: Array  # flat
    beside: list[Array]  # the same piece of the other arrays, flat, in the same order
    view: View
    place: Index  # of the piece in the array
    kept: tuple[int, ...]  # channel axes of the array, in the order in which they lie in the piece


def pieces(x: Array, beside: Sequence[Array], kept: Sequence[int]) -> Iterator[Piece]:
    """Cut an array with the channel axes ``kept`` into pieces, and likewise the arrays ``beside``."""
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
    """Return indices that cut an array into parts of at most ``most`` bytes, or of one element.

    The axis ``order[0]`` is cut first, and ``order[1]`` only where one index of it is still too large, and so
    on. Parts along one axis have equal lengths, or lengths that differ by one.
    """
    yield from _cut([slice(0, n) for n in shape], list(order), itemsize, most)


def _cut(index: list[slice], order: list[int], itemsize: int, most: int) -> Iterator[Index]:
    """Cut the part of an array at an index along the axes ``order``, of which it has the whole lengths."""
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
    """Return the axes in the order of memory; where others lie between the channel axes, those come last."""
    axes = [axis for axis in order if shape[axis] != 1]  # those of length 1 lie between no others
    single = [axis for axis in order if shape[axis] == 1]
    channels = [i for i, axis in enumerate(axes) if axis in kept]
    if channels and channels[-1] - channels[0] >= len(channels):
        axes = [axis for axis in axes if axis not in kept] + [axis for axis in axes if axis in kept]
    return single + axes


def _view(lengths: Sequence[int], kept: Sequence[bool]) -> View:
    """Return the view of axes of these lengths, of which the kept ones are neighbours."""
    channels = [i for i, n in enumerate(lengths) if kept[i] and n != 1]
    if not channels:
        return View(1, 1, 1, 1, math.prod(lengths))
    first, end = channels[0], channels[-1] + 1
    return View(1, math.prod(lengths[:first]), math.prod(lengths[first:end]), 1, math.prod(lengths[end:]))


def _flat(part: Array, axes: Sequence[int]) -> Array:
    """Return the elements in the order of the axes, flat and writeable: a view if possible, else a copy."""
    flat = np.ascontiguousarray(part.transpose(axes), dtype=part.dtype.newbyteorder("="))
    return writable(np.require(flat, requirements="A").reshape(-1))
