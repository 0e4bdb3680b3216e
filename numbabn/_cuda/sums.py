"""Sums over a tile, in a fixed order. Device functions for `kernels`.

Thread t sums the elements t, t + step, t + 2 * step, ... of a tile: in a narrow tile step is a multiple of
the width, so that they are of one column. The threads' sums are added as a tree, then thread c < across
adds the columns of channel c, and goes on alone.
"""

import numpy as np

from numbabn._cuda.gpu import any_thread, convert, cuda, device, shared_load, shared_store
from numbabn._cuda.tiles import CENTER, DOWN, HUGE, ROW, SCRATCH, TINY, UP, quotient, remainder, spread


@device
def thread_step(width, narrow):
    """(columns, step): threads from step on have nothing to sum."""
    threads = np.int64(cuda.blockDim.x)
    if narrow:
        return width, quotient(threads, width) * width
    return np.int64(1), threads


@device
def tree(columns, step, like):
    """Add up two rows of scratch, the values of the threads below ``step``, into the first ``columns``."""
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
def channel_sum(row, c, width, across, inner, narrow, like):
    """Sum of channel c's columns of a row of scratch, in float64."""
    if not narrow:
        return np.float64(shared_load(row, 0, like))
    total = np.float64(0)
    for start in range(c * inner, width, across * inner):
        for j in range(start, start + inner):
            total += np.float64(shared_load(row, j, like))
    return total


@device
def estimate(tile, size, width, across, inner, narrow, like, wide):
    """Fill row CENTER of the coefficients with a value near each channel's mean: of each thread's first.

    Averages of two, so that equal values stay what they are.
    """
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(width, narrow)
    known = min(step, size)
    if t < known:
        shared_store(SCRATCH, t, convert(shared_load(tile, t, like), wide))
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
    if t < across:
        first = t * inner if narrow else 0
        last = min(first + inner, first + 8, known) if narrow else 1
        value = shared_load(SCRATCH, first, wide)
        for j in range(first + 1, last):
            value += (shared_load(SCRATCH, j, wide) - value) * convert(1.0 / (j - first + 1), wide)
        value = convert(convert(value, like), wide)
        spread(CENTER, t, width, across, inner, narrow, value)
    cuda.syncthreads()


@device
def deviations(tile, size, width, narrow, factor, like, wide):
    """Leave this thread's sums of d and d * d in scratch, d = (x - center) * factor.

    Squares are summed with Kahan's compensation: float32 sums of them are biased where x lies on a grid, as
    at an offset of 1e4, where a square is 0 or 1 modulo 4 and rounded down more often than up.
    """
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(width, narrow)
    s, q, low = convert(0.0, wide), convert(0.0, wide), convert(0.0, wide)
    if t < step:
        center = shared_load(CENTER, remainder(t, columns), wide)
        for e in range(t, size, step):
            d = (convert(shared_load(tile, e, like), wide) - center) * factor
            s += d
            term = d * d - low
            more = q + term
            low = (more - q) - term
            q = more
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)


@device
def tile_sums(tile, size, width, across, inner, narrow, factor, like, wide):
    """Sums of d and d * d of channel c for thread c < across, d = (x - center) * factor."""
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(width, narrow)
    deviations(tile, size, width, narrow, factor, like, wide)
    tree(columns, step, wide)
    s, q = np.float64(0), np.float64(0)
    if t < across:
        s = channel_sum(SCRATCH, t, width, across, inner, narrow, wide) / np.float64(factor)
        q = channel_sum(SCRATCH + ROW, t, width, across, inner, narrow, wide) / np.float64(factor) ** 2
    return s, q


@device
def tile_moments(tile, size, width, across, inner, narrow, like, wide):
    """(count, mean, m2) of channel c of the tile for thread c < across; sums in wide's dtype."""
    t = np.int64(cuda.threadIdx.x)
    estimate(tile, size, width, across, inner, narrow, like, wide)
    s, q, scaling = np.float64(0), np.float64(0), 0
    for attempt in range(
        3
    ):  # unscaled, scaled up, scaled down; a loop, so that there is one copy of the code
        if any_thread(scaling == attempt):
            factor = convert(1.0 if attempt == 0 else UP if attempt == 1 else DOWN, wide)
            some, squares = tile_sums(tile, size, width, across, inner, narrow, factor, like, wide)
            if scaling == attempt:
                s, q, scaling = some, squares, 3
                if attempt == 0 and t < across:
                    scaling = 1 if q < TINY else 3 if q < HUGE else 2
    n = np.float64(quotient(size, across))
    center = np.float64(0)
    if t < across:
        center = np.float64(shared_load(CENTER, t * inner if narrow else 0, wide))
    m2 = q - s * (s / n)
    if m2 < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2 = np.float64(0)
    return n, center + s / n, m2


@device
def tile_products(tile, dy, size, width, across, inner, narrow, like):
    """Sums of dy and dy * (x - center) of channel c for thread c < across; row CENTER is filled."""
    t = np.int64(cuda.threadIdx.x)
    columns, step = thread_step(width, narrow)
    s, q, low_s, low_q = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    if t < step:
        center = shared_load(CENTER, remainder(t, columns), like)
        for e in range(t, size, step):
            d = shared_load(dy, e, like)
            term = d - low_s
            more = s + term
            low_s = (more - s) - term
            s = more
            term = d * (shared_load(tile, e, like) - center) - low_q
            more = q + term
            low_q = (more - q) - term
            q = more
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)
    tree(columns, step, like)
    total, total_d = np.float64(0), np.float64(0)
    if t < across:
        total = channel_sum(SCRATCH, t, width, across, inner, narrow, like)
        total_d = channel_sum(SCRATCH + ROW, t, width, across, inner, narrow, like)
    return total, total_d
