"""The kernels, one launch each: a block works on a part of a group of channels, or on one of its tiles.

``geometry`` is a `plan.Geometry`, and the other tuples are those of `arguments`. ``like`` is a zero of the
dtype of x. The workspace is not read where every group has one part.
"""

import functools

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.coefficients import fill_affine, fill_gradient
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import Kernel, cuda, device
from numbabn.backends.cuda.parameters import load_statistics, peek_pair
from numbabn.backends.cuda.reductions import finish_moments, finish_products, part_moments, part_products
from numbabn.backends.cuda.synchronization import reset, reset_arrivals, take_part, wait_for_results
from numbabn.backends.cuda.tiles import HALF, NO_TILE, TILE, finish_loads, load_tile, tile_at, write_tile

limited = functools.partial(Kernel, max_registers=plan.REGISTERS)

# Two launches: one takes the sums, the next reads the arrays again ------------------------------------------


@device
def split(k, geometry):
    """Return (group, number within the group) of number k: neighbours k read neighbouring channels."""
    number = quotient(k, geometry.groups)
    return k - number * geometry.groups, number


@limited
def moments(x, geometry, workspace, like, wide, divide, results):
    """Mean and m2 of every channel, or mean and variance if ``divide``; a tile is summed in wide's dtype."""
    g, part = split(np.int64(cuda.blockIdx.x), geometry)
    sample = part_moments(x, geometry, g, part, like, wide)
    last = finish_moments(sample, geometry, workspace, g, part, divide, results)
    reset_arrivals(geometry, workspace, g, last)


@limited
def products(inputs, geometry, workspace, like, statistics, eps, results):
    """Sums of dy and of dy * xhat of every channel."""
    g, part = split(np.int64(cuda.blockIdx.x), geometry)
    mean, var = load_statistics(statistics, geometry, g)
    sample = part_products(inputs, geometry, g, part, like, mean)
    last = finish_products(sample, geometry, workspace, g, part, var, eps, results)
    reset_arrivals(geometry, workspace, g, last)


@device
def split_backwards(geometry):
    """Return (group, tile) of this block, the last tiles first: those read last are still in the cache."""
    return split(np.int64(cuda.gridDim.x) - 1 - np.int64(cuda.blockIdx.x), geometry)


@Kernel
def normalize(x, geometry, like, statistics, affine_map, y):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta; every block writes one tile."""
    g, k = split_backwards(geometry)
    tile = tile_at(geometry, g, k)
    load_tile(x, tile, geometry, like, TILE)
    fill_affine(tile, geometry, g, like, load_statistics(statistics, geometry, g), affine_map)
    finish_loads()
    write_tile(NO_TILE, TILE, tile, geometry, like, y)


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
    totals = peek_pair(sums, sums + 8 * geometry.channels, geometry, g)
    fill_gradient(tile, geometry, g, like, values, scaling, totals, count)
    finish_loads()
    write_tile(HALF, TILE, tile, geometry, like, dx)


# One launch: a tile stays in shared memory while the blocks of its group find their sums --------------------


@limited
def forward(x, geometry, workspace, like, affine_map, results, y):
    """Training forward, which reads x once: a part is one tile, and all blocks of a group run at once."""
    g, part = take_part(geometry, workspace)
    sample = part_moments(x, geometry, g, part, like, like)
    written = finish_moments(sample, geometry, workspace, g, part, True, results)
    wait_for_results(geometry, workspace, g, written)
    tile = tile_at(geometry, g, part)
    statistics = peek_pair(results.mean, results.var, geometry, g)
    fill_affine(tile, geometry, g, like, statistics, affine_map)
    write_tile(NO_TILE, TILE, tile, geometry, like, y)
    reset(geometry, workspace)


@Kernel
def backward(inputs, geometry, workspace, like, statistics, scaling, dx, results):
    """Training backward, which reads dy and x once; parts and blocks are as in `forward`."""
    g, part = take_part(geometry, workspace)
    mean, var = load_statistics(statistics, geometry, g)
    sample = part_products(inputs, geometry, g, part, like, mean)
    written = finish_products(sample, geometry, workspace, g, part, var, scaling.eps, results)
    wait_for_results(geometry, workspace, g, written)
    tile = tile_at(geometry, g, part)
    sums = peek_pair(results.sums, results.sums + 8 * geometry.channels, geometry, g)
    fill_gradient(tile, geometry, g, like, (mean, var), scaling, sums, geometry.outer * geometry.inner)
    write_tile(HALF, TILE, tile, geometry, like, dx)
    reset(geometry, workspace)
