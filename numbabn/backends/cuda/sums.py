"""Sums over a tile, in a fixed order. Device functions for `reductions`.

Thread t sums the elements t, t + step, t + 2 * step, ... of a tile, where step is a multiple of the columns
that are kept apart, so that all of these are in one of them. The sums of threads of one column are added as a
tree; where all columns are alike, those of a warp are exchanged between its threads, and then the warps' ones
are added in order. Thread c < across adds what belongs to channel c; the results of the other threads mean
nothing.
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
    shared_load,
    shared_store,
    tile_load,
    warp_sum,
)
from numbabn.backends.cuda.tiles import CENTER, ROW, SCRATCH, fill_columns

# A float32 sum of squares below TINY has lost digits, and one above HUGE may have overflowed: it is taken
# again, of values that are multiplied by UP or DOWN.
TINY, HUGE = 1e-30, 1e30
UP, DOWN = 2.0**80, 2.0**-80


@device
def own_elements(tile):
    """Return (t, step, e): thread t sums the elements e, e + step, ..., which are in one column."""
    t = np.int64(cuda.threadIdx.x)
    step = quotient(plan.THREADS, tile.columns) * tile.columns
    return t, np.int32(step), np.int32(t if t < step else tile.size)


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
def leave_warp_sums(s, q):
    """Leave the sums over every warp in the first `plan.WARPS` places of two rows of scratch."""
    t = np.int64(cuda.threadIdx.x)
    s, q = warp_sum(s), warp_sum(q)
    if t % plan.WARP == 0:
        shared_store(SCRATCH, t // plan.WARP, s)
        shared_store(SCRATCH + ROW, t // plan.WARP, q)
    cuda.syncthreads()


@device
def add_warps(row, like):
    """Return the sum, in float64, of what `leave_warp_sums` has left in a row of scratch."""
    total = np.float64(0)
    for k in range(plan.WARPS):
        total += np.float64(shared_load(row, k, like))
    return total


@device
def add_columns(row, tile, geometry, like):
    """Return the sum, in float64, of the columns of this thread's channel in a row of scratch."""
    total = np.float64(0)
    for start in range(np.int64(cuda.threadIdx.x) * geometry.inner, tile.width, tile.across * geometry.inner):
        for j in range(start, start + geometry.inner):
            total += np.float64(shared_load(row, j, like))
    return total


@device
def channel_sums(s, q, tile, geometry):
    """Return the sums of s and of q over the threads of channel c, in float64, in thread c < across."""
    t, total, total_q = np.int64(cuda.threadIdx.x), np.float64(0), np.float64(0)
    if tile.columns == 1:
        leave_warp_sums(s, q)
        if t == 0:
            total, total_q = add_warps(SCRATCH, s), add_warps(SCRATCH + ROW, q)
    else:
        shared_store(SCRATCH, t, s)
        shared_store(SCRATCH + ROW, t, q)
        _, step, _ = own_elements(tile)
        tree(tile.columns, step, s)
        if t < tile.across:
            total = add_columns(SCRATCH, tile, geometry, s)
            total_q = add_columns(SCRATCH + ROW, tile, geometry, q)
    return total, total_q


@device
def average(a, b):
    """Return the average of two values: of equal ones that value exactly."""
    return a + (b - a) * convert(0.5, a)


@device
def leave_averages(x, tile, like, wide):
    """Leave an average of first elements in scratch: of every column, or of every warp that has any.

    It is taken of two at a time.
    """
    t, step, _ = own_elements(tile)
    known = min(step, tile.size)
    value = convert(tile_load(x, t if t < known else 0, like), wide)
    if tile.columns == 1:
        distance = plan.WARP >> 1
        while distance > 0:
            other = exchange(value, distance)
            if t + distance < known:
                value = average(value, other)
            distance >>= 1
        if t % plan.WARP == 0:
            shared_store(SCRATCH, t // plan.WARP, value)
    else:
        shared_store(SCRATCH, t, value)
        height = quotient(step, tile.columns)
        while height > 1:
            half = (height + 1) // 2
            cuda.syncthreads()
            other = t + half * tile.columns
            if t < (height - half) * tile.columns and other < known:
                a, b = shared_load(SCRATCH, t, wide), shared_load(SCRATCH, other, wide)
                shared_store(SCRATCH, t, average(a, b))
            height = half
    cuda.syncthreads()
    return known


@device
def estimate(x, tile, geometry, like, wide):
    """Fill row CENTER of the coefficients with a value near each channel's mean, of like's dtype.

    The value is an average of every thread's first element: of equal elements it is that element exactly.
    """
    t, known = np.int64(cuda.threadIdx.x), leave_averages(x, tile, like, wide)
    if t < tile.across:
        if tile.columns == 1:
            first, last = np.int64(0), (known + plan.WARP - 1) // plan.WARP
        else:
            first = t * geometry.inner
            last = min(first + min(geometry.inner, 8), known)
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
def deviations(x, tile, factor, like, wide):
    """Return this thread's sums of d and d * d, with d = (x - center) * factor."""
    t, step, e = own_elements(tile)
    sums = convert(0.0, wide), convert(0.0, wide), convert(0.0, wide)
    center = shared_load(CENTER, remainder(t, tile.columns), wide)
    if step == plan.THREADS:
        while e < tile.size - 3 * plan.THREADS:
            sums = add_squares(sums, load_below(x, e, like), center, factor, wide)
            e = np.int32(e + plan.VECTOR * plan.THREADS)
    while e < tile.size:
        sums = add_square(sums, tile_load(x, e, like), center, factor, wide)
        e = np.int32(e + step)
    return sums[0], sums[1]


@device
def load_below(memory, e, like):
    """Return four elements of a tile from e on, each `plan.THREADS` after the one before.

    This distance is known to the compiler, so that no addresses are computed but the first one.
    """
    a, b = tile_load(memory, e, like), tile_load(memory, e + plan.THREADS, like)
    c, d = tile_load(memory, e + 2 * plan.THREADS, like), tile_load(memory, e + 3 * plan.THREADS, like)
    return a, b, c, d


@device
def add_square(sums, x, center, factor, wide):
    """Add d and d * d to (sum of d, that of d * d, what the latter has lost); d = (x - center) * factor."""
    s, q, low = sums
    d = (convert(x, wide) - center) * factor
    q, low = add_value(q, low, d * d)
    return s + d, q, low


@device
def add_squares(sums, four, center, factor, wide):
    """`add_square` for four elements."""
    sums = add_square(sums, four[0], center, factor, wide)
    sums = add_square(sums, four[1], center, factor, wide)
    sums = add_square(sums, four[2], center, factor, wide)
    return add_square(sums, four[3], center, factor, wide)


@device
def inverse(factor):
    """Return 1 / factor for one of 1, UP and DOWN."""
    return 1.0 if factor == 1.0 else DOWN if factor == UP else UP


@device
def tile_sums(x, tile, geometry, factor, like, wide):
    """Return the sums of d and d * d of channel c in thread c < across, with d = x - center.

    They are taken of d * factor in wide's dtype, see `deviations`, and the factor is undone in float64.
    """
    s, q = deviations(x, tile, convert(factor, wide), like, wide)
    total, total_q = channel_sums(s, q, tile, geometry)
    unit = inverse(factor)
    return total * unit, total_q * (unit * unit)


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
            factor = 1.0 if attempt == 0 else UP if attempt == 1 else DOWN
            some, squares = tile_sums(x, tile, geometry, factor, like, wide)
            if due == attempt:
                s, q, due = some, squares, 3
                if attempt == 0 and t < tile.across:
                    due = 1 if q < TINY else 3 if q < HUGE else 2
    n, center = np.float64(quotient(tile.size, tile.across)), np.float64(0)
    if t < tile.across:
        center = np.float64(shared_load(CENTER, t * geometry.inner if tile.columns > 1 else 0, wide))
    m2 = q - s * (s / n)
    if m2 < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2 = np.float64(0)
    return n, center + s / n, m2


@device
def tile_products(dy, x, tile, geometry, like):
    """Return the sums of dy and dy * (x - center) of channel c in thread c < across.

    ``dy`` and ``x`` are offsets of tiles in shared memory; row CENTER of the coefficients has been filled.
    """
    s, q = products(dy, x, tile, like)
    return channel_sums(s, q, tile, geometry)


@device
def products(dy, x, tile, like):
    """Return this thread's sums of dy and dy * (x - center)."""
    t, step, e = own_elements(tile)
    zero = convert(0.0, like)
    sums = zero, zero, zero, zero
    center = shared_load(CENTER, remainder(t, tile.columns), like)
    if step == plan.THREADS:
        while e < tile.size - 3 * plan.THREADS:
            sums = add_products(sums, load_below(dy, e, like), load_below(x, e, like), center)
            e = np.int32(e + plan.VECTOR * plan.THREADS)
    while e < tile.size:
        sums = add_product(sums, tile_load(dy, e, like), tile_load(x, e, like), center)
        e = np.int32(e + step)
    return sums[0], sums[1]


@device
def add_product(sums, d, x, center):
    """Add d and d * (x - center) to this thread's sums (of the one, of the other, what each has lost)."""
    s, q, low_s, low_q = sums
    s, low_s = add_value(s, low_s, d)
    q, low_q = add_value(q, low_q, d * (x - center))
    return s, q, low_s, low_q


@device
def add_products(sums, d, x, center):
    """`add_product` for four elements."""
    sums = add_product(sums, d[0], x[0], center)
    sums = add_product(sums, d[1], x[1], center)
    sums = add_product(sums, d[2], x[2], center)
    return add_product(sums, d[3], x[3], center)
