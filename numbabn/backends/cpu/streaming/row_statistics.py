"""Moments and range of channels whose values lie in long contiguous rows: x is flat, as `Rows` describes it.

The rows are read in the order of `slab_sums`; what is done to every vector is in `lanes`.
"""

import numpy as np
from numba import prange

from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import LANES, convert, highest, lowest, prefetch, splat, total, zeros
from numbabn.backends.cpu.slab_sums import Rows
from numbabn.backends.cpu.streaming.doubled import first_shift, fold_sums, nothing_folded, unfold
from numbabn.backends.cpu.streaming.lanes import (
    Summation,
    add_part,
    add_sums,
    add_values,
    no_sums,
)

STRIDE = 4 * LANES  # elements an iteration: four vectors hide the latency of add and fma
SEGMENT = 64 * STRIDE  # elements: the most that are summed in like's dtype, and about one shift
VECTORS = SEGMENT // LANES
GROWTH = 8  # factor by which the summed pieces grow: the first shift is not yet near the mean


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
def add_four(a, b, c, d, value, like):
    """Return the sums of all four."""
    return add_sums(add_sums(a, b, value, like), add_sums(c, d, value, like), value, like)


@helper
def sums(x, w, c, lo, hi, rows, shift, summation):
    """(weight, sum of d, sum of d * d, least, greatest) over segments lo..hi of channel c; d = x - shift.

    Sums of a segment have the dtype of ``summation.like``, and are added up in float64.
    """
    value, like = summation.value, summation.like
    wide = np.float64(0)
    n = pending = np.int64(0)
    inner, next_row = rows.inner, rows.channels * rows.inner
    ahead = next_row if rows.channels > 1 else 16 * STRIDE
    longest = min(inner, SEGMENT) // LANES + 1
    k = zeros(like)
    if shift is not None:
        k = splat(convert(shift, like))
    none = no_sums(value, like)
    a0 = a1 = a2 = a3 = none
    everything = no_sums(value, wide)
    per_row = segments_per_row(inner)
    part, row = lo % per_row, (lo // per_row * rows.channels + c) * inner
    for _ in range(lo, hi):
        first = row + part * SEGMENT
        stop = min(first + SEGMENT, row + inner)
        body = first + (stop - first) // STRIDE * STRIDE
        for i in range(first, body, STRIDE):
            prefetch(x, i + ahead, STRIDE)
            a0 = add_values(x, w, i, shift, k, summation, a0)
            a1 = add_values(x, w, i + LANES, shift, k, summation, a1)
            a2 = add_values(x, w, i + 2 * LANES, shift, k, summation, a2)
            a3 = add_values(x, w, i + 3 * LANES, shift, k, summation, a3)
        left = (stop - body) % LANES
        for i in range(body, stop - left, LANES):
            a0 = add_values(x, w, i, shift, k, summation, a0)
        if left:
            a1 = add_part(x, w, stop - left, left, shift, k, summation, a1)
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
    if summation.masked is not None:
        count = total(weight)
    return count, total(s), total(q), np.float64(lowest(low)), np.float64(highest(high))


@helper
def slab_moments(x, w, c, lo, hi, rows, summation):
    """(weight, mean, mean_low, m2, least, greatest) of segments lo..hi of channel c.

    The first sums are about 0, until there is a value: they give the shift of the next ones, whose mean is
    the shift of those after them.
    """
    low, high, shift = np.inf, -np.inf, 0.0
    for t in range(lo, hi):
        n, s, _, low, high = sums(x, w, c, t, t + 1, rows, 0.0, summation)
        if low <= high:
            shift = first_shift(n, s, low, high)
            break
    folded = nothing_folded(shift)
    group, largest = np.int64(1), SEGMENT // min(rows.inner, SEGMENT)
    t = lo
    while t < hi:
        n, s, q, least, most = sums(x, w, c, t, min(t + group, hi), rows, folded.mean, summation)
        t += group
        group = min(GROWTH * group, largest)  # the nearer the shift is to the mean, the less a sum is rounded
        folded = fold_sums(folded, n, folded.mean, s, q)
        low, high = min(low, least), max(high, most)
    weight, mean, mean_low, m2 = unfold(folded)
    return weight, mean, mean_low, m2, low, high


@Kernel
def moments(x, w, shape, masked, value, like, out):
    """Moments of every chunk: out[chunk, :, channel] is weight, mean, mean_low, m2, least, greatest.

    ``shape`` has the numbers of `Rows` in a plain tuple; masked, value and like are those of `Summation`.
    """
    outer, channels, inner = shape
    chunks = len(out)
    for task in prange(channels * chunks):
        c, k = np.int64(task) // chunks, np.int64(task) % chunks
        rows = Rows(outer, channels, inner)
        first, stop = segments_of(k, chunks, rows)
        (
            out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], out[k, 4, c], out[k, 5, c],
        ) = slab_moments(x, w, c, first, stop, rows, Summation(masked, value, like))  # fmt: skip


@Kernel
def integers(x, w, shape, masked, value, like, out):
    """Sums of every chunk: out[chunk, :, channel] is count, sum, sum of squares, least, greatest.

    The arguments are as in ``moments``.
    """
    outer, channels, inner = shape
    chunks = len(out)
    for task in prange(channels * chunks):
        c, k = np.int64(task) // chunks, np.int64(task) % chunks
        rows = Rows(outer, channels, inner)
        first, stop = segments_of(k, chunks, rows)
        out[k, 0, c], out[k, 1, c], out[k, 2, c], out[k, 3, c], out[k, 4, c] = sums(
            x, w, c, first, stop, rows, None, Summation(masked, value, like)
        )
