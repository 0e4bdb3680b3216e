"""The kernels: one launch each, a block a part of a group of channels. See `tiles` for what they work on.

A parameter is a pair (pointer, kind), see `gpu.load_parameter`; mean, var and sums are pointers to float64
where a kernel writes them. ``like`` is a zero of the dtype of x. ``partials`` and ``workspace`` are those of
`groups`; they are not looked at where a group has one part.
"""

import numpy as np

from numbabn._cuda.gpu import (
    Kernel,
    convert,
    cuda,
    device,
    load_parameter,
    peek,
    sqrt,
    store,
    store_parameter,
)
from numbabn._cuda.groups import (
    COUNTERS,
    announce,
    arrive,
    await_flag,
    leave,
    merge,
    merge_parts,
    put_partial,
    slot,
    take_ticket,
)
from numbabn._cuda.sums import tile_moments, tile_products
from numbabn._cuda.tiles import (
    CENTER,
    HALF,
    NO_TILE,
    ROW,
    TILE,
    bounds,
    finish_loads,
    load_tile,
    quotient,
    spread,
    write_tile,
)


@device
def group_of(geometry):
    """(groups, parts of a group, channels of a group)."""
    return geometry[11], geometry[12], geometry[3]


# Statistics --------------------------------------------------------------------------------------------------


@device
def part_moments(tile, x, geometry, g, part, like, wide):
    """(count, mean, m2) of channel c of a part's tiles for thread c; the last tile stays in shared memory."""
    inner, vector, narrow, tiles, step = geometry[2], geometry[8], geometry[3] > 1, geometry[9], geometry[10]
    count, mean, m2 = np.float64(0), np.float64(0), np.float64(0)
    for k in range(part * step, min((part + 1) * step, tiles)):
        first, size, width, stride, across = bounds(geometry, g, k)
        load_tile(tile, x, first, size, width, stride, vector, like)
        finish_loads()
        n, other, other_m2 = tile_moments(tile, size, width, across, inner, narrow, like, wide)
        count, mean, m2 = merge(count, mean, m2, n, other, other_m2)
    return count, mean, m2


@device
def finish_moments(geometry, g, part, count, mean, m2, divide, means, variances, workspace, partials):
    """Merge the parts of a group and write the result; tell whether this block did."""
    groups, parts, block = group_of(geometry)
    t, across = np.int64(cuda.threadIdx.x), min(block, geometry[1] - g * block)
    if parts > 1:
        if t < across:
            put_partial(slot(partials, g, part, parts, block, t), count, mean, m2)
        if not arrive(workspace, COUNTERS + g, parts):
            return False
        count, mean, m2 = merge_parts(partials, g, parts, block, across, True)
    if t < across:
        store(means, g * block + t, mean)
        store(variances, g * block + t, m2 / count if divide else m2)
    return True


@Kernel
def moments(x, geometry, divide, means, variances, workspace, partials, like, wide):
    """Mean and m2 of every channel, or the variance if ``divide``; sums of a tile in the dtype of wide."""
    groups = group_of(geometry)[0]
    part = quotient(np.int64(cuda.blockIdx.x), groups)
    g = np.int64(cuda.blockIdx.x) - part * groups
    count, mean, m2 = part_moments(TILE, x, geometry, g, part, like, wide)
    if finish_moments(geometry, g, part, count, mean, m2, divide, means, variances, workspace, partials):
        if cuda.threadIdx.x == 0 and geometry[12] > 1:
            store(workspace, COUNTERS + g, np.int32(0))


@device
def part_products(tile, x, dy, geometry, g, part, mean, like):
    """Sums of dy and dy * (x - center) of channel c of a part's tiles for thread c; see `part_moments`."""
    inner, vector, narrow, tiles, step = geometry[2], geometry[8], geometry[3] > 1, geometry[9], geometry[10]
    t, s, q = np.int64(cuda.threadIdx.x), np.float64(0), np.float64(0)
    for k in range(part * step, min((part + 1) * step, tiles)):
        first, size, width, stride, across = bounds(geometry, g, k)
        load_tile(tile, x, first, size, width, stride, vector, like)
        load_tile(HALF, dy, first, size, width, stride, vector, like)
        if t < across:
            spread(CENTER, t, width, across, inner, narrow, convert(mean, like))
        finish_loads()
        more, more_d = tile_products(tile, HALF, size, width, across, inner, narrow, like)
        s, q = s + more, q + more_d
    return s, q


@device
def finish_products(geometry, g, part, s, q, mean, var, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Add up the parts of a group and write the sums and gradients; tell whether this block did."""
    groups, parts, block = group_of(geometry)
    t, across = np.int64(cuda.threadIdx.x), min(block, geometry[1] - g * block)
    c = g * block + t
    if parts > 1:
        if t < across:
            put_partial(slot(partials, g, part, parts, block, t), np.float64(0), s, q)
        if not arrive(workspace, COUNTERS + g, parts):
            return False
        _, s, q = merge_parts(partials, g, parts, block, across, False)
    if t < across:
        q = (q - (mean - np.float64(convert(mean, like))) * s) / sqrt(var + eps)
        store(sums, c, s)
        store(sums, geometry[1] + c, q)
        store_parameter(dbeta, c, s)
        store_parameter(dgamma, c, q)
    return True


@device
def load_statistics(mean, var, geometry, g):
    """(mean, var) of channel c of a group for thread c; 0 and 1 for the others."""
    t, block = np.int64(cuda.threadIdx.x), geometry[3]
    if t < min(block, geometry[1] - g * block):
        return load_parameter(mean, g * block + t, 0.0), load_parameter(var, g * block + t, 1.0)
    return np.float64(0), np.float64(1)


@Kernel
def products(x, dy, geometry, mean, var, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Sums of dy and dy * xhat of every channel, float64 [2, channels], and as gradients."""
    groups = group_of(geometry)[0]
    part = quotient(np.int64(cuda.blockIdx.x), groups)
    g = np.int64(cuda.blockIdx.x) - part * groups
    m, v = load_statistics(mean, var, geometry, g)
    s, q = part_products(TILE, x, dy, geometry, g, part, m, like)
    if finish_products(geometry, g, part, s, q, m, v, eps, sums, dgamma, dbeta, workspace, partials, like):
        if cuda.threadIdx.x == 0 and geometry[12] > 1:
            store(workspace, COUNTERS + g, np.int32(0))


# Results -----------------------------------------------------------------------------------------------------


@device
def fill(row, width, across, geometry, value):
    """Write thread c's value to channel c's columns of a row of coefficients."""
    if cuda.threadIdx.x < across:
        spread(row, np.int64(cuda.threadIdx.x), width, across, geometry[2], geometry[3] > 1, value)


@device
def fill_affine(width, across, geometry, g, mean, var, gamma, beta, eps, like):
    """Coefficients of y = (x - mean) / sqrt(var + eps) * gamma + beta; what rounding the mean lost is in shift."""
    c = g * geometry[3] + np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows were scratch
    if cuda.threadIdx.x < across:
        center = convert(mean, like)
        scale = load_parameter(gamma, c, 1.0) / sqrt(var + eps)
        shift = load_parameter(beta, c, 0.0) - (mean - np.float64(center)) * scale
        fill(CENTER, width, across, geometry, center)
        fill(CENTER + ROW, width, across, geometry, convert(scale, like))
        fill(CENTER + 2 * ROW, width, across, geometry, convert(shift, like))
    cuda.syncthreads()


@device
def fill_gradient(width, across, geometry, g, mean, var, gamma, eps, count, sum_dy, sum_dy_xhat, like):
    """Coefficients of dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat))."""
    c = g * geometry[3] + np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows were scratch
    if cuda.threadIdx.x < across:
        center = convert(mean, like)
        invstd = 1.0 / sqrt(var + eps)
        weight = load_parameter(gamma, c, 1.0) * invstd
        scale = -weight * invstd * (sum_dy_xhat / count)
        shift = -weight * (sum_dy / count) - scale * (mean - np.float64(center))
        fill(CENTER, width, across, geometry, center)
        fill(CENTER + ROW, width, across, geometry, convert(scale, like))
        fill(CENTER + 2 * ROW, width, across, geometry, convert(shift, like))
        fill(CENTER + 3 * ROW, width, across, geometry, convert(weight, like))
    cuda.syncthreads()


@device
def backwards(geometry):
    """(group, tile) of this block, the last tile first: what was read last is still in the cache."""
    groups = group_of(geometry)[0]
    k = np.int64(cuda.gridDim.x) - 1 - np.int64(cuda.blockIdx.x)
    t = quotient(k, groups)
    return k - t * groups, t


@Kernel
def normalize(x, y, geometry, mean, var, gamma, beta, eps, like):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta, a block a tile."""
    g, k = backwards(geometry)
    first, size, width, stride, across = bounds(geometry, g, k)
    load_tile(TILE, x, first, size, width, stride, geometry[8], like)
    m, v = load_statistics(mean, var, geometry, g)
    fill_affine(width, across, geometry, g, m, v, gamma, beta, eps, like)
    finish_loads()
    write_tile(TILE, NO_TILE, y, first, size, width, stride, geometry[3] > 1, geometry[8], like)


@Kernel
def gradient(x, dy, dx, geometry, mean, var, gamma, eps, sums, count, like):
    """dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count), a block a tile."""
    g, k = backwards(geometry)
    first, size, width, stride, across = bounds(geometry, g, k)
    load_tile(TILE, x, first, size, width, stride, geometry[8], like)
    load_tile(HALF, dy, first, size, width, stride, geometry[8], like)
    m, v = load_statistics(mean, var, geometry, g)
    s, q = load_statistics(sums, (sums[0] + 8 * geometry[1], sums[1]), geometry, g)
    fill_gradient(width, across, geometry, g, m, v, gamma, eps, count, s, q, like)
    finish_loads()
    write_tile(TILE, HALF, dx, first, size, width, stride, geometry[3] > 1, geometry[8], like)


# Both in one: a tile stays in shared memory while the blocks of its group find their sums -------------------


@device
def take_part(geometry, workspace):
    """(group, part) of this block."""
    parts = geometry[12]
    ticket = take_ticket(workspace) if parts > 1 else np.int64(cuda.blockIdx.x)
    g = quotient(ticket, parts)
    return g, ticket - g * parts


@device
def meet(geometry, g, ready, workspace):
    """Wait until the group's result, which one block has written, can be read by all."""
    groups, parts, _ = group_of(geometry)
    if parts == 1:
        cuda.syncthreads()
    elif ready:
        announce(workspace, COUNTERS + groups + g)
    else:
        await_flag(workspace, COUNTERS + groups + g)


@device
def part_ways(geometry, workspace):
    """Leave the workspace as it was found."""
    groups, parts, _ = group_of(geometry)
    if parts > 1:
        leave(workspace, groups)


@device
def peek_pair(first, second, geometry, g):
    """Two float64 of channel c of a group for thread c, as another block wrote them."""
    t, block, zero = np.int64(cuda.threadIdx.x), geometry[3], np.float64(0)
    if t < min(block, geometry[1] - g * block):
        return peek(first, g * block + t, zero), peek(second, g * block + t, zero)
    return zero, zero


@Kernel
def forward(x, y, geometry, gamma, beta, eps, means, variances, workspace, partials, like):
    """Training forward: x is read once. A part is one tile, and all parts of a group are resident."""
    g, part = take_part(geometry, workspace)
    count, mean, m2 = part_moments(TILE, x, geometry, g, part, like, like)
    ready = finish_moments(geometry, g, part, count, mean, m2, True, means, variances, workspace, partials)
    meet(geometry, g, ready, workspace)
    first, size, width, stride, across = bounds(geometry, g, part)
    m, v = peek_pair(means, variances, geometry, g)
    fill_affine(width, across, geometry, g, m, v, gamma, beta, eps, like)
    write_tile(TILE, NO_TILE, y, first, size, width, stride, geometry[3] > 1, geometry[8], like)
    part_ways(geometry, workspace)


@Kernel
def backward(x, dy, dx, geometry, mean, var, gamma, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Training backward: x and dy are read once. See `forward`."""
    g, part = take_part(geometry, workspace)
    m, v = load_statistics(mean, var, geometry, g)
    s, q = part_products(TILE, x, dy, geometry, g, part, m, like)
    ready = finish_products(
        geometry, g, part, s, q, m, v, eps, sums, dgamma, dbeta, workspace, partials, like
    )
    meet(geometry, g, ready, workspace)
    first, size, width, stride, across = bounds(geometry, g, part)
    s, q = peek_pair(sums, sums + 8 * geometry[1], geometry, g)
    count = np.float64(geometry[0] * geometry[2])
    fill_gradient(width, across, geometry, g, m, v, gamma, eps, count, s, q, like)
    write_tile(TILE, HALF, dx, first, size, width, stride, geometry[3] > 1, geometry[8], like)
    part_ways(geometry, workspace)
