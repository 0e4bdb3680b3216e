"""Layer norm and RMS norm straight from their formulas, in float64, and the errors allowed to results.

All functions take ``axes``, a tuple of the axes that are normalised, and ``centered``, False for RMS norm.
The formulas also take complex arrays, so that their derivatives can be had by complex step.
"""

import numpy as np

from tests.support.reference import roundings, wide


def spread(parameter, x, axes, otherwise):
    """A parameter, which has the shape of the axes in ascending order, to broadcast against x."""
    ascending = sorted(a % x.ndim for a in axes)
    shape = [x.shape[a] if a in ascending else 1 for a in range(x.ndim)]
    return np.full(shape, otherwise) if parameter is None else wide(parameter).reshape(shape)


def statistics(x, axes, centered):
    """Mean and biased variance, of which RMS norm takes 0 and the mean of the squares."""
    x = wide(x)
    mean = x.mean(axis=axes, keepdims=True) * centered
    if centered:
        mean = mean + (x - mean).mean(axis=axes, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axis=axes, keepdims=True)


def forward(x, gamma, beta, axes, eps, centered):
    """Y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    mean, var = statistics(x, axes, centered)
    xhat = (wide(x) - mean) / np.sqrt(var + eps)
    return xhat * spread(gamma, x, axes, 1.0) + spread(beta, x, axes, 0.0)


def backward(dy, x, gamma, axes, eps, centered):
    """(dx, dgamma, dbeta)."""
    mean, var = statistics(x, axes, centered)
    invstd = 1 / np.sqrt(var + eps)
    xhat, dy = (wide(x) - mean) * invstd, wide(dy)
    weighted = dy * spread(gamma, x, axes, 1.0)
    dx = weighted - xhat * (weighted * xhat).mean(axis=axes, keepdims=True)
    if centered:
        dx = dx - weighted.mean(axis=axes, keepdims=True)
    others = _others(x, axes)
    return dx * invstd, (dy * xhat).sum(axis=others), dy.sum(axis=others)


def _others(x, axes):
    named = {a % x.ndim for a in axes}
    return tuple(a for a in range(x.ndim) if a not in named)


# An output rounds as often as one of batch norm, which `reference.ROUNDINGS` counts, and twice more: gamma is
# rounded to the dtype of x, and multiplied by an xhat that was rounded.
MORE = 1.5


def _sizes(x, axes, eps, centered):
    """|xhat| and invstd of every element, and the error of the mean in standard deviations."""
    mean, var = statistics(x, axes, centered)
    invstd = 1 / np.sqrt(var + eps)
    of_mean = 1.0 if x.dtype.itemsize == 4 else 1 + np.abs(mean) * invstd
    return np.abs(wide(x) - mean) * invstd, invstd, of_mean


def forward_error(x, gamma, beta, axes, eps, centered):
    """Error allowed to every element of y."""
    xhat, _, of_mean = _sizes(x, axes, eps, centered)
    size = np.abs(spread(gamma, x, axes, 1.0)) * (xhat + of_mean) + np.abs(spread(beta, x, axes, 0.0))
    return MORE * roundings(x.dtype) * size


def backward_error(dy, x, gamma, axes, eps, centered):
    """Errors allowed to dx, dgamma and dbeta, sums of terms that may cancel, each of which is rounded."""
    tiny = MORE * roundings(x.dtype)
    xhat, invstd, of_mean = _sizes(x, axes, eps, centered)
    dy = np.abs(wide(dy))
    weighted = dy * np.abs(spread(gamma, x, axes, 1.0))
    size = weighted + weighted.mean(axis=axes, keepdims=True)
    size = size + (xhat + of_mean) * (weighted * (xhat + of_mean)).mean(axis=axes, keepdims=True)
    others = _others(x, axes)
    return tiny * size * invstd, tiny * (dy * (xhat + of_mean)).sum(axis=others), tiny * dy.sum(axis=others)
