"""What is done to every element: out = (x - center) * scale + shift.

With a dy, it is out = ((x - center) * scale + dy) * weight + shift. Normalisation and both backward passes
are these maps; only the coefficients differ. They are arrays [4, channels] in the order center, scale, shift,
weight and in the dtype of the result, to which x is converted as it is read where it has integers.

The mean stays wide: center is the mean rounded to the dtype of x, and what the rounding lost goes into the
shift, where it costs no operation per element. x - center is exact near the mean, so a constant channel
gives exactly beta.
"""

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cpu.jit import helper, small_kernel
from numbabn.backends.cpu.simd import convert, fma, load, load_part, store, store_part, stream, sub

normalize_coefficients = helper(arithmetic.normalize_coefficients)
gradient_coefficients = helper(arithmetic.gradient_coefficients)


@helper
def fill_normalize(c, mean, var, gamma, beta, eps, coefficients):
    """Coefficients of channel c for y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    center = convert(mean[c], coefficients[0, c])
    scale, shift = normalize_coefficients(mean[c], np.sqrt(var[c] + eps), gamma[c], beta[c], center)
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = shift
    coefficients[3, c] = 0.0


@helper
def fill_gradient(c, statistics, gamma, eps, count, sums, coefficients):
    """Coefficients of channel c for dx = gamma * invstd * (dy - mean(dy) - xhat * mean(dy * xhat)).

    statistics[2, channels] are mean and variance, sums[2, channels] those of dy and of dy * xhat; ``count``
    is their number of values per channel.
    """
    mean, var = statistics[0, c], statistics[1, c]
    center = convert(mean, coefficients[0, c])
    scale, shift, weight = gradient_coefficients(
        mean, np.sqrt(var + eps), gamma[c], sums[0, c] / count, sums[1, c] / count, center
    )
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = shift
    coefficients[3, c] = weight


@small_kernel
def fill_normalize_all(mean, var, gamma, beta, eps, coefficients):
    """``fill_normalize`` for every channel."""
    for c in range(len(mean)):
        fill_normalize(c, mean, var, gamma, beta, eps, coefficients)


@small_kernel
def fill_gradient_all(statistics, gamma, eps, count, sums, coefficients):
    """``fill_gradient`` for every channel."""
    for c in range(len(gamma)):
        fill_gradient(c, statistics, gamma, eps, count, sums, coefficients)


@helper
def affine(dy, x, i, like, k, a, b, w):
    """(x - k) * a + b for the sixteen values from i on, or ((x - k) * a + dy) * w + b if dy is not None.

    Values are read in the dtype of ``like``, which the other vectors have; x may be integers.
    """
    d = sub(load(x, i, like), k)
    if dy is None:
        return fma(d, a, b)
    return fma(fma(d, a, load(dy, i, like)), w, b)


@helper
def put_part(dy, x, i, count, coefficients, out):
    """Write ``affine`` of ``count`` < 16 values from i on; the other lanes are neither read nor written.

    ``coefficients`` are four vectors: center, scale, shift and weight.
    """
    k, a, b, w = coefficients
    d = sub(load_part(x, i, count, k), k)
    if dy is None:
        store_part(out, i, count, fma(d, a, b))
    else:
        store_part(out, i, count, fma(fma(d, a, load_part(dy, i, count, k)), w, b))


@helper
def put(value, i, streaming, out):
    """Write sixteen values to out from i on, past the caches if ``streaming``."""
    if streaming:
        stream(out, i, value)
    else:
        store(out, i, value)
