"""Kernels for channels whose values lie apart: x is flat rows of ``copies * channels * inner`` columns.

NHWC and NC arrays (inner = 1) are such rows, and NCHW arrays of fewer than 16 pixels. Every column is summed
by itself over the rows, and each channel's columns are added up at the end. ``copies`` pixels lie side by
side in one row, so that three channels still fill vectors; the pixels left over make one shorter row.

A task is a chunk of rows. Arrays of columns are a vector longer than the columns.
"""

import numpy as np
from numba import prange

from numbabn._cpu.affine import affine, fill_affine, fill_gradient, put, put_part
from numbabn._cpu.jit import Kernel, helper, small_kernel
from numbabn._cpu.simd import (
    LANES,
    add,
    convert,
    fence,
    fma,
    load,
    load_part,
    prefetch,
    store,
    sub,
    unaligned,
    widen,
    zeros,
)
from numbabn._cpu.welford import merge_sums

MERGE = 4096  # pixels summed about one shift, or 64 rows of them: bounds the cancellation, see merge_sums
GROUP = 8  # rows summed at once: a pair of sums is loaded and stored for every eighth value only
PANEL = 512  # columns whose sums or coefficients stay in the first-level cache beside the rows
AHEAD = 16  # rows: how far ahead to prefetch


@helper
def tile(k, chunks, part, x, copies, row):
    """(first element, rows, copies) of the part 0 or 1 of chunk k: whole rows, then pixels left over.

    ``row`` is channels * inner, the elements of a pixel. Only the last chunk has anything left over.
    """
    pixels = x.size // row
    rows = pixels // copies
    first, last = rows * k // chunks, rows * (k + 1) // chunks
    if part == 0:
        return first * copies * row, last - first, copies
    left = pixels % copies if k == chunks - 1 else 0
    return last * copies * row, min(left, 1), left


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
            for j in range(channels * inner):
                part[j] = values[j // inner]
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
        for c in range(channels):
            s = 0.0
            for j in range(c * inner, (c + 1) * inner):
                s += columns[j]
            columns[c] = s


@helper
def add_column(x, dy, first, stop, width, j, n, shift, s, q):
    """Add sixteen columns, or n < 16, of the rows that begin at first, first + width, ... to s and q.

    d = x - shift has shift's dtype, and so have the sums with dy over these few rows. d and its square are
    summed in float64, see ``row_kernels.sums``; there may be no other rows to average an error out.
    """
    like, wide = shift[0], np.float64(0)
    k, t, u = load(shift, j, like), zeros(like), zeros(like)
    sum_e, sum_ed = load(s, j, wide), load(q, j, wide)
    for i in range(first + j, stop + j, width):
        prefetch(x, i + AHEAD * width, LANES)
        d = sub(load(x, i, like) if n >= LANES else load_part(x, i, n, k), k)
        if dy is None:
            wide_d = widen(d)
            sum_e, sum_ed = add(sum_e, wide_d), fma(wide_d, wide_d, sum_ed)
        else:
            prefetch(dy, i + AHEAD * width, LANES)
            e = load(dy, i, like) if n >= LANES else load_part(dy, i, n, zeros(like))
            t, u = add(t, e), fma(e, d, u)
    store(s, j, add(sum_e, widen(t)))
    store(q, j, add(sum_ed, widen(u)))


@helper
def column_sums(x, dy, base, rows, copies, channels, inner, shift, s, q):
    """s[c] = sum of e and q[c] = sum of e * d over the columns of channel c, with d = x - shift[column].

    e = dy, or d where dy is None. s and q are float64.
    """
    width = copies * channels * inner
    end = base + rows * width
    for j in range(len(s)):
        s[j] = 0.0
        q[j] = 0.0
    for lo in range(0, width, PANEL):
        hi = min(lo + PANEL, width)
        for first in range(base, end, GROUP * width):
            stop = min(first + GROUP * width, end)
            for j in range(lo, hi, LANES):
                add_column(x, dy, first, stop, width, j, hi - j, shift, s, q)
    collapse(s, copies, channels, inner)
    collapse(q, copies, channels, inner)


@helper
def first_estimate(x, first, pixels, channels, inner, like, values):
    """values[c] = a number of like's dtype near the mean of channel c: that of four pixels.

    One pixel may be an outlier, about which nothing else should be summed.
    """
    n = 4 if pixels >= 4 else 1
    for c in range(channels):
        value = np.float64(0)
        for i in range(first + c * inner, first + (c + n * channels) * inner, channels * inner):
            value += x[i]
        values[c] = convert(value / n, like)


@helper
def moments_task(k, x, copies, inner, like, count, mean, m2):
    """Moments of chunk k."""
    channels = mean.shape[1]
    width = copies * channels * inner + LANES
    values, shift, s, q = np.empty(channels), np.full(width, like), np.empty(width), np.empty(width)
    chunk_mean, chunk_m2 = mean[k], m2[k]
    seen = 0.0  # not count[k]: the loop over channels must not suspect that it changes
    for c in range(channels):
        chunk_mean[c] = 0.0
        chunk_m2[c] = 0.0
    for part in range(2):
        base, rows, across = tile(k, len(count), part, x, copies, channels * inner)
        step = max(MERGE // max(across, 1), 64)
        for r in range(0, rows, step):
            taken = min(step, rows - r)
            first = base + r * across * channels * inner
            if seen == 0.0:
                first_estimate(x, first, taken * across, channels, inner, like, values)
            expand(values, across, inner, shift)
            column_sums(x, None, first, taken, across, channels, inner, shift, s, q)
            n = np.float64(taken * across * inner)
            for c in range(channels):
                _, chunk_mean[c], chunk_m2[c] = merge_sums(
                    seen, chunk_mean[c], chunk_m2[c], n, values[c], s[c], q[c]
                )
                values[c] = convert(chunk_mean[c], like)
            seen += n
    count[k] = seen


@Kernel
def moments(x, copies, inner, like, count, mean, m2):
    """Moments of every chunk: count[chunks], mean[chunks, channels] and m2."""
    for k in prange(len(count)):
        moments_task(np.int64(k), x, copies, inner, like, count, mean, m2)


@helper
def products_task(k, x, dy, copies, inner, mean, sum_dy, sum_dy_d):
    """Sums of dy and dy * (x - mean) of chunk k."""
    chunks, channels = sum_dy.shape
    width = copies * channels * inner + LANES
    center, shift = np.empty(channels, x.dtype), np.empty(width, x.dtype)
    s, q = np.empty(width), np.empty(width)
    for c in range(channels):
        center[c] = mean[c]
        sum_dy[k, c] = 0.0
        sum_dy_d[k, c] = 0.0
    for part in range(2):
        base, rows, across = tile(k, chunks, part, x, copies, channels * inner)
        if rows > 0:
            expand(center, across, inner, shift)
            column_sums(x, dy, base, rows, across, channels, inner, shift, s, q)
            for c in range(channels):
                sum_dy[k, c] += s[c]
                sum_dy_d[k, c] += q[c] - (mean[c] - center[c]) * s[c]


@Kernel
def products(x, dy, copies, inner, mean, sum_dy, sum_dy_d):
    """Sums of dy and dy * (x - mean) of every chunk: arrays [chunks, channels]."""
    for k in prange(len(sum_dy)):
        products_task(np.int64(k), x, dy, copies, inner, mean, sum_dy, sum_dy_d)


@helper
def apply_panel(x, dy, out, base, rows, width, first, last, columns, streaming):
    """Columns first..last of rows, in whole vectors.

    Row by row, as the memory lies: eight rows at once, with coefficients in registers, is slower by a fifth.
    """
    for o in range(base, base + rows * width, width):
        for j in range(first, last, LANES):
            k, a = load(columns[0], j, x[0]), load(columns[1], j, x[0])
            b, w = load(columns[2], j, x[0]), load(columns[3], j, x[0])
            put(out, o + j, affine(x, dy, o + j, k, a, b, w), streaming)


@helper
def apply_tile(x, dy, out, base, rows, width, columns, streaming):
    """out = (x - center) * scale + shift + dy * weight over rows, coefficients columns[4, width + 16].

    The vectors begin at a cache line of out and run over the end of a row into the next, which is why the
    first 16 coefficients are repeated after the last, and why a width not of whole vectors has one row.
    """
    first = min(unaligned(out, base), width) if streaming else 0
    last = first + (width - first) // LANES * LANES
    if first > 0:
        put_columns(out, base, first, x, dy, np.int64(0), columns)
    for n, end in ((rows - 1, first + width), (np.int64(1), last)):
        for j in range(first, end, PANEL):
            apply_panel(x, dy, out, base, n, width, j, min(j + PANEL, end), columns, streaming)
        base += n * width
    if last < width:
        put_columns(out, base - width + last, width - last, x, dy, last, columns)


@helper
def put_columns(out, i, count, x, dy, j, columns):
    """Write ``count`` < 16 elements from i on, which lie in the columns from j on."""
    like = x[0]
    k, a = load(columns[0], j, like), load(columns[1], j, like)
    put_part(out, i, count, x, dy, k, a, load(columns[2], j, like), load(columns[3], j, like))


@helper
def apply_task(k, chunks, x, dy, out, copies, inner, coefficients, streaming):
    """Apply the affine map to chunk k."""
    channels = coefficients.shape[1]
    columns = np.empty((4, copies * channels * inner + LANES), x.dtype)
    for part in range(2):
        base, rows, across = tile(k, chunks, part, x, copies, channels * inner)
        if rows > 0:
            for c in range(4):
                expand(coefficients[c], across, inner, columns[c])
            apply_tile(x, dy, out, base, rows, across * channels * inner, columns, streaming)
    fence()


@Kernel
def apply(x, dy, out, chunks, copies, inner, coefficients, streaming):
    """out = (x - center) * scale + shift + dy * weight, with coefficients[4, channels] in this order.

    From the last chunk to the first, because what the statistics read last is still in the cache.
    """
    for t in prange(chunks):
        apply_task(chunks - 1 - np.int64(t), chunks, x, dy, out, copies, inner, coefficients, streaming)


@small_kernel
def normalize(x, y, copies, inner, mean, var, gamma, beta, eps):
    """Normalise a small array with the statistics given, in one launch."""
    coefficients = np.empty((4, len(mean)), x.dtype)
    for c in range(len(mean)):
        fill_affine(c, mean, var, gamma, beta, eps, coefficients)
    apply_task(0, 1, x, None, y, copies, inner, coefficients, False)


@small_kernel
def forward(x, y, copies, inner, gamma, beta, eps, statistics):
    """Training forward of a small array: mean and biased variance in statistics[2, channels]."""
    count = np.empty(1)
    mean, var = statistics[:1], statistics[1:]
    coefficients = np.empty((4, mean.shape[1]), x.dtype)
    moments_task(0, x, copies, inner, x[0], count, mean, var)
    for c in range(mean.shape[1]):
        var[0, c] /= count[0]
        fill_affine(c, mean[0], var[0], gamma, beta, eps, coefficients)
    apply_task(0, 1, x, None, y, copies, inner, coefficients, False)


@small_kernel
def backward(x, dy, dx, copies, inner, gamma, mean, var, eps, sums):
    """Training backward of a small array: sums of dy and dy * xhat in sums[2, channels]."""
    coefficients = np.empty((4, len(mean)), x.dtype)
    count = np.float64(x.size // len(mean))
    products_task(0, x, dy, copies, inner, mean, sums[:1], sums[1:])
    for c in range(len(mean)):
        sums[1, c] /= np.sqrt(var[c] + eps)
        fill_gradient(c, mean, var, gamma, eps, count, sums, coefficients)
    apply_task(0, 1, x, dy, dx, copies, inner, coefficients, False)
