"""The kernels, one launch each: a block works on a part of a group of channels, or on one of its tiles.

A parameter is a pair (pointer, kind), see `gpu.load_parameter`; where a kernel writes statistics, they are
pointers to float64. ``like`` is a zero of the dtype of x. ``workspace`` and ``partials`` are those of
`groups`, and are not looked at where a group has one part.
"""

import functools

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.coefficients import fill_affine, fill_gradient, load_pair, peek_pair
from numbabn.backends.cuda.gpu import Kernel, cuda, device, store
from numbabn.backends.cuda.groups import COUNTERS, announce, await_flag, leave, take_ticket
from numbabn.backends.cuda.reductions import finish_moments, finish_products, part_moments, part_products
from numbabn.backends.cuda.tiles import (
    HALF,
    NO_TILE,
    TILE,
    finish_loads,
    load_tile,
    quotient,
    tile_at,
    write_tile,
)

limited = functools.partial(Kernel, max_registers=plan.REGISTERS)

# Two phases -------------------------------------------------------------------------------------------------


@device
def deal(k, geometry):
    """(group, number within the group) of block k: neighbouring blocks read neighbouring channels."""
    number = quotient(k, geometry.groups)
    return k - number * geometry.groups, number


@device
def clear_counter(workspace, g, geometry, last):
    """Leave the counter of a group as it was found, once all have arrived."""
    if last and geometry.parts > 1 and cuda.threadIdx.x == 0:
        store(workspace, COUNTERS + g, np.int32(0))


@limited
def moments(x, geometry, divide, means, variances, workspace, partials, like, wide):
    """Mean and m2 of every channel, or the variance if ``divide``; sums of a tile in wide's dtype."""
    g, part = deal(np.int64(cuda.blockIdx.x), geometry)
    count, mean, m2 = part_moments(x, geometry, g, part, like, wide)
    last = finish_moments(geometry, g, part, count, mean, m2, divide, means, variances, workspace, partials)
    clear_counter(workspace, g, geometry, last)


@limited
def products(x, dy, geometry, mean, var, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Sums of dy and dy * xhat of every channel, float64 [2, channels], and as gradients."""
    g, part = deal(np.int64(cuda.blockIdx.x), geometry)
    m, v = load_pair(mean, var, geometry, g)
    s, q = part_products(x, dy, geometry, g, part, m, like)
    last = finish_products(geometry, g, part, s, q, m, v, eps, sums, dgamma, dbeta, workspace, partials, like)
    clear_counter(workspace, g, geometry, last)


@device
def deal_backwards(geometry):
    """(group, tile) of this block, the last tiles first: what was read last is still in the cache."""
    return deal(np.int64(cuda.gridDim.x) - 1 - np.int64(cuda.blockIdx.x), geometry)


@Kernel
def normalize(x, y, geometry, mean, var, gamma, beta, eps, like):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta, a block a tile."""
    g, k = deal_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(TILE, x, tile, geometry, like)
    m, v = load_pair(mean, var, geometry, g)
    fill_affine(tile, geometry, g, m, v, gamma, beta, eps, like)
    finish_loads()
    write_tile(TILE, NO_TILE, y, tile, geometry, like)


@Kernel
def gradient(x, dy, dx, geometry, mean, var, gamma, eps, sums, count, like):
    """dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count), a block a tile."""
    g, k = deal_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(TILE, x, tile, geometry, like)
    load_tile(HALF, dy, tile, geometry, like)
    m, v = load_pair(mean, var, geometry, g)
    s, q = load_pair(sums, (sums[0] + 8 * geometry.channels, sums[1]), geometry, g)
    fill_gradient(tile, geometry, g, m, v, gamma, eps, s, q, count, like)
    finish_loads()
    write_tile(TILE, HALF, dx, tile, geometry, like)


# Both in one: a tile stays in shared memory while the blocks of its group find their sums -------------------


@device
def take_part(geometry, workspace):
    """(group, part) of this block, the parts of a group in the order in which blocks begin."""
    k = take_ticket(workspace) if geometry.parts > 1 else np.int64(cuda.blockIdx.x)
    g = quotient(k, geometry.parts)
    return g, k - g * geometry.parts


@device
def meet(geometry, g, ready, workspace):
    """Wait until the group's result can be read; ``ready`` if this block wrote it."""
    flag = COUNTERS + geometry.groups + g
    if geometry.parts > 1:
        if ready:
            announce(workspace, flag)
        else:
            await_flag(workspace, flag)


@device
def part_ways(geometry, workspace):
    """Leave the workspace as it was found."""
    if geometry.parts > 1:
        leave(workspace, geometry.groups)


@limited
def forward(x, y, geometry, gamma, beta, eps, means, variances, workspace, partials, like):
    """Training forward: x is read once. A part is one tile, and all parts of a group are resident."""
    g, part = take_part(geometry, workspace)
    count, mean, m2 = part_moments(x, geometry, g, part, like, like)
    ready = finish_moments(geometry, g, part, count, mean, m2, True, means, variances, workspace, partials)
    meet(geometry, g, ready, workspace)
    tile = tile_at(geometry, g, part)
    m, v = peek_pair(means, variances, geometry, g)
    fill_affine(tile, geometry, g, m, v, gamma, beta, eps, like)
    write_tile(TILE, NO_TILE, y, tile, geometry, like)
    part_ways(geometry, workspace)


@Kernel
def backward(x, dy, dx, geometry, mean, var, gamma, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Training backward: x and dy are read once. See `forward`."""
    g, part = take_part(geometry, workspace)
    m, v = load_pair(mean, var, geometry, g)
    s, q = part_products(x, dy, geometry, g, part, m, like)
    ready = finish_products(
        geometry, g, part, s, q, m, v, eps, sums, dgamma, dbeta, workspace, partials, like
    )
    meet(geometry, g, ready, workspace)
    tile = tile_at(geometry, g, part)
    s, q = peek_pair(sums, sums + 8 * geometry.channels, geometry, g)
    count = np.float64(geometry.outer * geometry.inner)
    fill_gradient(tile, geometry, g, m, v, gamma, eps, s, q, count, like)
    write_tile(TILE, HALF, dx, tile, geometry, like)
    part_ways(geometry, workspace)
