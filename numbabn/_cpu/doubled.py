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
def absorb(weight, mean, m2, chunk_weight, chunk_mean, chunk_mean_low, chunk_m2):
    """Merge the moments of chunks [chunks, channels], in order, into those of the first three arrays."""
    for k in range(chunk_weight.shape[0]):
        for c in range(weight.shape[1]):
            (
                weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
            ) = merge_moments(
                weight[0, c], weight[1, c], mean[0, c], mean[1, c], m2[0, c], m2[1, c],
                chunk_weight[k, c], 0.0, chunk_mean[k, c], chunk_mean_low[k, c], chunk_m2[k, c], 0.0,
            )  # fmt: skip
