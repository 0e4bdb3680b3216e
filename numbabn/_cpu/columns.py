"""The verbs for channels whose values lie apart, inner < 16: `column_kernels`, cut up by `plan`."""

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu import column_kernels as kernels
from numbabn._cpu import plan
from numbabn._cpu.jit import PARALLEL_BYTES, run
from numbabn._cpu.plan import Shape


def moments(x: Array, shape: Shape, like: np.floating) -> tuple[Array, Array, Array]:
    """Return (count[chunks], mean[chunks, channels], m2[chunks, channels]); sums are float64 in any case."""
    copies, chunks = plan.columns(shape, x.nbytes)
    count = np.empty(chunks)
    mean, m2 = np.empty((2, chunks, shape[1]))
    run(kernels.moments, kernels.moments_parallel, chunks, x.nbytes, x, copies, shape[2], count, mean, m2)
    return count, mean, m2


def products(x: Array, dy: Array, shape: Shape, mean: Array) -> tuple[Array, Array]:
    """Return (sum of dy, sum of dy * (x - mean)), both [chunks, channels]."""
    copies, chunks = plan.columns(shape, 2 * x.nbytes)
    sum_dy, sum_dy_d = np.empty((2, chunks, shape[1]))
    run(
        kernels.products, kernels.products_parallel, chunks, 2 * x.nbytes,
        x, dy, copies, shape[2], mean, sum_dy, sum_dy_d,
    )  # fmt: skip
    return sum_dy, sum_dy_d


def apply(x: Array, dy: Array | None, out: Array, shape: Shape, coefficients: Array) -> None:
    """Write out = (x - center) * scale + shift, + dy * weight; coefficients[4, channels] in this order."""
    nbytes = plan.touched(x, dy)
    copies, chunks = plan.columns(shape, nbytes)
    run(
        kernels.apply, kernels.apply_parallel, chunks, nbytes,
        x, dy, out, chunks, copies, shape[2], *coefficients, plan.streams(nbytes),
    )  # fmt: skip


def forward(
    x: Array, y: Array, shape: Shape, gamma: Array, beta: Array, eps: float, mean: Array, var: Array
) -> bool:
    """Fill y, mean and var of a small array in one launch, or return False."""
    if x.nbytes >= PARALLEL_BYTES:
        return False
    kernels.forward(x, y, plan.columns(shape, 0)[0], shape[2], gamma, beta, eps, mean, var)
    return True


def normalize(
    x: Array, y: Array, shape: Shape, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
) -> bool:
    """Fill y of a small array in one launch, or return False."""
    if x.nbytes >= PARALLEL_BYTES:
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
    if 2 * x.nbytes >= PARALLEL_BYTES:
        return False
    kernels.backward(x, dy, dx, plan.columns(shape, 0)[0], shape[2], gamma, mean, var, eps, *sums)
    return True
