"""The verbs for long contiguous rows, inner >= 16: `row_kernels` with their work cut up by `plan`."""

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import plan
from numbabn._cpu import row_kernels as kernels
from numbabn._cpu.plan import Shape


def moments(x: Array, shape: Shape, like: np.floating) -> tuple[Array, Array, Array]:
    """Return (count[chunks], mean[chunks, channels], m2[chunks, channels])."""
    chunks = plan.row_chunks(shape, x.itemsize)
    count = np.empty(chunks)
    mean, m2 = np.empty((2, chunks, shape[1]))
    kernels.moments(x.nbytes, x, *shape, like, count, mean, m2)
    return count, mean, m2


def products(x: Array, dy: Array, shape: Shape, mean: Array) -> Array:
    """Return (sum of dy, sum of dy * (x - mean)), an array [2, chunks, channels]."""
    sums = np.empty((2, plan.row_chunks(shape, x.itemsize), shape[1]))
    kernels.products(2 * x.nbytes, x, dy, *shape, mean, *sums)
    return sums


def apply(x: Array, dy: Array | None, out: Array, shape: Shape, coefficients: Array) -> None:
    """Write out = (x - center) * scale + shift, + dy * weight; coefficients[4, channels] in this order."""
    nbytes = plan.touched(x, dy)
    tasks = plan.apply_tasks(shape)
    kernels.apply(nbytes, x, dy, out, tasks, *shape[1:], coefficients, plan.streams(nbytes))


def forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, statistics: Array
) -> bool:
    """Fill y and statistics[2, channels] in one pass over memory, or return False where phases are better."""
    block = plan.block_channels(shape, x.itemsize, arrays=1)
    if not block:
        return False
    coefficients = np.empty((4, shape[1]), x.dtype)
    kernels.forward(
        x.nbytes, x, y, *shape, block, gamma, beta, eps, x.dtype.type(0), *statistics,
        coefficients, plan.streams(plan.touched(x)),
    )  # fmt: skip
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
    """Fill dx and sums[2, channels] in one pass over memory, or return False where phases are better."""
    block = plan.block_channels(shape, x.itemsize, arrays=2)
    if not block:
        return False
    coefficients = np.empty((4, shape[1]), x.dtype)
    kernels.backward(
        2 * x.nbytes, x, dy, dx, *shape, block, gamma, mean, var, eps, sums,
        coefficients, plan.streams(plan.touched(x, dy)),
    )  # fmt: skip
    return True
