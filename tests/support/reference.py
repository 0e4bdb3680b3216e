"""Batch normalisation straight from its formulas, in float64: slow, obvious, and independent of the library.

Beside every value stands the error that is allowed to it, with the reason. The formulas also take complex
arrays (no absolute value, no comparison), so that their derivatives can be had by complex step.
"""

import math
from fractions import Fraction

import numpy as np

# How many eps of the dtype of x an output may be off. Counted along y = (x - center) * scale + shift:
# x - center, the variance, its root, scale, shift and the result round once each, at half an eps, which is 3;
# one is left for the sums of the statistics. Where x is float64 these are float64 sums too, here and in the
# library: of squares about a value of the data, which may be 5 standard deviations, 25 variances, off.
ROUNDINGS = {4: 4, 8: 30}


def roundings(dtype):
    """Relative error allowed to a result in the dtype of x."""
    return ROUNDINGS[dtype.itemsize] * np.finfo(dtype).eps


def along(values, ndim, axis):
    """One value per channel, shaped to broadcast against an array with its channels on ``axis``."""
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return np.reshape(values, shape)


def wide(array):
    """Float64, or complex128 where there is an imaginary part."""
    return np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64)


def by_channel(x, axis):
    """Rows of values, one per channel."""
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def total(x, axis):
    """Sum of every channel; over contiguous values, where NumPy adds pairwise."""
    return np.ascontiguousarray(by_channel(x, axis)).sum(axis=1)


def moments(x, axis):
    """(count, mean, m2) in two passes."""
    x = wide(x)
    count = x.size // x.shape[axis]
    mean = total(x, axis) / count
    mean += total(x - along(mean, x.ndim, axis), axis) / count
    return count, mean, total((x - along(mean, x.ndim, axis)) ** 2, axis)


def exact_moments(x, axis):
    """(count, mean, m2) in rational arithmetic, rounded once at the end; for some thousand values."""
    mean, m2 = [], []
    for row in by_channel(x, axis):
        values = [Fraction(float(v)) for v in row]
        exact = sum(values) / len(values)
        mean.append(float(exact))
        m2.append(float(sum((v - exact) ** 2 for v in values)))
    return x.size // x.shape[axis], np.array(mean), np.array(m2)


def moments_error(x, axis):
    """Errors allowed to a float64 mean and m2.

    The mean is rounded in proportion to the values. m2 is a sum of squares about some value of the data, less
    a correction, so it is rounded in proportion to the largest square; thousands are added in a row, and
    those of float32 values, which lie on a grid, are rounded one way more often: 64 eps. And the mean that
    deviations are taken from is rounded: sum(2 * d * error) is at most 2 * error * sqrt(n * m2).
    """
    tiny = np.finfo(np.float64).eps
    rows = wide(by_channel(x, axis))
    count, size = rows.shape[1], np.abs(rows).max(axis=1)
    deviations = np.abs(rows - rows.mean(axis=1, keepdims=True))
    m2 = (deviations**2).sum(axis=1)
    return 4 * tiny * size, tiny * (64 * count * deviations.max(axis=1) ** 2 + 4 * size * np.sqrt(count * m2))


def chunked_moments(chunks):
    """(count, mean, m2) of one channel given as a list of arrays: chunk sums by NumPy, added up by fsum.

    The second pass corrects the first: m2 = sum(d**2) - sum(d)**2 / n with d about the mean of the first.
    """
    count = sum(chunk.size for chunk in chunks)
    mean = math.fsum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / count
    sums, squares = [], []
    for chunk in chunks:
        d = chunk.astype(np.float64) - mean
        sums.append(float(d.sum()))
        squares.append(float(np.dot(d, d)))
    rest = math.fsum(sums)
    return count, mean + rest / count, math.fsum(squares) - rest * rest / count


def saved_error(x, axis):
    """Errors allowed to the mean and the variance that a forward call saves.

    They are float64, but the sums of a float32 x within a segment of some thousand values are float32: the
    mean to some eps of the standard deviation, and the variance to some eps of the mean square about the
    value that sums are taken about, which may be far out.
    """
    count, mean, m2 = moments(x, axis)
    tiny, var, error = roundings(x.dtype), m2 / count, moments_error(x, axis)
    farthest = np.abs(by_channel(x, axis) - mean[:, None]).max(axis=1)
    return tiny * np.sqrt(var) + error[0], tiny * (var + farthest**2 / 4) + error[1] / count


def statistics(x, axis, mean=None, var=None):
    """Mean and biased variance of x, or those given, in float64."""
    if mean is None:
        count, mean, m2 = moments(x, axis)
        var = m2 / count
    return wide(mean), wide(var)


def forward(x, gamma=None, beta=None, *, axis=1, eps=1e-5, mean=None, var=None):
    """Y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    x = wide(x)
    mean, var = statistics(x, axis, mean, var)
    gamma = np.ones(x.shape[axis]) if gamma is None else wide(gamma)
    beta = np.zeros(x.shape[axis]) if beta is None else wide(beta)
    xhat = (x - along(mean, x.ndim, axis)) / np.sqrt(along(var, x.ndim, axis) + eps)
    return xhat * along(gamma, x.ndim, axis) + along(beta, x.ndim, axis)


def backward(dy, x, gamma=None, *, axis=1, eps=1e-5, mean=None, var=None):
    """(dx, dgamma, dbeta); the statistics depend on x, or are constants where they are given."""
    constant = mean is not None
    x, dy = wide(x), wide(dy)
    count = x.size // x.shape[axis]
    mean, var = statistics(x, axis, mean, var)
    gamma = np.ones(x.shape[axis]) if gamma is None else wide(gamma)
    invstd = 1 / np.sqrt(along(var, x.ndim, axis) + eps)
    xhat = (x - along(mean, x.ndim, axis)) * invstd
    dgamma, dbeta = total(dy * xhat, axis), total(dy, axis)
    dx = dy
    if not constant:
        dx = dy - along(dbeta, x.ndim, axis) / count - xhat * along(dgamma, x.ndim, axis) / count
    return dx * invstd * along(gamma, x.ndim, axis), dgamma, dbeta


def _xhat_parts(x, axis, eps, mean, var):
    """|xhat| of every element, and the error of the mean in units of the standard deviation."""
    mean, var = statistics(x, axis, mean, var)
    invstd = 1 / np.sqrt(along(var, x.ndim, axis) + eps)
    xhat = np.abs(wide(x) - along(mean, x.ndim, axis)) * invstd
    # A float32 x has a mean in float64, whatever its offset: what is left is the error of the sums, below
    # one eps of a standard deviation. A float64 x has a mean in float64 too, rounded in proportion to its
    # size, here and in the library.
    of_mean = 1.0 if x.dtype.itemsize == 4 else 1 + np.abs(along(mean, x.ndim, axis)) * invstd
    return xhat, invstd, of_mean


def forward_error(x, gamma=None, beta=None, *, axis=1, eps=1e-5, mean=None, var=None):
    """Error allowed to every element of y: `ROUNDINGS` of the two terms that make it up."""
    gamma = np.ones(x.shape[axis]) if gamma is None else wide(gamma)
    beta = np.zeros(x.shape[axis]) if beta is None else wide(beta)
    xhat, _, of_mean = _xhat_parts(x, axis, eps, mean, var)
    size = along(np.abs(gamma), x.ndim, axis) * (xhat + of_mean) + along(np.abs(beta), x.ndim, axis)
    return roundings(x.dtype) * size


def backward_error(dy, x, gamma=None, beta=None, *, axis=1, eps=1e-5, mean=None, var=None):
    """Errors allowed to dx, dgamma and dbeta.

    dgamma and dbeta are sums of terms that may cancel, each of which is rounded, and added to some others, in
    the dtype of x: `ROUNDINGS` of the sum of their sizes. dx is a sum of three such terms. Gradients of
    parameters are rounded to their dtype in the end.
    """
    constant = mean is not None
    tiny = roundings(x.dtype)
    xhat, invstd, of_mean = _xhat_parts(x, axis, eps, mean, var)
    dy = np.abs(wide(dy))
    of_dgamma, of_dbeta = tiny * total(dy * (xhat + of_mean), axis), tiny * total(dy, axis)
    of_dx = tiny * dy
    if not constant:
        count = x.size // x.shape[axis]
        of_dx = of_dx + along(of_dbeta / count, x.ndim, axis)
        of_dx += (xhat + of_mean) * along(of_dgamma / count, x.ndim, axis)
    scale = invstd * along(1.0 if gamma is None else np.abs(wide(gamma)), x.ndim, axis)
    of_dgamma += last_rounding(of_dgamma / tiny, gamma)
    of_dbeta += last_rounding(of_dbeta / tiny, beta)
    return scale * of_dx, of_dgamma, of_dbeta


def last_rounding(size, parameter):
    """Error of rounding to the dtype of the parameter, also below its smallest normal number."""
    if parameter is None:
        return 0.0
    kind = np.finfo(parameter.dtype)
    return size * float(kind.eps) + float(kind.smallest_subnormal)


def activated(v, activation, slope):
    """Return the activation of v: "relu", "relu6", "leaky_relu" or None. NaN stays NaN."""
    if activation == "leaky_relu":
        return np.where(v > 0, v, v * slope)
    if activation is not None:
        v = np.where(v < 0, 0.0, v)
    return np.where(v > 6, 6.0, v) if activation == "relu6" else v


def derivative(v, activation, slope):
    """Return the derivative of the activation at v, which is that from below at a kink but for 6.

    At NaN it is 1, but that of "leaky_relu" is the slope.
    """
    if activation == "leaky_relu":
        return np.where(v > 0, 1.0, slope)
    if activation is None:
        return np.ones(v.shape)
    passes = ~(v <= 0) & ~(v >= 6) if activation == "relu6" else ~(v <= 0)
    return passes.astype(np.float64)
