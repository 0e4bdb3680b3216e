"""How a thread goes through the elements of a tile that are its own. Device functions.

A tile is rows of ``width`` elements, which lie side by side in shared memory, and ``stride`` elements apart
in the array. Where its columns belong to different channels, a thread stays in its columns, so that what it
knows of them can stay in registers; else all threads together go on from one end of the tile to the other.

A division by a number that is not known to the compiler is twenty instructions: it is done before the loop,
which adds up what it has given. What is within a tile is counted in 32 bits, or ptxas runs out of registers:
Numba makes 64 bits of every sum of two integers, so that these are cut off again. The instructions of the
loops are asserted in ``tests/cuda/test_compile.py``.
"""

from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import cuda, device

int32: Any = np.int32


class Tile(NamedTuple):
    """Where a tile lies in its array, in elements, and how many channels it has."""

    first: int  # the index of its first element
    size: int
    width: int  # of a row
    stride: int  # from row to row in the array
    across: int  # channels
    columns: int  # columns that are kept apart: ``width`` where there are several channels, else 1


class Place(NamedTuple):
    """Where a thread is in a tile."""

    e: int  # element of the tile
    row: int
    j: int  # column
    i: int  # index in the array


class Step(NamedTuple):
    """From a place to the next one of a thread."""

    e: int
    row: int
    j: int
    i: int


@device
def tile_of(first, size, width, stride, across, columns):
    """Return a tile."""
    return Tile(first, int32(size), int32(width), stride, int32(across), int32(columns))


@device
def step_of(tile, lanes):
    """Return the step of all threads, where each of them has ``lanes`` adjacent elements of a tile."""
    e = np.int64(cuda.blockDim.x) * lanes
    e = quotient(e, tile.columns) * tile.columns
    row = quotient(e, tile.width)
    j = e - row * tile.width
    return Step(int32(e), int32(row), int32(j), row * tile.stride + j)


@device
def place_of(tile, e):
    """Return the place of an element of a tile."""
    row = quotient(e, tile.width)
    j = e - row * tile.width
    return Place(int32(e), int32(row), int32(j), tile.first + row * tile.stride + j)


@device
def first_place(tile, step, lanes, start):
    """Return this thread's first place among the elements from ``start`` on; beyond them if it has none."""
    own = np.int64(cuda.threadIdx.x) * lanes
    return place_of(tile, start + own if own < step.e else tile.size)


@device
def following(place, step, tile):
    """Return the place that follows."""
    e, row, j, i = place.e + step.e, place.row + step.row, place.j + step.j, place.i + step.i
    if j >= tile.width:
        return Place(int32(e), int32(row + 1), int32(j - tile.width), i + tile.stride - tile.width)
    return Place(int32(e), int32(row), int32(j), i)
