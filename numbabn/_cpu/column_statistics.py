"""Moments and range of channels whose values lie apart: x is flat rows of columns, as in `column_kernels`.

A row is ``width`` columns, whole vectors of them, of which the first ``copies * channels * inner`` are pixels
side by side, and the rest nothing. A task is a chunk of rows. The sums of all columns are one flat array of
five parts, each of ``width``: weight, sum of d, sum of d * d, least value, greatest value; see `lanes`.
"""

import numpy as np
from numba import prange

from numbabn._cpu.column_kernels import MERGE, PANEL, collapse
from numbabn._cpu.doubled import fold_sums, middle, unfold
from numbabn._cpu.jit import Kernel, helper
from numbabn._cpu.lanes import add_sums, add_values, no_sums
from numbabn._cpu.simd import LANES, load, prefetch, store, zeros

PARTS = 5
GROUP = 16  # rows summed at once, in like's dtype: sums are loaded and stored for every sixteenth value only
AHEAD = 16  # rows: how far ahead to prefetch


@helper
def add_panel(x, w, first, stop, width, lo, hi, shift, masked, value, like, sums):
    """Add the columns lo..hi of the rows that begin at first, first + width, ... before stop."""
    wide = np.float64(0)
    k = zeros(like)
    for j in range(lo, hi, LANES):
        if shift is not None:
            k = load(shift, j, like)
        a = b = no_sums(value, like)
        i = first + j
        while i + width < stop:  # two rows at once hide the latency of add and fma
            prefetch(x, i + AHEAD * width, LANES)
            prefetch(x, i + (AHEAD + 1) * width, LANES)
            a = add_values(x, w, i, shift, k, masked, value, like, a)
            b = add_values(x, w, i + width, shift, k, masked, value, like, b)
            i += 2 * width
        if i < stop:
            a = add_values(x, w, i, shift, k, masked, value, like, a)
        a = add_sums(a, b, value, like)
        before = (
            load(sums, j, wide), load(sums, width + j, wide), load(sums, 2 * width + j, wide),
            load(sums, 3 * width + j, wide), load(sums, 4 * width + j, wide),
        )  # fmt: skip
        weight, s, q, low, high = add_sums(before, a, wide, wide)
        if masked is not None:
            store(sums, j, weight)
        store(sums, width + j, s)
        store(sums, 2 * width + j, q)
        store(sums, 3 * width + j, low)
        store(sums, 4 * width + j, high)


@helper
def clear(sums, width):
    """Sums of nothing in every column."""
    for j in range(3 * width):
        sums[j] = 0.0
    for j in range(3 * width, 4 * width):
        sums[j] = np.inf
        sums[j + width] = -np.inf


@helper
def collapse_range(low, high, copies, channels, inner):
    """Least and greatest of the columns of each channel c into low[c] and high[c]."""
    size = channels * inner
    for copy in range(1, copies):
        for j in range(size):
            low[j] = min(low[j], low[copy * size + j])
            high[j] = max(high[j], high[copy * size + j])
    for c in range(channels):
        least, most = low[c * inner], high[c * inner]
        for j in range(c * inner + 1, (c + 1) * inner):
            least, most = min(least, low[j]), max(most, high[j])
        low[c], high[c] = least, most


@helper
def column_sums(x, w, first, rows, width, copies, channels, inner, shift, masked, value, like, sums):
    """Sums of each channel c over rows from the element ``first`` on, in element c of every part."""
    stop = first + rows * width
    clear(sums, width)
    for lo in range(0, width, PANEL):
        hi = min(lo + PANEL, width)
        for start in range(first, stop, GROUP * width):
            end = min(start + GROUP * width, stop)
            add_panel(x, w, start, end, width, lo, hi, shift, masked, value, like, sums)
    for part in range(3):
        collapse(sums[part * width : (part + 1) * width], copies, channels, inner)
    collapse_range(sums[3 * width : 4 * width], sums[4 * width :], copies, channels, inner)
    if masked is None:
        for c in range(channels):
            sums[c] = rows * copies * inner


@helper
def expand(values, copies, inner, columns):
    """columns[(copy * channels + c) * inner + i] = values[c]."""
    channels = len(values)
    for copy in range(copies):
        start = copy * channels * inner
        for c in range(channels):
            for j in range(start + c * inner, start + (c + 1) * inner):
                columns[j] = values[c]


@helper
def probe(sums, width, mean, unknown):
    """Set the mean to a number near the values, where it is unknown; return for how many it still is."""
    left = 0
    for c in range(len(mean)):
        if unknown[c]:
            low, high = sums[3 * width + c], sums[4 * width + c]
            if low <= high:
                mean[c] = middle(low, high)
                unknown[c] = False
            else:
                left += 1
    return left


@helper
def fold(sums, width, out, k, odd):
    """Merge sums about the mean into the moments of chunk k."""
    for c in range(out.shape[2]):
        shift = out[k, 1, c]
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], odd[c] = fold_sums(
            out[k, 0, c], shift, out[k, 2, c], out[k, 3, c], odd[c],
            sums[c], shift, sums[width + c], sums[2 * width + c],
        )  # fmt: skip
        out[k, 4, c] = min(out[k, 4, c], sums[3 * width + c])
        out[k, 5, c] = max(out[k, 5, c], sums[4 * width + c])


@helper
def moments_task(k, x, w, width, copies, inner, masked, value, like, out):
    """Moments of chunk k; what they are taken about is looked for in a few rows first."""
    chunks, channels = len(out), out.shape[2]
    sums, shift = np.empty(PARTS * width), np.zeros(width)
    odd, unknown = np.zeros(channels), np.ones(channels, np.bool_)
    for c in range(channels):
        out[k, 0, c] = out[k, 1, c] = out[k, 2, c] = out[k, 3, c] = 0.0
        out[k, 4, c], out[k, 5, c] = np.inf, -np.inf
    row, end = x.size // width * k // chunks, x.size // width * (k + 1) // chunks
    step = max(MERGE // copies, 64)
    left, probed = channels, 0
    while row < end:
        block = min(step, end - row)
        looking = left > 0 and probed < block
        first, taken = row, block
        if looking:
            first, taken = row + probed, min(GROUP, block - probed)
        expand(out[k, 1], copies, inner, shift)
        column_sums(
            x, w, first * width, taken, width, copies, channels, inner, shift, masked, value, like, sums
        )
        if looking:
            left = probe(sums, width, out[k, 1], unknown)
            probed += taken
        else:
            fold(sums, width, out, k, odd)
            row += taken
            probed = 0
    for c in range(channels):
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c] = unfold(
            out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], odd[c]
        )


@Kernel
def moments(x, w, width, copies, inner, masked, value, like, out):
    """Moments of every chunk: out[chunk, :, channel] is weight, mean, mean_low, m2, least, greatest."""
    for k in prange(len(out)):
        moments_task(np.int64(k), x, w, width, copies, inner, masked, value, like, out)


@helper
def integers_task(k, x, w, width, copies, inner, masked, value, like, out):
    """Sums of chunk k."""
    chunks, channels = len(out), out.shape[2]
    sums = np.empty(PARTS * width)
    row, end = x.size // width * k // chunks, x.size // width * (k + 1) // chunks
    column_sums(x, w, row * width, end - row, width, copies, channels, inner, None, masked, value, like, sums)
    for part in range(PARTS):
        for c in range(channels):
            out[k, part, c] = sums[part * width + c]


@Kernel
def integers(x, w, width, copies, inner, masked, value, like, out):
    """Sums of every chunk: out[chunk, :, channel] is count, sum, sum of squares, least, greatest."""
    for k in prange(len(out)):
        integers_task(np.int64(k), x, w, width, copies, inner, masked, value, like, out)
