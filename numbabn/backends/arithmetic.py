"""The formulas that both backends compile, each written once: Chan's merge, and the coefficients of the maps.

They are plain Python, without NumPy and without square roots, which the compilers know under different names.
So they take scalars inside kernels, and NumPy arrays outside of them. All arithmetic is float64.
"""

from typing import Any, TypeAlias

Number: TypeAlias = Any  # a float64 scalar, or an array of them; counts may be integers


def merge_means(
    count: Number, mean: Number, more: Number, more_mean: Number
) -> tuple[Number, Number, Number]:
    """Merge the means of two samples; return (number of all, mean of all, sum of squares between the two).

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", eq. 2.1. With delta = mean_b - mean_a,

        mean = mean_a + delta * n_b / n,    m2 = m2_a + m2_b + delta**2 * n_a * n_b / n.

    The last term is returned, and the caller adds it to the sums of squares of its two samples. It is not
    computed as delta**2 * ..., which is inf * 0 for the first sample where its mean is above 1e154.
    """
    total = count + more
    weight = more / total
    delta = more_mean - mean
    return total, mean + delta * weight, delta * (count * weight) * delta


def normalize_coefficients(
    mean: Number, std: Number, gamma: Number, beta: Number, center: Number
) -> tuple[Number, Number]:
    """Return (scale, shift) with (x - center) * scale + shift = (x - mean) / std * gamma + beta.

    ``std`` is sqrt(var + eps). ``center`` is the mean rounded to the dtype that x is computed in: what the
    rounding lost goes into the shift, where it costs no operation per element.
    """
    scale = gamma / std
    return scale, beta - (mean - center) * scale


def gradient_coefficients(
    mean: Number, std: Number, gamma: Number, mean_dy: Number, mean_dy_xhat: Number, center: Number
) -> tuple[Number, Number, Number]:
    """Return (scale, shift, weight) with ((x - center) * scale + dy) * weight + shift = dx.

    dx = gamma / std * (dy - mean_dy - xhat * mean_dy_xhat), Ioffe and Szegedy (2015), section 3; ``std`` and
    ``center`` are as in `normalize_coefficients`, the two means are over the values of one statistic.

    The scale is multiplied by the weight for every element: their product has a factor of gamma / std**2,
    which leaves the range of float32 where std is 1e20 or 1e-20. Where the weight is 0 so is the scale,
    however small std is, since infinity times 0 would be NaN.
    """
    invstd = 1.0 / std
    weight = gamma * invstd
    scale = -invstd * (weight != 0.0) * mean_dy_xhat
    return scale, -weight * (mean_dy + scale * (mean - center)), weight
