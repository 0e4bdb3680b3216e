"""Norms over the five numbers of a view, straight from their formulas, in float64, with the errors allowed.

``view`` is (batch, outer, groups, members, inner): statistics are per (batch, group), parameters per (group,
member). Independent of the library, which has a view of the same five numbers.
"""

import numpy as np

from tests.support.reference import roundings
from tests.support.samples import MORE

OVER = (1, 3, 4)  # what a statistic is taken over
SAMPLES = (0, 1, 4)  # what the gradient of a parameter is summed over


def spread(parameter, view, otherwise):
    """A parameter to broadcast against an array of the view's shape."""
    values = np.full(view[2] * view[3], otherwise) if parameter is None else parameter.astype(np.float64)
    return values.reshape(1, 1, view[2], view[3], 1)


def statistics(x, view):
    """Mean and biased variance, of one element each along the axes that they are taken over."""
    x = x.astype(np.float64).reshape(view)
    mean = x.mean(axis=OVER, keepdims=True)
    mean += (x - mean).mean(axis=OVER, keepdims=True)
    return mean, ((x - mean) ** 2).mean(axis=OVER, keepdims=True)


def forward(x, view, gamma, beta, eps):
    """Return (y, error allowed to it)."""
    mean, var = statistics(x, view)
    xhat = (x.astype(np.float64).reshape(view) - mean) / np.sqrt(var + eps)
    gamma, beta = spread(gamma, view, 1.0), spread(beta, view, 0.0)
    size = np.abs(gamma) * (np.abs(xhat) + 1) + np.abs(beta)
    return (xhat * gamma + beta).ravel(), (MORE * roundings(x.dtype) * size).ravel()


def backward(dy, x, view, gamma, eps):
    """Return (dx, dgamma, dbeta) and the errors allowed to them: sums of terms, each of which is rounded."""
    mean, var = statistics(x, view)
    invstd = 1 / np.sqrt(var + eps)
    xhat, dy = (x.astype(np.float64).reshape(view) - mean) * invstd, dy.astype(np.float64).reshape(view)
    e = dy * spread(gamma, view, 1.0)
    dx = e - e.mean(axis=OVER, keepdims=True) - xhat * (e * xhat).mean(axis=OVER, keepdims=True)
    size, of_xhat = np.abs(e), np.abs(xhat) + 1
    of_dx = size + size.mean(axis=OVER, keepdims=True)
    of_dx = of_dx + of_xhat * (size * of_xhat).mean(axis=OVER, keepdims=True)
    results = dx * invstd, (dy * xhat).sum(axis=SAMPLES), dy.sum(axis=SAMPLES)
    sizes = of_dx * invstd, (np.abs(dy) * of_xhat).sum(axis=SAMPLES), np.abs(dy).sum(axis=SAMPLES)
    tiny = MORE * roundings(x.dtype)
    return tuple(r.ravel() for r in results), tuple(tiny * s.ravel() for s in sizes)
