"""The CPU backend: the verbs of batch normalisation on flat, contiguous NumPy arrays.

Every function takes the canonical shape (outer, channels, inner) of its flat arrays; statistics are over
outer and inner. Parameters and statistics are float64 arrays of one value per channel. Nothing is checked
here and nothing but the results is written.
"""

from types import ModuleType

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import columns, plan, rows
from numbabn._cpu.affine import affine_coefficients, gradient_coefficients
from numbabn._cpu.plan import Shape
from numbabn._cpu.welford import merge_chunks


def moments(x: Array, shape: Shape, like: np.floating | None = None) -> tuple[Array, Array]:
    """Return (mean, m2) per channel: the mean, and the sum of squared deviations from it.

    ``like`` is a scalar of the dtype for sums of a few thousand values: float64 unless said.
    """
    count, mean, m2 = _family(shape).moments(x, shape, np.float64(0) if like is None else like)
    merge_chunks(count, mean, m2)
    return mean[0], m2[0]


def forward(x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array]:
    """Normalise with the statistics of x itself; return them as (mean, biased variance)."""
    outer, channels, inner = shape
    statistics = np.empty((2, channels))
    if not _family(shape).forward(x, y, shape, gamma, beta, eps, statistics):
        mean, m2 = moments(x, shape, x.dtype.type(0))
        statistics = np.stack([mean, m2 / (outer * inner)])
        normalize(x, y, shape, statistics[0], statistics[1], gamma, beta, eps)
    return statistics[0], statistics[1]


def normalize(
    x: Array, y: Array, shape: Shape, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta with the statistics given."""
    if not plan.uses_rows(shape) and columns.normalize(x, y, shape, mean, var, gamma, beta, eps):
        return
    coefficients = np.empty((4, shape[1]), x.dtype)
    affine_coefficients(mean, var, gamma, beta, eps, coefficients)
    _family(shape).apply(x, None, y, shape, coefficients)


def backward(
    dy: Array, x: Array, dx: Array, shape: Shape, gamma: Array, mean: Array, var: Array, eps: float
) -> Array:
    """Write dx of the training forward; return (sum of dy, sum of dy * xhat), an array [2, channels]."""
    sums = np.empty((2, shape[1]))
    if not _family(shape).backward(x, dy, dx, shape, gamma, mean, var, eps, sums):
        sums = backward_reduce(dy, x, shape, mean, var, eps)
        backward_apply(dy, x, dx, shape, gamma, mean, var, eps, sums)
    return sums


def backward_reduce(dy: Array, x: Array, shape: Shape, mean: Array, var: Array, eps: float) -> Array:
    """Return (sum of dy, sum of dy * xhat), an array [2, channels]."""
    sums: Array = _family(shape).products(x, dy, shape, mean).sum(axis=1)
    sums[1] /= np.sqrt(var + eps)
    return sums


def backward_apply(
    dy: Array,
    x: Array,
    dx: Array,
    shape: Shape,
    gamma: Array,
    mean: Array,
    var: Array,
    eps: float,
    sums: Array,
) -> None:
    """Write dx = gamma * invstd * (dy - sum_dy / n - xhat * sum_dy_xhat / n)."""
    outer, channels, inner = shape
    coefficients = np.empty((4, channels), x.dtype)
    gradient_coefficients(mean, var, gamma, eps, np.float64(outer * inner), sums, coefficients)
    _family(shape).apply(x, dy, dx, shape, coefficients)


def scale(dy: Array, dx: Array, shape: Shape, factor: Array) -> None:
    """Write dx = dy * factor: the gradient where the statistics are constants."""
    coefficients = np.zeros((4, shape[1]), dy.dtype)
    coefficients[1] = factor
    _family(shape).apply(dy, None, dx, shape, coefficients)


def _family(shape: Shape) -> ModuleType:
    return rows if plan.uses_rows(shape) else columns
