"""Sums over rows that lie side by side in a tile, each of which is summed by a team of threads.

Teams lie side by side, too: thread t belongs to row t // team of the tile, of which it sums every team-th
element. So the sums of a row do not depend on how many rows the tile has, nor on which of them this is. A row
that is longer than a tile is read in pieces, by a block that has this row alone. Device functions for
`along_kernels`.
"""

import numpy as np

from numbabn.backends.cuda.division import quotient, remainder
from numbabn.backends.cuda.gpu import (
    any_thread,
    convert,
    cuda,
    device,
    load,
    shared_load,
    shared_store,
    tile_load,
)
from numbabn.backends.cuda.sums import DOWN, HUGE, TINY, UP, add_value
from numbabn.backends.cuda.tiles import HALF, ROW, SCRATCH, TILE, Tile


@device
def row_and_lane(rows):
    """Return (row of the tile, number within its team) of this thread."""
    t = np.int64(cuda.threadIdx.x)
    row = quotient(t, rows.team)
    return row, t - row * rows.team


@device
def piece_at(rows, first, k):
    """Return piece k of the rows from ``first`` on, as a tile of as many rows as it is ``across``."""
    across = min(rows.height, rows.number - first)
    start = k * rows.piece
    width = min(rows.piece, rows.length - start)
    return Tile(first * rows.length + start, across * width, width, width, across)


@device
def parameter_index(rows, row, place):
    """Return the index among gamma and beta of a place along a row of the array."""
    index = place if rows.inner == 1 else quotient(place, rows.inner)
    return index if rows.groups == 1 else index + remainder(row, rows.groups) * rows.members


@device
def parameter_or(address, index, otherwise):
    """Return a value of an array in the dtype of ``otherwise``, which stands for all where there is none."""
    return otherwise if address == 0 else load(address, index, otherwise)


@device
def add_up(s, q, rows):
    """Return the sums over a team of what its threads pass; all of its threads get them."""
    t = np.int64(cuda.threadIdx.x)
    _, lane = row_and_lane(rows)
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)
    half = rows.team >> 1
    while half > 0:
        cuda.syncthreads()
        if lane < half:
            for scratch in (SCRATCH, SCRATCH + ROW):
                a, b = shared_load(scratch, t, s), shared_load(scratch, t + half, s)
                shared_store(scratch, t, a + b)
        half >>= 1
    cuda.syncthreads()
    s, q = shared_load(SCRATCH, t - lane, s), shared_load(SCRATCH + ROW, t - lane, q)
    cuda.syncthreads()  # what follows may overwrite the scratch memory
    return s, q


@device
def deviations(tile, rows, center, factor, like):
    """Return this thread's sums of d and d * d in float64, with d = (x - center) * factor."""
    row, lane = row_and_lane(rows)
    s, q, low = convert(0.0, like), convert(0.0, like), convert(0.0, like)
    if row < tile.across:
        for e in range(row * tile.width + lane, (row + 1) * tile.width, rows.team):
            d = (tile_load(TILE, e, like) - center) * factor
            s += d
            q, low = add_value(q, low, d * d)
    return np.float64(s), np.float64(q)


@device
def piece_moments(tile, rows, like):
    """Return (count, mean, m2) of this thread's row, as far as the tile has it; sums have like's dtype."""
    row, _ = row_and_lane(rows)
    center, due, n = convert(0.0, like), 4, np.float64(tile.width)
    if row < tile.across:
        center, due = tile_load(TILE, row * tile.width, like), 0
    # The first attempt finds the mean, from deviations from the first value; the other ones take the values
    # as they are, multiplied by UP, and by DOWN, see `sums.tile_moments`. ``due`` is the one that this row
    # needs next, or 4. They are a loop, so that the code of the sums is there once.
    s, q = np.float64(0), np.float64(0)
    for attempt in range(4):
        if any_thread(due == attempt):
            factor = convert(1.0 if attempt < 2 else UP if attempt == 2 else DOWN, like)
            some, squares = deviations(tile, rows, center, factor, like)
            some, squares = add_up(some, squares, rows)
            if due == attempt:
                if attempt == 0:
                    center, due = convert(np.float64(center) + some / n, like), 1
                else:
                    unit = np.float64(factor)
                    s, q, due = some / unit, squares / (unit * unit), 4  # ** 2 would be a call
                    if attempt == 1:
                        due = 2 if q < TINY else 4 if q < HUGE else 3
    m2 = q - s * (s / n)
    if m2 < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2 = np.float64(0)
    return n, np.float64(center) + s / n, m2


@device
def piece_products(tile, rows, first, start, gamma, center, like):
    """Return this thread's sums of e and e * (x - center) in float64, with e = dy * gamma.

    ``first`` is the first row of the tile, ``start`` where its piece begins.
    """
    row, lane = row_and_lane(rows)
    s, q, low_s, low_q = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    one, base = convert(1.0, like), row * tile.width
    if row < tile.across:
        for e in range(base + lane, base + tile.width, rows.team):
            place = parameter_index(rows, first + row, start + e - base)
            d = tile_load(HALF, e, like) * parameter_or(gamma, place, one)
            s, low_s = add_value(s, low_s, d)
            q, low_q = add_value(q, low_q, d * (tile_load(TILE, e, like) - center))
    return np.float64(s), np.float64(q)
