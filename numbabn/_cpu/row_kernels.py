"""Kernels for channels whose values lie in long contiguous rows: x is flat (outer, channels, inner).

A row is cut into segments of ``SEGMENT`` elements, the last one shorter; a slab is all of a channel's
segments. One task of a fused kernel is a block of channels, statistics and result, while they sit in cache.

Offsets into flat arrays, not views: making and releasing one view costs two atomic reference counts,
which is as much as summing 400 floats.
"""

import numpy as np
from numba import prange

from numbabn._cpu.affine import affine, fill_affine, fill_gradient, put, put_part
from numbabn._cpu.jit import Kernel, helper
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
    sub,
    total,
    unaligned,
    widen,
    zeros,
)
from numbabn._cpu.welford import merge_sums

STRIDE = 4 * LANES  # elements an iteration: four vectors hide the latency of add and fma
SEGMENT = 8 * STRIDE  # elements whose sums have the dtype of the shift
MERGE = 4096  # elements summed about one shift; Welford's update for every element runs at 1.2 GB/s
TINY = 1e-30  # a sum of squares below this may have lost some to underflow of float32
TASK = 65536  # elements of one task of apply


@helper
def segments_per_row(inner):
    """Into how many segments a row is cut."""
    return -(-inner // SEGMENT)


@helper
def add_values(x, dy, i, k, s, q, shift):
    """(s + e, q + e * d) for sixteen values, d = x - shift and e = dy, or d where dy is None."""
    d = sub(load(x, i, shift), k)
    e = d
    if dy is not None:
        e = load(dy, i, shift)
    return add(s, e), fma(e, d, q)


@helper
def add_part(x, dy, i, n, k, s, q, shift):
    """Do the same for the first n of sixteen values."""
    d = sub(load_part(x, i, n, k), k)
    e = d
    if dy is not None:
        e = load_part(dy, i, n, zeros(shift))
    return add(s, e), fma(e, d, q)


@helper
def sums(x, dy, c, lo, hi, channels, inner, shift):
    """(n, sum of e, sum of e * d) over segments lo..hi of channel c; d = x - shift.

    e = dy, or d where dy is None: the sums of the backward pass, or those of the variance. d, e and the sums
    of a block have shift's dtype; blocks are added up in float64. Blocks are short because float32 sums of
    squares are biased where x lies on a grid, as at an offset of 1e4: a square is 0 or 1 modulo 4, so that it
    is rounded down more often than up. 64 additions a lane cost 3e-7 of the variance there, 8 cost nothing;
    float64 products instead halve the speed in cache.
    """
    n = pending = 0
    k, none = splat(shift), zeros(shift)
    s = q = zeros(np.float64(0))
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = none
    per_row, next_row = segments_per_row(inner), channels * inner
    part, row = lo % per_row, (lo // per_row * channels + c) * inner
    for _ in range(lo, hi):
        first = row + part * SEGMENT
        stop = min(first + SEGMENT, row + inner)
        body = first + (stop - first) // STRIDE * STRIDE
        for i in range(first, body, STRIDE):
            prefetch(x, i + next_row, STRIDE)
            if dy is not None:
                prefetch(dy, i + next_row, STRIDE)
            s0, q0 = add_values(x, dy, i, k, s0, q0, shift)
            s1, q1 = add_values(x, dy, i + LANES, k, s1, q1, shift)
            s2, q2 = add_values(x, dy, i + 2 * LANES, k, s2, q2, shift)
            s3, q3 = add_values(x, dy, i + 3 * LANES, k, s3, q3, shift)
        left = stop - body
        if left >= LANES:
            s0, q0 = add_values(x, dy, body, k, s0, q0, shift)
        if left >= 2 * LANES:
            s1, q1 = add_values(x, dy, body + LANES, k, s1, q1, shift)
        if left >= 3 * LANES:
            s2, q2 = add_values(x, dy, body + 2 * LANES, k, s2, q2, shift)
        if left % LANES:
            s3, q3 = add_part(x, dy, stop - left % LANES, left % LANES, k, s3, q3, shift)
        n += stop - first
        pending += stop - first + STRIDE
        if pending > SEGMENT:  # short rows share a block
            s, q = add(s, widen(add_four(s0, s1, s2, s3))), add(q, widen(add_four(q0, q1, q2, q3)))
            s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = none
            pending = 0
        part += 1  # counted along: two integer divisions would cost as much as a segment
        if part == per_row:
            part = 0
            row += next_row
    s, q = add(s, widen(add_four(s0, s1, s2, s3))), add(q, widen(add_four(q0, q1, q2, q3)))
    return np.float64(n), total(s), total(q)


@helper
def add_four(a, b, c, d):
    """Return a + b + c + d."""
    return add(add(a, b), add(c, d))


@helper
def first_estimate(x, c, t, channels, inner):
    """Return a value near the mean of segment t: the mean of its row's first vector."""
    first = (t // segments_per_row(inner) * channels + c) * inner
    return total(load(x, first, np.float64(0))) / LANES


@helper
def slab_moments(x, c, lo, hi, channels, inner, like):
    """(count, mean, m2) of segments lo..hi of channel c, blocks in like's dtype, merged in float64."""
    count = mean = m2 = 0.0
    shift = first_estimate(x, c, lo, channels, inner)
    group = MERGE // min(inner, SEGMENT)
    for t in range(lo, hi, group):
        stop = min(t + group, hi)
        shift = np.float64(convert(shift, like))
        n, s, q = sums(x, None, c, t, stop, channels, inner, convert(shift, like))
        if not TINY < q < np.inf:  # squares leave the range of float32, or all is equal, or not finite
            n, s, q = sums(x, None, c, t, stop, channels, inner, shift)
        count, mean, m2 = merge_sums(count, mean, m2, n, shift, s, q)
        shift = mean
    return count, mean, m2


@helper
def slab_products(x, dy, c, lo, hi, channels, inner, mean, like):
    """(count, sum of dy, sum of dy * (x - mean)) of segments lo..hi of channel c, blocks in like's dtype."""
    center = convert(mean, like)
    count, sum_dy, sum_dy_d = sums(x, dy, c, lo, hi, channels, inner, center)
    return count, sum_dy, sum_dy_d - (mean - center) * sum_dy


@helper
def splat_coefficients(coefficients, c):
    """(center, scale, shift, weight) of channel c in every lane."""
    return (
        splat(coefficients[0, c]),
        splat(coefficients[1, c]),
        splat(coefficients[2, c]),
        splat(coefficients[3, c]),
    )


@helper
def apply_range(x, dy, out, lo, hi, channels, inner, coefficients, ahead, streaming):
    """out = (x - center) * scale + shift + dy * weight over the flat range lo..hi, coefficients per channel.

    Vectors run over the end of one channel into the next, so that every streamed line is whole: half lines
    of 14x14 images doubled the time. Needs inner >= 16, lo and hi at ends of rows or inside long ones.
    ``ahead`` elements further on is prefetched.
    """
    c = lo // inner % channels
    end = (lo // inner + 1) * inner
    k, a, b, w = splat_coefficients(coefficients, c)
    i = lo
    if streaming:
        i = min(lo + unaligned(out, lo), hi)
        if i > lo:
            put_part(out, lo, i - lo, x, dy, k, a, b, w)
    while True:
        body = i + (min(end, hi) - i) // LANES * LANES
        for j in range(i, body, LANES):
            prefetch(x, j + ahead, LANES)
            if dy is not None:
                prefetch(dy, j + ahead, LANES)
            put(out, j, affine(x, dy, j, k, a, b, w), streaming)
        i = max(i, body)
        if end >= hi:
            break
        c = c + 1 if c + 1 < channels else 0
        k1, a1, b1, w1 = splat_coefficients(coefficients, c)
        if i < end:
            n = end - i
            k, a, b, w = blend(k, k1, n), blend(a, a1, n), blend(b, b1, n), blend(w, w1, n)
            put(out, i, affine(x, dy, i, k, a, b, w), streaming)
            i += LANES
        k, a, b, w = k1, a1, b1, w1
        end += inner
    if i < hi:
        put_part(out, i, hi - i, x, dy, k, a, b, w)


@helper
def moments_task(task, x, outer, channels, inner, like, count, mean, m2):
    """Partial moments of a chunk of a channel."""
    chunks, segments = len(count), outer * segments_per_row(inner)
    c, k = task // chunks, task % chunks
    start, stop = segments * k // chunks, segments * (k + 1) // chunks
    count[k], mean[k, c], m2[k, c] = slab_moments(x, c, start, stop, channels, inner, like)


@Kernel
def moments(x, outer, channels, inner, like, count, mean, m2):
    """Partial moments of every channel: count[chunks], mean[chunks, channels] and m2."""
    for t in prange(channels * len(count)):
        moments_task(np.int64(t), x, outer, channels, inner, like, count, mean, m2)


@helper
def products_task(task, x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d):
    """Partial sums of a chunk of a channel, in float64: it costs nothing where memory is the limit."""
    chunks, segments = len(sum_dy), outer * segments_per_row(inner)
    c, k = task // chunks, task % chunks
    start, stop = segments * k // chunks, segments * (k + 1) // chunks
    _, sum_dy[k, c], sum_dy_d[k, c] = slab_products(
        x, dy, c, start, stop, channels, inner, mean[c], np.float64(0)
    )


@Kernel
def products(x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d):
    """Partial sums of dy and dy * (x - mean) of every channel: arrays [chunks, channels]."""
    for t in prange(channels * len(sum_dy)):
        products_task(np.int64(t), x, dy, outer, channels, inner, mean, sum_dy, sum_dy_d)


@helper
def apply_task(t, x, dy, out, channels, inner, coefficients, streaming):
    """Apply the affine map to one of the tasks that ``apply_start`` bounds."""
    start, stop = apply_start(t, x.size, inner), apply_start(t + 1, x.size, inner)
    apply_range(x, dy, out, start, stop, channels, inner, coefficients, 0, streaming)
    fence()


@helper
def apply_start(t, size, inner):
    """Where apply's task t begins: at a row, or inside one that is longer than a task."""
    pieces = max(1, inner // TASK)
    rows = max(1, TASK // inner)
    return min(t // pieces * rows * inner + inner * (t % pieces) // pieces, size)


@Kernel
def apply(x, dy, out, tasks, channels, inner, coefficients, streaming):
    """out = (x - center) * scale + shift + dy * weight, with coefficients[4, channels] in this order.

    From the last task to the first, because what the statistics read last is still in the cache.
    """
    for t in prange(tasks):
        apply_task(tasks - 1 - np.int64(t), x, dy, out, channels, inner, coefficients, streaming)


@helper
def forward_task(t, x, y, outer, channels, inner, block, gamma, beta, eps, like, mean, var, coefs, streaming):
    """Training forward of a block of channels."""
    segments = outer * segments_per_row(inner)
    c0, c1 = t * block, min((t + 1) * block, channels)
    for c in range(c0, c1):
        count, mean[c], m2 = slab_moments(x, c, 0, segments, channels, inner, like)
        var[c] = m2 / count
        fill_affine(c, mean, var, gamma, beta, eps, coefs)
    size = (c1 - c0) * inner
    for n in range(outer):
        start = (n * channels + c0) * inner
        apply_range(x, None, y, start, start + size, channels, inner, coefs, size, streaming)
    fence()


@Kernel
def forward(x, y, outer, channels, inner, block, gamma, beta, eps, like, mean, var, coefs, streaming):
    """Training forward; a task is a block of channels, statistics and result, while its slab is in cache.

    While a block is written the next one is prefetched, so that memory reads and writes at once:
    32x256x56x56 takes 2.5 ms with it and 4.2 without, where a copy takes 2.0.
    """
    for t in prange(-(-channels // block)):
        forward_task(
            np.int64(t),
            x,
            y,
            outer,
            channels,
            inner,
            block,
            gamma,
            beta,
            eps,
            like,
            mean,
            var,
            coefs,
            streaming,
        )


@helper
def backward_task(t, x, dy, dx, outer, channels, inner, block, gamma, mean, var, eps, sums, coefs, streaming):
    """Training backward of a block of channels."""
    segments = outer * segments_per_row(inner)
    c0, c1 = t * block, min((t + 1) * block, channels)
    for c in range(c0, c1):
        count, sums[0, c], q = slab_products(x, dy, c, 0, segments, channels, inner, mean[c], x[0])
        sums[1, c] = q / np.sqrt(var[c] + eps)
        fill_gradient(c, mean, var, gamma, eps, count, sums, coefs)
    size = (c1 - c0) * inner
    for n in range(outer):
        start = (n * channels + c0) * inner
        apply_range(x, dy, dx, start, start + size, channels, inner, coefs, size, streaming)
    fence()


@Kernel
def backward(x, dy, dx, outer, channels, inner, block, gamma, mean, var, eps, sums, coefs, streaming):
    """Training backward; a task is a block of channels, sums and result, while its slabs are in cache."""
    for t in prange(-(-channels // block)):
        backward_task(
            np.int64(t),
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
            sums,
            coefs,
            streaming,
        )
