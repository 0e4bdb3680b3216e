"""Kernels for channels whose values lie in long contiguous rows: x is flat (outer, channels, inner).

A row is cut into equal segments of at most ``SEGMENT`` elements; a channel's slab is its segments in order.
One task of a fused kernel is one channel, statistics and result, while its slab sits in cache.

Offsets into flat arrays, not views: making and releasing one view costs two atomic reference counts,
which is as much as summing 400 floats.
"""

import numpy as np
from numba import prange

from numbabn._cpu.jit import driver, helper, kernel
from numbabn._cpu.simd import (
    LANES,
    add,
    blend,
    convert,
    fence,
    fma,
    load,
    load_part,
    prefetch,
    splat,
    store,
    store_part,
    stream,
    sub,
    total,
    unaligned,
    widen,
    zeros,
)
from numbabn._cpu.welford import affine_coefficients, gradient_coefficients, merge_sums

# Elements summed in the accumulator's dtype before a merge in float64: 64 lanes of 64 float32 additions.
# Element-by-element Welford runs at 1.2 GB/s, this at 200 in cache.
SEGMENT = 4096
TASK = 65536  # elements of one task of apply
STRIDE = 4 * LANES  # elements an iteration: four vectors hide the latency of add and fma


@helper
def segments_per_row(inner):
    """Into how many segments a row is cut."""
    return -(-inner // SEGMENT)


@helper
def segment(c, t, channels, inner):
    """(offset, size) of segment t of channel c's slab."""
    per_row = segments_per_row(inner)
    if per_row == 1:  # spares short rows two integer divisions
        return (t * channels + c) * inner, inner
    size = -(-inner // per_row)
    start = (t % per_row) * size
    return ((t // per_row) * channels + c) * inner + start, min(size, inner - start)


@helper
def sums(x, dy, c, lo, hi, channels, inner, shift):
    """(n, sum of e, sum of e * d) over segments lo..hi of channel c; d = x - shift.

    e = dy, or d where dy is None: the sums of the backward pass, or those of the variance. d, e and their sum
    have shift's dtype; products are summed in float64 in any case. Float32 sums of squares are biased where
    x is rounded to a grid, as at an offset of 1e4: a square is 0 or 1 modulo 4, so that it is rounded down
    more often than up, 3e-7 of the variance.
    """
    n = 0
    k = splat(shift)
    s0 = s1 = s2 = s3 = zeros(shift)
    q0 = q1 = q2 = q3 = zeros(np.float64(0))
    for t in range(lo, hi):
        first, size = segment(c, t, channels, inner)
        ahead = segment(c, t + 1, channels, inner)[0] - first
        n += size
        body = first + size // STRIDE * STRIDE
        for i in range(first, body, STRIDE):
            d0 = sub(load(x, i, shift), k)
            d1 = sub(load(x, i + LANES, shift), k)
            d2 = sub(load(x, i + 2 * LANES, shift), k)
            d3 = sub(load(x, i + 3 * LANES, shift), k)
            e0, e1, e2, e3 = d0, d1, d2, d3
            if dy is not None:
                e0, e1 = load(dy, i, shift), load(dy, i + LANES, shift)
                e2, e3 = load(dy, i + 2 * LANES, shift), load(dy, i + 3 * LANES, shift)
                prefetch_stride(dy, i + ahead)
            prefetch_stride(x, i + ahead)
            s0, q0 = add(s0, e0), fma(widen(e0), widen(d0), q0)
            s1, q1 = add(s1, e1), fma(widen(e1), widen(d1), q1)
            s2, q2 = add(s2, e2), fma(widen(e2), widen(d2), q2)
            s3, q3 = add(s3, e3), fma(widen(e3), widen(d3), q3)
        if body < first + size:
            left = first + size - body
            d0 = sub(load_part(x, body, left, k), k)
            d1 = sub(load_part(x, body + LANES, left - LANES, k), k)
            d2 = sub(load_part(x, body + 2 * LANES, left - 2 * LANES, k), k)
            d3 = sub(load_part(x, body + 3 * LANES, left - 3 * LANES, k), k)
            e0, e1, e2, e3 = d0, d1, d2, d3
            if dy is not None:
                none = zeros(shift)
                e0 = load_part(dy, body, left, none)
                e1 = load_part(dy, body + LANES, left - LANES, none)
                e2 = load_part(dy, body + 2 * LANES, left - 2 * LANES, none)
                e3 = load_part(dy, body + 3 * LANES, left - 3 * LANES, none)
            s0, q0 = add(s0, e0), fma(widen(e0), widen(d0), q0)
            s1, q1 = add(s1, e1), fma(widen(e1), widen(d1), q1)
            s2, q2 = add(s2, e2), fma(widen(e2), widen(d2), q2)
            s3, q3 = add(s3, e3), fma(widen(e3), widen(d3), q3)
    s = total(add(add(s0, s1), add(s2, s3)))
    q = total(add(add(q0, q1), add(q2, q3)))
    return np.float64(n), np.float64(s), q


@helper
def prefetch_stride(x, i):
    """Prefetch x[i : i + STRIDE]."""
    prefetch(x, i)
    prefetch(x, i + LANES)
    prefetch(x, i + 2 * LANES)
    prefetch(x, i + 3 * LANES)


@helper
def first_estimate(x, c, t, channels, inner):
    """Return a value near the mean of a segment: that of its first vector, or its first element."""
    first, size = segment(c, t, channels, inner)
    return total(load(x, first, np.float64(0))) / LANES if size >= LANES else np.float64(x[first])


@helper
def slab_moments(x, c, lo, hi, channels, inner, like):
    """(count, mean, m2) of segments lo..hi of channel c, summed in like's dtype, merged in float64."""
    count = mean = m2 = 0.0
    shift = first_estimate(x, c, lo, channels, inner)
    group = max(1, SEGMENT // inner)
    for t in range(lo, hi, group):
        stop = min(t + group, hi)
        shift = np.float64(convert(shift, like))
        n, s, q = sums(x, None, c, t, stop, channels, inner, convert(shift, like))
        if not np.isfinite(s):  # the data are not finite, or their sum overflows float32
            n, s, q = sums(x, None, c, t, stop, channels, inner, shift)
        count, mean, m2 = merge_sums(count, mean, m2, n, shift, s, q)
        shift = mean
    return count, mean, m2


@helper
def slab_products(x, dy, c, lo, hi, channels, inner, mean):
    """(count, sum of dy, sum of dy * (x - mean)) of segments lo..hi of channel c."""
    count = sum_dy = sum_dy_d = 0.0
    group = max(1, SEGMENT // inner)
    for t in range(lo, hi, group):
        n, s, q = sums(x, dy, c, t, min(t + group, hi), channels, inner, mean)
        count += n
        sum_dy += s
        sum_dy_d += q
    return count, sum_dy, sum_dy_d


@helper
def affine(x, dy, i, k, a, b, w):
    """Sixteen values of (x - k) * a + b, and + dy * w where there is a dy."""
    value = fma(sub(load(x, i, x[0]), k), a, b)
    if dy is not None:
        value = fma(load(dy, i, x[0]), w, value)
    return value


@helper
def affine_part(x, dy, i, count, out, k, a, b, w):
    """Write the first ``count`` of sixteen values of ``affine``."""
    value = fma(sub(load_part(x, i, count, k), k), a, b)
    if dy is not None:
        value = fma(load_part(dy, i, count, k), w, value)
    store_part(out, i, count, value)


@helper
def apply_range(x, dy, out, lo, hi, channels, inner, center, scale, shift, weight, ahead, streaming):
    """out = (x - center) * scale + shift + dy * weight over the flat range lo..hi, coefficients per channel.

    Vectors run over the end of one channel into the next, so that every streamed line is whole: half lines
    of 14x14 images doubled the time. Needs inner >= 16, lo and hi at ends of rows or inside long ones.
    ``ahead`` elements further on is prefetched.
    """
    c = lo // inner % channels
    end = (lo // inner + 1) * inner
    k, a, b, w = splat(center[c]), splat(scale[c]), splat(shift[c]), splat(weight[c])
    i = lo
    if streaming:
        i = min(lo + unaligned(out, lo), hi)
        if i > lo:
            affine_part(x, dy, lo, i - lo, out, k, a, b, w)
    while True:
        body = i + (min(end, hi) - i) // LANES * LANES
        for j in range(i, body, LANES):
            prefetch(x, j + ahead)
            if dy is not None:
                prefetch(dy, j + ahead)
            value = affine(x, dy, j, k, a, b, w)
            if streaming:
                stream(out, j, value)
            else:
                store(out, j, value)
        i = max(i, body)
        if end >= hi:
            break
        c = c + 1 if c + 1 < channels else 0
        k1, a1, b1, w1 = splat(center[c]), splat(scale[c]), splat(shift[c]), splat(weight[c])
        if i < end:
            n = end - i
            value = affine(x, dy, i, blend(k, k1, n), blend(a, a1, n), blend(b, b1, n), blend(w, w1, n))
            if streaming:
                stream(out, i, value)
            else:
                store(out, i, value)
            i += LANES
        k, a, b, w = k1, a1, b1, w1
        end += inner
    if i < hi:
        affine_part(x, dy, i, hi - i, out, k, a, b, w)


@kernel
def moments(lo, hi, x, outer, channels, inner, like, count, mean, m2):
    """Partial moments of task (channel, chunk): count[chunks], mean[chunks, channels] and m2."""
    chunks = len(count)
    segments = outer * segments_per_row(inner)
    for task in range(lo, hi):
        c, k = task // chunks, task % chunks
        start, stop = segments * k // chunks, segments * (k + 1) // chunks
        count[k], mean[k, c], m2[k, c] = slab_moments(x, c, start, stop, channels, inner, like)


@driver
def moments_parallel(tasks, x, outer, channels, inner, like, count, mean, m2):
    for t in prange(tasks):
        moments(t, t + 1, x, outer, channels, inner, like, count, mean, m2)


@kernel
def products(lo, hi, x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d):
    """Partial sums of dy and dy * (x - mean) of task (channel, chunk): arrays [chunks, channels]."""
    chunks = len(sum_dy)
    segments = outer * segments_per_row(inner)
    for task in range(lo, hi):
        c, k = task // chunks, task % chunks
        start, stop = segments * k // chunks, segments * (k + 1) // chunks
        _, sum_dy[k, c], sum_dy_d[k, c] = slab_products(x, dy, c, start, stop, channels, inner, mean[c])


@driver
def products_parallel(tasks, x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d):
    for t in prange(tasks):
        products(t, t + 1, x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d)


@helper
def task_start(t, x, inner):
    """Where apply's task t begins: at a row, or inside one that is longer than a task."""
    pieces = max(1, inner // TASK)
    rows = max(1, TASK // inner)
    return min(t // pieces * rows * inner + inner * (t % pieces) // pieces, x.size)


@kernel
def apply(lo, hi, x, dy, out, count, channels, inner, center, scale, shift, weight, streaming):
    """out = (x - center) * scale + shift + dy * weight, in ``count`` tasks of about ``TASK`` elements.

    From the last task to the first, because what the statistics read last is still in the cache.
    """
    for t in range(count - hi, count - lo):
        start, stop = task_start(t, x, inner), task_start(t + 1, x, inner)
        apply_range(x, dy, out, start, stop, channels, inner, center, scale, shift, weight, 0, streaming)
    fence()


@driver
def apply_parallel(tasks, x, dy, out, count, channels, inner, center, scale, shift, weight, streaming):
    for t in prange(tasks):
        apply(t, t + 1, x, dy, out, count, channels, inner, center, scale, shift, weight, streaming)


@kernel
def forward(lo, hi, x, y, outer, channels, inner, block, gamma, beta, eps, like, mean, var, streaming):
    """Training forward; a task is a block of channels, statistics and result, while its slab is in cache.

    While a block is written the next one is prefetched, so that memory reads and writes at once:
    32x256x56x56 takes 2.5 ms with it and 4.2 without, where a copy takes 2.0.
    """
    segments = outer * segments_per_row(inner)
    center, scale, shift = (
        np.empty(channels, x.dtype),
        np.empty(channels, x.dtype),
        np.empty(channels, x.dtype),
    )
    for t in range(lo, hi):
        c0, c1 = t * block, min((t + 1) * block, channels)
        for c in range(c0, c1):
            count, mean[c], m2 = slab_moments(x, c, 0, segments, channels, inner, like)
            var[c] = m2 / count
            center[c], scale[c], shift[c] = affine_coefficients(mean[c], var[c], gamma[c], beta[c], eps, x[0])
        size = (c1 - c0) * inner
        for n in range(outer):
            start = (n * channels + c0) * inner
            apply_range(
                x, None, y, start, start + size, channels, inner, center, scale, shift, scale, size, streaming
            )
    fence()


@driver
def forward_parallel(
    tasks, x, y, outer, channels, inner, block, gamma, beta, eps, like, mean, var, streaming
):
    for t in prange(tasks):
        forward(t, t + 1, x, y, outer, channels, inner, block, gamma, beta, eps, like, mean, var, streaming)


@kernel
def backward(
    lo, hi, x, dy, dx, outer, channels, inner, block, gamma, mean, var, eps, sum_dy, sum_dy_xhat, streaming
):
    """Training backward; a task is a block of channels, sums and result, while its slabs are in cache."""
    segments = outer * segments_per_row(inner)
    center, scale, shift = (
        np.empty(channels, x.dtype),
        np.empty(channels, x.dtype),
        np.empty(channels, x.dtype),
    )
    weight = np.empty(channels, x.dtype)
    for t in range(lo, hi):
        c0, c1 = t * block, min((t + 1) * block, channels)
        for c in range(c0, c1):
            count, sum_dy[c], q = slab_products(x, dy, c, 0, segments, channels, inner, mean[c])
            sum_dy_xhat[c] = q / np.sqrt(var[c] + eps)
            center[c], scale[c], shift[c], weight[c] = gradient_coefficients(
                mean[c], var[c], gamma[c], eps, sum_dy[c], sum_dy_xhat[c], count, x[0]
            )
        size = (c1 - c0) * inner
        for n in range(outer):
            start = (n * channels + c0) * inner
            apply_range(
                x, dy, dx, start, start + size, channels, inner, center, scale, shift, weight, size, streaming
            )
    fence()


@driver
def backward_parallel(
    tasks, x, dy, dx, outer, channels, inner, block, gamma, mean, var, eps, sum_dy, sum_dy_xhat, streaming
):
    for t in prange(tasks):
        backward(
            t,
            t + 1,
            x,
            dy,
            dx,
            outer,
            channels,
            inner,
            block,
            gamma,
            mean,
            var,
            eps,
            sum_dy,
            sum_dy_xhat,
            streaming,
        )
