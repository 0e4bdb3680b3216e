"""A tile: what one block keeps in shared memory, how it gets there, and what is written from it.

A tile is rows of ``width`` elements, without gaps in shared memory. Where a group is one channel, all
elements of the tile belong to it. Otherwise (in a narrow geometry) there are at most 256 columns, column j
belongs to channel (j // inner) % across of the group, and the last row may be shorter.

Shared memory holds one tile of `plan.TILE_BYTES` or two of half that, then four rows of coefficients, with
one value per column: center, scale, shift and weight. Where statistics are shared, rows have half as many
columns at most, and gamma lies behind the centers. While sums are taken, the last three rows are scratch
memory, with one value per thread. Device functions for `kernels`.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.division import quotient, remainder
from numbabn.backends.cuda.epilogue import by_fours, derived, derived_four, put, put_four
from numbabn.backends.cuda.gpu import (
    adapted,
    array_store,
    array_store4,
    copy_async,
    copy_lanes,
    copy_vector,
    copy_wait,
    cuda,
    device,
    samples_of,
    shared_load,
    shared_load4,
    shared_store,
    tile_load,
    tile_load4,
    tile_store,
    tile_store4,
)

# Offsets in shared memory, in bytes.
TILE = 0  # of the only tile, or of the first of two
HALF = plan.TILE_BYTES // 2  # of the second tile
CENTER = plan.TILE_BYTES  # of the first row of coefficients
ROW = plan.ROW_BYTES  # from one row to the next
SCRATCH = CENTER + ROW
GAMMA = CENTER + ROW // 2
NO_TILE = -1  # in place of an offset: there is no such tile


class Tile(NamedTuple):
    """Where a tile lies in its array, in elements, and how many channels it has."""

    first: int  # the index of its first element
    size: int
    width: int  # of a row
    stride: int  # from row to row in the array
    across: int  # channels


@device
def channels_of(geometry, g):
    """Return (sample of group g, its first channel, number of its channels)."""
    _, groups, _ = samples_of(geometry)
    n = np.int64(0) if groups == 0 else quotient(g, groups)
    first = (g - n * groups) * geometry.span
    return n, first, min(geometry.span, geometry.channels - first)


@device
def sum_places(geometry):
    """Return the number of channels of all samples, each of which has sums of its own."""
    batch, _, _ = samples_of(geometry)
    return batch * geometry.channels


@device
def tile_at(geometry, g, t):
    """Return tile t of group g."""
    n, channel, across = channels_of(geometry, g)
    first = (n * geometry.outer * geometry.channels + channel) * geometry.inner
    if geometry.pieces > 1:
        row = quotient(t, geometry.pieces)
        start = (t - row * geometry.pieces) * geometry.length
        size = min(geometry.length, geometry.inner - start)
        return Tile(first + row * geometry.channels * geometry.inner + start, size, size, size, across)
    width = geometry.pixels * across * geometry.inner
    stride = geometry.pixels * geometry.channels * geometry.inner
    start = t * geometry.rows
    size = min(geometry.rows * width, geometry.outer * across * geometry.inner - start * width)
    return Tile(first + start * stride, size, width, stride, across)


@device
def array_index(e, tile):
    """Return the index in its array of element e of a tile."""
    if tile.width == tile.stride:
        return tile.first + e
    return tile.first + e + quotient(e, tile.width) * (tile.stride - tile.width)


@device
def load_tile(x, tile, geometry, like, memory):
    """Begin to copy a tile of x to shared memory at offset ``memory``; `finish_loads` waits for it."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    lanes = copy_lanes(geometry.vector, like)
    whole = tile.size - tile.size % plan.VECTOR if geometry.vector else 0
    for e in range(t * lanes, whole, threads * lanes):
        copy_vector(memory, e, x, array_index(e, tile), min(lanes, whole - e), like)
    for e in range(whole + t, tile.size, threads):
        copy_async(memory, e, x, array_index(e, tile), like)


@device
def finish_loads():
    """Wait until all threads of the block can read what each of them has begun to copy."""
    copy_wait()
    cuda.syncthreads()


@device
def write_tile(dy, x, gamma, tile, geometry, like, out):
    """Write out = (x - center) * scale + shift, or ((x - center) * scale + dy) * weight + shift.

    The second is written if ``dy`` is not ``NO_TILE``, with dy * gamma in place of dy if ``gamma``, a row
    of coefficients, is not.

    ``dy`` and ``x`` are offsets of tiles in shared memory, ``out`` is the address of an array, or an
    `arguments.Output`. The rows of coefficients have been written by the functions of `coefficients`.
    """
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = tile.size - tile.size % plan.VECTOR if by_fours(out, geometry.vector) else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        j = remainder(e, tile.width) if geometry.span > 1 else 0
        x0, x1, x2, x3 = tile_load4(x, e, like)
        k0, k1, k2, k3 = shared_load4(CENTER, j, like)
        a0, a1, a2, a3 = shared_load4(CENTER + ROW, j, like)
        b0, b1, b2, b3 = shared_load4(CENTER + 2 * ROW, j, like)
        y0, y1, y2, y3 = (x0 - k0) * a0, (x1 - k1) * a1, (x2 - k2) * a2, (x3 - k3) * a3
        if dy != NO_TILE:
            d0, d1, d2, d3 = tile_load4(dy, e, like)
            if gamma != NO_TILE:
                g0, g1, g2, g3 = shared_load4(gamma, j, like)
                d0, d1, d2, d3 = d0 * g0, d1 * g1, d2 * g2, d3 * g3
            w0, w1, w2, w3 = shared_load4(CENTER + 3 * ROW, j, like)
            y0, y1, y2, y3 = (y0 + d0) * w0, (y1 + d1) * w1, (y2 + d2) * w2, (y3 + d3) * w3
        put_four(out, array_index(e, tile), y0 + b0, y1 + b1, y2 + b2, y3 + b3, like)
    for e in range(whole + t, tile.size, threads):
        j = remainder(e, tile.width) if geometry.span > 1 else 0
        y = (tile_load(x, e, like) - shared_load(CENTER, j, like)) * shared_load(CENTER + ROW, j, like)
        if dy != NO_TILE:
            d = tile_load(dy, e, like)
            if gamma != NO_TILE:
                d = d * shared_load(gamma, j, like)
            y = (y + d) * shared_load(CENTER + 3 * ROW, j, like)
        put(out, array_index(e, tile), y + shared_load(CENTER + 2 * ROW, j, like), like)


@device
def derive_elements(inputs, tile, geometry, like, memory):
    """Do what `derive_tile` does, but for the barrier."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = tile.size - tile.size % plan.VECTOR if geometry.vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        d0, d1, d2, d3 = tile_load4(memory, e, like)
        d0, d1, d2, d3 = derived_four(inputs, array_index(e, tile), d0, d1, d2, d3)
        tile_store4(memory, e, d0, d1, d2, d3, like)
    for e in range(whole + t, tile.size, threads):
        tile_store(memory, e, derived(inputs, array_index(e, tile), tile_load(memory, e, like)), like)


@device
def write_elements(tile, geometry, like, memory, out):
    """Write a tile at offset ``memory`` of shared memory to the array at the address ``out``, as it is."""
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    whole = tile.size - tile.size % plan.VECTOR if geometry.vector else 0
    for e in range(t * plan.VECTOR, whole, threads * plan.VECTOR):
        d0, d1, d2, d3 = tile_load4(memory, e, like)
        array_store4(out, array_index(e, tile), d0, d1, d2, d3, like)
    for e in range(whole + t, tile.size, threads):
        array_store(out, array_index(e, tile), tile_load(memory, e, like), like)


def _derive_tile(inputs, tile, geometry, like, memory):
    if inputs.kept != 0:
        derive_elements(inputs, tile, geometry, like, memory)
        cuda.syncthreads()


@adapted(0, GradientInputs=_derive_tile)
def derive_tile(inputs, tile, geometry, like, memory):
    """Turn a tile of dy, at offset ``memory`` of shared memory, into one of the norm's gradient.

    They differ where ``inputs`` are `arguments.GradientInputs`. All threads of the block can read the result.
    In a tile of a half type it is rounded to that type, which changes nothing but dy times a slope.
    """


def _give_tile(inputs, tile, geometry, like, memory):
    if inputs.dresidual != 0:
        write_elements(tile, geometry, like, memory, inputs.dresidual)


@adapted(0, GradientInputs=_give_tile)
def give_tile(inputs, tile, geometry, like, memory):
    """Write what `derive_tile` left at offset ``memory`` to the gradient of the residual, if there is one."""


@device
def fill_columns(row, c, tile, geometry, value):
    """Write a value to all columns of channel c in a row of coefficients.

    Where a group is one channel, these are the first four, which is what `write_tile` reads at once.
    """
    if geometry.span > 1:
        for start in range(c * geometry.inner, tile.width, tile.across * geometry.inner):
            for j in range(start, start + geometry.inner):
                shared_store(row, j, value)
    else:
        for j in range(plan.VECTOR):
            shared_store(row, j, value)
