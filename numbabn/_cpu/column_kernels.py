"""Kernels for channels whose values lie apart: x is flat rows of ``copies * channels * inner`` columns.

NHWC and NC arrays (inner = 1) are such rows, and NCHW arrays of fewer than 16 pixels. Every column is summed
by itself over the rows, and each channel's columns are added up at the end. ``copies`` pixels lie side by
side in one row, so that three channels still fill vectors; the pixels left over make one shorter row.
"""

import numpy as np
from numba import prange

from numbabn._cpu.jit import driver, helper, kernel
from numbabn._cpu.simd import (
    LANES,
    add,
    fence,
    fma,
    load,
    load_part,
    prefetch,
    store,
    store_part,
    stream,
    sub,
    unaligned,
    zeros,
)
from numbabn._cpu.welford import affine_coefficients, gradient_coefficients, merge_sums

ROWS = 4096  # rows summed about one shift before a merge; bounds the cancellation, see merge_sums
GROUP = 8  # rows added at once: a pair of sums is loaded and stored for every eighth value only
PANEL = 512  # columns whose shifts and sums stay in the first-level cache beside the rows
AHEAD = 16  # rows: how far ahead to prefetch


@helper
def add_column(x, dy, first, stop, width, j, n, shift, s, q):
    """Add sixteen columns, or n < 16, of the rows that begin at first, first + width, ... to s and q."""
    wide = np.float64(0)
    k, t, u = load(shift, j, wide), load(s, j, wide), load(q, j, wide)
    for i in range(first + j, stop + j, width):
        prefetch(x, i + AHEAD * width)
        d = sub(load(x, i, wide) if n >= LANES else load_part(x, i, n, k), k)
        e = d
        if dy is not None:
            prefetch(dy, i + AHEAD * width)
            e = load(dy, i, wide) if n >= LANES else load_part(dy, i, n, zeros(wide))
        t, u = add(t, e), fma(e, d, u)
    store(s, j, t)
    store(q, j, u)


@helper
def add_columns(x, dy, base, rows, width, shift, s, q):
    """s[j] += e and q[j] += e * d over rows, with d = x[base + r * width + j] - shift[j].

    e = dy, or d where dy is None. Everything is float64: float32 sums were no faster on arrays in the last
    cache or in memory, and need a good shift. The arrays of columns are a vector longer than the columns.
    """
    end = base + rows * width
    for lo in range(0, width, PANEL):
        hi = min(lo + PANEL, width)
        for first in range(base, end, GROUP * width):
            stop = min(first + GROUP * width, end)
            for j in range(lo, hi, LANES):
                add_column(x, dy, first, stop, width, j, hi - j, shift, s, q)


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
def merge_tile(x, base, rows, copies, inner, count, mean, m2):
    """Merge rows of x into mean and m2, which hold ``count`` values a channel; return the new count."""
    channels = len(mean)
    width = copies * channels * inner
    values, shift = np.empty(channels), np.empty(width + LANES)
    s, q = np.empty(width + LANES), np.empty(width + LANES)
    for r in range(0, rows, ROWS):
        taken = min(ROWS, rows - r)
        first = base + r * width
        for c in range(channels):
            values[c] = x[first + c * inner]
        expand(values, copies, inner, shift)
        column_sums(x, None, first, taken, copies, channels, inner, shift, s, q)
        n = np.float64(taken * copies * inner)
        for c in range(channels):
            _, mean[c], m2[c] = merge_sums(count, mean[c], m2[c], n, values[c], s[c], q[c])
        count += n
    return count


@helper
def add_tile_products(x, dy, base, rows, copies, inner, mean, sum_dy, sum_dy_d):
    """Add the sums of dy and dy * (x - mean) over rows of x."""
    if rows == 0:
        return
    channels = len(mean)
    width = copies * channels * inner
    columns, s, q = np.empty(width + LANES), np.empty(width + LANES), np.empty(width + LANES)
    expand(mean, copies, inner, columns)
    column_sums(x, dy, base, rows, copies, channels, inner, columns, s, q)
    for c in range(channels):
        sum_dy[c] += s[c]
        sum_dy_d[c] += q[c]


@helper
def column_sums(x, dy, base, rows, copies, channels, inner, shift, s, q):
    """Sums of ``add_columns`` for each channel c, in s[c] and q[c]."""
    for j in range(len(s)):
        s[j] = 0.0
        q[j] = 0.0
    add_columns(x, dy, base, rows, copies * channels * inner, shift, s, q)
    collapse(s, copies, channels, inner)
    collapse(q, copies, channels, inner)


@helper
def chunk_rows(k, chunks, x, copies, channels, inner):
    """(first row, rows, pixels left over after them) of chunk k: the last chunk has the remainder."""
    pixels = x.size // (channels * inner)
    rows = pixels // copies
    first = rows * k // chunks
    left = pixels % copies if k == chunks - 1 else 0
    return first, rows * (k + 1) // chunks - first, left


@helper
def chunk_moments(k, chunks, x, copies, inner, mean, m2):
    """Mean and m2 of chunk k, written into the arrays given; return its count."""
    width = copies * len(mean) * inner
    first, rows, left = chunk_rows(k, chunks, x, copies, len(mean), inner)
    for c in range(len(mean)):
        mean[c] = 0.0
        m2[c] = 0.0
    count = merge_tile(x, first * width, rows, copies, inner, 0.0, mean, m2)
    return merge_tile(x, (first + rows) * width, min(left, 1), left, inner, count, mean, m2)


@helper
def chunk_products(k, chunks, x, dy, copies, inner, mean, sum_dy, sum_dy_d):
    """Sums of dy and dy * (x - mean) of chunk k, written into the arrays given."""
    width = copies * len(mean) * inner
    first, rows, left = chunk_rows(k, chunks, x, copies, len(mean), inner)
    for c in range(len(mean)):
        sum_dy[c] = 0.0
        sum_dy_d[c] = 0.0
    add_tile_products(x, dy, first * width, rows, copies, inner, mean, sum_dy, sum_dy_d)
    add_tile_products(x, dy, (first + rows) * width, min(left, 1), left, inner, mean, sum_dy, sum_dy_d)


@helper
def affine(x, dy, i, j, center, scale, shift, weight):
    """Sixteen values of (x - center) * scale + shift, + dy * weight where there is a dy; from column j on."""
    like = x[0]
    value = fma(sub(load(x, i, like), load(center, j, like)), load(scale, j, like), load(shift, j, like))
    if dy is not None:
        value = fma(load(dy, i, like), load(weight, j, like), value)
    return value


@helper
def affine_part(x, dy, i, j, count, out, center, scale, shift, weight):
    """Write the first ``count`` of sixteen values of ``affine``."""
    like = x[0]
    k = load(center, j, like)
    value = fma(sub(load_part(x, i, count, k), k), load(scale, j, like), load(shift, j, like))
    if dy is not None:
        value = fma(load_part(dy, i, count, k), load(weight, j, like), value)
    store_part(out, i, count, value)


@helper
def apply_tile(x, dy, out, base, rows, width, center, scale, shift, weight, streaming):
    """out = (x - center) * scale + shift + dy * weight over rows, coefficients per column.

    The vectors begin at a cache line of out and run over the end of a row into the next, which is why the
    first 16 coefficients are repeated after the last, and why a width not of whole vectors has one row.
    """
    first = min(unaligned(out, base), width) if streaming else 0
    last = first + (width - first) // LANES * LANES
    if first > 0:
        affine_part(x, dy, base, 0, first, out, center, scale, shift, weight)
    for r in range(rows):
        o = base + r * width
        for j in range(first, first + width if r < rows - 1 else last, LANES):
            value = affine(x, dy, o + j, j, center, scale, shift, weight)
            if streaming:
                stream(out, o + j, value)
            else:
                store(out, o + j, value)
    if last < width:
        o = base + (rows - 1) * width + last
        affine_part(x, dy, o, last, width - last, out, center, scale, shift, weight)


@helper
def apply_chunk(k, chunks, x, dy, out, copies, inner, center, scale, shift, weight, streaming):
    """Apply the affine map to chunk k, coefficients per channel."""
    channels = len(center)
    width = copies * channels * inner
    columns = np.empty((4, width + LANES), center.dtype)
    expand(center, copies, inner, columns[0])
    expand(scale, copies, inner, columns[1])
    expand(shift, copies, inner, columns[2])
    expand(weight, copies, inner, columns[3])
    first, rows, left = chunk_rows(k, chunks, x, copies, channels, inner)
    base = first * width
    for tile in range(2):
        if tile == 1:
            base += rows * width
            rows, width = min(left, 1), left * channels * inner
        if rows > 0:
            apply_tile(
                x, dy, out, base, rows, width, columns[0], columns[1], columns[2], columns[3], streaming
            )


@kernel
def moments(lo, hi, x, copies, inner, count, mean, m2):
    """Partial moments of chunks lo..hi: count[chunks], mean[chunks, channels] and m2."""
    for k in range(lo, hi):
        count[k] = chunk_moments(k, len(count), x, copies, inner, mean[k], m2[k])


@driver
def moments_parallel(tasks, x, copies, inner, count, mean, m2):
    for t in prange(tasks):
        moments(t, t + 1, x, copies, inner, count, mean, m2)


@kernel
def products(lo, hi, x, dy, copies, inner, mean, sum_dy, sum_dy_d):
    """Partial sums of dy and dy * (x - mean) of chunks lo..hi: arrays [chunks, channels]."""
    for k in range(lo, hi):
        chunk_products(k, len(sum_dy), x, dy, copies, inner, mean, sum_dy[k], sum_dy_d[k])


@driver
def products_parallel(tasks, x, dy, copies, inner, mean, sum_dy, sum_dy_d):
    for t in prange(tasks):
        products(t, t + 1, x, dy, copies, inner, mean, sum_dy, sum_dy_d)


@kernel
def apply(lo, hi, x, dy, out, chunks, copies, inner, center, scale, shift, weight, streaming):
    """out = (x - center) * scale + shift + dy * weight; chunks from the last to the first.

    Backwards, because what the statistics read last is still in the cache.
    """
    for t in range(lo, hi):
        k = chunks - 1 - t
        apply_chunk(k, chunks, x, dy, out, copies, inner, center, scale, shift, weight, streaming)
    fence()


@driver
def apply_parallel(tasks, x, dy, out, chunks, copies, inner, center, scale, shift, weight, streaming):
    for t in prange(tasks):
        apply(t, t + 1, x, dy, out, chunks, copies, inner, center, scale, shift, weight, streaming)


@kernel
def normalize(x, y, copies, inner, mean, var, gamma, beta, eps):
    """Normalise a small array with the statistics given."""
    coefficients = np.empty((4, len(mean)), x.dtype)
    for c in range(len(mean)):
        coefficients[0, c], coefficients[1, c], coefficients[2, c] = affine_coefficients(
            mean[c], var[c], gamma[c], beta[c], eps, x[0]
        )
    center, scale, shift = coefficients[0], coefficients[1], coefficients[2]
    apply_chunk(0, 1, x, None, y, copies, inner, center, scale, shift, scale, False)


@kernel
def forward(x, y, copies, inner, gamma, beta, eps, mean, var):
    """Training forward of an array so small that another launch would cost as much."""
    count = chunk_moments(0, 1, x, copies, inner, mean, var)
    for c in range(len(mean)):
        var[c] /= count
    normalize(x, y, copies, inner, mean, var, gamma, beta, eps)


@kernel
def backward(x, dy, dx, copies, inner, gamma, mean, var, eps, sum_dy, sum_dy_xhat):
    """Training backward of a small array."""
    coefficients = np.empty((4, len(mean)), x.dtype)
    count = np.float64(x.size // len(mean))
    chunk_products(0, 1, x, dy, copies, inner, mean, sum_dy, sum_dy_xhat)
    for c in range(len(mean)):
        sum_dy_xhat[c] /= np.sqrt(var[c] + eps)
        coefficients[0, c], coefficients[1, c], coefficients[2, c], coefficients[3, c] = (
            gradient_coefficients(mean[c], var[c], gamma[c], eps, sum_dy[c], sum_dy_xhat[c], count, x[0])
        )
    apply_chunk(
        0,
        1,
        x,
        dy,
        dx,
        copies,
        inner,
        coefficients[0],
        coefficients[1],
        coefficients[2],
        coefficients[3],
        False,
    )
