"""Sums over rows that lie side by side in a tile, each of which is summed by a team of threads.

Teams lie side by side, too: thread t belongs to row t // team of the tile, of which it sums every team-th
element, or every team-th four where rows are whole vectors. So the sums of a row do not depend on how many
rows the tile has, nor on which of them this is. A row that is longer than a tile is read in pieces, by a
block that has this row alone. Device functions for `along_kernels`.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.division import quotient, remainder
from numbabn.backends.cuda.gpu import (
    any_thread,
    convert,
    cuda,
    device,
    exchange,
    load,
    load_four,
    shared_load,
    shared_store,
    tile_load,
    tile_load4,
)
from numbabn.backends.cuda.sums import (
    DOWN,
    HUGE,
    TINY,
    UP,
    add_product,
    add_products,
    add_square,
    add_squares,
    inverse,
)
from numbabn.backends.cuda.tiles import HALF, ROW, SCRATCH, TILE
from numbabn.backends.cuda.walks import tile_of


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
    width = np.int64(np.int32(min(rows.piece, rows.length - start)))  # as a tile has it
    return tile_of(first * rows.length + start, across * width, width, width, across, 1)


@device
def parameters_of(rows, row):
    """Return the index among gamma and beta of the first place of a row of the array."""
    return np.int64(0) if rows.groups == 1 else remainder(row, rows.groups) * rows.members


@device
def parameter_index(rows, first, place):
    """Return the index among gamma and beta of a place along a row, where ``first`` is that of place 0."""
    return first + (place if rows.inner == 1 else quotient(place, rows.inner))


@device
def parameter_or(address, index, otherwise):
    """Return a value of an array in the dtype of ``otherwise``, which stands for all where there is none."""
    return otherwise if address == 0 else load(address, index, otherwise)


@device
def four_parameters(address, rows, first, place, like):
    """Return the values of four adjacent places along a row, the first of which is a multiple of four."""
    if rows.inner == 1:
        return load_four(address, first + place, rows.vector, like)
    i, j = parameter_index(rows, first, place), parameter_index(rows, first, place + 1)
    k, m = parameter_index(rows, first, place + 2), parameter_index(rows, first, place + 3)
    return load(address, i, like), load(address, j, like), load(address, k, like), load(address, m, like)


@device
def add_up(s, q, rows):
    """Return the sums over a team of what its threads pass; all of its threads get them."""
    distance = min(rows.team, plan.WARP) >> 1
    while distance > 0:
        s += exchange(s, distance)
        q += exchange(q, distance)
        distance >>= 1
    if rows.team > plan.WARP:
        t = np.int64(cuda.threadIdx.x)
        row, lane = row_and_lane(rows)
        if lane % plan.WARP == 0:
            shared_store(SCRATCH, t // plan.WARP, s)
            shared_store(SCRATCH + ROW, t // plan.WARP, q)
        cuda.syncthreads()
        first = row * (rows.team // plan.WARP)
        s, q = shared_load(SCRATCH, first, s), shared_load(SCRATCH + ROW, first, q)
        for k in range(first + 1, first + rows.team // plan.WARP):
            s += shared_load(SCRATCH, k, s)
            q += shared_load(SCRATCH + ROW, k, q)
        cuda.syncthreads()  # what follows may overwrite the scratch memory
    return s, q


@device
def own_places(tile, rows):
    """Return (e, end, step): this thread sums ``lanes`` adjacent elements from e on, then from e + step on.

    There are four of them where rows are whole vectors, else one; none where the tile has not its row.
    """
    row, lane = row_and_lane(rows)
    lanes = plan.VECTOR if tile.width % plan.VECTOR == 0 else 1
    end = (row + 1) * tile.width if row < tile.across else np.int64(0)
    return row * tile.width + lane * lanes, end, rows.team * lanes


@device
def deviations(tile, rows, center, factor, like):
    """Return this thread's sums of d and d * d in float64, with d = (x - center) * factor."""
    sums = convert(0.0, like), convert(0.0, like), convert(0.0, like)
    e, end, step = own_places(tile, rows)
    if tile.width % plan.VECTOR == 0:
        while e < end:
            sums = add_squares(sums, tile_load4(TILE, e, like), center, factor, like)
            e += step
    else:
        while e < end:
            sums = add_square(sums, tile_load(TILE, e, like), center, factor, like)
            e += step
    return np.float64(sums[0]), np.float64(sums[1])


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
            factor = 1.0 if attempt < 2 else UP if attempt == 2 else DOWN
            some, squares = deviations(tile, rows, center, convert(factor, like), like)
            some, squares = add_up(some, squares, rows)
            if due == attempt:
                if attempt == 0:
                    center, due = convert(np.float64(center) + some / n, like), 1
                else:
                    unit = inverse(factor)
                    s, q, due = some * unit, squares * (unit * unit), 4
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
    zero, one = convert(0.0, like), convert(1.0, like)
    sums = zero, zero, zero, zero
    row, _ = row_and_lane(rows)
    places, base = parameters_of(rows, first + row), row * tile.width - start
    e, end, step = own_places(tile, rows)
    if tile.width % plan.VECTOR == 0:
        while e < end:
            d0, d1, d2, d3 = tile_load4(HALF, e, like)
            if gamma != 0:
                g0, g1, g2, g3 = four_parameters(gamma, rows, places, e - base, like)
                d0, d1, d2, d3 = d0 * g0, d1 * g1, d2 * g2, d3 * g3
            sums = add_products(sums, (d0, d1, d2, d3), tile_load4(TILE, e, like), center)
            e += step
    else:
        while e < end:
            d = tile_load(HALF, e, like)
            d *= parameter_or(gamma, parameter_index(rows, places, e - base), one)
            sums = add_product(sums, d, tile_load(TILE, e, like), center)
            e += step
    return np.float64(sums[0]), np.float64(sums[1])
