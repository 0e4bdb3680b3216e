"""The verbs of batch norm, one statistic per channel, on flat NumPy arrays; `samples` uses them, too.

A pair is an array [2, channels] of float64 where a verb makes it, and a tuple of two where it was given.
"""

from types import ModuleType

import numpy as np

from numbabn.backends.cpu import columns, plan, rows
from numbabn.backends.cpu.affine import fill_gradient_all, fill_normalize_all
from numbabn.backends.cpu.half import bits, computed
from numbabn.backends.cpu.quiet import quiet
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.welford import merge_chunks
from numbabn.backends.verbs import Affine, Array, Kept, Pair, View


def keep(y: Array, view: View) -> Kept:
    """Return memory for what an activation keeps of y: a bit for each element, at its index plus a phase.

    The phase is such that a vector that begins at a cache line of y begins at a word.
    """
    phase = y.__array_interface__["data"][0] // y.itemsize % LANES
    return Kept(words(-(-(phase + y.size) // LANES)), phase)


def words(count: int) -> Array:
    """Return memory for words of sixteen bits, of which four bytes are read at once, from any byte on."""
    return np.empty(2 * count + 3, np.uint8)


def moments(x: Array, view: View, like: np.floating | None = None) -> Array:
    """Return the pair (mean, m2), m2 being the sum of squared deviations from the mean.

    Sums of a few thousand values have the dtype of the scalar ``like``, float64 unless given.
    """
    if x.itemsize == 2:
        x = bits(x)
    return merged(*_family(view).moments(x, view, np.float64(0) if like is None else like))


def merged(count: Array, chunks: Array) -> Array:
    """Return the pair (mean, m2) of all chunks of count[chunks] and pair[2, chunks, channels]."""
    merge_chunks(count, chunks)
    pair: Array = chunks[:, 0].copy()  # contiguous, as the other kernels take it
    return pair


def normalize(x: Array, view: View, statistics: Pair, affine: Affine, y: Array) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta. x may be integers of 8 or 16 bits."""
    if y.itemsize == 2:
        x, y = bits(x), bits(y)
    if not plan.uses_rows(view) and columns.normalize(x, view, statistics, affine, y):
        return
    coefficients = np.empty((4, view.groups), computed(y.dtype))
    fill_normalize_all(*statistics, *affine.parameters, affine.eps, coefficients)
    _family(view).apply(None, x, view, coefficients, y)


def forward(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """Write y, normalised with the statistics of x itself; return the pair (mean, biased variance)."""
    if x.itemsize == 2:
        x, y = bits(x), bits(y)
    statistics = np.empty((2, view.groups))
    if not _family(view).forward(x, view, affine, statistics, y):
        statistics = moments(x, view, computed(x.dtype).type(0))
        with np.errstate(all="ignore"):
            statistics[1] /= view.values
        normalize(x, view, statistics, affine, y)
    return statistics


@np.errstate(all="ignore")
def backward_reduce(dy: Array, x: Array, view: View, statistics: Pair, eps: float, gradients: Pair) -> Array:
    """Return the pair (sum of dy, sum of dy * xhat), and write it to the gradients (dgamma, dbeta)."""
    if x.itemsize == 2:
        dy, x = bits(dy), bits(x)
    sums: Array = _family(view).products(dy, x, view, statistics[0]).sum(axis=1)
    sums[1] /= np.sqrt(statistics[1] + eps)
    fill(gradients, sums)
    return sums


def backward_apply(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, sums: Array, count: int, dx: Array
) -> None:
    """Write dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

    The sums may be those of more arrays than this one, and ``count`` their number of values per statistic.
    """
    if x.itemsize == 2:
        dy, x, dx = bits(dy), bits(x), bits(dx)
    coefficients = np.empty((4, view.groups), computed(x.dtype))
    gamma, _ = affine.parameters
    fill_gradient_all(statistics, gamma, affine.eps, np.float64(count), sums, coefficients)
    _family(view).apply(dy, x, view, coefficients, dx)


def backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> None:
    """Write dx and the gradients of the training forward."""
    quiet().run(backward_with_sums, dy, x, view, statistics, affine, dx, gradients)


def backward_with_sums(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> Array:
    """`backward` that may warn of an overflow; return the pair (sum of dy, sum of dy * xhat)."""
    if x.itemsize == 2:
        dy, x, dx = bits(dy), bits(x), bits(dx)
    sums = np.empty((2, view.groups))
    if _family(view).backward(dy, x, view, statistics, affine, sums, dx):
        fill(gradients, sums)
    else:
        sums = backward_reduce(dy, x, view, statistics, affine.eps, gradients)
        backward_apply(dy, x, view, statistics, affine, sums, view.values, dx)
    return sums


@np.errstate(all="ignore")
def backward_known(dy: Array, view: View, statistics: Pair, affine: Affine, dx: Array) -> None:
    """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
    if dy.itemsize == 2:
        dy, dx = bits(dy), bits(dx)
    coefficients = np.zeros((4, view.groups), computed(dy.dtype))
    gamma, _ = affine.parameters
    coefficients[1] = gamma / np.sqrt(statistics[1] + affine.eps)
    _family(view).apply(None, dy, view, coefficients, dx)


def fill(gradients: Pair, sums: Array) -> None:
    """Write the sums of dy * xhat and of dy to the gradients (dgamma, dbeta), of which either may be None."""
    dgamma, dbeta = gradients
    if dgamma is not None:
        dgamma[...] = sums[1]
    if dbeta is not None:
        dbeta[...] = sums[0]


def _family(view: View) -> ModuleType:
    return rows if plan.uses_rows(view) else columns
