"""A tile: what one block keeps in shared memory, how it gets there, and what is written from it.

A tile is rows of ``width`` elements, without gaps in shared memory. Where a group is one channel, all
elements of the tile belong to it. Otherwise (in a narrow geometry) there are at most 256 columns, column j
belongs to channel (j // inner) % across of the group, and the last row may be shorter.

Shared memory holds one tile of `plan.TILE_BYTES` or two of half that, then four rows of coefficients, with
one value per column: center, scale, shift and weight. Where statistics are shared, rows have half as many
columns at most, and gamma lies behind the centers. While sums are taken, the last three rows are scratch
memory, with one value per thread. Device functions for `kernels`.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.division import quotient
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
from numbabn.backends.cuda.walks import first_place, following, step_of, tile_of

# Offsets in shared memory, in bytes.
TILE = 0  # of the only tile, or of the first of two
HALF = plan.TILE_BYTES // 2  # of the second tile
CENTER = plan.TILE_BYTES  # of the first row of coefficients
ROW = plan.ROW_BYTES  # from one row to the next
SCRATCH = CENTER + ROW
GAMMA = CENTER + ROW // 2
NO_TILE = -1  # in place of an offset: there is no such tile


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
        return tile_of(first + row * geometry.channels * geometry.inner + start, size, size, size, across, 1)
    width = geometry.pixels * across * geometry.inner
    stride = geometry.pixels * geometry.channels * geometry.inner
    start = t * geometry.rows
    size = min(geometry.rows * width, geometry.outer * across * geometry.inner - start * width)
    columns = width if geometry.span > 1 else 1
    return tile_of(first + start * stride, size, width, stride, across, columns)


@device
def whole_vectors(tile, vector):
    """Return how many elements of a tile are read and written by fours, if any are, by ``vector``."""
    return tile.size - tile.size % plan.VECTOR if vector else np.int64(0)


@device
def load_tile(x, tile, geometry, like, memory):
    """Begin to copy a tile of x to shared memory at offset ``memory``; `finish_loads` waits for it."""
    lanes = copy_lanes(geometry.vector, like)
    whole = whole_vectors(tile, geometry.vector)
    step = step_of(tile, lanes)
    place = first_place(tile, step, lanes, 0)
    while place.e < whole:
        copy_vector(memory, place.e, x, place.i, min(lanes, whole - place.e), like)
        place = following(place, step, tile)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    while place.e < tile.size:
        copy_async(memory, place.e, x, place.i, like)
        place = following(place, step, tile)


@device
def finish_loads():
    """Wait until all threads of the block can read what each of them has begun to copy."""
    copy_wait()
    cuda.syncthreads()


@device
def column_of(place, tile, end):
    """Return the column of the coefficients of a thread that begins at a place, if that is below ``end``.

    Where all columns are alike that is the first, as where the thread needs none.
    """
    return place.j if tile.columns > 1 and place.e < end else np.int64(0)


@device
def write_affine(x, tile, geometry, like, out):
    """Write out = (x - center) * scale + shift.

    ``x`` is the offset of a tile in shared memory, ``out`` is the address of an array, or an
    `arguments.Output`. The rows of coefficients have been written by the functions of `coefficients`.
    """
    whole = whole_vectors(tile, by_fours(out, geometry.vector))
    if whole > 0:
        write_affine_fours(x, tile, whole, like, out)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    j = column_of(place, tile, tile.size)
    k, a = shared_load(CENTER, j, like), shared_load(CENTER + ROW, j, like)
    b = shared_load(CENTER + 2 * ROW, j, like)
    while place.e < tile.size:
        put(out, place.i, (tile_load(x, place.e, like) - k) * a + b, like)
        place = following(place, step, tile)


@device
def write_affine_fours(x, tile, whole, like, out):
    """Write the first ``whole`` elements of `write_affine`: coefficients stay in registers."""
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    j = column_of(place, tile, whole)
    k0, k1, k2, k3 = shared_load4(CENTER, j, like)
    a0, a1, a2, a3 = shared_load4(CENTER + ROW, j, like)
    b0, b1, b2, b3 = shared_load4(CENTER + 2 * ROW, j, like)
    while place.e < whole:
        x0, x1, x2, x3 = tile_load4(x, place.e, like)
        y0, y1, y2, y3 = (x0 - k0) * a0, (x1 - k1) * a1, (x2 - k2) * a2, (x3 - k3) * a3
        put_four(out, place.i, y0 + b0, y1 + b1, y2 + b2, y3 + b3, like)
        place = following(place, step, tile)


@device
def write_gradient(dy, x, gamma, tile, geometry, like, out):
    """Write out = ((x - center) * scale + dy) * weight + shift to the array at the address ``out``.

    ``dy`` and ``x`` are offsets of tiles in shared memory. Where ``gamma`` is not `NO_TILE`, but a row of
    coefficients, dy * gamma is in the place of dy.
    """
    whole = whole_vectors(tile, geometry.vector)
    if whole > 0:
        write_gradient_fours(dy, x, gamma, tile, whole, like, out)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    j = column_of(place, tile, tile.size)
    k, a = shared_load(CENTER, j, like), shared_load(CENTER + ROW, j, like)
    b, w = shared_load(CENTER + 2 * ROW, j, like), shared_load(CENTER + 3 * ROW, j, like)
    while place.e < tile.size:
        d = tile_load(dy, place.e, like)
        if gamma != NO_TILE:
            d = d * shared_load(gamma, j, like)
        array_store(out, place.i, ((tile_load(x, place.e, like) - k) * a + d) * w + b, like)
        place = following(place, step, tile)


@device
def write_gradient_fours(dy, x, gamma, tile, whole, like, out):
    """Write the first ``whole`` elements of `write_gradient`: coefficients stay in registers."""
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    j = column_of(place, tile, whole)
    k0, k1, k2, k3 = shared_load4(CENTER, j, like)
    a0, a1, a2, a3 = shared_load4(CENTER + ROW, j, like)
    b0, b1, b2, b3 = shared_load4(CENTER + 2 * ROW, j, like)
    w0, w1, w2, w3 = shared_load4(CENTER + 3 * ROW, j, like)
    while place.e < whole:
        x0, x1, x2, x3 = tile_load4(x, place.e, like)
        d0, d1, d2, d3 = tile_load4(dy, place.e, like)
        if gamma != NO_TILE:
            g0, g1, g2, g3 = shared_load4(gamma, j, like)
            d0, d1, d2, d3 = d0 * g0, d1 * g1, d2 * g2, d3 * g3
        d0, d1, d2, d3 = (x0 - k0) * a0 + d0, (x1 - k1) * a1 + d1, (x2 - k2) * a2 + d2, (x3 - k3) * a3 + d3
        d0, d1, d2, d3 = d0 * w0 + b0, d1 * w1 + b1, d2 * w2 + b2, d3 * w3 + b3
        array_store4(out, place.i, d0, d1, d2, d3, like)
        place = following(place, step, tile)


@device
def derive_elements(inputs, tile, geometry, like, memory):
    """Do what `derive_tile` does, but for the barrier."""
    whole = whole_vectors(tile, geometry.vector)
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    while place.e < whole:
        d0, d1, d2, d3 = tile_load4(memory, place.e, like)
        d0, d1, d2, d3 = derived_four(inputs, place.i, d0, d1, d2, d3)
        tile_store4(memory, place.e, d0, d1, d2, d3, like)
        place = following(place, step, tile)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    while place.e < tile.size:
        tile_store(memory, place.e, derived(inputs, place.i, tile_load(memory, place.e, like)), like)
        place = following(place, step, tile)


@device
def write_elements(tile, geometry, like, memory, out):
    """Write a tile at offset ``memory`` of shared memory to the array at the address ``out``, as it is."""
    whole = whole_vectors(tile, geometry.vector)
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    while place.e < whole:
        d0, d1, d2, d3 = tile_load4(memory, place.e, like)
        array_store4(out, place.i, d0, d1, d2, d3, like)
        place = following(place, step, tile)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    while place.e < tile.size:
        array_store(out, place.i, tile_load(memory, place.e, like), like)
        place = following(place, step, tile)


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

    Where a group is one channel, these are the first four, which are read at once.
    """
    if geometry.span > 1:
        for start in range(c * geometry.inner, tile.width, tile.across * geometry.inner):
            for j in range(start, start + geometry.inner):
                shared_store(row, j, value)
    else:
        for j in range(plan.VECTOR):
            shared_store(row, j, value)
