"""Kernels for channels whose values lie apart: x is flat rows of ``copies * channels * inner`` columns.

NHWC and NC arrays (inner = 1) are such rows, and NCHW arrays of fewer than 16 pixels. Every column is summed
by itself over the rows, and each channel's columns are added up at the end. ``copies`` pixels lie side by
side in one row, so that three channels still fill vectors; the pixels left over make one shorter row.

A task is a chunk of rows, or a whole sample where every sample has statistics of its own. Arrays of columns
are a vector longer than the columns. Some functions have nine parameters, for the reasons that `row_kernels`
gives.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from numbabn.backends.cpu.affine import (
    Traffic,
    affine,
    fill_gradient,
    fill_group_gradient,
    fill_normalize,
    put_affine_part,
)
from numbabn.backends.cpu.epilogue import array_of, bare, head, put, slice_of, take, take_part
from numbabn.backends.cpu.jit import Kernel, helper, small_kernel
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    computed,
    convert,
    fence,
    fma,
    load,
    load_part,
    number,
    prefetch,
    store,
    sub,
    widen,
    zeros,
)
from numbabn.backends.cpu.welford import merge_all, merge_sums

MERGE = 4096  # pixels summed about one shift, or 64 rows of them: bounds the cancellation, see merge_sums
GROUP = 8  # rows summed at once: a pair of sums is loaded and stored for every eighth value only
PANEL = 512  # columns whose sums or coefficients stay in the first-level cache beside the rows
AHEAD = 16  # rows: how far ahead to prefetch


class Rows(NamedTuple):
    """Rows of columns: where the first begins, how many there are, and what lies side by side in each."""

    base: int
    rows: int
    copies: int  # pixels
    channels: int
    inner: int


class Lines(NamedTuple):
    """Some of the rows that `Rows` describes: they begin at first, first + width, ... before stop."""

    first: int
    stop: int
    width: int


@helper
def columns_of(rows):
    """Elements of a row."""
    return rows.copies * rows.channels * rows.inner


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
        for c in range(channels):
            s = 0.0
            for j in range(c * inner, (c + 1) * inner):
                s += columns[j]
            columns[c] = s


@helper
def add_column(dy, x, lines, j, n, shift, s, q):
    """Add sixteen columns from j on, or n < 16, of the rows that ``lines`` bounds to s and q.

    d = x - shift has shift's dtype, and so have the sums with dy over these few rows. d and its square are
    summed in float64, see ``row_kernels.sums``; there may be no other rows to average an error out.
    """
    first, stop, width = lines
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
            prefetch(array_of(dy), i + AHEAD * width, LANES)
            e = take(dy, i, like) if n >= LANES else take_part(dy, i, n, zeros(like))
            t, u = add(t, e), fma(e, d, u)
    store(s, j, add(sum_e, widen(t)))
    store(q, j, add(sum_ed, widen(u)))


@helper
def column_sums(dy, x, rows, shift, s, q):
    """s[c] = sum of e and q[c] = sum of e * d over the columns of channel c, with d = x - shift[column].

    e = dy, or d where dy is None. s and q are float64.
    """
    width = columns_of(rows)
    end = rows.base + rows.rows * width
    for j in range(len(s)):
        s[j] = 0.0
        q[j] = 0.0
    for lo in range(0, width, PANEL):
        hi = min(lo + PANEL, width)
        for first in range(rows.base, end, GROUP * width):
            lines = Lines(first, min(first + GROUP * width, end), width)
            for j in range(lo, hi, LANES):
                add_column(dy, x, lines, j, hi - j, shift, s, q)
    collapse(s, rows.copies, rows.channels, rows.inner)
    collapse(q, rows.copies, rows.channels, rows.inner)


@helper
def first_estimate(x, rows, like, values):
    """values[c] = a number of like's dtype near the mean of channel c: that of four pixels.

    One pixel may be an outlier, and sums about an outlier lose digits: the mean of four is nearer to others.
    """
    n = 4 if rows.rows * rows.copies >= 4 else 1
    pixel = rows.channels * rows.inner
    for c in range(rows.channels):
        value = np.float64(0)
        for i in range(rows.base + c * rows.inner, rows.base + c * rows.inner + n * pixel, pixel):
            value += number(x, i) / n  # n is a power of two, and no sum overflows
        values[c] = convert(value, like)


@helper
def all_below(values, count, bound):
    """Whether the first ``count`` values are below the bound; a NaN is not."""
    below = True
    for i in range(count):
        below &= values[i] < bound
    return below


@helper
def moments_task(k, x, copies, inner, like, count, pair):
    """Moments of chunk k."""
    channels = pair.shape[2]
    width = copies * channels * inner + LANES
    values, shift, s, q = (
        np.empty(channels),
        np.full(width, convert(0.0, like)),
        np.empty(width),
        np.empty(width),
    )
    mean, m2 = pair[0, k], pair[1, k]
    seen = 0.0  # not count[k]: the loop over channels must not suspect that it changes
    for c in range(channels):
        mean[c] = 0.0
        m2[c] = 0.0
    for part in range(2):
        base, rows, across, _, _ = tile(k, len(count), part, x, copies, channels, inner)
        step = max(MERGE // max(across, 1), 64)
        for r in range(0, rows, step):
            taken = min(step, rows - r)
            block = Rows(base + r * across * channels * inner, taken, across, channels, inner)
            if seen == 0.0:
                first_estimate(x, block, like, values)
            expand(values, across, inner, shift)
            column_sums(None, x, block, shift, s, q)
            if not all_below(q, channels, np.inf):  # deviations leave the range of float32, or are not finite
                wide, wide_s, wide_q = np.empty(width), np.empty(width), np.empty(width)
                expand(values, across, inner, wide)
                column_sums(None, x, block, wide, wide_s, wide_q)
                for c in range(channels):
                    if not q[c] < np.inf:  # the others keep their bits, whatever is in this channel
                        s[c], q[c] = wide_s[c], wide_q[c]
            n = np.float64(taken * across * inner)
            for c in range(channels):
                _, mean[c], m2[c] = merge_sums(seen, mean[c], m2[c], n, values[c], s[c], q[c])
                values[c] = convert(mean[c], like)
            seen += n
    count[k] = seen


@Kernel
def moments(x, copies, inner, like, count, pair):
    """Moments of every chunk: count[chunks], and (mean, m2) in pair[2, chunks, channels]."""
    for k in prange(len(count)):
        moments_task(np.int64(k), x, copies, inner, like, count, pair)


@helper
def products_task(k, dy, x, copies, inner, mean, sums):
    """Sums of dy and dy * (x - mean) of chunk k."""
    _, chunks, channels = sums.shape
    width = copies * channels * inner + LANES
    center, shift = np.empty(channels, computed(x)), np.empty(width, computed(x))
    s, q = np.empty(width), np.empty(width)
    sum_dy, sum_dy_d = sums[0, k], sums[1, k]
    for c in range(channels):
        center[c] = mean[c]
        sum_dy[c] = 0.0
        sum_dy_d[c] = 0.0
    for part in range(2):
        rows = tile(k, chunks, part, x, copies, channels, inner)
        if rows.rows > 0:
            expand(center, rows.copies, inner, shift)
            column_sums(bare(dy), x, rows, shift, s, q)
            for c in range(channels):
                sum_dy[c] += s[c]
                sum_dy_d[c] += q[c] - (mean[c] - center[c]) * s[c]


@Kernel
def products(dy, x, copies, inner, mean, sums):
    """Sums of dy and dy * (x - mean) of every chunk: sums[2, chunks, channels]."""
    for k in prange(sums.shape[1]):
        products_task(np.int64(k), dy, x, copies, inner, mean, sums)


@helper
def load_coefficients(columns, gain, j, like):
    """(center, scale, shift, weight, gain) of the sixteen columns from j on; without a gain the last is 0."""
    g = zeros(like)
    if gain is not None:
        g = load(columns[4], j, like)
    k, a = load(columns[0], j, like), load(columns[1], j, like)
    return k, a, load(columns[2], j, like), load(columns[3], j, like), g


@helper
def apply_panel(dy, x, rows, first, last, columns, gain, traffic, out):
    """Columns first..last of rows, in whole vectors.

    Row by row, as the memory lies: eight rows at once, with coefficients in registers, is slower by a fifth.
    """
    width, like = columns_of(rows), array_of(out)[0]
    for o in range(rows.base, rows.base + rows.rows * width, width):
        for j in range(first, last, LANES):
            if traffic.ahead:
                prefetch(array_of(x), o + j + traffic.ahead, LANES)
                if dy is not None:
                    prefetch(array_of(dy), o + j + traffic.ahead, LANES)
            vectors = load_coefficients(columns, gain, j, like)
            put(affine(dy, x, o + j, like, vectors, gain), o + j, traffic.streaming, out)


@helper
def apply_tile(dy, x, rows, columns, gain, traffic, out):
    """out = ((x - center) * scale + dy) * weight + shift over rows, coefficients columns[5, width + 16].

    The last of the five is the gain that dy is multiplied by, unless ``gain`` is None.

    The vectors begin at a cache line of out and run over the end of a row into the next, which is why the
    first 16 coefficients are repeated after the last, and why a width not of whole vectors has one row.
    """
    base, count, copies, channels, inner = rows
    width = columns_of(rows)
    first = min(head(out, base, traffic.streaming), width)
    last = first + (width - first) // LANES * LANES
    if first > 0:
        put_columns(dy, x, base, first, np.int64(0), columns, gain, out)
    for n, end in ((count - 1, first + width), (np.int64(1), last)):
        part = Rows(base, n, copies, channels, inner)
        for j in range(first, end, PANEL):
            apply_panel(dy, x, part, j, min(j + PANEL, end), columns, gain, traffic, out)
        base += n * width
    if last < width:
        put_columns(dy, x, base - width + last, width - last, last, columns, gain, out)


@helper
def put_columns(dy, x, i, count, j, columns, gain, out):
    """Write ``count`` < 16 elements from i on, which lie in the columns from j on."""
    put_affine_part(dy, x, i, count, load_coefficients(columns, gain, j, columns[0, 0]), gain, out)


@helper
def apply_task(k, dy, x, cut, traffic, coefficients, gain, out):
    """Apply the affine map to chunk k; ``cut`` is (chunks, copies, inner)."""
    chunks, copies, inner = cut
    channels = coefficients.shape[1]
    columns = np.empty((5, copies * channels * inner + LANES), coefficients.dtype)
    for part in range(2):
        rows = tile(k, chunks, part, array_of(x), copies, channels, inner)
        if rows.rows > 0:
            for c in range(4):
                expand(coefficients[c], rows.copies, inner, columns[c])
            if gain is not None:
                expand(gain, rows.copies, inner, columns[4])
            apply_tile(bare(dy), bare(x), rows, columns, gain, traffic, bare(out))
    fence()


@Kernel
def apply(dy, x, cut, coefficients, gain, out):
    """out = ((x - center) * scale + dy) * weight + shift, with coefficients[4, channels] in this order.

    ``cut`` is (chunks, copies, inner, streaming). From the last chunk to the first, because what the
    statistics read last is still in the cache.
    """
    chunks, copies, inner, streaming = cut
    for t in prange(chunks):
        task, traffic = (chunks, copies, inner), Traffic(streaming, 0)
        apply_task(chunks - 1 - np.int64(t), dy, x, task, traffic, coefficients, gain, out)


@helper
def forward_sample(x, cut, traffic, gamma, beta, eps, statistics, y):
    """Training forward in one task: ``statistics`` are two arrays, of the mean and the biased variance.

    ``cut`` is (chunks, copies, inner, members); members are the channels of a group. The sums are those of as
    many chunks as where threads share a sample, so that the bits are the same.
    """
    chunks, copies, inner, members = cut
    mean, var = statistics
    count, pair = np.empty(chunks), np.empty((2, chunks, len(mean)))
    coefficients = np.empty((4, len(gamma)), computed(x))
    for k in range(chunks):
        moments_task(k, x, copies, members * inner, x[0], count, pair)
    merge_all(count, pair)
    values = np.float64(x.size // len(mean))
    for g in range(len(mean)):
        mean[g], var[g] = pair[0, 0, g], pair[1, 0, g] / values
        std = np.sqrt(var[g] + eps)
        for c in range(g * members, (g + 1) * members):
            fill_normalize(c, mean[g], std, gamma[c], beta[c], coefficients)
    apply_task(0, None, x, (1, copies, inner), traffic, coefficients, None, y)


@helper
def reduce_sample(dy, x, cut, statistics, gamma, gain, eps, sums):
    """Fill ``sums`` in one task, two arrays: of dy and of dy * xhat. Return the coefficients of dx.

    ``statistics`` and ``cut`` are as in ``forward_sample``. Without a gain members is 1. Chunks are added in
    order, as NumPy adds them in the phases if there are two channels or more; of one, there are no columns.
    """
    chunks, copies, inner, members = cut
    (mean, var), (sum_dy, sum_dy_xhat) = statistics, sums
    channels = len(sum_dy)
    parts, coefficients = np.empty((2, chunks, channels)), np.empty((4, channels), computed(x))
    count, repeated = np.float64(x.size // channels), np.empty(channels)
    for g in range(len(mean)):
        for c in range(g * members, (g + 1) * members):
            repeated[c] = mean[g]
    for k in range(chunks):
        products_task(k, dy, x, copies, inner, repeated, parts)
    for c in range(channels):
        sum_dy[c], sum_dy_xhat[c] = parts[0, 0, c], parts[1, 0, c]
    for k in range(1, chunks):
        for c in range(channels):
            sum_dy[c] += parts[0, k, c]
            sum_dy_xhat[c] += parts[1, k, c]
    for g in range(len(mean)):
        std = np.sqrt(var[g] + eps)
        for c in range(g * members, (g + 1) * members):
            sum_dy_xhat[c] /= std
        if gain is None:
            means = sum_dy[g] / count, sum_dy_xhat[g] / count
            fill_gradient(g, mean[g], std, gamma[g], means, coefficients)
        else:
            added = sum_dy, sum_dy_xhat
            fill_group_gradient(g * members, members, mean[g], std, gain, count, added, coefficients)
    return coefficients


@Kernel
def forward_samples(x, cut, gamma, beta, eps, statistics, y):
    """``forward_sample`` for every sample, with statistics[2, samples, groups].

    While a sample is written the next one is prefetched, as in ``row_kernels``: 32x256x14x14 in one thread
    takes 0.8 of the time. ``cut`` is (chunks, copies, inner, members, streaming).
    """
    chunks, copies, inner, members, streaming = cut
    size = x.size // statistics.shape[1]
    for t in prange(statistics.shape[1]):
        n = np.int64(t)
        lo, hi, task = n * size, (n + 1) * size, (chunks, copies, inner, members)
        pair, traffic = (statistics[0, n], statistics[1, n]), Traffic(streaming, size)
        forward_sample(x[lo:hi], task, traffic, gamma, beta, eps, pair, slice_of(y, lo, hi))


@Kernel
def backward_samples(dy, x, cut, statistics, gamma, gain, eps, sums, dx):
    """``reduce_sample`` for every sample, and dx unless it is None.

    statistics[2, samples, groups], sums[2, samples, channels]; ``cut`` is as in ``forward_samples``.
    """
    chunks, copies, inner, members, streaming = cut
    size = x.size // sums.shape[1]
    for t in prange(sums.shape[1]):
        n = np.int64(t)
        lo, hi, task = n * size, (n + 1) * size, (chunks, copies, inner, members)
        given, added = (statistics[0, n], statistics[1, n]), (sums[0, n], sums[1, n])
        part = slice_of(dy, lo, hi)
        coefficients = reduce_sample(part, x[lo:hi], task, given, gamma, gain, eps, added)
        if dx is not None:
            whole, traffic = (np.int64(1), copies, inner), Traffic(streaming, size)
            apply_task(np.int64(0), part, x[lo:hi], whole, traffic, coefficients, gain, dx[lo:hi])


# Nine parameters of two kernels that follow: for copies and inner in a tuple Numba takes 0.15 us more, of the
# 5 us that a call with a small array takes.


@small_kernel
def normalize(x, copies, inner, mean, var, gamma, beta, eps, y):
    """Normalise a small array with the statistics given, in one launch."""
    coefficients = np.empty((4, len(mean)), computed(array_of(y)))
    for c in range(len(mean)):
        fill_normalize(c, mean[c], np.sqrt(var[c] + eps), gamma[c], beta[c], coefficients)
    apply_task(0, None, x, (1, copies, inner), Traffic(0, 0), coefficients, None, y)


@small_kernel
def forward(x, copies, inner, gamma, beta, eps, statistics, y):
    """Training forward of a small array: mean and biased variance in statistics[2, channels]."""
    cut, pair = (1, copies, inner, 1), (statistics[0], statistics[1])
    forward_sample(x, cut, Traffic(0, 0), gamma, beta, eps, pair, y)


@small_kernel
def backward(dy, x, copies, inner, statistics, gamma, eps, sums, dx):
    """Training backward of a small array: sums of dy and dy * xhat in sums[2, channels]."""
    cut, given, added = (1, copies, inner, 1), (statistics[0], statistics[1]), (sums[0], sums[1])
    coefficients = reduce_sample(dy, x, cut, given, gamma, None, eps, added)
    apply_task(0, dy, x, (1, copies, inner), Traffic(0, 0), coefficients, None, dx)
