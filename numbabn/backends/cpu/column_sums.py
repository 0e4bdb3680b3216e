"""Sums and moments of columns: of channels whose values lie apart, row below row.

A row is ``copies * channels * inner`` columns. Every column is summed by itself, and each channel's columns
are added up at the end. Arrays of columns are a vector longer than the columns, unless these are vectors.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends.cpu.contiguous import TINY, add_part, add_values
from numbabn.backends.cpu.epilogue import array_of, bare
from numbabn.backends.cpu.jit import helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    computed,
    convert,
    elements,
    fma,
    load,
    load_part,
    number,
    prefetch,
    splat,
    store,
    total,
    unaligned,
    widen,
    zeros,
)
from numbabn.backends.cpu.welford import merge_sums

MERGE = 4096  # pixels summed about one shift, or 64 rows of them: bounds the cancellation, see merge_sums
PAIR = 2 * LANES  # columns whose sums are in registers while a group of rows is added to them
GROUP = 8  # rows summed at once: a pair of sums is loaded and stored for every eighth value only
PANEL = 512  # columns whose sums or coefficients stay in the first-level cache beside the rows
AHEAD = 256  # columns: how far ahead in the same rows to prefetch, and then in the next ones
# Of the next eight rows instead, those that are 4 KB apart share their place in the cache: sums of dy and x
# of 32x14x14x1024 take 1.08 ms with that and 0.80 so, those of 8192x512 0.53 and 0.43. In the order of
# memory, as `streaming.column_statistics` does it, 50 MB and more in rows of up to 512 columns take 0.95
# times as long, and rows of 1024 columns 1.05 times.
# Bytes that a pass reads up to which nothing is prefetched. What comes too early takes the place of sums in
# the first cache. Sums of dy and x, on two cores with AVX-512 that share 32 MB: 13 MB (32x14x14x256) take
# 0.14 ms with prefetching and 0.10 without, 26 MB (32x28x28x128) 0.24 and 0.35.
CACHED = 16 << 20


class Rows(NamedTuple):
    """Rows of columns: where the first begins, how many there are, and what lies side by side in each."""

    base: int
    rows: int
    copies: int  # pixels; 1 where it is
    channels: int
    inner: int


class Group(NamedTuple):
    """A few rows of the columns lo..hi, which are added to the sums of these columns together."""

    first: int  # where the first row begins, with column 0
    rows: int
    stride: int
    lo: int
    hi: int


@helper
def columns_of(rows):
    """Elements of a row."""
    return rows.copies * rows.channels * rows.inner


@helper
def aligned_length(width):
    """How long an array must be to hold that many columns, 16 more, and what ``aligned_start`` skips."""
    return (width // LANES + 3) * LANES


@helper
def aligned_start(array, first):
    """Where in an array the columns begin so that column ``first`` begins a cache line."""
    return (unaligned(array, 0) - first) % LANES


@helper
def aligned_columns(width, like):
    """Return an array of like's dtype for that many columns and 16 more, which begins at a cache line."""
    array = np.full(aligned_length(width), like)
    return array[aligned_start(array, 0) :][: width + LANES]


@helper
def tile(k, chunks, part, x, copies, channels, inner):
    """Return part 0 of chunk k, its whole rows, or part 1, the pixels left over, which only the last has."""
    row = channels * inner
    pixels = x.size // row
    rows = pixels // copies
    first, last = rows * k // chunks, rows * (k + 1) // chunks
    if part == 0:
        return Rows(first * copies * row, last - first, copies, channels, inner)
    left = pixels % copies if k == chunks - 1 else 0
    return Rows(last * copies * row, min(left, 1), left, channels, inner)


@helper
def expand(values, copies, inner, columns):
    """columns[(copy * channels + c) * inner + i] = values[c], and the first 16 again at the end."""
    channels = len(values)
    for copy in range(copies):
        part = columns[copy * channels * inner : (copy + 1) * channels * inner]
        if inner == 1:  # a plain copy; the general loop took as long as the statistics of 7x7x2048
            for c in range(channels):
                part[c] = values[c]
        else:
            for c in range(channels):
                for j in range(c * inner, (c + 1) * inner):
                    part[j] = values[c]
    width = copies * channels * inner
    for j in range(LANES):
        columns[width + j] = columns[j % width]


@helper
def collapse(columns, copies, channels, inner):
    """Add up the columns of each channel c into columns[c]."""
    for copy in range(1, copies):
        part = columns[copy * channels * inner : (copy + 1) * channels * inner]
        for j in range(channels * inner):
            columns[j] += part[j]
    if inner > 1:
        left = inner % LANES
        for c in range(channels):
            last = (c + 1) * inner - left
            s = load_part(columns, last, left, zeros(0.0))
            for j in range(c * inner, last, LANES):
                s = add(s, load(columns, j, 0.0))
            columns[c] = total(s)


@helper
def add_pairs(dy, x, group, prefetching, shift, s, q):
    """Add a group to the sums s and q, but for its last columns where they are fewer than 32.

    e, d = x - shift and their sums over these few rows have shift's dtype.
    """
    first, rows, stride, lo, hi = group
    like, wide = shift[0], np.float64(0)
    for j in range(lo, hi - PAIR + 1, PAIR):
        k0, k1 = load(shift, j, like), load(shift, j + LANES, like)
        s0 = s1 = q0 = q1 = zeros(like)
        i, ahead = first + j, AHEAD if j + AHEAD < hi else AHEAD - (hi - lo) + GROUP * stride
        for _ in range(rows):  # not range(i, stop, stride), whose length is a division for every 32 columns
            if prefetching:
                prefetch(x, i + ahead, PAIR)
                if dy is not None:
                    prefetch(array_of(dy), i + ahead, PAIR)
            s0, q0 = add_values(dy, x, i, None, 0, k0, like, s0, q0)
            s1, q1 = add_values(dy, x, i + LANES, None, 0, k1, like, s1, q1)
            i += stride
        store(s, j, add(load(s, j, wide), widen(s0)))
        store(q, j, add(load(q, j, wide), widen(q0)))
        store(s, j + LANES, add(load(s, j + LANES, wide), widen(s1)))
        store(q, j + LANES, add(load(q, j + LANES, wide), widen(q1)))


@helper
def add_rest(dy, x, group, shift, s, q):
    """Add the columns of a group that ``add_pairs`` leaves out."""
    first, rows, stride, lo, hi = group
    like, wide = shift[0], np.float64(0)
    for j in range(lo + (hi - lo) // PAIR * PAIR, hi, LANES):
        k, s0, q0 = load(shift, j, like), zeros(like), zeros(like)
        i, n = first + j, hi - j
        for _ in range(rows):
            if n >= LANES:
                s0, q0 = add_values(dy, x, i, None, 0, k, like, s0, q0)
            else:
                s0, q0 = add_part(dy, x, i, None, 0, n, k, like, s0, q0)
            i += stride
        store(s, j, add(load(s, j, wide), widen(s0)))
        store(q, j, add(load(q, j, wide), widen(q0)))


@helper
def panel_sums(dy, x, prefetching, rows, lo, hi, shift, s, q):
    """Fill s and q from column lo to hi, and up to the end of the last vector."""
    width = columns_of(rows)
    for j in range(lo, min(hi + LANES, len(s))):
        s[j] = 0.0
        q[j] = 0.0
    for r in range(0, rows.rows, GROUP):
        group = Group(rows.base + r * width, min(GROUP, rows.rows - r), width, lo, hi)
        add_pairs(dy, x, group, prefetching, elements(shift), elements(s), elements(q))
        add_rest(dy, x, group, elements(shift), elements(s), elements(q))


@helper
def all_in_range(q, lo, hi):
    """Whether no sum of squares is infinite or NaN, or so small that squares may have underflown."""
    within = True
    for j in range(lo, hi):
        within &= TINY < q[j] < np.inf
    return within


@helper
def sum_again(x, rows, shift, s, q):
    """Sum those columns again in float64 whose squares leave the range of float32, or are all 0.

    Sixteen columns at a time, so that a constant channel does not make all others take as long as it does.
    They keep their bits, whatever is in this channel. Every kernel of columns is compiled with this loop;
    with ``panel_sums`` in float64 in its place the first training step took 0.3 of 6 s longer.
    """
    width, wide = columns_of(rows), np.float64(0)
    if all_in_range(q, 0, width):
        return
    wide_s, wide_q = np.empty(LANES), np.empty(LANES)
    for lo in range(0, width, LANES):
        n = min(LANES, width - lo)
        if not all_in_range(q, lo, lo + n):
            i, k, sums, squares = rows.base + lo, load(shift, lo, wide), zeros(wide), zeros(wide)
            for _ in range(rows.rows):
                sums, squares = add_part(None, x, i, None, 0, n, k, wide, sums, squares)
                i += width
            store(wide_s, 0, sums)
            store(wide_q, 0, squares)
            for j in range(n):
                if not TINY < q[lo + j] < np.inf:
                    s[lo + j], q[lo + j] = wide_s[j], wide_q[j]


@helper
def column_sums(dy, x, nbytes, rows, shift, s, q):
    """s[c] = sum of e and q[c] = sum of e * d over the columns of channel c, with d = x - shift[column].

    e = dy, or d where dy is None. s and q are float64. ``nbytes`` are those that all tasks read together.
    """
    width = columns_of(rows)
    for lo in range(0, width, PANEL):
        panel_sums(dy, x, nbytes > CACHED, rows, lo, min(lo + PANEL, width), shift, s, q)
    if dy is None:
        sum_again(x, rows, shift, s, q)
    collapse(s, rows.copies, rows.channels, rows.inner)
    collapse(q, rows.copies, rows.channels, rows.inner)


@helper
def first_estimate(x, rows, values):
    """values[c] = a number near the mean of channel c: that of four pixels.

    One pixel may be an outlier, and sums about an outlier lose digits: the mean of four is nearer to others.
    """
    like, n = values[0], 4 if rows.rows * rows.copies >= 4 else 1
    pixel = rows.channels * rows.inner
    weight = splat(convert(1.0 / n, like))  # n is a power of two, and no sum overflows
    if rows.inner > 1:
        for c in range(rows.channels):
            first = rows.base + c * rows.inner
            values[c] = 0.0
            for i in range(first, first + n * pixel, pixel):
                values[c] += number(x, i) / n
    else:
        for c in range(0, rows.channels, LANES):
            some, mean = rows.channels - c, zeros(like)
            for i in range(rows.base + c, rows.base + c + n * pixel, pixel):
                v = load(x, i, like) if some >= LANES else load_part(x, i, some, mean)
                mean = fma(v, weight, mean)
            store(values, c, mean)


@helper
def add_moments(x, rows, seen, like, mean, m2):
    """Merge the moments of every channel into mean and m2 of ``seen`` values; return how many there are."""
    _, count, copies, channels, inner = rows
    width, nbytes, zero = columns_of(rows), x.size * x.itemsize, convert(0.0, like)
    values, shift = aligned_columns(channels, zero), aligned_columns(width, zero)
    s, q = aligned_columns(width, 0.0), aligned_columns(width, 0.0)
    step = max(MERGE // max(copies, 1), 64)
    for r in range(0, count, step):
        block = Rows(rows.base + r * width, min(step, count - r), copies, channels, inner)
        if seen == 0.0:
            first_estimate(elements(x), block, values)
        elif r == 0:
            for c in range(channels):
                values[c] = convert(mean[c], like)
        expand(values[:channels], copies, inner, shift)
        column_sums(None, elements(x), nbytes, block, shift, s, q)
        n = np.float64(block.rows * copies * inner)
        for c in range(channels):
            _, mean[c], m2[c] = merge_sums(seen, mean[c], m2[c], n, values[c], s[c], q[c])
            values[c] = convert(mean[c], like)
        seen += n
    return seen


@helper
def moments_task(k, x, copies, inner, like, count, pair):
    """Moments of chunk k."""
    mean, m2 = pair[0, k], pair[1, k]
    seen = 0.0  # not count[k]: the loop over channels must not suspect that it changes
    for c in range(len(mean)):
        mean[c] = 0.0
        m2[c] = 0.0
    for part in range(2):
        rows = tile(k, len(count), part, x, copies, len(mean), inner)
        seen = add_moments(x, rows, seen, like, mean, m2)
    count[k] = seen


@helper
def products_task(k, dy, x, copies, inner, mean, sums):
    """Sums of dy and dy * (x - mean) of chunk k."""
    _, chunks, channels = sums.shape
    width, center = copies * channels * inner, np.empty(channels, computed(x))
    shift = aligned_columns(width, convert(0.0, x[0]))
    s, q = aligned_columns(width, 0.0), aligned_columns(width, 0.0)
    sum_dy, sum_dy_d = sums[0, k], sums[1, k]
    for c in range(channels):
        center[c] = mean[c]
        sum_dy[c] = 0.0
        sum_dy_d[c] = 0.0
    for part in range(2):
        rows = tile(k, chunks, part, x, copies, channels, inner)
        if rows.rows > 0:
            expand(center, rows.copies, inner, shift)
            column_sums(bare(dy), elements(x), 2 * x.size * x.itemsize, rows, shift, s, q)
            for c in range(channels):
                sum_dy[c] += s[c]
                sum_dy_d[c] += q[c] - (mean[c] - center[c]) * s[c]
