"""What is done to every element: out = (x - center) * scale + shift.

With a dy, it is out = ((x - center) * scale + dy) * weight + shift. Normalisation and both backward passes
are these maps; only the coefficients differ. They are arrays [4, channels] in the order center, scale, shift,
weight and in the dtype in which the result is computed, to which x is converted as it is read: from half
floats, or from integers.

Where several channels share one statistic, as in group norm, dy is multiplied by gamma first, which is called
``gain`` then: dx has terms that a gamma of 0 in the weight would lose. Elsewhere gain is None, and the
multiplication is not compiled.

The mean stays wide: center is the mean rounded to the dtype of x, and what the rounding lost goes into the
shift, where it costs no operation per element. x - center is exact near the mean, so a constant channel
gives exactly beta.
"""

from typing import NamedTuple

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cpu.epilogue import (
    array_of,
    give,
    give_part,
    put_part,
    take,
    take_input,
    take_input_part,
    take_part,
)
from numbabn.backends.cpu.jit import helper, small_kernel
from numbabn.backends.cpu.simd import convert, fma, load, load_part, mul, sub

normalize_coefficients = helper(arithmetic.normalize_coefficients)
gradient_coefficients = helper(arithmetic.gradient_coefficients)


class Traffic(NamedTuple):
    """How a pass from x to out moves memory."""

    streaming: int  # whether results are written past the caches
    ahead: int  # elements from what is read to what is prefetched


@helper
def fill_normalize(c, mean, std, gamma, beta, coefficients):
    """Coefficients of channel c for y = (x - mean) / std * gamma + beta, where std is sqrt(var + eps)."""
    center = convert(mean, coefficients[0, c])
    scale, shift = normalize_coefficients(mean, std, gamma, beta, center)
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = shift
    coefficients[3, c] = 0.0


@helper
def fill_gradient(c, mean, std, gamma, means, coefficients):
    """Coefficients of channel c for dx = gamma / std * (dy - mean(dy) - xhat * mean(dy * xhat)).

    ``means`` are the pair mean(dy) and mean(dy * xhat).
    """
    center = convert(mean, coefficients[0, c])
    mean_dy, mean_dy_xhat = means
    scale, shift, weight = gradient_coefficients(mean, std, gamma, mean_dy, mean_dy_xhat, center)
    coefficients[0, c] = center
    coefficients[1, c] = scale
    coefficients[2, c] = shift
    coefficients[3, c] = weight


@helper
def fill_group_gradient(first, members, mean, std, gain, count, sums, coefficients):
    """Coefficients of the channels of a group: of ``members`` channels from ``first`` on.

    dx = (gain * dy - mean(gain * dy) - xhat * mean(gain * dy * xhat)) / std, with means over the group.
    ``sums`` are the arrays of the sums of dy and of dy * xhat over ``count`` values of each channel. ``gain``
    has one value for each channel of one sample.
    """
    sum_dy, sum_dy_xhat = sums
    mean_dy = mean_dy_xhat = 0.0
    p = first % len(gain)
    for m in range(members):
        mean_dy += gain[p + m] * sum_dy[first + m]
        mean_dy_xhat += gain[p + m] * sum_dy_xhat[first + m]
    means = mean_dy / (count * members), mean_dy_xhat / (count * members)
    for m in range(members):
        fill_gradient(first + m, mean, std, 1.0, means, coefficients)


@small_kernel
def fill_group_gradient_all(statistics, gain, eps, count, sums, coefficients):
    """``fill_group_gradient`` for every group of one sample: statistics[2, groups], sums[2, channels]."""
    groups, added = statistics.shape[1], (sums[0], sums[1])
    members = len(gain) // groups
    for g in range(groups):
        std = np.sqrt(statistics[1, g] + eps)
        fill_group_gradient(g * members, members, statistics[0, g], std, gain, count, added, coefficients)


@small_kernel
def fill_normalize_all(mean, var, gamma, beta, eps, coefficients):
    """``fill_normalize`` for every channel."""
    for c in range(len(mean)):
        fill_normalize(c, mean[c], np.sqrt(var[c] + eps), gamma[c], beta[c], coefficients)


@small_kernel
def fill_gradient_all(statistics, gamma, eps, count, sums, coefficients):
    """``fill_gradient`` for every channel.

    statistics[2, channels] are mean and variance, sums[2, channels] those of dy and of dy * xhat; ``count``
    is their number of values per channel.
    """
    for c in range(len(gamma)):
        means = sums[0, c] / count, sums[1, c] / count
        std = np.sqrt(statistics[1, c] + eps)
        fill_gradient(c, statistics[0, c], std, gamma[c], means, coefficients)


# A function compiled by Numba returns one type, so that the fifth vector is always there. dy is multiplied by
# it only where the argument ``gain`` is not None, which is known when a kernel is compiled.


@helper
def affine(dy, x, i, like, vectors, gain):
    """The map of the sixteen values from i on.

    ``vectors`` are center, scale, shift, weight and gain; dy is multiplied by the last one unless ``gain`` is
    None. Values are read in the dtype in which the result is computed, which the vectors have; ``like`` is an
    element of the result. x may be integers, and where there is no dy a gradient.
    """
    k, a, b, w, _ = vectors
    if dy is None:
        e = take_input(x, i, like)
        give(x, i, e)
        return fma(sub(e, k), a, b)
    e = take(dy, i, like)
    give(dy, i, e)
    return fma(fma(sub(load(x, i, like), k), a, times_gain(e, vectors, gain)), w, b)


@helper
def put_affine_part(dy, x, i, count, vectors, gain, out):
    """Write ``affine`` of ``count`` < 16 values from i on; the other lanes are neither read nor written."""
    k, a, b, w, _ = vectors
    if dy is None:
        e = take_input_part(x, i, count, k, array_of(out)[0])
        give_part(x, i, count, e)
        put_part(fma(sub(e, k), a, b), i, count, out)
    else:
        e, d = take_part(dy, i, count, k), sub(load_part(x, i, count, k), k)
        give_part(dy, i, count, e)
        put_part(fma(fma(d, a, times_gain(e, vectors, gain)), w, b), i, count, out)


@helper
def times_gain(vector, vectors, gain):
    """Return the vector, times the last of ``vectors`` unless ``gain`` is None."""
    if gain is None:
        return vector
    return mul(vector, vectors[4])
