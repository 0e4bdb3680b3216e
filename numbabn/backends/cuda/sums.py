"""Sums over a tile, in a fixed order. Device functions for `reductions`.

Thread t sums the elements t, t + step, t + 2 * step, ... of a tile. In a narrow geometry step is a multiple
of the width, so that all of these are in one column. The threads' sums are added as a tree, then thread
c < across adds those of the columns of channel c; the results of the other threads mean nothing.
"""

import numpy as np

from numbabn.backends.cuda.division import quotient, remainder
from numbabn.backends.cuda.gpu import any_thread, convert, cuda, device, shared_load, shared_store, tile_load
from numbabn.backends.cuda.tiles import CENTER, ROW, SCRATCH, fill_columns

# A float32 sum of squares below TINY has lost digits, and one above HUGE may have overflowed: it is taken
# again, of values that are multiplied by UP or DOWN.
TINY, HUGE = 1e-30, 1e30
UP, DOWN = 2.0**80, 2.0**-80


@device
def thread_step(tile, geometry):
    """Return (columns, step): how many columns are summed apart, and how many threads sum."""
    threads = np.int64(cuda.blockDim.x)
    if geometry.span > 1:
        return tile.width, quotient(threads, tile.width) * tile.width
    return np.int64(1), threads


@device
def tree(columns, step, like):
    """Add up the values of the threads below ``step`` in two rows of scratch, into the first ``columns``."""
    t = np.int64(cuda.threadIdx.x)
    height = quotient(step, columns)
    while height > 1:
        half = (height + 1) // 2
        cuda.syncthreads()
        if t < (height - half) * columns:
            for row in (SCRATCH, SCRATCH + ROW):
                a, b = shared_load(row, t, like), shared_load(row, t + half * columns, like)
                shared_store(row, t, a + b)
        height = half
    cuda.syncthreads()


@device
def channel_sum(row, c, tile, geometry, like):
    """Return the sum of the columns of channel c in a row of scratch, in float64."""
    if geometry.span == 1:
        return np.float64(shared_load(row, 0, like))
    total = np.float64(0)
    for start in range(c * geometry.inner, tile.width, tile.across * geometry.inner):
        for j in range(start, start + geometry.inner):
            total += np.float64(shared_load(row, j, like))
    return total


@device
def estimate(x, tile, geometry, like, wide):
    """Fill row CENTER of the coefficients with a value near each channel's mean, of like's dtype.

    The value is an average of every thread's first element, taken of two at a time, so that the average of
    equal elements is that element exactly.
    """
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(tile, geometry)
    known = min(step, tile.size)
    if t < known:
        shared_store(SCRATCH, t, convert(tile_load(x, t, like), wide))
    height = quotient(step, columns)
    while height > 1:
        half = (height + 1) // 2
        cuda.syncthreads()
        other = t + half * columns
        if t < (height - half) * columns and other < known:
            a, b = shared_load(SCRATCH, t, wide), shared_load(SCRATCH, other, wide)
            shared_store(SCRATCH, t, a + (b - a) * convert(0.5, wide))
        height = half
    cuda.syncthreads()
    if t < tile.across:
        first = t * geometry.inner if geometry.span > 1 else 0
        last = min(first + min(geometry.inner, 8), known) if geometry.span > 1 else 1
        value = shared_load(SCRATCH, first, wide)
        for j in range(first + 1, last):
            value += (shared_load(SCRATCH, j, wide) - value) * convert(1.0 / (j - first + 1), wide)
        fill_columns(CENTER, t, tile, geometry, convert(convert(value, like), wide))
    cuda.syncthreads()


@device
def add_value(total, low, value):
    """Return (total + value, what this sum lost to rounding): Kahan's sum, where ``low`` was lost before.

    Without it, float32 sums of squares are biased where x lies on a grid, as at an offset of 1e4: a square is
    0 or 1 modulo 4 there, and rounded down more often than up.
    """
    term = value - low
    more = total + term
    return more, (more - total) - term


@device
def deviations(x, tile, geometry, factor, like, wide):
    """Leave this thread's sums of d and d * d in scratch, with d = (x - center) * factor."""
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(tile, geometry)
    s, q, low = convert(0.0, wide), convert(0.0, wide), convert(0.0, wide)
    if t < step:
        center = shared_load(CENTER, remainder(t, columns), wide)
        for e in range(t, tile.size, step):
            d = (convert(tile_load(x, e, like), wide) - center) * factor
            s += d
            q, low = add_value(q, low, d * d)
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)


@device
def tile_sums(x, tile, geometry, factor, like, wide):
    """Return the sums of d and d * d of channel c in thread c < across, with d = x - center.

    They are taken of d * factor in wide's dtype, see `deviations`, and divided by the factor in float64.
    """
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(tile, geometry)
    deviations(x, tile, geometry, factor, like, wide)
    tree(columns, step, wide)
    s, q = np.float64(0), np.float64(0)
    if t < tile.across:
        unit = np.float64(factor)
        s = channel_sum(SCRATCH, t, tile, geometry, wide) / unit
        q = channel_sum(SCRATCH + ROW, t, tile, geometry, wide) / (unit * unit)  # ** 2 would be a call
    return s, q


@device
def tile_moments(x, tile, geometry, like, wide):
    """Return (count, mean, m2) of channel c of the tile in thread c < across; sums have wide's dtype."""
    t = np.int64(cuda.threadIdx.x)
    estimate(x, tile, geometry, like, wide)
    # The attempts are the values as they are, multiplied by UP, and by DOWN; ``due`` is the one that this
    # thread's channel needs next, or 3. They are a loop, so that the code of the sums is there once.
    s, q, due = np.float64(0), np.float64(0), 0
    for attempt in range(3):
        if any_thread(due == attempt):
            factor = convert(1.0 if attempt == 0 else UP if attempt == 1 else DOWN, wide)
            some, squares = tile_sums(x, tile, geometry, factor, like, wide)
            if due == attempt:
                s, q, due = some, squares, 3
                if attempt == 0 and t < tile.across:
                    due = 1 if q < TINY else 3 if q < HUGE else 2
    n, center = np.float64(quotient(tile.size, tile.across)), np.float64(0)
    if t < tile.across:
        center = np.float64(shared_load(CENTER, t * geometry.inner if geometry.span > 1 else 0, wide))
    m2 = q - s * (s / n)
    if m2 < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2 = np.float64(0)
    return n, center + s / n, m2


@device
def tile_products(dy, x, tile, geometry, like):
    """Return the sums of dy and dy * (x - center) of channel c in thread c < across.

    ``dy`` and ``x`` are offsets of tiles in shared memory; row CENTER of the coefficients has been filled.
    """
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(tile, geometry)
    s, q, low_s, low_q = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    if t < step:
        center = shared_load(CENTER, remainder(t, columns), like)
        for e in range(t, tile.size, step):
            d = tile_load(dy, e, like)
            s, low_s = add_value(s, low_s, d)
            q, low_q = add_value(q, low_q, d * (tile_load(x, e, like) - center))
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)
    tree(columns, step, like)
    total, total_d = np.float64(0), np.float64(0)
    if t < tile.across:
        total = channel_sum(SCRATCH, t, tile, geometry, like)
        total_d = channel_sum(SCRATCH + ROW, t, tile, geometry, like)
    return total, total_d
