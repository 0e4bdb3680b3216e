"""Group and instance norm straight from their formulas, in float64, and the errors allowed to results.

All functions take ``axis``, that of the channels, and ``groups``, their number. Instance norm has as many
groups as channels. The formulas also take complex arrays, so that their derivatives can be had by complex
step.
"""

import numpy as np

from tests.support import reference
from tests.support.reference import along, last_rounding, roundings, total, wide


def by_group(x, axis, groups):
    """Rows of values, one for each group of every sample: [samples * groups, values]."""
    rows = np.moveaxis(x, axis, 1)
    return np.ascontiguousarray(rows).reshape(x.shape[0] * groups, -1)


def spread(values, x, axis, groups):
    """One value for each group of every sample, to broadcast against x with a group's channels apart."""
    values = values.reshape(x.shape[0], groups, 1)
    per_channel = np.broadcast_to(values, (x.shape[0], groups, x.shape[axis] // groups))
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], x.shape[axis]
    return per_channel.reshape(shape)


def means(x, axis, groups):
    """Return the mean over each group of every sample, to broadcast against x."""
    return spread(by_group(x, axis, groups).mean(axis=1), x, axis, groups)


def statistics(x, axis, groups):
    """Mean and biased variance of every group, to broadcast against x."""
    count, mean, m2 = reference.moments(by_group(x, axis, groups), 0)
    return spread(mean, x, axis, groups), spread(m2 / count, x, axis, groups)


def _parameter(values, x, axis, otherwise):
    return otherwise if values is None else along(wide(values), x.ndim, axis)


def forward(x, gamma, beta, axis, groups, eps):
    """Y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    mean, var = statistics(x, axis, groups)
    xhat = (wide(x) - mean) / np.sqrt(var + eps)
    return xhat * _parameter(gamma, x, axis, 1.0) + _parameter(beta, x, axis, 0.0)


def backward(dy, x, gamma, axis, groups, eps):
    """(dx, dgamma, dbeta)."""
    mean, var = statistics(x, axis, groups)
    invstd = 1 / np.sqrt(var + eps)
    xhat, dy = (wide(x) - mean) * invstd, wide(dy)
    weighted = dy * _parameter(gamma, x, axis, 1.0)
    dx = weighted - means(weighted, axis, groups) - xhat * means(weighted * xhat, axis, groups)
    return dx * invstd, total(dy * xhat, axis), total(dy, axis)


# As in `tests.support.samples`: an output rounds as often as one of batch norm, which `reference.ROUNDINGS`
# counts, and twice more: gamma is rounded to the dtype of x, and multiplied by what was rounded.
MORE = 1.5


def _sizes(x, axis, groups, eps):
    """|xhat| and invstd of every element, and the error of the mean in standard deviations."""
    mean, var = statistics(x, axis, groups)
    invstd = 1 / np.sqrt(var + eps)
    of_mean = 1.0 if x.dtype.itemsize == 4 else 1 + np.abs(mean) * invstd
    return np.abs(wide(x) - mean) * invstd, invstd, of_mean


def forward_error(x, gamma, beta, axis, groups, eps):
    """Error allowed to every element of y."""
    xhat, _, of_mean = _sizes(x, axis, groups, eps)
    size = np.abs(_parameter(gamma, x, axis, 1.0)) * (xhat + of_mean) + np.abs(_parameter(beta, x, axis, 0.0))
    return MORE * roundings(x.dtype) * size


def backward_error(dy, x, gamma, beta, axis, groups, eps):
    """Errors allowed to dx, dgamma and dbeta, sums of terms that may cancel, each of which is rounded.

    They are in proportion to the terms, not to the result: of a group of two values dx is 0 but for eps, and
    all that is left of terms as large as gamma * dy / std is what they were rounded by.
    """
    tiny = MORE * roundings(x.dtype)
    xhat, invstd, of_mean = _sizes(x, axis, groups, eps)
    dy = np.abs(wide(dy))
    weighted = dy * np.abs(_parameter(gamma, x, axis, 1.0))
    size = weighted + means(weighted, axis, groups)
    size = size + (xhat + of_mean) * means(weighted * (xhat + of_mean), axis, groups)
    of_dgamma, of_dbeta = tiny * total(dy * (xhat + of_mean), axis), tiny * total(dy, axis)
    return (
        tiny * size * invstd,
        of_dgamma + last_rounding(of_dgamma / tiny, gamma),
        of_dbeta + last_rounding(of_dbeta / tiny, beta),
    )
