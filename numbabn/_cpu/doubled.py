"""Moments that keep twice the digits of float64: merging them costs no accuracy, however often it is done.

A number is an unevaluated sum of two float64, high and low, of which the low one is less than a rounding of
the high one: Dekker (1971), "A floating-point technique for extending the available precision". Products of
float64 are good enough, being corrections; sums are not: at an offset of 1e8 the rounding of a mean is 1e-8,
and the square of a difference of two such means is wrong in the ninth digit.
"""

import numpy as np

from numbabn._cpu.jit import helper, small_kernel


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
def merge_moments(na, na_low, ma, ma_low, qa, qa_low, nb, nb_low, mb, mb_low, qb, qb_low):
    """Moments of two samples from (weight, mean, m2) of each, all of them doubled.

    Chan, Golub and LeVeque (1979), eq. 2.1. The step is taken from the heavier sample, so that it is at most
    half of the difference and its rounding is small beside the values.
    """
    if nb > na:
        na, na_low, nb, nb_low = nb, nb_low, na, na_low
        ma, ma_low, mb, mb_low = mb, mb_low, ma, ma_low
        qa, qa_low, qb, qb_low = qb, qb_low, qa, qa_low
    if nb == 0.0:
        return na, na_low, ma, ma_low, qa, qa_low
    n, n_low = add_two(na, na_low, nb)
    n, n_low = add_two(n, n_low, nb_low)
    weight = nb / n
    if not (np.isfinite(ma) and np.isfinite(mb)):
        return n, n_low, ma + mb, 0.0, np.nan, 0.0  # infinity stays, infinities of both signs are NaN
    d, e = two_sum(mb, -ma)
    delta = d + (e + (mb_low - ma_low))
    m, m_low = add_two(ma, ma_low, delta * weight)
    q, q_low = add_two(qa, qa_low, qb)
    q, q_low = add_two(q, q_low, qb_low)
    q, q_low = add_two(q, q_low, delta * delta * (na * weight))
    return n, n_low, m, m_low, q, q_low


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
    return merged, mean, mean_low, m2 + m2_b + delta * delta * (count * weight), odd


@helper
def unfold(count, mean, mean_low, m2, odd):
    """(count, mean, mean_low, m2) of everything folded: NaN and infinity are in the mean again."""
    if odd != 0.0:
        return count, odd, 0.0, np.nan
    return count, mean, mean_low, m2


@helper
def middle(low, high):
    """Return a number near the values of a range; where they are equal, that value."""
    k = low + (high - low) * 0.5
    return k if np.isfinite(k) else 0.0


@small_kernel
def merge(weight, mean, m2, other_weight, other_mean, other_m2):
    """Merge moments [2, channels] into those of the first three arrays."""
    for c in range(weight.shape[1]):
        (
            weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
        ) = merge_moments(
            weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
            other_weight[0, c], other_weight[1, c],
            other_mean[0, c], other_mean[1, c], other_m2[0, c], other_m2[1, c],
        )  # fmt: skip


@small_kernel
def absorb(weight, mean, m2, chunks):
    """Merge chunks [chunks, (weight, mean, mean_low, m2, ...), channels], in order, into the moments."""
    for k in range(len(chunks)):
        for c in range(weight.shape[1]):
            (
                weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
            ) = merge_moments(
                weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
                chunks[k, 0, c], 0.0, chunks[k, 1, c], chunks[k, 2, c], chunks[k, 3, c], 0.0,
            )  # fmt: skip
