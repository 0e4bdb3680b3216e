"""Moments that keep twice the digits of float64: merging them costs no accuracy, however often it is done.

A doubled number is an unevaluated sum of two float64, high and low, of which the low one is less than a
rounding of the high one: Dekker (1971), "A floating-point technique for extending the available precision".
Means and sums are doubled; products are plain float64, because they are only corrections. A plain mean would
not do: at an offset of 1e8 its rounding is 1e-8, and the square of a difference of two such means is wrong in
the ninth digit.

Chan's merge stands here twice more, beside `arithmetic.merge_means`, because that one is plain float64:
`fold_sums` doubles the mean alone, once per few thousand values; `merge_moments` doubles weight, mean and m2.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends.cpu.jit import helper, small_kernel
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    div,
    drop_nan,
    fma,
    load_part,
    select,
    splat,
    store_part,
    sub,
    zeros,
)


class Folded(NamedTuple):
    """Moments of the sums that `fold_sums` has taken so far: five float64."""

    weight: float
    mean: float  # high part
    mean_low: float
    m2: float
    nonfinite: float  # total of all sums that were infinite or NaN, else 0


@helper
def two_sum(a, b):
    """(s, e) with s = a + b rounded and s + e = a + b exactly: Knuth (1969), TAOCP 2, 4.2.2, theorem B."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


@helper
def add_two(high, low, value):
    """Return the doubled number (high, low) + value; the low part of an infinite or NaN result is 0."""
    s, e = two_sum(high, value)
    if not np.isfinite(s):
        return s, 0.0
    e += low
    total = s + e
    return total, e - (total - s)


@helper
def nothing_folded(mean):
    """Return the moments of no values, with a mean to begin from."""
    return Folded(0.0, mean, 0.0, 0.0, 0.0)


@helper
def fold_sums(folded, n, shift, s, q):
    """Merge n values with sum s and sum of squares q about ``shift`` into the moments ``folded``.

    Like `welford.merge_sums`, whose error bound holds here too, but with a doubled mean. Sums that are not
    finite change the weight and ``nonfinite`` only, so that the mean stays finite: the next values are summed
    about it.
    """
    weight, mean, mean_low, m2, nonfinite = folded
    if n == 0.0:
        return folded
    total = weight + n
    if not np.isfinite(s):
        return Folded(total, mean, mean_low, m2, nonfinite + s)
    m2_b = q - s * (s / n)
    if m2_b < 0.0:  # by rounding
        m2_b = 0.0
    if q == np.inf:  # the squares overflowed; s * s may have overflowed, too, which would give NaN
        m2_b = q
    delta = ((shift - mean) - mean_low) + s / n
    part = n / total
    mean, mean_low = add_two(mean, mean_low, delta * part)
    return Folded(total, mean, mean_low, m2 + m2_b + delta * (weight * part) * delta, nonfinite)


@helper
def unfold(folded):
    """Return (weight, mean, mean_low, m2) of everything folded: with the sums that were not finite."""
    if folded.nonfinite != 0.0:
        return folded.weight, folded.nonfinite, 0.0, np.nan
    return folded.weight, folded.mean, folded.mean_low, folded.m2


@helper
def first_shift(n, s, low, high):
    """Return a number near the mean of n values with sum s and this range; if all are equal, their value.

    The middle of the range would not do: one value far from all others takes the middle far from them, too.
    """
    k = s / n
    if np.isfinite(k):
        return min(max(k, low), high)
    k = low + (high - low) * 0.5
    return k if np.isfinite(k) else 0.0


@helper
def two_sums(a, b):
    """Return (s, e) as `two_sum` does, for vectors."""
    s = add(a, b)
    bb = sub(s, a)
    return s, add(sub(a, sub(s, bb)), sub(b, bb))


@helper
def finite_lanes(a):
    """Return a vector: 1 in the lanes where a is finite, else 0."""
    return drop_nan(splat(1.0), sub(a, a))


@helper
def add_doubled(high, low, other, other_low):
    """Return the sum of two doubled vectors; the low part of an infinite or NaN lane is 0."""
    s, e = two_sums(high, other)
    e = add(e, add(low, other_low))
    total = add(s, e)
    finite = finite_lanes(s)
    return select(finite, total, s), select(finite, sub(e, sub(total, s)), zeros(0.0))


@helper
def merge_moments(a, b):
    """Merge the moments a and b of two samples, each six vectors: weight, mean and m2, all of them doubled.

    Chan, Golub and LeVeque (1979), eq. 2.1, written for accuracy at the limits of float64. The merged mean is
    the mean of the heavier sample plus a step: so the step is at most half of the difference of the means,
    and its rounding is small beside the values. Sums and differences of means are formed from their halves,
    which cannot overflow. Where a mean is not finite, the merged mean is the sum of the means: infinity
    stays, and infinities of both signs give NaN. A sample of weight 0 changes nothing.
    """
    none, half, swap = zeros(0.0), splat(0.5), sub(b[0], a[0])
    na, na_low, ma, ma_low, qa, qa_low = choose(swap, b, a)
    nb, nb_low, mb, mb_low, qb, qb_low = choose(swap, a, b)
    n, n_low = add_doubled(na, na_low, nb, nb_low)
    weight = div(nb, n)
    half_a, half_b = fma(ma, half, none), fma(mb, half, none)
    d, e = two_sums(half_b, sub(none, half_a))
    halved = add(d, add(e, fma(sub(mb_low, ma_low), half, none)))
    delta = add(halved, halved)
    m, m_low = add_doubled(ma, ma_low, fma(halved, add(weight, weight), none), none)
    q, q_low = add_doubled(qa, qa_low, qb, qb_low)
    step = fma(fma(na, weight, none), fma(delta, delta, none), none)
    q, q_low = add_doubled(q, q_low, step, none)
    nonfinite = add(half_a, half_b)
    finite = finite_lanes(nonfinite)
    merged = (
        n, n_low, select(finite, m, nonfinite), select(finite, m_low, none),
        select(finite, q, splat(np.nan)), select(finite, q_low, none),
    )  # fmt: skip
    return choose(nb, merged, (na, na_low, ma, ma_low, qa, qa_low))


@helper
def choose(weight, a, b):
    """Return six vectors: the lanes of a where the weight is above 0, else those of b."""
    return (
        select(weight, a[0], b[0]), select(weight, a[1], b[1]), select(weight, a[2], b[2]),
        select(weight, a[3], b[3]), select(weight, a[4], b[4]), select(weight, a[5], b[5]),
    )  # fmt: skip


@helper
def load_moments(flat, channels, c, n):
    """Return six vectors: the n <= 16 channels from c on of moments [6, channels], which are flat."""
    none = zeros(0.0)
    return (
        load_part(flat, c, n, none),
        load_part(flat, channels + c, n, none),
        load_part(flat, 2 * channels + c, n, none),
        load_part(flat, 3 * channels + c, n, none),
        load_part(flat, 4 * channels + c, n, none),
        load_part(flat, 5 * channels + c, n, none),
    )


@helper
def store_moments(channels, c, n, moments, flat):
    """Write six vectors to the n <= 16 channels from c on of moments [6, channels], which are flat."""
    store_part(flat, c, n, moments[0])
    store_part(flat, channels + c, n, moments[1])
    store_part(flat, 2 * channels + c, n, moments[2])
    store_part(flat, 3 * channels + c, n, moments[3])
    store_part(flat, 4 * channels + c, n, moments[4])
    store_part(flat, 5 * channels + c, n, moments[5])


@small_kernel
def merge(other, moments):
    """Merge other [6, channels] into moments [6, channels]: weight, mean and m2, each and its low part."""
    channels = moments.shape[1]
    flat, x = moments.reshape(-1), other.reshape(-1)
    for c in range(0, channels, LANES):
        n = min(LANES, channels - c)
        a, b = load_moments(flat, channels, c, n), load_moments(x, channels, c, n)
        store_moments(channels, c, n, merge_moments(a, b), flat)


@small_kernel
def absorb(chunks, moments):
    """Merge chunks, in order, into moments [6, channels], as in `merge`.

    The first rows of chunks [chunks, rows, channels] are weight, mean, low part of the mean, and m2; rows
    after these are ignored.
    """
    channels, rows = moments.shape[1], chunks.shape[1]
    flat, x = moments.reshape(-1), chunks.reshape(-1)
    none = zeros(0.0)
    for c in range(0, channels, LANES):
        n = min(LANES, channels - c)
        a = load_moments(flat, channels, c, n)
        for i in range(c, x.size, rows * channels):
            weight, mean = load_part(x, i, n, none), load_part(x, i + channels, n, none)
            low, m2 = load_part(x, i + 2 * channels, n, none), load_part(x, i + 3 * channels, n, none)
            a = merge_moments(a, (weight, none, mean, low, m2, none))
        store_moments(channels, c, n, a, flat)
