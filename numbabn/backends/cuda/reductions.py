"""Sums of a part of a group of channels, and how the parts become one result. Device functions for `kernels`.

What is a channel's belongs to thread c < across of the block: its running sums, and what it writes.
"""

import numpy as np

from numbabn.backends.cuda.gpu import convert, cuda, device, sqrt, store, store_parameter
from numbabn.backends.cuda.groups import COUNTERS, arrive, merge, merge_parts, put_partial
from numbabn.backends.cuda.sums import tile_moments, tile_products
from numbabn.backends.cuda.tiles import CENTER, HALF, TILE, finish_loads, load_tile, spread, tile_at


@device
def part_moments(x, geometry, g, part, like, wide):
    """(count, mean, m2) of a part's tiles; the last tile stays in shared memory."""
    count, mean, m2 = np.float64(0), np.float64(0), np.float64(0)
    for k in range(part * geometry.step, min((part + 1) * geometry.step, geometry.tiles)):
        tile = tile_at(geometry, g, k)
        load_tile(TILE, x, tile, geometry, like)
        finish_loads()
        n, other, other_m2 = tile_moments(TILE, tile, geometry, like, wide)
        count, mean, m2 = merge(count, mean, m2, n, other, other_m2)
    return count, mean, m2


@device
def finish_moments(geometry, g, part, count, mean, m2, divide, means, variances, workspace, partials):
    """Merge the parts and write the result, m2 divided by the count if asked; tell whether this block did."""
    t, parts, block = np.int64(cuda.threadIdx.x), geometry.parts, geometry.block
    across = min(block, geometry.channels - g * block)
    if parts > 1:
        put_partial(partials, geometry, g, part, across, count, mean, m2)
        if not arrive(workspace, COUNTERS + g, parts):
            return False
        count, mean, m2 = merge_parts(partials, geometry, g, across, True)
    if t < across:
        store(means, g * block + t, mean)
        store(variances, g * block + t, m2 / count if divide else m2)
    return True


@device
def part_products(x, dy, geometry, g, part, mean, like):
    """Sums of dy and dy * (x - center) of a part's tiles, the last of which stay in shared memory."""
    t, s, q = np.int64(cuda.threadIdx.x), np.float64(0), np.float64(0)
    for k in range(part * geometry.step, min((part + 1) * geometry.step, geometry.tiles)):
        tile = tile_at(geometry, g, k)
        load_tile(TILE, x, tile, geometry, like)
        load_tile(HALF, dy, tile, geometry, like)
        if t < tile.across:
            spread(CENTER, t, tile, geometry, convert(mean, like))
        finish_loads()
        more, more_d = tile_products(TILE, HALF, tile, geometry, like)
        s, q = s + more, q + more_d
    return s, q


@device
def finish_products(geometry, g, part, s, q, mean, var, eps, sums, dgamma, dbeta, workspace, partials, like):
    """Add up the parts and write sums[2, channels] and the gradients; tell whether this block did."""
    t, parts, block = np.int64(cuda.threadIdx.x), geometry.parts, geometry.block
    across = min(block, geometry.channels - g * block)
    if parts > 1:
        put_partial(partials, geometry, g, part, across, np.float64(0), s, q)
        if not arrive(workspace, COUNTERS + g, parts):
            return False
        _, s, q = merge_parts(partials, geometry, g, across, False)
    if t < across:
        c = g * block + t
        q = (q - (mean - np.float64(convert(mean, like))) * s) / sqrt(var + eps)
        store(sums, c, s)
        store(sums, geometry.channels + c, q)
        store_parameter(dbeta, c, s)
        store_parameter(dgamma, c, q)
    return True
