"""Sums and moments over contiguous values: a row, or a part of one.

Functions here take the elements of arrays instead of arrays, whose references would be counted for every row,
atomically: 131072 rows of 64 float32 took twice as long. Some have nine parameters and more: dy and gamma are
apart from the others, because only for a parameter that is None does Numba leave out what is not needed then,
and what changes from vector to vector is faster in registers than in a tuple.
"""

import numpy as np

from numbabn.backends.cpu.epilogue import take, take_part
from numbabn.backends.cpu.jit import helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    convert,
    fma,
    load,
    load_part,
    mul,
    number,
    splat,
    sub,
    total,
    widen,
    zeros,
)
from numbabn.backends.cpu.welford import merge_means, moments_of_sums

PAIR = 2 * LANES  # values an iteration: two vectors
PIECE = 8 * PAIR  # values whose sums have the dtype of the shift
SHORT = 8 * LANES  # values that are summed in one chain of additions for each lane
MERGE = 4096  # values summed about one shift; Welford's update for every value runs at 1.2 GB/s
TINY = 1e-30  # a sum of squares below this may have lost some to underflow of float32


@helper
def add_values(dy, x, i, gamma, j, k, like, s, q):
    """(s + e, q + e * d) for the sixteen values from i on: d = x - k, and e = dy * gamma, or d without a dy.

    j is the place in the sample, where gamma is read. A gamma that is None is 1.
    """
    d = sub(load(x, i, like), k)
    e = d
    if dy is not None:
        e = take(dy, i, like)
    if gamma is not None:
        e = mul(e, load(gamma, j, like))
    return add(s, e), fma(e, d, q)


@helper
def add_part(dy, x, i, gamma, j, n, k, like, s, q):
    """Like ``add_values`` for n <= 16 values; the other lanes add nothing."""
    none = zeros(like)
    d = sub(load_part(x, i, n, k), k)
    e = d
    if dy is not None:
        e = take_part(dy, i, n, none)
    if gamma is not None:
        e = mul(e, load_part(gamma, j, n, none))
    return add(s, e), fma(e, d, q)


@helper
def short_row_sums(dy, x, first, gamma, lo, hi, shift):
    """``row_sums`` of at most `SHORT` values.

    Those of 49 values that are in the cache take 4.8 ns, and 7.0 with the loop over pieces. Of 196 values
    they would take 13 ns in place of 15, but with 12 additions a lane variances at an offset of 1e4 have
    errors of 1e-7, and of 3e-8 with 6.
    """
    k, none = splat(shift), zeros(shift)
    s0 = s1 = q0 = q1 = none
    body = lo + (hi - lo) // LANES * LANES
    for j in range(lo, body, LANES):
        s0, q0 = add_values(dy, x, first + j, gamma, j, k, shift, s0, q0)
    if hi > body:
        s1, q1 = add_part(dy, x, first + body, gamma, body, hi - body, k, shift, s1, q1)
    return total(widen(add(s0, s1))), total(widen(add(q0, q1)))


@helper
def row_sums(dy, x, first, gamma, lo, hi, shift):
    """(sum of e, sum of e * d) over the places lo..hi of the sample that begins at first; d = x - shift.

    e = dy * gamma, or d where dy is None; a gamma that is None is 1. Sums of a piece have the dtype of
    ``shift``, and are added up in float64. Pieces are short because float32 sums of squares are biased
    where x lies on a grid, as at an offset of 1e4: a square is 0 or 1 modulo 4, so that it is rounded down
    more often than up. 64 additions a lane cost 3e-7 of the variance there, 8 cost nothing; float64
    products instead halve the speed in cache.
    """
    if hi - lo <= SHORT:
        return short_row_sums(dy, x, first, gamma, lo, hi, shift)
    k, none = splat(shift), zeros(shift)
    s = q = zeros(np.float64(0))
    for start in range(lo, hi, PIECE):
        stop = min(start + PIECE, hi)
        body = start + (stop - start) // LANES * LANES
        s0 = s1 = q0 = q1 = none
        for j in range(start, body - LANES, PAIR):
            s0, q0 = add_values(dy, x, first + j, gamma, j, k, shift, s0, q0)
            s1, q1 = add_values(dy, x, first + j + LANES, gamma, j + LANES, k, shift, s1, q1)
        if (body - start) % PAIR > 0:
            j = body - LANES
            s0, q0 = add_values(dy, x, first + j, gamma, j, k, shift, s0, q0)
        if stop > body:
            s1, q1 = add_part(dy, x, first + body, gamma, body, stop - body, k, shift, s1, q1)
        s, q = add(s, widen(add(s0, s1))), add(q, widen(add(q0, q1)))
    return total(s), total(q)


@helper
def first_estimate(x, first, length):
    """Return a value near the mean of a row: the mean of its first vector, or its first value."""
    if length < LANES:
        return np.float64(number(x, first))
    values = load(x, first, np.float64(0))
    return total(fma(values, splat(1.0 / LANES), zeros(0.0)))  # a sixteenth first: no sum overflows


@helper
def block_moments(x, first, lo, hi, shift, like):
    """Return (mean, m2) of the places lo..hi of a row, at most `MERGE` of them.

    ``shift`` is a number near their mean. Sums of a piece have the dtype of ``like``.
    """
    narrow = convert(shift, like)
    s, q = row_sums(None, x, first, None, lo, hi, narrow)
    if not TINY < q < np.inf:  # squares leave the range of float32, or all is equal, or not finite
        s, q = row_sums(None, x, first, None, lo, hi, np.float64(narrow))
    return moments_of_sums(np.float64(hi - lo), np.float64(narrow), s, q)


@helper
def row_moments(x, first, length, centered, like):
    """Return (mean, biased variance) of the row that begins at first, in float64."""
    count, m2 = 0.0, 0.0
    mean = first_estimate(x, first, length)
    for lo in range(0, length, MERGE):
        n = min(MERGE, length - lo)
        more_mean, more_m2 = block_moments(x, first, lo, lo + n, mean, like)
        if lo == 0:
            count, mean, m2 = np.float64(n), more_mean, more_m2
        else:
            count, mean, between = merge_means(count, mean, np.float64(n), more_mean)
            m2 += more_m2 + between
    var = m2 / length
    return (mean, var) if centered else (0.0, var + mean * mean)
