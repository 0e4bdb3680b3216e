"""What is done to every element: out = (x - center) * scale + shift, + dy * weight where there is a dy.

Normalisation and both backward passes are this map; only the coefficients differ. They are arrays
[4, channels] in the order center, scale, shift, weight and in the dtype of x.

The mean stays wide: center is the mean rounded to the dtype of x, and what the rounding lost goes into the
shift, where it costs no operation per element. x - center is exact near the mean, so a constant channel
gives exactly beta.
"""

import numpy as np

from numbabn._cpu.jit import helper, small_kernel
from numbabn._cpu.simd import convert, fma, load, load_part, store, store_part, stream, sub


@helper
def fill_affine(c, mean, var, gamma, beta, eps, coefficients):
    """Coefficients of channel c for y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    like = coefficients[0, c]
    scale = gamma[c] / np.sqrt(var[c] + eps)
    center = convert(mean[c], like)
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = beta[c] - (mean[c] - center) * scale
    coefficients[3, c] = 0.0


@helper
def fill_gradient(c, mean, var, gamma, eps, count, sums, coefficients):
    """Coefficients of channel c for dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)).

    Ioffe and Szegedy (2015); sums are those of dy and of dy * xhat.
    """
    like = coefficients[0, c]
    invstd = 1.0 / np.sqrt(var[c] + eps)
    weight = gamma[c] * invstd
    scale = -weight * invstd * (sums[1, c] / count)
    center = convert(mean[c], like)
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = -weight * (sums[0, c] / count) - scale * (mean[c] - center)
    coefficients[3, c] = weight


@small_kernel
def affine_coefficients(mean, var, gamma, beta, eps, coefficients):
    """``fill_affine`` for every channel."""
    for c in range(len(mean)):
        fill_affine(c, mean, var, gamma, beta, eps, coefficients)


@small_kernel
def gradient_coefficients(mean, var, gamma, eps, count, sums, coefficients):
    """``fill_gradient`` for every channel."""
    for c in range(len(mean)):
        fill_gradient(c, mean, var, gamma, eps, count, sums, coefficients)


@helper
def affine(x, dy, i, k, a, b, w):
    """Sixteen values of (x - k) * a + b, and + dy * w where there is a dy."""
    value = fma(sub(load(x, i, x[0]), k), a, b)
    if dy is not None:
        value = fma(load(dy, i, x[0]), w, value)
    return value


@helper
def put_part(out, i, count, x, dy, k, a, b, w):
    """Write the first ``count`` of sixteen values of ``affine``."""
    value = fma(sub(load_part(x, i, count, k), k), a, b)
    if dy is not None:
        value = fma(load_part(dy, i, count, k), w, value)
    store_part(out, i, count, value)


@helper
def put(out, i, value, streaming):
    """Write sixteen values, past the caches if asked."""
    if streaming:
        stream(out, i, value)
    else:
        store(out, i, value)
