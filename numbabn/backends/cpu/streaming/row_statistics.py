"""Moments and range of channels whose values lie in long contiguous rows: x is flat (outer, channels, inner).

The walk over the rows is that of `row_kernels`; what is done to every vector is in `lanes`.
"""

import numpy as np
from numba import prange

from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import LANES, convert, highest, lowest, prefetch, splat, total, zeros
from numbabn.backends.cpu.streaming.doubled import first_shift, fold_sums, unfold
from numbabn.backends.cpu.streaming.lanes import add_part, add_sums, add_values, no_sums

STRIDE = 4 * LANES  # elements an iteration: four vectors hide the latency of add and fma
SEGMENT = 64 * STRIDE  # elements summed in like's dtype, and about one shift
VECTORS = SEGMENT // LANES
GROWTH = 8  # of how much is summed about one shift: the first values do not know the mean well


@helper
def segments_per_row(inner):
    """Into how many segments a row is cut."""
    return -(-inner // SEGMENT)


@helper
def add_four(a, b, c, d, value, like):
    """Sums of all four."""
    return add_sums(add_sums(a, b, value, like), add_sums(c, d, value, like), value, like)


@helper
def sums(x, w, c, lo, hi, channels, inner, shift, masked, value, like):
    """(weight, sum of d, sum of d * d, least, greatest) over segments lo..hi of channel c; d = x - shift.

    Sums of a segment have like's dtype, and are added up in float64.
    """
    wide = np.float64(0)
    n = pending = np.int64(0)
    ahead = channels * inner if channels > 1 else 16 * STRIDE
    longest = min(inner, SEGMENT) // LANES + 1
    k = zeros(like)
    if shift is not None:
        k = splat(convert(shift, like))
    none = no_sums(value, like)
    a0 = a1 = a2 = a3 = none
    everything = no_sums(value, wide)
    per_row, next_row = segments_per_row(inner), channels * inner
    part, row = lo % per_row, (lo // per_row * channels + c) * inner
    for _ in range(lo, hi):
        first = row + part * SEGMENT
        stop = min(first + SEGMENT, row + inner)
        body = first + (stop - first) // STRIDE * STRIDE
        for i in range(first, body, STRIDE):
            prefetch(x, i + ahead, STRIDE)
            a0 = add_values(x, w, i, shift, k, masked, value, like, a0)
            a1 = add_values(x, w, i + LANES, shift, k, masked, value, like, a1)
            a2 = add_values(x, w, i + 2 * LANES, shift, k, masked, value, like, a2)
            a3 = add_values(x, w, i + 3 * LANES, shift, k, masked, value, like, a3)
        left = (stop - body) % LANES
        for i in range(body, stop - left, LANES):
            a0 = add_values(x, w, i, shift, k, masked, value, like, a0)
        if left:
            a1 = add_part(x, w, stop - left, left, shift, k, masked, value, like, a1)
        n += stop - first
        pending += longest
        if pending + longest > VECTORS:  # short rows share sums
            everything = add_sums(everything, add_four(a0, a1, a2, a3, value, like), value, wide)
            a0 = a1 = a2 = a3 = none
            pending = 0
        part += 1  # counted along: two integer divisions would cost as much as a segment
        if part == per_row:
            part = 0
            row += next_row
    weight, s, q, low, high = add_sums(everything, add_four(a0, a1, a2, a3, value, like), value, wide)
    count = np.float64(n)
    if masked is not None:
        count = total(weight)
    return count, total(s), total(q), np.float64(lowest(low)), np.float64(highest(high))


@helper
def slab_moments(x, w, c, lo, hi, channels, inner, masked, value, like):
    """(weight, mean, mean_low, m2, least, greatest) of segments lo..hi of channel c."""
    low, high, shift = np.inf, -np.inf, 0.0
    for t in range(lo, hi):
        n, s, _, low, high = sums(x, w, c, t, t + 1, channels, inner, 0.0, masked, value, like)
        if low <= high:
            shift = first_shift(n, s, low, high)
            break
    weight, mean, mean_low, m2, odd = 0.0, shift, 0.0, 0.0, 0.0
    group, largest = np.int64(1), SEGMENT // min(inner, SEGMENT)
    t = lo
    while t < hi:
        n, s, q, least, most = sums(
            x, w, c, t, min(t + group, hi), channels, inner, shift, masked, value, like
        )
        t += group
        group = min(GROWTH * group, largest)  # a sum is rounded less, the better its shift is known
        weight, mean, mean_low, m2, odd = fold_sums(weight, mean, mean_low, m2, odd, n, shift, s, q)
        low, high = min(low, least), max(high, most)
        shift = mean
    weight, mean, mean_low, m2 = unfold(weight, mean, mean_low, m2, odd)
    return weight, mean, mean_low, m2, low, high


@Kernel
def moments(x, w, outer, channels, inner, masked, value, like, out):
    """Moments of every chunk: out[chunk, :, channel] is weight, mean, mean_low, m2, least, greatest."""
    chunks = len(out)
    segments = outer * segments_per_row(inner)
    for task in prange(channels * chunks):
        c, k = np.int64(task) // chunks, np.int64(task) % chunks
        first, stop = segments * k // chunks, segments * (k + 1) // chunks
        (
            out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], out[k, 4, c], out[k, 5, c],
        ) = slab_moments(x, w, c, first, stop, channels, inner, masked, value, like)  # fmt: skip


@Kernel
def integers(x, w, outer, channels, inner, masked, value, like, out):
    """Sums of every chunk: out[chunk, :, channel] is count, sum, sum of squares, least, greatest."""
    chunks = len(out)
    segments = outer * segments_per_row(inner)
    for task in prange(channels * chunks):
        c, k = np.int64(task) // chunks, np.int64(task) % chunks
        first, stop = segments * k // chunks, segments * (k + 1) // chunks
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], out[k, 4, c] = sums(
            x, w, c, first, stop, channels, inner, None, masked, value, like
        )
