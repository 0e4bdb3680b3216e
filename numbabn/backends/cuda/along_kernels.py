"""Kernels for rows with one statistic each, and parameters that vary along them: layer norm and RMS norm.

A block keeps some rows in shared memory, or the pieces of one long row, one after the other, which it then
reads twice. What a row gives depends on nothing but the row. ``rows`` is a `plan.Rows`, ``like`` stands for
the dtype of x, as `arguments.zero` says; gamma and beta have the dtype that is computed in. The other tuples
are those of `arguments`. Where something follows the norm, y is an `arguments.Output`, and the inputs are
`arguments.GradientInputs`: see `epilogue`.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.coefficients import gradient_coefficients, normalize_coefficients
from numbabn.backends.cuda.epilogue import by_fours, load_beside, put, put_four
from numbabn.backends.cuda.gpu import (
    Kernel,
    array_store,
    array_store4,
    convert,
    cuda,
    device,
    load,
    load4,
    shared_load,
    shared_store,
    sqrt,
    store,
    tile_load,
    tile_load4,
)
from numbabn.backends.cuda.merging import merge
from numbabn.backends.cuda.parameters import load_parameter
from numbabn.backends.cuda.teams import (
    add_up,
    parameter_index,
    parameter_or,
    parameters_of,
    piece_at,
    piece_moments,
    piece_products,
    row_and_lane,
)
from numbabn.backends.cuda.tiles import (
    CENTER,
    HALF,
    ROW,
    TILE,
    derive_tile,
    finish_loads,
    give_tile,
    load_tile,
)
from numbabn.backends.cuda.walks import first_place, following, step_of


@Kernel
def forward(x, rows, like, affine_map, results, y):
    """y = xhat * gamma + beta, and every row's mean and biased variance."""
    first = np.int64(cuda.blockIdx.x) * rows.height
    sample = np.float64(0), np.float64(0), np.float64(0)
    for k in range(rows.pieces):
        tile = piece_at(rows, first, k)
        load_tile(x, tile, rows, like, TILE)
        finish_loads()
        sample = merge(sample, piece_moments(tile, rows, like))
    fill_normalize(sample, rows, first, like, affine_map, results)
    for k in range(rows.pieces - 1, -1, -1):  # the last piece is still there
        tile = piece_at(rows, first, k)
        if k < rows.pieces - 1:
            load_again(x, tile, rows, like, TILE)
            finish_loads()
        write_normalized(tile, rows, first, k * rows.piece, like, affine_map, y)


@Kernel
def backward(inputs, rows, like, statistics, scaling, dx):
    """dx = invstd * (e - mean(e) - xhat * mean(e * xhat)), with e = gamma * dy."""
    first = np.int64(cuda.blockIdx.x) * rows.height
    mean, var = row_statistics(rows, first, statistics)
    center, s, q = convert(mean, like), np.float64(0), np.float64(0)
    for k in range(rows.pieces):
        tile = piece_at(rows, first, k)
        load_again(inputs.x, tile, rows, like, TILE)
        load_tile(inputs.dy, tile, rows, like, HALF)
        finish_loads()
        derive_tile(inputs, tile, rows, like, HALF)
        some, more = piece_products(tile, rows, first, k * rows.piece, scaling.gamma, center, like)
        s, q = s + some, q + more
    sums = add_up(s, q, rows)
    fill_gradient(sums, rows, first, like, (mean, var), scaling)
    for k in range(rows.pieces - 1, -1, -1):
        tile = piece_at(rows, first, k)
        if k < rows.pieces - 1:
            load_again(inputs.x, tile, rows, like, TILE)
            load_tile(inputs.dy, tile, rows, like, HALF)
            finish_loads()
            derive_tile(inputs, tile, rows, like, HALF)
        write_gradient(tile, rows, first, k * rows.piece, like, scaling, dx)
        give_tile(inputs, tile, rows, like, HALF)


@device
def load_again(x, tile, rows, like, memory):
    """Begin to copy a tile over one that all threads of the block have read."""
    cuda.syncthreads()
    load_tile(x, tile, rows, like, memory)


@device
def row_statistics(rows, first, statistics):
    """Return (mean, variance) of this thread's row, or (0, 1) where it has none."""
    row, _ = row_and_lane(rows)
    if row >= min(rows.height, rows.number - first):
        return np.float64(0), np.float64(1)
    mean = load_parameter(statistics.mean, statistics.mean_kind, first + row, 0.0)
    return mean, load_parameter(statistics.var, statistics.var_kind, first + row, 1.0)


@device
def fill_normalize(sample, rows, first, like, affine_map, results):
    """Write every row's mean and variance, and its coefficients with (x - center) * scale + shift = xhat."""
    row, lane = row_and_lane(rows)
    if lane == 0 and row < min(rows.height, rows.number - first):
        count, mean, m2 = sample
        var = m2 / count
        if not affine_map.centered:
            mean, var = np.float64(0), var + mean * mean
        store(results.mean, first + row, mean)
        store(results.var, first + row, var)
        center = convert(mean, like)
        std = sqrt(var + affine_map.eps)
        scale, shift = normalize_coefficients(mean, std, 1.0, 0.0, np.float64(center))
        shared_store(CENTER, row, center)
        shared_store(CENTER + ROW, row, convert(scale, like))
        shared_store(CENTER + 2 * ROW, row, convert(shift, like))
    cuda.syncthreads()


@device
def fill_gradient(sums, rows, first, like, statistics, scaling):
    """Write every row's coefficients with ((x - center) * scale + e) * weight + shift = dx.

    ``sums`` and ``statistics`` are the values (sum of e, sum of e * (x - center)) and (mean, var) of this
    thread's row.
    """
    row, lane = row_and_lane(rows)
    if lane == 0 and row < min(rows.height, rows.number - first):
        (s, q), (mean, var), n = sums, statistics, np.float64(rows.length)
        std, center = sqrt(var + scaling.eps), convert(mean, like)
        mean_e = s / n if scaling.centered else np.float64(0)
        mean_e_xhat = (q - (mean - np.float64(center)) * s) / std / n
        scale, shift, weight = gradient_coefficients(mean, std, 1.0, mean_e, mean_e_xhat, np.float64(center))
        shared_store(CENTER, row, center)
        shared_store(CENTER + ROW, row, convert(scale, like))
        shared_store(CENTER + 2 * ROW, row, convert(shift, like))
        shared_store(CENTER + 3 * ROW, row, convert(weight, like))
    cuda.syncthreads()


@device
def write_normalized(tile, rows, first, start, like, affine_map, y):
    """Write y = ((x - center) * scale + shift) * gamma + beta for the piece that begins at ``start``."""
    gamma, beta, one = affine_map.gamma, affine_map.beta, convert(1.0, like)
    whole = tile.size if by_fours(y, rows.vector) and rows.inner == 1 else 0
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    while place.e < whole:
        c = parameters_of(rows, first + place.row) + start + place.j
        k, a = shared_load(CENTER, place.row, like), shared_load(CENTER + ROW, place.row, like)
        b = shared_load(CENTER + 2 * ROW, place.row, like)
        x0, x1, x2, x3 = tile_load4(TILE, place.e, like)
        y0, y1, y2, y3 = (x0 - k) * a + b, (x1 - k) * a + b, (x2 - k) * a + b, (x3 - k) * a + b
        if gamma != 0:
            g0, g1, g2, g3 = load_beside(y, gamma, c, like)
            y0, y1, y2, y3 = y0 * g0, y1 * g1, y2 * g2, y3 * g3
        if beta != 0:
            b0, b1, b2, b3 = load_beside(y, beta, c, like)
            y0, y1, y2, y3 = y0 + b0, y1 + b1, y2 + b2, y3 + b3
        put_four(y, place.i, y0, y1, y2, y3, like)
        place = following(place, step, tile)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    while place.e < tile.size:
        c = parameter_index(rows, parameters_of(rows, first + place.row), start + place.j)
        d = tile_load(TILE, place.e, like) - shared_load(CENTER, place.row, like)
        xhat = d * shared_load(CENTER + ROW, place.row, like) + shared_load(CENTER + 2 * ROW, place.row, like)
        value = xhat * parameter_or(gamma, c, one)
        if beta != 0:  # as above: adding 0 would turn -0 into 0
            value += load(beta, c, like)
        put(y, place.i, value, like)
        place = following(place, step, tile)


@device
def write_gradient(tile, rows, first, start, like, scaling, dx):
    """Write dx = ((x - center) * scale + dy * gamma) * weight + shift, as `write_normalized` writes y."""
    gamma, one = scaling.gamma, convert(1.0, like)
    whole = tile.size if rows.vector and rows.inner == 1 else 0
    step = step_of(tile, plan.VECTOR)
    place = first_place(tile, step, plan.VECTOR, 0)
    while place.e < whole:
        k, a = shared_load(CENTER, place.row, like), shared_load(CENTER + ROW, place.row, like)
        b, w = shared_load(CENTER + 2 * ROW, place.row, like), shared_load(CENTER + 3 * ROW, place.row, like)
        d0, d1, d2, d3 = tile_load4(HALF, place.e, like)
        if gamma != 0:
            c = parameters_of(rows, first + place.row) + start + place.j
            g0, g1, g2, g3 = load4(gamma, c, like)
            d0, d1, d2, d3 = d0 * g0, d1 * g1, d2 * g2, d3 * g3
        x0, x1, x2, x3 = tile_load4(TILE, place.e, like)
        d0, d1, d2, d3 = (x0 - k) * a + d0, (x1 - k) * a + d1, (x2 - k) * a + d2, (x3 - k) * a + d3
        array_store4(dx, place.i, d0 * w + b, d1 * w + b, d2 * w + b, d3 * w + b, like)
        place = following(place, step, tile)
    step = step_of(tile, 1)
    place = first_place(tile, step, 1, whole)
    while place.e < tile.size:
        c = parameter_index(rows, parameters_of(rows, first + place.row), start + place.j)
        d = tile_load(TILE, place.e, like) - shared_load(CENTER, place.row, like)
        d = d * shared_load(CENTER + ROW, place.row, like)
        d += tile_load(HALF, place.e, like) * parameter_or(gamma, c, one)
        d = d * shared_load(CENTER + 3 * ROW, place.row, like)
        array_store(dx, place.i, d + shared_load(CENTER + 2 * ROW, place.row, like), like)
        place = following(place, step, tile)
