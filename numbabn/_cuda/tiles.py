"""A tile: what one block keeps in shared memory, and what is done with it. Device functions for `kernels`.

A tile is ``size`` elements in rows of ``width``; rows lie ``stride`` elements apart in the array and without
gaps in shared memory. Where a group is one channel (a wide group), so is the tile. Otherwise (narrow) every
row has the same ``width`` <= 256 columns, column j belonging to channel (j // inner) % across of the group, and
the last row may be shorter.

Shared memory: one tile of `plan.TILE_BYTES` or two of half that, then four
rows of coefficients per column. While sums are taken, rows 1 to 3 of them are scratch, a value a thread.
"""

import numpy as np

from numbabn._cuda import plan
from numbabn._cuda.gpu import (
    convert,
    copy_async,
    copy_async4,
    copy_wait,
    cuda,
    device,
    shared_load,
    shared_load4,
    shared_store,
    store,
    store4,
)

ROW = plan.ROW_BYTES
TILE = 0
HALF = plan.TILE_BYTES // 2  # where the second of two tiles begins
NO_TILE = -1  # an address
CENTER = plan.TILE_BYTES
SCRATCH = CENTER + ROW

# Sums of squares outside these have lost digits of float32, or overflowed: taken again, scaled by 2**(+-80).
TINY, HUGE = 1e-30, 1e30
UP, DOWN = 2.0**80, 2.0**-80


@device
def quotient(a, b):
    """Return a // b of two numbers below 2**32: 32-bit division is several times as fast as 64-bit."""
    return np.int64(np.uint32(a) // np.uint32(b))


@device
def remainder(a, b):
    """Return a % b of two numbers below 2**32."""
    return np.int64(np.uint32(a) % np.uint32(b))


@device
def bounds(geometry, g, t):
    """(first element, size, width, stride, channels) of tile t of group g."""
    outer, channels, inner, block, copies, rows, pieces, length = geometry[:8]
    across = min(block, channels - g * block)
    first = g * block * inner
    if pieces > 1:
        row = quotient(t, pieces)
        start = (t - row * pieces) * length
        size = min(length, inner - start)
        return first + row * channels * inner + start, size, size, size, across
    width, stride = copies * across * inner, copies * channels * inner
    size = min(rows * width, outer * across * inner - t * rows * width)
    return first + t * rows * stride, size, width, stride, across


@device
def place(e, width, stride):
    """Where element e of a tile lies in the array, counted from its first element."""
    return e if width == stride else e + quotient(e, width) * (stride - width)


@device
def load_tile(tile, x, first, size, width, stride, vector, like):
    """Start copying a tile of x to shared memory; `finish_loads` waits for it."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = size - size % plan.VECTOR if vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        copy_async4(tile, e, x, first + place(e, width, stride), like)
    for e in range(whole + t, size, threads):
        copy_async(tile, e, x, first + place(e, width, stride), like)


@device
def finish_loads():
    """Wait until what every thread of the block has begun to copy is there for all."""
    copy_wait()
    cuda.syncthreads()


@device
def write_tile(tile, dy, out, first, size, width, stride, narrow, vector, like):
    """out = (x - center) * scale + shift + dy * weight; ``dy`` is a tile in shared memory, or negative."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = size - size % plan.VECTOR if vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        j = remainder(e, width) if narrow else 0
        x0, x1, x2, x3 = shared_load4(tile, e, like)
        k0, k1, k2, k3 = shared_load4(CENTER, j, like)
        a0, a1, a2, a3 = shared_load4(CENTER + ROW, j, like)
        b0, b1, b2, b3 = shared_load4(CENTER + 2 * ROW, j, like)
        y0, y1, y2, y3 = (x0 - k0) * a0 + b0, (x1 - k1) * a1 + b1, (x2 - k2) * a2 + b2, (x3 - k3) * a3 + b3
        if dy >= 0:
            d0, d1, d2, d3 = shared_load4(dy, e, like)
            w0, w1, w2, w3 = shared_load4(CENTER + 3 * ROW, j, like)
            y0, y1, y2, y3 = y0 + d0 * w0, y1 + d1 * w1, y2 + d2 * w2, y3 + d3 * w3
        store4(out, first + place(e, width, stride), y0, y1, y2, y3)
    for e in range(whole + t, size, threads):
        j = remainder(e, width) if narrow else 0
        y = (shared_load(tile, e, like) - shared_load(CENTER, j, like)) * shared_load(CENTER + ROW, j, like)
        y += shared_load(CENTER + 2 * ROW, j, like)
        if dy >= 0:
            y += shared_load(dy, e, like) * shared_load(CENTER + 3 * ROW, j, like)
        store(out, first + place(e, width, stride), y)


@device
def spread(row, c, width, across, inner, narrow, value):
    """Write channel c's value to all its columns of a row of coefficients; of a wide tile, to four."""
    if narrow:
        for start in range(c * inner, width, across * inner):
            for j in range(start, start + inner):
                shared_store(row, j, value)
    else:
        for j in range(plan.VECTOR):
            shared_store(row, j, value)
