"""The verbs for long contiguous rows, inner >= 16: `row_kernels` with their work cut up by `plan`."""

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import plan
from numbabn._cpu import row_kernels as kernels
from numbabn._cpu.jit import run
from numbabn._cpu.plan import Shape


def moments(x: Array, shape: Shape, like: np.floating) -> tuple[Array, Array, Array]:
    """Return (count[chunks], mean[chunks, channels], m2[chunks, channels])."""
    chunks = plan.row_chunks(shape, x.itemsize)
    count = np.empty(chunks)
    mean, m2 = np.empty((2, chunks, shape[1]))
    tasks = shape[1] * chunks
    run(kernels.moments, kernels.moments_parallel, tasks, x.nbytes, x, *shape, like, count, mean, m2)
    return count, mean, m2


def products(x: Array, dy: Array, shape: Shape, mean: Array) -> tuple[Array, Array]:
    """Return (sum of dy, sum of dy * (x - mean)), both [chunks, channels]."""
    chunks = plan.row_chunks(shape, x.itemsize)
    sum_dy, sum_dy_d = np.empty((2, chunks, shape[1]))
    tasks = shape[1] * chunks
    run(
        kernels.products,
        kernels.products_parallel,
        tasks,
        2 * x.nbytes,
        x,
        dy,
        *shape,
        mean,
        sum_dy,
        sum_dy_d,
    )
    return sum_dy, sum_dy_d


def apply(x: Array, dy: Array | None, out: Array, shape: Shape, coefficients: Array) -> None:
    """Write out = (x - center) * scale + shift, + dy * weight; coefficients[4, channels] in this order."""
    nbytes = plan.touched(x, dy)
    tasks = plan.apply_tasks(shape)
    run(
        kernels.apply, kernels.apply_parallel, tasks, nbytes,
        x, dy, out, tasks, *shape[1:], *coefficients, plan.streams(nbytes),
    )  # fmt: skip


def forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, mean: Array, var: Array
) -> bool:
    """Fill y, mean and var in one pass over memory, or return False where that is not the fastest."""
    block = plan.block_channels(shape, x.itemsize, arrays=1)
    if not block:
        return False
    run(
        kernels.forward, kernels.forward_parallel, -(-shape[1] // block), x.nbytes,
        x, y, *shape, block, gamma, beta, eps, x.dtype.type(0), mean, var, plan.streams(plan.touched(x)),
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
    """Fill dx and sums[2, channels] in one pass over memory, or return False."""
    block = plan.block_channels(shape, x.itemsize, arrays=2)
    if not block:
        return False
    run(
        kernels.backward, kernels.backward_parallel, -(-shape[1] // block), 2 * x.nbytes,
        x, dy, dx, *shape, block, gamma, mean, var, eps, *sums, plan.streams(plan.touched(x, dy)),
    )  # fmt: skip
    return True
