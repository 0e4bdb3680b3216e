"""Moments and range of channels whose values lie apart: x is flat rows of columns, as in `column_kernels`.

Rows begin every ``stride`` elements, with ``copies`` pixels side by side. A task is a chunk of rows and a
block of channels: ``width`` columns, whole vectors, of which the first ``copies * channels * inner`` count;
the others belong to the next block or row, but must be there. ``group`` rows are summed at once, in like's
dtype. The sums of all columns are in ``sums``: weight, sum of d, sum of d * d; and in ``extremes``: least,
greatest value; see `lanes`.
"""

import numpy as np
from numba import prange

from numbabn.backends.cpu.column_kernels import collapse
from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import LANES, add, load, maximum, minimum, prefetch, store, widen, zeros
from numbabn.backends.cpu.streaming.doubled import first_shift, fold_sums, unfold
from numbabn.backends.cpu.streaming.lanes import add_sums, add_values, no_sums

MERGE = 2048  # rows summed about one shift
GROWTH = 8  # of the blocks that are summed about one shift: the first rows do not know the mean well


@helper
def add_panel(x, w, first, rows, stride, ahead, shift, masked, value, like, sums, extremes):
    """Add ``rows`` rows, the first at the element ``first``, to the sums of every column."""
    wide, width = np.float64(0), len(extremes) // 2
    k = zeros(like)
    for j in range(0, width, LANES):
        if shift is not None:
            k = load(shift, j, like)
        a = b = no_sums(value, like)
        i, last = first + j, first + j + (rows - 1) * stride
        while i < last:  # two rows at once hide the latency of add and fma
            prefetch(x, i + ahead, LANES)
            prefetch(x, i + stride + ahead, LANES)
            a = add_values(x, w, i, shift, k, masked, value, like, a)
            b = add_values(x, w, i + stride, shift, k, masked, value, like, b)
            i += 2 * stride
        if i == last:
            a = add_values(x, w, i, shift, k, masked, value, like, a)
        weight, s, q, low, high = add_sums(a, b, value, like)
        if masked is not None:
            store(sums, j, add(load(sums, j, wide), widen(weight)))
        store(sums, width + j, add(load(sums, width + j, wide), widen(s)))
        store(sums, 2 * width + j, add(load(sums, 2 * width + j, wide), widen(q)))
        store(extremes, j, minimum(low, load(extremes, j, value)))
        store(extremes, width + j, maximum(high, load(extremes, width + j, value)))


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
def column_sums(
    x, w, first, rows, stride, group, copies, channels, inner, shift, masked, value, like, sums, extremes
):
    """Sums of each channel c over rows from the element ``first`` on, in element c of every part."""
    width = len(extremes) // 2
    for j in range(width):
        sums[j] = sums[width + j] = sums[2 * width + j] = 0.0
        extremes[j] = np.inf
        extremes[width + j] = -np.inf
    for r in range(0, rows, group):
        taken = min(group, rows - r)
        add_panel(
            x,
            w,
            first + r * stride,
            taken,
            stride,
            group * stride,
            shift,
            masked,
            value,
            like,
            sums,
            extremes,
        )
    for part in range(3):
        collapse(sums[part * width : (part + 1) * width], copies, channels, inner)
    collapse_range(extremes[:width], extremes[width:], copies, channels, inner)
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
def probe(sums, extremes, mean, unknown):
    """Set the mean to a number near the values, where it is unknown; return for how many it still is."""
    width = len(extremes) // 2
    left = 0
    for c in range(len(mean)):
        if unknown[c]:
            low, high = np.float64(extremes[c]), np.float64(extremes[width + c])
            if low <= high:
                mean[c] = first_shift(sums[c], sums[width + c], low, high)  # sums about 0
                unknown[c] = False
            else:
                left += 1
    return left


@helper
def fold(sums, extremes, out, k, c0, odd):
    """Merge sums about the mean into the moments of chunk k and the channels from c0 on."""
    width = len(extremes) // 2
    for i in range(len(odd)):
        c = c0 + i
        shift = out[k, 1, c]
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], odd[i] = fold_sums(
            out[k, 0, c], shift, out[k, 2, c], out[k, 3, c], odd[i],
            sums[i], shift, sums[width + i], sums[2 * width + i],
        )  # fmt: skip
        out[k, 4, c] = min(out[k, 4, c], extremes[i])
        out[k, 5, c] = max(out[k, 5, c], extremes[width + i])


@helper
def whole(columns):
    """Columns of whole vectors."""
    return -(-columns // LANES) * LANES


@helper
def moments_task(k, c0, c1, x, w, rows, stride, group, copies, inner, masked, value, like, out):
    """Moments of chunk k, channels c0..c1; what they are taken about is looked for in a few rows first."""
    chunks, channels = len(out), c1 - c0
    width = whole(copies * channels * inner)
    sums, extremes, shift = np.empty(3 * width), np.full(2 * width, value), np.zeros(width)
    odd, unknown = np.zeros(channels), np.ones(channels, np.bool_)
    mean = out[k, 1, c0:c1]
    for c in range(c0, c1):
        out[k, 0, c] = out[k, 1, c] = out[k, 2, c] = out[k, 3, c] = 0.0
        out[k, 4, c], out[k, 5, c] = np.inf, -np.inf
    row, end = rows * k // chunks, rows * (k + 1) // chunks
    step, most = np.int64(group), np.int64(MERGE)
    left, probed = channels, 0
    while row < end:
        block = min(step, end - row)
        looking = left > 0 and probed < block
        first, taken = row, block
        if looking:
            first, taken = row + probed, min(group, block - probed)
        expand(mean, copies, inner, shift)
        start = first * stride + c0 * inner
        column_sums(
            x, w, start, taken, stride, group, copies, channels, inner,
            shift, masked, value, like, sums, extremes,
        )  # fmt: skip
        if looking:
            left = probe(sums, extremes, mean, unknown)
            probed += taken
        else:
            fold(sums, extremes, out, k, c0, odd)
            row += taken
            probed = 0
            step = min(GROWTH * step, most)  # a sum is rounded less, the better its shift is known
    for c in range(c0, c1):
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c] = unfold(
            out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], odd[c - c0]
        )


@Kernel
def moments(x, w, rows, stride, group, copies, inner, block, masked, value, like, out):
    """Moments of every chunk: out[chunk, :, channel] is weight, mean, mean_low, m2, least, greatest."""
    channels = out.shape[2]
    blocks = -(-channels // block)
    for task in prange(len(out) * blocks):
        k, c0 = np.int64(task) // blocks, np.int64(task) % blocks * block
        c1 = min(c0 + block, channels)
        moments_task(k, c0, c1, x, w, rows, stride, group, copies, inner, masked, value, like, out)


@helper
def integers_task(k, c0, c1, x, w, rows, stride, group, copies, inner, masked, value, like, out):
    """Sums of chunk k, channels c0..c1."""
    chunks, channels = len(out), c1 - c0
    width = whole(copies * channels * inner)
    sums, extremes = np.empty(3 * width), np.full(2 * width, value)
    row, end = rows * k // chunks, rows * (k + 1) // chunks
    start = row * stride + c0 * inner
    column_sums(
        x, w, start, end - row, stride, group, copies, channels, inner,
        None, masked, value, like, sums, extremes,
    )  # fmt: skip
    for c in range(channels):
        for part in range(3):
            out[k, part, c0 + c] = sums[part * width + c]
        out[k, 3, c0 + c], out[k, 4, c0 + c] = extremes[c], extremes[width + c]


@Kernel
def integers(x, w, rows, stride, group, copies, inner, block, masked, value, like, out):
    """Sums of every chunk: out[chunk, :, channel] is count, sum, sum of squares, least, greatest."""
    channels = out.shape[2]
    blocks = -(-channels // block)
    for task in prange(len(out) * blocks):
        k, c0 = np.int64(task) // blocks, np.int64(task) % blocks * block
        c1 = min(c0 + block, channels)
        integers_task(k, c0, c1, x, w, rows, stride, group, copies, inner, masked, value, like, out)
