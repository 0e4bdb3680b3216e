"""The verbs for channels whose values lie apart, inner < 16: `column_kernels`, cut up by `plan`."""

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import column_kernels as kernels
from numbabn._cpu import plan
from numbabn._cpu.plan import Shape


def moments(x: Array, shape: Shape, like: np.floating) -> tuple[Array, Array, Array]:
    """Return (count[chunks], mean[chunks, channels], m2[chunks, channels])."""
    copies, chunks = plan.columns(shape, x.nbytes)
    count = np.empty(chunks)
    mean, m2 = np.empty((2, chunks, shape[1]))
    kernels.moments(x.nbytes, x, copies, shape[2], like, count, mean, m2)
    return count, mean, m2


def products(x: Array, dy: Array, shape: Shape, mean: Array) -> Array:
    """Return (sum of dy, sum of dy * (x - mean)), an array [2, chunks, channels]."""
    copies, chunks = plan.columns(shape, 2 * x.nbytes)
    sums = np.empty((2, chunks, shape[1]))
    kernels.products(2 * x.nbytes, x, dy, copies, shape[2], mean, *sums)
    return sums


def apply(x: Array, dy: Array | None, out: Array, shape: Shape, coefficients: Array) -> None:
    """Write out = (x - center) * scale + shift, + dy * weight; coefficients[4, channels] in this order."""
    nbytes = plan.touched(x, dy)
    copies, chunks = plan.columns(shape, nbytes)
    kernels.apply(nbytes, x, dy, out, chunks, copies, shape[2], coefficients, plan.streams(nbytes))


def forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, statistics: Array
) -> bool:
    """Fill y and statistics[2, channels] of a small array in one launch, or return False."""
    if not plan.small(x.nbytes):
        return False
    kernels.forward(x, y, plan.columns(shape, 0)[0], shape[2], gamma, beta, eps, statistics)
    return True


def normalize(
    x: Array, y: Array, shape: Shape, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
) -> bool:
    """Fill y of a small array in one launch, or return False."""
    if not plan.small(x.nbytes):
        return False
    kernels.normalize(x, y, plan.columns(shape, 0)[0], shape[2], mean, var, gamma, beta, eps)
    return True


def backward(
    x: Array,
    dy: Array,
    dx: Array,
    shape: Shape,
    gamma: Array,
    mean: Array,
    var: Array,
    eps: float,
    sums: Array,
) -> bool:
    """Fill dx and sums[2, channels] of a small array in one launch, or return False."""
    if not plan.small(2 * x.nbytes):
        return False
    kernels.backward(x, dy, dx, plan.columns(shape, 0)[0], shape[2], gamma, mean, var, eps, sums)
    return True
