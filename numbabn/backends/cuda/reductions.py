"""Sums of a part of a group of channels, and the results of a group from those of its parts.

What belongs to channel c of a group belongs to thread c < across of a block: its running sums, and what is
written in the end. Device functions for `kernels`.
"""

import numpy as np

from numbabn.backends.cuda.gpu import convert, cuda, device, sqrt, store
from numbabn.backends.cuda.merging import merge, merge_group
from numbabn.backends.cuda.parameters import peek_pair, store_parameter
from numbabn.backends.cuda.sums import tile_moments, tile_products
from numbabn.backends.cuda.synchronization import all_merge, wait_for_results
from numbabn.backends.cuda.tiles import (
    CENTER,
    HALF,
    TILE,
    channels_of,
    derive_tile,
    fill_columns,
    finish_loads,
    load_tile,
    sum_places,
    tile_at,
)


@device
def part_moments(x, geometry, g, part, like, wide):
    """Return (count, mean, m2) of a part's tiles; the last tile stays in shared memory."""
    sample = np.float64(0), np.float64(0), np.float64(0)
    for k in range(part * geometry.part_tiles, min((part + 1) * geometry.part_tiles, geometry.tiles)):
        tile = tile_at(geometry, g, k)
        load_tile(x, tile, geometry, like, TILE)
        finish_loads()
        sample = merge(sample, tile_moments(TILE, tile, geometry, like, wide))
    return sample


@device
def store_moments(sample, geometry, g, divide, results):
    """Write the mean, and m2 or m2 / count if ``divide``, of group g; ``results`` are `arguments.Moments`."""
    t = np.int64(cuda.threadIdx.x)
    n, first, across = channels_of(geometry, g)
    if t < across:
        count, mean, m2 = sample
        c = n * geometry.channels + first + t
        store(results.mean, c, mean)
        store(results.var, c, m2 / count if divide else m2)


@device
def agree_on_moments(sample, geometry, workspace, g, part, results):
    """Return (mean, variance) of this thread's channel of group g in all blocks of the group; write them.

    ``sample`` is what `part_moments` has returned for one of them; see `all_merge` for who merges them.
    """
    waiting = all_merge(geometry, workspace)
    merged, sample = merge_group(sample, geometry, workspace, g, part, waiting, True)
    if merged and (part == 0 or not waiting):
        store_moments(sample, geometry, g, True, results)
    if geometry.parts > 1 and not waiting:
        wait_for_results(geometry, workspace, g, merged)
        return peek_pair(results.mean, results.var, geometry, g)
    count, mean, m2 = sample
    _, _, across = channels_of(geometry, g)
    if np.int64(cuda.threadIdx.x) < across:
        return mean, m2 / count
    return np.float64(0), np.float64(1)


@device
def part_products(inputs, geometry, g, part, like, mean):
    """Return (0, sum of dy, sum of dy * (x - mean)) of a part; its last two tiles stay in shared memory.

    The sum is taken about the mean rounded to the dtype that x is computed in, and corrected for the rounding
    at the end.
    """
    t, s, q = np.int64(cuda.threadIdx.x), np.float64(0), np.float64(0)
    center = convert(mean, like)
    for k in range(part * geometry.part_tiles, min((part + 1) * geometry.part_tiles, geometry.tiles)):
        tile = tile_at(geometry, g, k)
        load_tile(inputs.x, tile, geometry, like, TILE)
        load_tile(inputs.dy, tile, geometry, like, HALF)
        if t < tile.across:
            fill_columns(CENTER, t, tile, geometry, center)
        finish_loads()
        derive_tile(inputs, tile, geometry, like, HALF)
        more_s, more_q = tile_products(HALF, TILE, tile, geometry, like)
        s, q = s + more_s, q + more_q
    return np.float64(0), s, q - (mean - np.float64(center)) * s


@device
def store_products(sample, geometry, g, var, eps, results):
    """Write the sums of dy and of dy * xhat of group g.

    ``var`` is the variance of this thread's channel, ``results`` are `arguments.Results`.
    """
    t = np.int64(cuda.threadIdx.x)
    n, first, across = channels_of(geometry, g)
    if t < across:
        c, sum_dy, sum_dy_xhat = n * geometry.channels + first + t, sample[1], sample[2] / sqrt(var + eps)
        store(results.sums, c, sum_dy)
        store(results.sums, sum_places(geometry) + c, sum_dy_xhat)
        store_parameter(results.dbeta, results.dbeta_kind, c, sum_dy)
        store_parameter(results.dgamma, results.dgamma_kind, c, sum_dy_xhat)


@device
def agree_on_products(sample, geometry, workspace, g, part, var, eps, results):
    """Return the sums of dy and of dy * xhat of this thread's channel in all blocks of group g; write them.

    ``sample`` is what `part_products` has returned for one of them; see `all_merge` for who merges them.
    """
    waiting = all_merge(geometry, workspace)
    merged, sample = merge_group(sample, geometry, workspace, g, part, waiting, False)
    if merged and (part == 0 or not waiting):
        store_products(sample, geometry, g, var, eps, results)
    if geometry.parts > 1 and not waiting:
        wait_for_results(geometry, workspace, g, merged)
        return peek_pair(results.sums, results.sums + 8 * sum_places(geometry), geometry, g)
    return sample[1], sample[2] / sqrt(var + eps)
