"""Moments that keep twice the digits of float64: merging them costs no accuracy, however often it is done.

A number is an unevaluated sum of two float64, high and low, of which the low one is less than a rounding of
the high one: Dekker (1971), "A floating-point technique for extending the available precision". Products of
float64 are good enough, being corrections; sums are not: at an offset of 1e8 the rounding of a mean is 1e-8,
and the square of a difference of two such means is wrong in the ninth digit.
"""

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


@helper
def two_sum(a, b):
    """(s, e) with s = a + b rounded and s + e = a + b exactly: Knuth (1969), TAOCP 2, 4.2.2, theorem B."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


@helper
def add_two(high, low, value):
    """(high, low) + value. Infinite and NaN sums have nothing after them."""
    s, e = two_sum(high, value)
    if not np.isfinite(s):
        return s, 0.0
    e += low
    total = s + e
    return total, e - (total - s)


@helper
def fold_sums(count, mean, mean_low, m2, odd, n, shift, s, q):
    """Merge n values with sum s and sum of squares q about ``shift`` into (count, mean, mean_low, m2, odd).

    As ``welford.merge_sums``, whose bound holds here too, with the mean doubled. Sums that are not finite are
    added up in ``odd`` and change the count only, so that the mean stays one to take deviations from.
    """
    if n == 0.0:
        return count, mean, mean_low, m2, odd
    merged = count + n
    if not np.isfinite(s):
        return merged, mean, mean_low, m2, odd + s
    m2_b = q - s * (s / n)
    if m2_b < 0.0:  # by rounding
        m2_b = 0.0
    if q == np.inf:  # squares overflowed, and s * s may have, too
        m2_b = q
    delta = ((shift - mean) - mean_low) + s / n
    weight = n / merged
    mean, mean_low = add_two(mean, mean_low, delta * weight)
    return merged, mean, mean_low, m2 + m2_b + delta * (count * weight) * delta, odd


@helper
def unfold(count, mean, mean_low, m2, odd):
    """(count, mean, mean_low, m2) of everything folded: NaN and infinity are in the mean again."""
    if odd != 0.0:
        return count, odd, 0.0, np.nan
    return count, mean, mean_low, m2


@helper
def first_shift(n, s, low, high):
    """Return about the mean of n values with sum s and this range; where they are equal, that value.

    Not the middle of the range: where one value is far from all others, that is, too.
    """
    k = s / n
    if np.isfinite(k):
        return min(max(k, low), high)
    k = low + (high - low) * 0.5
    return k if np.isfinite(k) else 0.0


@helper
def two_sums(a, b):
    """``two_sum`` of vectors."""
    s = add(a, b)
    bb = sub(s, a)
    return s, add(sub(a, sub(s, bb)), sub(b, bb))


@helper
def finite_lanes(a):
    """1 where a is finite, else 0."""
    return drop_nan(splat(1.0), sub(a, a))


@helper
def add_doubled(high, low, other, other_low):
    """(high, low) + (other, other_low) of vectors. Infinite and NaN sums have nothing after them."""
    s, e = two_sums(high, other)
    e = add(e, add(low, other_low))
    total = add(s, e)
    finite = finite_lanes(s)
    return select(finite, total, s), select(finite, sub(e, sub(total, s)), zeros(0.0))


@helper
def merge_moments(a, b):
    """Moments of two samples, each six vectors: weight, mean and m2, all of them doubled.

    Chan, Golub and LeVeque (1979), eq. 2.1. The step is taken from the heavier sample, so that it is at most
    half of the difference and its rounding is small beside the values. Differences and sums of means are of
    their halves, which cannot overflow. A mean that is not finite is the sum of the means: infinity stays,
    infinities of both signs are NaN.
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
    odd = add(half_a, half_b)
    finite = finite_lanes(odd)
    merged = (
        n, n_low, select(finite, m, odd), select(finite, m_low, none),
        select(finite, q, splat(np.nan)), select(finite, q_low, none),
    )  # fmt: skip
    return choose(nb, merged, (na, na_low, ma, ma_low, qa, qa_low))


@helper
def choose(weight, a, b):
    """Return a where the weight is above 0, else b: six vectors."""
    return (
        select(weight, a[0], b[0]), select(weight, a[1], b[1]), select(weight, a[2], b[2]),
        select(weight, a[3], b[3]), select(weight, a[4], b[4]), select(weight, a[5], b[5]),
    )  # fmt: skip


@helper
def load_moments(flat, channels, c, n):
    """Six vectors of n channels from c on, of moments [6, channels]."""
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
def store_moments(flat, channels, c, n, moments):
    """Write them back."""
    store_part(flat, c, n, moments[0])
    store_part(flat, channels + c, n, moments[1])
    store_part(flat, 2 * channels + c, n, moments[2])
    store_part(flat, 3 * channels + c, n, moments[3])
    store_part(flat, 4 * channels + c, n, moments[4])
    store_part(flat, 5 * channels + c, n, moments[5])


@small_kernel
def merge(moments, other):
    """Merge moments [6, channels]: weight, mean and m2, each followed by its low part."""
    channels = moments.shape[1]
    flat, x = moments.reshape(-1), other.reshape(-1)
    for c in range(0, channels, LANES):
        n = min(LANES, channels - c)
        a, b = load_moments(flat, channels, c, n), load_moments(x, channels, c, n)
        store_moments(flat, channels, c, n, merge_moments(a, b))


@small_kernel
def absorb(moments, chunks):
    """Merge chunks, in order, into moments [6, channels].

    The rows of chunks [chunks, rows, channels] are weight, mean, low part of the mean, m2, and others.
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
        store_moments(flat, channels, c, n, a)
