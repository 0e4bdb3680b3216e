"""The CPU backend: the verbs of batch normalisation on flat, contiguous NumPy arrays.

Every function takes the canonical shape (outer, channels, inner) of its flat arrays; statistics are over
outer and inner. Parameters and statistics are float64 arrays of one value per channel; gamma and beta may be
None, which is 1 and 0. dgamma and dbeta are arrays to fill, of any float dtype, or None. Nothing is checked
here and nothing but the results is written.
"""

from types import ModuleType

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import columns, plan, rows, running
from numbabn._cpu.affine import affine_coefficients, gradient_coefficients
from numbabn._cpu.plan import Shape
from numbabn._cpu.welford import merge_chunks

__all__ = [
    "backward", "backward_apply", "backward_reduce", "forward", "moments", "normalize", "running", "scale",
]  # fmt: skip


def moments(x: Array, shape: Shape, like: np.floating | None = None) -> tuple[Array, Array]:
    """Return (mean, m2) per channel: the mean, and the sum of squared deviations from it.

    ``like`` is a scalar of the dtype for sums of a few thousand values: float64 unless said.
    """
    count, mean, m2 = _family(shape).moments(x, shape, np.float64(0) if like is None else like)
    merge_chunks(count, mean, m2)
    return mean[0], m2[0]


def forward(
    x: Array, y: Array, shape: Shape, gamma: Array | None, beta: Array | None, eps: float
) -> tuple[Array, Array]:
    """Normalise with the statistics of x itself; return them as (mean, biased variance)."""
    outer, channels, inner = shape
    gamma, beta = _scale(gamma, channels), _shift(beta, channels)
    statistics = np.empty((2, channels))
    if not _family(shape).forward(x, y, shape, gamma, beta, eps, statistics):
        mean, m2 = moments(x, shape, x.dtype.type(0))
        statistics = np.stack([mean, m2 / (outer * inner)])
        normalize(x, y, shape, statistics[0], statistics[1], gamma, beta, eps)
    return statistics[0], statistics[1]


def normalize(
    x: Array,
    y: Array,
    shape: Shape,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta with the statistics given."""
    gamma, beta = _scale(gamma, shape[1]), _shift(beta, shape[1])
    if not plan.uses_rows(shape) and columns.normalize(x, y, shape, mean, var, gamma, beta, eps):
        return
    coefficients = np.empty((4, shape[1]), x.dtype)
    affine_coefficients(mean, var, gamma, beta, eps, coefficients)
    _family(shape).apply(x, None, y, shape, coefficients)


def backward(
    dy: Array,
    x: Array,
    dx: Array,
    shape: Shape,
    gamma: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    dgamma: Array | None,
    dbeta: Array | None,
) -> None:
    """Write dx, dgamma and dbeta of the training forward."""
    outer, channels, inner = shape
    gamma, sums = _scale(gamma, channels), np.empty((2, channels))
    if _family(shape).backward(x, dy, dx, shape, gamma, mean, var, eps, sums):
        _gradients(sums, dgamma, dbeta)
    else:
        sums = backward_reduce(dy, x, shape, mean, var, eps, dgamma, dbeta)
        backward_apply(dy, x, dx, shape, gamma, mean, var, eps, sums, outer * inner)


def backward_reduce(
    dy: Array,
    x: Array,
    shape: Shape,
    mean: Array,
    var: Array,
    eps: float,
    dgamma: Array | None,
    dbeta: Array | None,
) -> Array:
    """Return (sum of dy, sum of dy * xhat), an array [2, channels]; write them to dbeta and dgamma too."""
    sums: Array = _family(shape).products(x, dy, shape, mean).sum(axis=1)
    sums[1] /= np.sqrt(var + eps)
    _gradients(sums, dgamma, dbeta)
    return sums


def backward_apply(
    dy: Array,
    x: Array,
    dx: Array,
    shape: Shape,
    gamma: Array | None,
    mean: Array,
    var: Array,
    eps: float,
    sums: Array,
    count: int,
) -> None:
    """Write dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

    The sums may be those of more arrays than this one, and ``count`` their number of values per channel.
    """
    coefficients = np.empty((4, shape[1]), x.dtype)
    gamma = _scale(gamma, shape[1])
    gradient_coefficients(mean, var, gamma, eps, np.float64(count), sums, coefficients)
    _family(shape).apply(x, dy, dx, shape, coefficients)


def scale(dy: Array, dx: Array, shape: Shape, gamma: Array | None, var: Array, eps: float) -> None:
    """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
    coefficients = np.zeros((4, shape[1]), dy.dtype)
    coefficients[1] = _scale(gamma, shape[1]) / np.sqrt(var + eps)
    _family(shape).apply(dy, None, dx, shape, coefficients)


def _scale(gamma: Array | None, channels: int) -> Array:
    return np.ones(channels) if gamma is None else gamma


def _shift(beta: Array | None, channels: int) -> Array:
    return np.zeros(channels) if beta is None else beta


def _gradients(sums: Array, dgamma: Array | None, dbeta: Array | None) -> None:
    if dbeta is not None:
        dbeta[...] = sums[0]
    if dgamma is not None:
        dgamma[...] = sums[1]


def _family(shape: Shape) -> ModuleType:
    return rows if plan.uses_rows(shape) else columns
