"""A tile: what one block keeps in shared memory, and what is done with it. Device functions for `kernels`.

A tile is rows of ``width`` elements, without gaps in shared memory. Where a group is one channel, so is the
tile. Otherwise (a narrow geometry) column j of at most 256 belongs to channel (j // inner) % across of the
group, and the last row may be shorter.

Shared memory holds one tile of `plan.TILE_BYTES` or two of half that, then four rows of coefficients, one per
column. While sums are taken, rows 1 to 3 of them are scratch, one value a thread.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.gpu import (
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

# Offsets in shared memory.
TILE = 0
HALF = plan.TILE_BYTES // 2  # the second of two tiles
ROW = plan.ROW_BYTES
CENTER = plan.TILE_BYTES
SCRATCH = CENTER + ROW
NO_TILE = -1


class Tile(NamedTuple):
    """Where a tile lies in its array: counts of elements."""

    first: int
    size: int
    width: int  # of a row
    stride: int  # from row to row
    across: int  # channels


@device
def quotient(a, b):
    """Return a // b of two numbers below 2**32: 32-bit division is several times as fast as 64-bit."""
    return np.int64(np.uint32(a) // np.uint32(b))


@device
def remainder(a, b):
    """Return a % b of two numbers below 2**32."""
    return np.int64(np.uint32(a) % np.uint32(b))


@device
def tile_at(geometry, g, t):
    """Tile t of group g."""
    across = min(geometry.block, geometry.channels - g * geometry.block)
    first = g * geometry.block * geometry.inner
    if geometry.pieces > 1:
        row = quotient(t, geometry.pieces)
        start = (t - row * geometry.pieces) * geometry.length
        size = min(geometry.length, geometry.inner - start)
        return Tile(first + row * geometry.channels * geometry.inner + start, size, size, size, across)
    width = geometry.copies * across * geometry.inner
    stride = geometry.copies * geometry.channels * geometry.inner
    start = t * geometry.rows
    size = min(geometry.rows * width, geometry.outer * across * geometry.inner - start * width)
    return Tile(first + start * stride, size, width, stride, across)


@device
def place(e, tile):
    """Where element e of a tile lies in the array."""
    if tile.width == tile.stride:
        return tile.first + e
    return tile.first + e + quotient(e, tile.width) * (tile.stride - tile.width)


@device
def load_tile(memory, x, tile, geometry, like):
    """Start copying a tile of x to shared memory; `finish_loads` waits for it."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = tile.size - tile.size % plan.VECTOR if geometry.vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        copy_async4(memory, e, x, place(e, tile), like)
    for e in range(whole + t, tile.size, threads):
        copy_async(memory, e, x, place(e, tile), like)


@device
def finish_loads():
    """Wait until what every thread of the block has begun to copy is there for all."""
    copy_wait()
    cuda.syncthreads()


@device
def write_tile(memory, dy, out, tile, geometry, like):
    """out = (x - center) * scale + shift, + dy * weight where dy is a tile in shared memory, too."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = tile.size - tile.size % plan.VECTOR if geometry.vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        j = remainder(e, tile.width) if geometry.block > 1 else 0
        x0, x1, x2, x3 = shared_load4(memory, e, like)
        k0, k1, k2, k3 = shared_load4(CENTER, j, like)
        a0, a1, a2, a3 = shared_load4(CENTER + ROW, j, like)
        b0, b1, b2, b3 = shared_load4(CENTER + 2 * ROW, j, like)
        y0, y1, y2, y3 = (x0 - k0) * a0 + b0, (x1 - k1) * a1 + b1, (x2 - k2) * a2 + b2, (x3 - k3) * a3 + b3
        if dy != NO_TILE:
            d0, d1, d2, d3 = shared_load4(dy, e, like)
            w0, w1, w2, w3 = shared_load4(CENTER + 3 * ROW, j, like)
            y0, y1, y2, y3 = y0 + d0 * w0, y1 + d1 * w1, y2 + d2 * w2, y3 + d3 * w3
        store4(out, place(e, tile), y0, y1, y2, y3)
    for e in range(whole + t, tile.size, threads):
        j = remainder(e, tile.width) if geometry.block > 1 else 0
        d = shared_load(memory, e, like) - shared_load(CENTER, j, like)
        y = d * shared_load(CENTER + ROW, j, like) + shared_load(CENTER + 2 * ROW, j, like)
        if dy != NO_TILE:
            y += shared_load(dy, e, like) * shared_load(CENTER + 3 * ROW, j, like)
        store(out, place(e, tile), y)


@device
def spread(row, c, tile, geometry, value):
    """Write channel c's value to all its columns of a row of coefficients: four, where it is alone."""
    if geometry.block > 1:
        for start in range(c * geometry.inner, tile.width, tile.across * geometry.inner):
            for j in range(start, start + geometry.inner):
                shared_store(row, j, value)
    else:
        for j in range(plan.VECTOR):
            shared_store(row, j, value)
