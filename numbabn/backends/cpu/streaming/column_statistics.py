"""Moments and range of channels whose values lie apart: x is flat rows of columns, as `Rows` describes it.

As in `column_sums`, every column is summed by itself over the rows, and each channel's columns are added
up at the end. A task is a chunk of rows and a block of channels.

The columns of a task are filled up to whole vectors: the columns added belong to the next block or row, must
be there, and are ignored in the end. The sums of all columns are in two arrays: ``sums`` has the weights, the
sums of d and the sums of d * d, one after the other; ``extremes`` has the least and the greatest values. d is
explained in `lanes`.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from numbabn.backends.cpu.column_sums import PAIR, Group, collapse
from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    convert,
    elements,
    highest,
    load,
    load_part,
    lowest,
    maximum,
    minimum,
    prefetch,
    splat,
    store,
    widen,
    zeros,
)
from numbabn.backends.cpu.streaming.doubled import Folded, first_shift, fold_sums, unfold
from numbabn.backends.cpu.streaming.lanes import Summation, add_values, no_sums

MERGE = 2048  # rows summed about one shift
GROWTH = 8  # factor by which the blocks of rows grow: the first shift is not yet near the mean


class Rows(NamedTuple):
    """Rows of columns, and what of them is summed. Kernels make it inside, from a plain tuple of integers."""

    base: int  # element where the first row's columns begin
    rows: int
    stride: int  # elements from one row to the next
    group: int  # rows summed at once, in like's dtype
    copies: int  # pixels side by side in a row
    channels: int  # of each pixel; fewer than it has where a task is a block of channels
    inner: int


@helper
def some_rows(rows, first, count):
    """Return ``count`` of the rows, from number ``first`` on."""
    base, _, stride, group, copies, channels, inner = rows
    return Rows(base + first * stride, count, stride, group, copies, channels, inner)


@helper
def count_tasks(block, out):
    """Count the tasks: chunks of rows times blocks of channels."""
    chunks, _, channels = out.shape
    return chunks * -(-channels // block)


@helper
def task_rows(task, cut, block, out):
    """(chunk, first channel, rows) of a task; out[chunk, :, channel] is the result of all of them.

    ``cut`` is (rows, stride, group, copies, inner), and ``block`` is the number of channels of a task, of
    which the last ones may have fewer.
    """
    rows, stride, group, copies, inner = cut
    chunks, _, channels = out.shape
    blocks = -(-channels // block)
    k, c0 = task // blocks, task % blocks * block
    first, last = rows * k // chunks, rows * (k + 1) // chunks
    base = first * stride + c0 * inner
    return k, c0, Rows(base, last - first, stride, group, copies, min(block, channels - c0), inner)


@helper
def vector_columns(rows):
    """Columns of a row that are summed, filled up to whole vectors."""
    return -(-rows.copies * rows.channels * rows.inner // LANES) * LANES


@helper
def add_pairs(x, w, group, shift, summation, sums, extremes):
    """Add a few rows to the sums of every column, but for the last vector of columns where it has no pair.

    The next rows are prefetched in the order of memory, while these are read from top to bottom: float32 of
    200000x256 takes 0.72 of the bandwidth with prefetches 16 rows below what is read, and 0.87 so.
    """
    first, rows, stride, _, width = group
    value, like = summation.value, summation.like
    k0 = k1 = zeros(like)
    ahead = first + rows * stride
    end = ahead + width
    for j in range(0, width - PAIR + 1, PAIR):
        if shift is not None:
            k0, k1 = load(shift, j, like), load(shift, j + LANES, like)
        a = b = no_sums(value, like)
        i = first + j
        for _ in range(rows):
            prefetch(x, ahead, PAIR)
            ahead += PAIR
            if ahead >= end:
                ahead, end = ahead - width + stride, end + stride
            a = add_values(x, w, i, shift, k0, summation, a)
            b = add_values(x, w, i + LANES, shift, k1, summation, b)
            i += stride
        add_to_columns(j, width, a, summation, sums, extremes)
        add_to_columns(j + LANES, width, b, summation, sums, extremes)


@helper
def add_last(x, w, group, shift, summation, sums, extremes):
    """Add the vector of columns that ``add_pairs`` leaves out."""
    first, rows, stride, _, width = group
    k, a = zeros(summation.like), no_sums(summation.value, summation.like)
    j = width - LANES
    if shift is not None:
        k = load(shift, j, summation.like)
    i = first + j
    for _ in range(rows):
        a = add_values(x, w, i, shift, k, summation, a)
        i += stride
    add_to_columns(j, width, a, summation, sums, extremes)


@helper
def add_to_columns(j, width, added, summation, sums, extremes):
    """Add sums to those of the sixteen columns from j on."""
    wide, value = np.float64(0), summation.value
    weight, s, q, low, high = added
    if summation.masked is not None:
        store(sums, j, add(load(sums, j, wide), widen(weight)))
    store(sums, width + j, add(load(sums, width + j, wide), widen(s)))
    store(sums, 2 * width + j, add(load(sums, 2 * width + j, wide), widen(q)))
    store(extremes, j, minimum(low, load(extremes, j, value)))
    store(extremes, width + j, maximum(high, load(extremes, width + j, value)))


@helper
def collapse_range(rows, low, high):
    """Bring the least and the greatest value of the columns of each channel c into low[c] and high[c]."""
    inner = rows.inner
    size = rows.channels * inner
    for copy in range(1, rows.copies):
        for j in range(size):
            low[j] = min(low[j], low[copy * size + j])
            high[j] = max(high[j], high[copy * size + j])
    if inner == 1:
        return
    like, left = low[0], inner % LANES
    for c in range(rows.channels):
        least, most = splat(convert(np.inf, like)), splat(convert(-np.inf, like))
        last = (c + 1) * inner - left
        for j in range(c * inner, last, LANES):
            least, most = minimum(load(low, j, like), least), maximum(load(high, j, like), most)
        least = minimum(load_part(low, last, left, least), least)
        most = maximum(load_part(high, last, left, most), most)
        low[c], high[c] = lowest(least), highest(most)


@helper
def column_sums(x, w, rows, shift, summation, sums, extremes):
    """Write the sums of each channel c over the rows to element c of every part of sums and extremes.

    ``shift`` has one number per column, or is None for the sums of the values themselves.
    """
    width = len(extremes) // 2
    for j in range(width):
        sums[j] = sums[width + j] = sums[2 * width + j] = 0.0
        extremes[j] = np.inf
        extremes[width + j] = -np.inf
    for r in range(0, rows.rows, rows.group):
        group = Group(rows.base + r * rows.stride, min(rows.group, rows.rows - r), rows.stride, 0, width)
        add_pairs(x, w, group, shift, summation, elements(sums), elements(extremes))
        if width % PAIR:
            add_last(x, w, group, shift, summation, elements(sums), elements(extremes))
    for part in range(3):
        collapse(sums[part * width : (part + 1) * width], rows.copies, rows.channels, rows.inner)
    collapse_range(rows, extremes[:width], extremes[width:])
    if summation.masked is None:
        for c in range(rows.channels):
            sums[c] = rows.rows * rows.copies * rows.inner


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
    """Set the mean of channels where it is unknown to a number near their values, from sums about 0.

    Return for how many channels it is still unknown, because none of their values was among the rows.
    """
    width = len(extremes) // 2
    left = 0
    for c in range(len(mean)):
        if unknown[c]:
            low, high = np.float64(extremes[c]), np.float64(extremes[width + c])
            if low <= high:
                mean[c] = first_shift(sums[c], sums[width + c], low, high)
                unknown[c] = False
            else:
                left += 1
    return left


@helper
def fold(k, c0, sums, extremes, nonfinite, out):
    """Merge sums about the mean into the moments of chunk k and the channels from c0 on."""
    width = len(extremes) // 2
    for i in range(len(nonfinite)):
        c = c0 + i
        folded = Folded(out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], nonfinite[i])
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], nonfinite[i] = fold_sums(
            folded, sums[i], folded.mean, sums[width + i], sums[2 * width + i]
        )
        out[k, 4, c] = min(out[k, 4, c], extremes[i])
        out[k, 5, c] = max(out[k, 5, c], extremes[width + i])


@helper
def moments_task(k, c0, x, w, rows, summation, out):
    """Moments of the rows of chunk k, for the channels from c0 on.

    Sums are about the mean of the values before them. To begin with there is none: a few rows are first
    summed about 0, to find a number near the values of every channel, and then once more about it.
    """
    channels, width = rows.channels, vector_columns(rows)
    sums, extremes, shift = np.empty(3 * width), np.full(2 * width, summation.value), np.zeros(width)
    nonfinite, unknown = np.zeros(channels), np.ones(channels, np.bool_)
    mean = out[k, 1, c0 : c0 + channels]
    for c in range(c0, c0 + channels):
        out[k, 0, c] = out[k, 1, c] = out[k, 2, c] = out[k, 3, c] = 0.0
        out[k, 4, c], out[k, 5, c] = np.inf, -np.inf
    row, end = np.int64(0), rows.rows
    step, most = np.int64(rows.group), np.int64(MERGE)
    left, probed = channels, 0
    while row < end:
        block = min(step, end - row)
        looking = left > 0 and probed < block
        first, taken = row, block
        if looking:
            first, taken = row + probed, min(rows.group, block - probed)
        expand(mean, rows.copies, rows.inner, shift)
        column_sums(x, w, some_rows(rows, first, taken), shift, summation, sums, extremes)
        if looking:
            left = probe(sums, extremes, mean, unknown)
            probed += taken
        else:
            fold(k, c0, sums, extremes, nonfinite, out)
            row += taken
            probed = 0
            step = min(GROWTH * step, most)  # the nearer the shift is to the mean, the less a sum is rounded
    for i in range(channels):
        c = c0 + i
        folded = Folded(out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], nonfinite[i])
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c] = unfold(folded)


@Kernel
def moments(x, w, cut, block, masked, value, like, out):
    """Moments of every chunk: out[chunk, :, channel] is weight, mean, mean_low, m2, least, greatest.

    ``cut`` and ``block`` are as in ``task_rows``; masked, value and like are those of `Summation`.
    """
    for task in prange(count_tasks(block, out)):
        k, c0, rows = task_rows(np.int64(task), cut, block, out)
        moments_task(k, c0, x, w, rows, Summation(masked, value, like), out)


@helper
def integers_task(k, c0, x, w, rows, summation, out):
    """Sums of the rows of chunk k, for the channels from c0 on."""
    width = vector_columns(rows)
    sums, extremes = np.empty(3 * width), np.full(2 * width, summation.value)
    column_sums(x, w, rows, None, summation, sums, extremes)
    for c in range(rows.channels):
        for part in range(3):
            out[k, part, c0 + c] = sums[part * width + c]
        out[k, 3, c0 + c], out[k, 4, c0 + c] = extremes[c], extremes[width + c]


@Kernel
def integers(x, w, cut, block, masked, value, like, out):
    """Sums of every chunk: out[chunk, :, channel] is count, sum, sum of squares, least, greatest.

    The arguments are as in ``moments``.
    """
    for task in prange(count_tasks(block, out)):
        k, c0, rows = task_rows(np.int64(task), cut, block, out)
        integers_task(k, c0, x, w, rows, Summation(masked, value, like), out)
