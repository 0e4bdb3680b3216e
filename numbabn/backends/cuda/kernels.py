"""The kernels, one launch each: a block works on a part of a group of channels, or on one of its tiles.

``geometry`` is a `plan.Geometry`, or a `plan.SampleGeometry` where samples have their own statistics, and the
other tuples are those of `arguments`. ``like`` stands for the dtype of x, as `arguments.zero` says. The
workspace is not read where every group has one part. Where something follows the norm, y is an
`arguments.Output`, and the inputs are `arguments.GradientInputs`: see `epilogue`.
"""

import numpy as np

from numbabn.backends.cuda.coefficients import fill_affine, fill_gradient, fill_shared_gradient
from numbabn.backends.cuda.division import quotient, remainder
from numbabn.backends.cuda.epilogue import address_of
from numbabn.backends.cuda.gpu import Kernel, cuda, device, load, store
from numbabn.backends.cuda.merging import merge_group
from numbabn.backends.cuda.parameters import load_parameter, load_statistics, peek_pair
from numbabn.backends.cuda.reductions import (
    agree_on_moments,
    agree_on_products,
    part_moments,
    part_products,
    store_moments,
    store_products,
)
from numbabn.backends.cuda.sums import add_warps, leave_warp_sums
from numbabn.backends.cuda.synchronization import leave, reset, reset_arrivals, take_part
from numbabn.backends.cuda.tiles import (
    GAMMA,
    HALF,
    NO_TILE,
    ROW,
    SCRATCH,
    TILE,
    derive_tile,
    finish_loads,
    give_tile,
    load_tile,
    sum_places,
    tile_at,
    write_affine,
    write_gradient,
)

# Two launches: one takes the sums, the next reads the arrays again ------------------------------------------


@device
def split(k, geometry):
    """Return (group, number within the group) of number k: neighbours k read neighbouring channels."""
    number = quotient(k, geometry.groups)
    return k - number * geometry.groups, number


@Kernel
def moments(x, geometry, workspace, like, wide, divide, results):
    """Mean and m2 of every channel, or mean and variance if ``divide``; a tile is summed in wide's dtype."""
    g, part = split(np.int64(cuda.blockIdx.x), geometry)
    sample = part_moments(x, geometry, g, part, like, wide)
    last, sample = merge_group(sample, geometry, workspace, g, part, False, True)
    if last:
        store_moments(sample, geometry, g, divide, results)
    reset_arrivals(geometry, workspace, g, last)


@Kernel
def products(inputs, geometry, workspace, like, statistics, eps, results):
    """Sums of dy and of dy * xhat of every channel."""
    g, part = split(np.int64(cuda.blockIdx.x), geometry)
    mean, var = load_statistics(statistics, geometry, g)
    sample = part_products(inputs, geometry, g, part, like, mean)
    last, sample = merge_group(sample, geometry, workspace, g, part, False, False)
    if last:
        store_products(sample, geometry, g, var, eps, results)
    reset_arrivals(geometry, workspace, g, last)


@device
def split_backwards(geometry):
    """Return (group, tile) of this block, the last tiles first: those read last are still in the cache."""
    return split(np.int64(cuda.gridDim.x) - 1 - np.int64(cuda.blockIdx.x), geometry)


@Kernel
def normalize(x, geometry, like, statistics, affine_map, y):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta; every block writes one tile.

    x is an address, or `arguments.GradientInputs` where it is a gradient, and the statistics are constants.
    """
    g, k = split_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(address_of(x), tile, geometry, like, TILE)
    fill_affine(tile, geometry, g, like, load_statistics(statistics, geometry, g), affine_map)
    finish_loads()
    derive_tile(x, tile, geometry, like, TILE)
    write_affine(TILE, tile, geometry, like, y)
    give_tile(x, tile, geometry, like, TILE)


@Kernel
def gradient(inputs, geometry, like, statistics, scaling, sums, count, dx):
    """dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count); every block writes one tile.

    ``sums`` is the address of float64 [2, channels].
    """
    g, k = split_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(inputs.x, tile, geometry, like, TILE)
    load_tile(inputs.dy, tile, geometry, like, HALF)
    values = load_statistics(statistics, geometry, g)
    totals = peek_pair(sums, sums + 8 * sum_places(geometry), geometry, g)
    fill_gradient(tile, geometry, g, like, values, scaling, totals, count)
    finish_loads()
    derive_tile(inputs, tile, geometry, like, HALF)
    write_gradient(HALF, TILE, NO_TILE, tile, geometry, like, dx)
    give_tile(inputs, tile, geometry, like, HALF)


# Where several channels share statistics, their sums are added up by a launch between these two ------------


@Kernel
def weigh(sums, groups, members, scaling, totals):
    """Sums of gamma * dy and gamma * dy * xhat of every statistic, from those of dy of its channels.

    ``sums`` is float64 [2, samples, groups, members], ``totals`` is [2, samples, groups]. A block has one
    statistic.
    """
    t, zero = np.int64(cuda.threadIdx.x), np.float64(0)
    k, blocks = np.int64(cuda.blockIdx.x), np.int64(cuda.gridDim.x)
    group = remainder(k, groups)
    s, q = zero, zero
    for i in range(t, members, np.int64(cuda.blockDim.x)):
        gamma = load_parameter(scaling.gamma, scaling.gamma_kind, group * members + i, 1.0)
        s += load(sums, k * members + i, zero) * gamma
        q += load(sums, (blocks + k) * members + i, zero) * gamma
    leave_warp_sums(s, q)
    if t == 0:
        store(totals, k, add_warps(SCRATCH, zero))
        store(totals, blocks + k, add_warps(SCRATCH + ROW, zero))


@Kernel
def shared_gradient(inputs, geometry, like, statistics, scaling, totals, count, dx):
    """Like `gradient`, where channels share statistics; ``totals`` are the sums that `weigh` has written."""
    g, k = split_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(inputs.x, tile, geometry, like, TILE)
    load_tile(inputs.dy, tile, geometry, like, HALF)
    values = load_statistics(statistics, geometry, g)
    second = totals + 8 * quotient(sum_places(geometry), geometry.members)
    sums = peek_pair(totals, second, geometry, g)
    fill_shared_gradient(tile, geometry, g, like, values, scaling, sums, count)
    finish_loads()
    derive_tile(inputs, tile, geometry, like, HALF)
    write_gradient(HALF, TILE, GAMMA, tile, geometry, like, dx)
    give_tile(inputs, tile, geometry, like, HALF)


# One launch: a tile stays in shared memory while the blocks of its group find their sums --------------------


@Kernel
def forward(x, geometry, workspace, like, affine_map, results, y):
    """Training forward, which reads x once: a part is one tile, and all blocks of a group run at once."""
    g, part = take_part(geometry, workspace)
    sample = part_moments(x, geometry, g, part, like, like)
    statistics = agree_on_moments(sample, geometry, workspace, g, part, results)
    last = leave(geometry, workspace)
    tile = tile_at(geometry, g, part)
    fill_affine(tile, geometry, g, like, statistics, affine_map)
    write_affine(TILE, tile, geometry, like, y)
    reset(geometry, workspace, last)


@Kernel
def backward(inputs, geometry, workspace, like, statistics, scaling, dx, results):
    """Training backward, which reads dy and x once; parts and blocks are as in `forward`."""
    g, part = take_part(geometry, workspace)
    mean, var = load_statistics(statistics, geometry, g)
    sample = part_products(inputs, geometry, g, part, like, mean)
    sums = agree_on_products(sample, geometry, workspace, g, part, var, scaling.eps, results)
    last = leave(geometry, workspace)
    tile = tile_at(geometry, g, part)
    fill_gradient(tile, geometry, g, like, (mean, var), scaling, sums, geometry.outer * geometry.inner)
    write_gradient(HALF, TILE, NO_TILE, tile, geometry, like, dx)
    give_tile(inputs, tile, geometry, like, HALF)
    reset(geometry, workspace, last)
