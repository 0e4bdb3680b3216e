"""Kernels for channels whose values lie apart: x is flat rows of ``copies * channels * inner`` columns.

NHWC and NC arrays (inner = 1) are such rows, and NCHW arrays of fewer than 16 pixels. Every column is summed
by itself over the rows, and each channel's columns are added up at the end. ``copies`` pixels lie side by
side in one row, so that three channels still fill vectors; the pixels left over make one shorter row.

A task is a chunk of rows, or a whole sample where every sample has statistics of its own. A stripe of columns
of all rows would need no merging, and its result could follow while it is in the cache, but strided rows are
slow: forward and backward of 256x1024 took 1.7 and 1.3 times as long, those of 128x2048 0.8 times.

Some functions have nine parameters, for the reasons that `row_kernels` gives.
"""

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
from numbabn.backends.cpu.column_sums import (
    PANEL,
    Rows,
    aligned_length,
    aligned_start,
    columns_of,
    expand,
    moments_task,
    products_task,
    tile,
)
from numbabn.backends.cpu.epilogue import array_of, bare, head, put, slice_of
from numbabn.backends.cpu.jit import Kernel, helper, small_kernel
from numbabn.backends.cpu.simd import LANES, computed, elements, fence, load, prefetch, zeros
from numbabn.backends.cpu.welford import merge_all


@Kernel
def moments(x, copies, inner, like, count, pair):
    """Moments of every chunk: count[chunks], and (mean, m2) in pair[2, chunks, channels]."""
    for k in prange(len(count)):
        moments_task(np.int64(k), x, copies, inner, like, count, pair)


@Kernel
def products(dy, x, copies, inner, mean, sums):
    """Sums of dy and dy * (x - mean) of every chunk: sums[2, chunks, channels]."""
    for k in prange(sums.shape[1]):
        products_task(np.int64(k), dy, x, copies, inner, mean, sums)


@helper
def load_coefficients(columns, gain, j, like):
    """(center, scale, shift, weight, gain) of the sixteen columns from j on; without a gain the last is 0."""
    centers, scales, shifts, weights, gains = columns
    g = zeros(like)
    if gain is not None:
        g = load(gains, j, like)
    k, a = load(centers, j, like), load(scales, j, like)
    return k, a, load(shifts, j, like), load(weights, j, like), g


@helper
def apply_panel(dy, x, rows, first, last, columns, gain, traffic, out):
    """Columns first..last of rows, in whole vectors.

    Row by row, as the memory lies: eight rows at once, with coefficients in registers, is slower by a fifth.
    """
    like = array_of(out)[0]
    width = columns_of(rows)
    for o in range(rows.base, rows.base + rows.rows * width, width):
        for j in range(first, last, LANES):
            if traffic.ahead:
                prefetch(array_of(x), o + j + traffic.ahead, LANES)
                if dy is not None:
                    prefetch(array_of(dy), o + j + traffic.ahead, LANES)
            vectors = load_coefficients(columns, gain, j, like)
            put(affine(dy, x, o + j, like, vectors, gain), o + j, traffic.streaming, out)


@helper
def apply_tile(dy, x, rows, coefficients, gain, traffic, out):
    """out = ((x - center) * scale + dy) * weight + shift over rows, with coefficients[4, channels].

    dy is multiplied by the gain of its channel unless ``gain`` is None.

    The vectors begin where `head` says and run over the end of a row into the next, which is why the first 16
    coefficients are repeated after the last, and why a width not of whole vectors has one row.

    The coefficients of these vectors begin at cache lines: loads of two lines each made the pass from dy and
    x to dx of 32x14x14x512 take 1.5 times as long.
    """
    width, made = columns_of(rows), np.empty((5, aligned_length(columns_of(rows))), coefficients.dtype)
    first = min(head(array_of(x), rows.base, traffic.streaming, out), width)
    start = aligned_start(made[0], first)
    for i in range(4):
        expand(coefficients[i], rows.copies, rows.inner, made[i][start:])
    if gain is not None:
        expand(gain, rows.copies, rows.inner, made[4][start:])
    columns = made[0][start:], made[1][start:], made[2][start:], made[3][start:], made[4][start:]
    apply_columns(dy, x, rows, first, columns, gain, traffic, out)


@helper
def apply_columns(dy, x, rows, first, arrays, gain, traffic, out):
    """``apply_tile`` with coefficients for every column, in vectors that begin with column ``first``.

    A function of its own, because its caller holds on to the arrays: of their elements nobody counts
    references, and where they were made in here, Numba gave their memory away before the first loop.
    """
    base, count, copies, channels, inner = rows
    width, columns = columns_of(rows), elements_of_all(arrays)
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
def elements_of_all(arrays):
    """Return the ``elements`` of five arrays."""
    a, b, c, d, e = arrays
    return elements(a), elements(b), elements(c), elements(d), elements(e)


@helper
def put_columns(dy, x, i, count, j, columns, gain, out):
    """Write ``count`` < 16 elements from i on, which lie in the columns from j on."""
    put_affine_part(dy, x, i, count, load_coefficients(columns, gain, j, array_of(out)[0]), gain, out)


@helper
def apply_task(k, dy, x, cut, traffic, coefficients, gain, out):
    """Apply the affine map to chunk k; ``cut`` is (chunks, copies, inner)."""
    chunks, copies, inner = cut
    channels = coefficients.shape[1]
    for part in range(2):
        rows = tile(k, chunks, part, array_of(x), copies, channels, inner)
        if rows.rows > 0:
            apply_tile(bare(dy), bare(x), rows, coefficients, gain, traffic, bare(out))
    fence()


@helper
def apply_part(p, dy, x, cut, coefficients, gain, out):
    """Apply the affine map to the part of thread p, from its last chunk to its first.

    The thread has summed this part, and what it read last is still in its cache. When two threads exchanged
    their parts, forward and backward of 32x28x28x128 took 1.6 and 1.9 times as long on two cores without a
    cache in common.
    """
    chunks, copies, inner, streaming, threads = cut
    for k in range(chunks * (p + 1) // threads - 1, chunks * p // threads - 1, -1):
        apply_task(k, dy, x, (chunks, copies, inner), Traffic(streaming, 0), coefficients, gain, out)


@Kernel
def apply(dy, x, cut, coefficients, gain, out):
    """out = ((x - center) * scale + dy) * weight + shift, with coefficients[4, channels] in this order.

    ``cut`` is (chunks, copies, inner, streaming, threads).
    """
    for p in prange(cut[4]):
        apply_part(np.int64(p), dy, x, cut, coefficients, gain, out)


@helper
def fill_forward(count, pair, statistics, gamma, beta, eps, coefficients):
    """Fill ``statistics``, the arrays of mean and biased variance, and coefficients of y from all chunks.

    Where there are more of gamma than of means, groups have several channels.
    """
    mean, var = statistics
    members = len(gamma) // len(mean)
    values = merge_all(count, pair)
    for g in range(len(mean)):
        mean[g], var[g] = pair[0, 0, g], pair[1, 0, g] / values
        std = np.sqrt(var[g] + eps)
        for c in range(g * members, (g + 1) * members):
            fill_normalize(c, mean[g], std, gamma[c], beta[c], coefficients)


@helper
def forward_sample(x, cut, traffic, gamma, beta, eps, statistics, y):
    """Training forward in one task: ``statistics`` are two arrays, of the mean and the biased variance.

    ``cut`` is (chunks, copies, inner, members); members are the channels of a group. The sums are those of as
    many chunks as where threads share a sample, so that the bits are the same.
    """
    chunks, copies, inner, members = cut
    count, pair = np.empty(chunks), np.empty((2, chunks, len(statistics[0])))
    coefficients = np.empty((4, len(gamma)), computed(x))
    for k in range(chunks):
        moments_task(k, x, copies, members * inner, x[0], count, pair)
    fill_forward(count, pair, statistics, gamma, beta, eps, coefficients)
    apply_task(0, None, x, (1, copies, inner), traffic, coefficients, None, y)


@helper
def fill_backward(parts, values, statistics, gamma, gain, eps, sums, coefficients):
    """Fill ``sums``, the arrays of the sums of dy and of dy * xhat, and the coefficients of dx.

    From parts[2, chunks, channels]; ``values`` is how many a channel has. Chunks are added in order, as NumPy
    adds them in `channels.backward_reduce` if there are two channels or more; of one, there are no columns.
    Without a gain groups are channels.
    """
    (mean, var), (sum_dy, sum_dy_xhat) = statistics, sums
    members = len(sum_dy) // len(mean)
    for c in range(len(sum_dy)):
        sum_dy[c], sum_dy_xhat[c] = parts[0, 0, c], parts[1, 0, c]
    for k in range(1, parts.shape[1]):
        for c in range(len(sum_dy)):
            sum_dy[c] += parts[0, k, c]
            sum_dy_xhat[c] += parts[1, k, c]
    for g in range(len(mean)):
        std = np.sqrt(var[g] + eps)
        for c in range(g * members, (g + 1) * members):
            sum_dy_xhat[c] /= std
        if gain is None:
            means = sum_dy[g] / values, sum_dy_xhat[g] / values
            fill_gradient(g, mean[g], std, gamma[g], means, coefficients)
        else:
            fill_group_gradient(g * members, members, mean[g], std, gain, values, sums, coefficients)


@helper
def reduce_sample(dy, x, cut, statistics, gamma, gain, eps, sums):
    """``fill_backward`` in one task; return the coefficients. ``cut`` is as in ``forward_sample``."""
    chunks, copies, inner, members = cut
    mean, channels = statistics[0], len(sums[0])
    parts, coefficients = np.empty((2, chunks, channels)), np.empty((4, channels), computed(x))
    repeated = np.empty(channels)
    for g in range(len(mean)):
        for c in range(g * members, (g + 1) * members):
            repeated[c] = mean[g]
    for k in range(chunks):
        products_task(k, dy, x, copies, inner, repeated, parts)
    values = np.float64(x.size // channels)
    fill_backward(parts, values, statistics, gamma, gain, eps, sums, coefficients)
    return coefficients


@Kernel
def forward(x, chunks, cut, gamma, beta, eps, statistics, y):
    """Training forward by the moments of so many chunks; mean and biased variance in statistics[2, channels].

    ``cut`` is as in ``apply``. One kernel for both passes takes 20 us less than two, a tenth of 32x14x14x256.
    """
    channels, copies, inner = statistics.shape[1], cut[1], cut[2]
    count, pair = np.empty(chunks), np.empty((2, chunks, channels))
    coefficients = np.empty((4, channels), computed(x))
    for k in prange(chunks):
        moments_task(np.int64(k), x, copies, inner, x[0], count, pair)
    fill_forward(count, pair, (statistics[0], statistics[1]), gamma, beta, eps, coefficients)
    for p in prange(cut[4]):
        apply_part(np.int64(p), None, x, cut, coefficients, None, y)


@Kernel
def backward(dy, x, chunks, cut, statistics, gamma, eps, sums, dx):
    """Training backward by the sums of so many chunks, in sums[2, channels]; ``cut`` is as in ``apply``."""
    channels, copies, inner = statistics.shape[1], cut[1], cut[2]
    parts, coefficients = np.empty((2, chunks, channels)), np.empty((4, channels), computed(x))
    given, added, values = (statistics[0], statistics[1]), (sums[0], sums[1]), np.float64(x.size // channels)
    for k in prange(chunks):
        products_task(np.int64(k), dy, x, copies, inner, given[0], parts)
    fill_backward(parts, values, given, gamma, None, eps, added, coefficients)
    for p in prange(cut[4]):
        apply_part(np.int64(p), dy, x, cut, coefficients, None, dx)


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
def forward_small(x, copies, inner, gamma, beta, eps, statistics, y):
    """Training forward of a small array: mean and biased variance in statistics[2, channels]."""
    cut, pair = (1, copies, inner, 1), (statistics[0], statistics[1])
    forward_sample(x, cut, Traffic(0, 0), gamma, beta, eps, pair, y)


@small_kernel
def backward_small(dy, x, copies, inner, statistics, gamma, eps, sums, dx):
    """Training backward of a small array: sums of dy and dy * xhat in sums[2, channels]."""
    cut, given, added = (1, copies, inner, 1), (statistics[0], statistics[1]), (sums[0], sums[1])
    coefficients = reduce_sample(dy, x, cut, given, gamma, None, eps, added)
    apply_task(0, dy, x, (1, copies, inner), Traffic(0, 0), coefficients, None, dx)
