"""What is done with a channel's sums: Chan's merge, and the coefficients of the affine maps.

All in float64, once per channel or per chunk of a channel, so that no cost per element is here.
"""

import numpy as np

from numbabn._cpu.jit import helper, kernel
from numbabn._cpu.simd import convert


@helper
def merge_sums(count, mean, m2, n, shift, s, q):
    """Merge n values with sum s and sum of squares q about ``shift`` into (count, mean, m2).

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1: with delta = mean_b - mean_a,

        mean = mean_a + delta * n_b / n,    m2 = m2_a + m2_b + delta**2 * n_a * n_b / n.

    Cancellation in m2_b = q - s*s/n costs eps * (1 + (shift - mean_b)**2 / var_b): harmless while the shift
    is a value of the data and n a few thousand, since (shift - mean_b)**2 <= n * var_b then.
    """
    merged = count + n
    weight = n / merged
    m2_b = q - s * (s / n)
    if m2_b < 0.0:  # by rounding; not max(), which would turn a NaN into 0
        m2_b = 0.0
    delta = shift + s / n - mean
    return merged, mean + delta * weight, m2 + m2_b + delta * delta * (count * weight)


@helper
def affine_coefficients(mean, var, gamma, beta, eps, like):
    """(center, scale, shift) in like's dtype with y = (x - center) * scale + shift.

    The mean stays wide: center is the mean rounded to the dtype of x, and what the rounding lost goes into
    the shift, where it costs no operation per element. x - center is exact near the mean, so a constant
    channel gives exactly beta.
    """
    scale = gamma / np.sqrt(var + eps)
    center = convert(mean, like)
    return center, convert(scale, like), convert(beta - (mean - center) * scale, like)


@helper
def gradient_coefficients(mean, var, gamma, eps, sum_dy, sum_dy_xhat, count, like):
    """(center, scale, shift, weight) with dx = (x - center) * scale + shift + dy * weight.

    From dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)), Ioffe and Szegedy (2015).
    """
    invstd = 1.0 / np.sqrt(var + eps)
    weight = gamma * invstd
    scale = -weight * invstd * (sum_dy_xhat / count)
    center = convert(mean, like)
    shift = -weight * (sum_dy / count) - scale * (mean - center)
    return center, convert(scale, like), convert(shift, like), convert(weight, like)


@kernel
def merge_chunks(count, mean, m2):
    """Merge the chunks of count[chunks], mean[chunks, channels] and m2 into chunk 0, in order."""
    total = count[0]
    for k in range(1, len(count)):
        merged = total + count[k]
        weight = count[k] / merged
        for c in range(mean.shape[1]):
            delta = mean[k, c] - mean[0, c]
            mean[0, c] += delta * weight
            m2[0, c] += m2[k, c] + delta * delta * (total * weight)
        total = merged


@kernel
def fill_affine(mean, var, gamma, beta, eps, coefficients):
    """``affine_coefficients`` of every channel c, in coefficients[:3, c]; [3, c] is not used."""
    for c in range(len(mean)):
        k, a, b = affine_coefficients(mean[c], var[c], gamma[c], beta[c], eps, coefficients[0, c])
        coefficients[0, c], coefficients[1, c], coefficients[2, c], coefficients[3, c] = k, a, b, a


@kernel
def fill_gradient(mean, var, gamma, eps, count, sums, coefficients):
    """``gradient_coefficients`` of every channel c, in coefficients[:, c]."""
    for c in range(len(mean)):
        coefficients[0, c], coefficients[1, c], coefficients[2, c], coefficients[3, c] = (
            gradient_coefficients(
                mean[c], var[c], gamma[c], eps, sums[0, c], sums[1, c], count, coefficients[0, c]
            )
        )
