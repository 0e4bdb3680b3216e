"""Sums and moments of slabs: of channels whose values lie in long contiguous rows.

A row is cut into segments of ``SEGMENT`` elements, the last one shorter; a slab is all of a channel's
segments. `row_kernels` says why functions take offsets into flat arrays, and the ``elements`` of dy and x.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends.cpu.contiguous import MERGE, TINY, add_part, add_values, row_moments, row_sums
from numbabn.backends.cpu.epilogue import array_of, bare
from numbabn.backends.cpu.jit import helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    convert,
    elements,
    fma,
    load,
    prefetch,
    splat,
    total,
    widen,
    zeros,
)
from numbabn.backends.cpu.welford import merge_sums, moments_of_sums

STRIDE = 4 * LANES  # elements an iteration: four vectors hide the latency of add and fma
SEGMENT = 8 * STRIDE  # elements whose sums have the dtype of the shift


class Rows(NamedTuple):
    """What a flat array is read as.

    Kernels make it inside, from integers or a plain tuple of them: among the arguments of a kernel, Numba
    takes 0.15 us to look at a plain tuple of integers, and 2 us at a named one.
    """

    outer: int
    channels: int
    inner: int


@helper
def segments_per_row(inner):
    """Into how many segments a row is cut."""
    return -(-inner // SEGMENT)


@helper
def segments_of(k, chunks, rows):
    """First segment of chunk k of a channel, and the one after its last."""
    segments = rows.outer * segments_per_row(rows.inner)
    return segments * k // chunks, segments * (k + 1) // chunks


@helper
def row_and_part(t, rows):
    """Return (row, segment in it) of segment t of a channel.

    A division takes as long as the sums of 7x7 values, so that there is none for the first segment.
    """
    if t == 0:
        return np.int64(0), np.int64(0)
    per_row = segments_per_row(rows.inner)
    return t // per_row, t % per_row


@helper
def sums(dy, x, c, lo, hi, rows, shift):
    """(n, sum of e, sum of e * d) over segments lo..hi of channel c; d = x - shift.

    e = dy, or d where dy is None: the sums of the backward pass, or those of the variance. d, e and the sums
    of a block have shift's dtype; blocks are added up in float64. ``contiguous.row_sums`` says why blocks are
    short.
    """
    n = pending = 0
    k, none = splat(shift), zeros(shift)
    s = q = zeros(np.float64(0))
    s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = none
    inner, next_row = rows.inner, rows.channels * rows.inner
    per_row = segments_per_row(inner)
    # Where there is no next row nothing is prefetched: looking up an address that is not there takes longer.
    ahead = next_row if rows.outer > 1 else 0
    sample, part = row_and_part(lo, rows)
    row = (sample * rows.channels + c) * inner
    for _ in range(lo, hi):
        first = row + part * SEGMENT
        stop = min(first + SEGMENT, row + inner)
        body = first + (stop - first) // STRIDE * STRIDE
        for i in range(first, body, STRIDE):
            prefetch(x, i + ahead, STRIDE)
            if dy is not None:
                prefetch(array_of(dy), i + ahead, STRIDE)
            s0, q0 = add_values(dy, x, i, None, 0, k, shift, s0, q0)
            s1, q1 = add_values(dy, x, i + LANES, None, 0, k, shift, s1, q1)
            s2, q2 = add_values(dy, x, i + 2 * LANES, None, 0, k, shift, s2, q2)
            s3, q3 = add_values(dy, x, i + 3 * LANES, None, 0, k, shift, s3, q3)
        left = stop - body
        if left >= LANES:
            s0, q0 = add_values(dy, x, body, None, 0, k, shift, s0, q0)
        if left >= 2 * LANES:
            s1, q1 = add_values(dy, x, body + LANES, None, 0, k, shift, s1, q1)
        if left >= 3 * LANES:
            s2, q2 = add_values(dy, x, body + 2 * LANES, None, 0, k, shift, s2, q2)
        if left % LANES:
            s3, q3 = add_part(dy, x, stop - left % LANES, None, 0, left % LANES, k, shift, s3, q3)
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
def first_estimate(x, c, t, rows):
    """Return a value near the mean of segment t of channel c: the mean of the first vector of its row."""
    sample, _ = row_and_part(t, rows)
    first = (sample * rows.channels + c) * rows.inner
    values = load(x, first, np.float64(0))
    return total(fma(values, splat(1.0 / LANES), zeros(0.0)))  # a sixteenth first: no sum overflows


@helper
def slab_moments(x, c, lo, hi, rows, like):
    """(count, mean, m2) of segments lo..hi of channel c, blocks in like's dtype, merged in float64."""
    count = mean = m2 = 0.0
    shift = first_estimate(x, c, lo, rows)
    longest = min(rows.inner, SEGMENT)
    together = hi - lo
    if together * longest > MERGE:
        together = MERGE // longest
    for t in range(lo, hi, together):
        stop = min(t + together, hi)
        shift = np.float64(convert(shift, like))
        n, s, q = sums(None, x, c, t, stop, rows, convert(shift, like))
        if not TINY < q < np.inf:  # squares leave the range of float32, or all is equal, or not finite
            n, s, q = sums(None, x, c, t, stop, rows, shift)
        if t == lo:  # merging with nothing would be two divisions for every short channel
            count = n
            mean, m2 = moments_of_sums(n, shift, s, q)
        else:
            count, mean, m2 = merge_sums(count, mean, m2, n, shift, s, q)
        shift = mean
    return count, mean, m2


@helper
def slab_statistics(x, g, rows, like):
    """Return (mean, biased variance) of a group; of one row in less time, as there is no next one."""
    if rows.outer == 1:
        return row_moments(x, g * rows.inner, rows.inner, 1, like)
    _, segments = segments_of(0, 1, rows)
    count, mean, m2 = slab_moments(x, g, 0, segments, rows, like)
    return mean, m2 / count


@helper
def slab_products(dy, x, c, lo, hi, rows, mean, like):
    """(sum of dy, sum of dy * (x - mean)) of segments lo..hi of channel c, blocks in like's dtype."""
    center = convert(mean, like)
    _, sum_dy, sum_dy_d = sums(dy, x, c, lo, hi, rows, center)
    return sum_dy, sum_dy_d - (mean - center) * sum_dy


@helper
def row_products(dy, x, c, inner, mean, like):
    """``slab_products`` of all of a channel that is one row, in less time, as there is no next one."""
    center = convert(mean, like)
    sum_dy, sum_dy_d = row_sums(dy, x, c * inner, None, 0, inner, center)
    return sum_dy, sum_dy_d - (mean - center) * sum_dy


@helper
def add_products(dy, x, rows, first, last, members, mean, sums):
    """Sums of dy and dy * (x - mean) of the channels of the groups first..last: sums[2, channels]."""
    _, segments = segments_of(0, 1, rows)
    for g in range(first, last):
        for c in range(g * members, (g + 1) * members):
            if rows.outer == 1:
                sums[0, c], sums[1, c] = row_products(dy, x, c, rows.inner, mean[g], x[0])
            else:
                sums[0, c], sums[1, c] = slab_products(dy, x, c, 0, segments, rows, mean[g], x[0])


@helper
def moments_task(task, x, rows, like, count, pair):
    """Partial moments of a chunk of a channel; tasks follow each other as the chunks do in memory."""
    channels = pair.shape[2]
    c, k = task % channels, task // channels
    start, stop = segments_of(k, len(count), rows)
    count[k], pair[0, k, c], pair[1, k, c] = slab_moments(elements(x), c, start, stop, rows, like)


@helper
def products_task(task, dy, x, rows, mean, sums):
    """Partial sums of a chunk of a channel, in float64: it costs nothing where memory is the limit."""
    _, chunks, channels = sums.shape
    c, k = task % channels, task // channels
    like = np.float64(0)
    if rows.outer == chunks == 1:
        sums[0, k, c], sums[1, k, c] = row_products(bare(dy), elements(x), c, rows.inner, mean[c], like)
    else:
        start, stop = segments_of(k, chunks, rows)
        sums[0, k, c], sums[1, k, c] = slab_products(
            bare(dy), elements(x), c, start, stop, rows, mean[c], like
        )
