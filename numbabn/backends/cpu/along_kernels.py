"""Kernels for one statistic per row, with parameters that vary along it.

They are for layer norm, RMS norm, and group norm of small maps. A sample is ``groups`` rows side by side, one
in layer norm and RMS norm, and x is flat samples of ``len(gamma)`` values; gamma and beta have the dtype of
x. A row's statistics and its result are computed while it is in cache. What a row gives depends on nothing
but the row: not on how many others there are, and not on its place among them.

``centered`` is 1 for layer norm, and 0 for RMS norm, whose mean is 0 by definition and whose variance is the
mean of the squares.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from numbabn.backends.cpu.affine import gradient_coefficients, normalize_coefficients, put
from numbabn.backends.cpu.contiguous import row_moments, row_sums
from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    convert,
    elements,
    fence,
    fma,
    load,
    load_part,
    mul,
    splat,
    store,
    store_part,
    sub,
    widen,
    zeros,
)

# Helpers here take the elements of arrays instead of arrays, whose references would be counted for every row:
# 131072 rows of 64 float32 took twice as long. Some have nine parameters and more: dy and dx are apart from
# the others, because only for a parameter that is None does Numba leave out what is not needed then.

GROUP = 8  # samples whose sums for gamma and beta are added up before they are stored


@helper
def forward_row(x, first, gamma, beta, lo, hi, vectors, streaming, y):
    """Write y = ((x - k) * a + b) * gamma + beta of the places lo..hi of the sample that begins at first.

    ``vectors`` are k, a and b.
    """
    k, a, b = vectors
    like = y[0]
    body = lo + (hi - lo) // LANES * LANES
    for j in range(lo, body, LANES):
        xhat = fma(sub(load(x, first + j, like), k), a, b)
        put(fma(xhat, load(gamma, j, like), load(beta, j, like)), first + j, streaming, y)
    n = hi - body
    if n > 0:
        xhat = fma(sub(load_part(x, first + body, n, k), k), a, b)
        value = fma(xhat, load_part(gamma, body, n, k), load_part(beta, body, n, k))
        store_part(y, first + body, n, value)


@helper
def forward_task(t, cut, x, gamma, beta, eps, statistics, y):
    """Normalise the rows of task t.

    ``cut`` is (values of a sample, groups, rows of a task, centered, streaming).
    """
    size, groups, rows, centered, streaming = cut
    mean, var = statistics[0], statistics[1]
    length, like = size // groups, y[0]
    lo = t * rows % groups * length
    for row in range(t * rows, min((t + 1) * rows, len(mean))):
        mean[row], var[row] = row_moments(x, row * length, length, centered, like)
        center = convert(mean[row], like)
        scale, shift = normalize_coefficients(mean[row], np.sqrt(var[row] + eps), 1.0, 0.0, center)
        vectors = splat(center), splat(convert(scale, like)), splat(convert(shift, like))
        forward_row(x, row * length - lo, gamma, beta, lo, lo + length, vectors, streaming, y)
        lo = lo + length if lo + length < size else 0
    fence()


@Kernel
def forward(x, cut, gamma, beta, eps, statistics, y):
    """Write y = xhat * gamma + beta, and every row's mean and biased variance to statistics[2, rows].

    ``cut`` is (groups, rows of a task, centered, streaming).
    """
    groups, rows, centered, streaming = cut
    for t in prange(-(-statistics.shape[1] // rows)):
        task = len(gamma), groups, rows, centered, streaming
        forward_task(
            np.int64(t), task, elements(x), elements(gamma), elements(beta), eps, statistics, elements(y)
        )


class Sums(NamedTuple):
    """What the backward pass of a task works on besides x, dy and dx: elements of arrays."""

    gamma: Any
    mean: Any
    var: Any
    coefficients: Any  # six of every row that is done at the same time, one row after the other
    dy: Any  # sum of dy at every place of a sample
    dy_xhat: Any


class Cut(NamedTuple):
    """How the backward pass is cut up."""

    size: int  # values of a sample
    groups: int  # rows of a sample
    samples: int  # of a task
    together: int  # samples whose rows are done at the same time
    centered: int
    streaming: int  # whether dx is written past the caches


@helper
def fill_row(n, row, products, eps, centered, work, like):
    """Coefficients of a row, as number n of those that are done at the same time, in the dtype of like.

    They are center, scale and shift of xhat, and scale, shift and weight of dx; see `arithmetic`.
    ``products`` are the row's ``sums`` with dy, and its length.
    """
    (s, q, length), mean, std = products, work.mean[row], np.sqrt(work.var[row] + eps)
    center = convert(mean, like)
    mean_dy_xhat = (q - (mean - center) * s) / std / length
    mean_dy = s / length if centered else 0.0
    a, b = normalize_coefficients(mean, std, 1.0, 0.0, center)
    scale, shift, weight = gradient_coefficients(mean, std, 1.0, mean_dy, mean_dy_xhat, center)
    first, coefficients = 6 * n, work.coefficients
    coefficients[first] = center
    coefficients[first + 1] = convert(a, like)
    coefficients[first + 2] = convert(b, like)
    coefficients[first + 3] = convert(scale, like)
    coefficients[first + 4] = convert(shift, like)
    coefficients[first + 5] = convert(weight, like)


@helper
def backward_column(dy, x, i, count, j, n, cut, work, dx):
    """Sixteen places of ``count`` samples, or n < 16: the sums over the samples, and dx unless it is None.

    i is the element of the first sample, and j the place in it.
    """
    like = x[0]
    none, gamma, coefficients = zeros(like), work.gamma, work.coefficients
    g = load(gamma, j, like) if n >= LANES else load_part(gamma, j, n, none)
    t = u = none
    for r in range(0, 6 * count, 6):
        k = splat(coefficients[r])
        if n >= LANES:
            e, d = load(dy, i, like), sub(load(x, i, like), k)
        else:
            e, d = load_part(dy, i, n, none), sub(load_part(x, i, n, k), k)
        t, u = add(t, e), fma(e, fma(d, splat(coefficients[r + 1]), splat(coefficients[r + 2])), u)
        if dx is not None:
            value = fma(d, splat(coefficients[r + 3]), mul(e, g))
            value = fma(value, splat(coefficients[r + 5]), splat(coefficients[r + 4]))
            if n >= LANES:
                put(value, i, cut.streaming, dx)
            else:
                store_part(dx, i, n, value)
        i += cut.size
    add_to(work.dy, j, n, widen(t))
    add_to(work.dy_xhat, j, n, widen(u))


@helper
def add_to(sums, j, n, more):
    """Add a vector to the sums from j on, or its first n < 16 lanes: the next sums are of another row."""
    if n >= LANES:
        store(sums, j, add(load(sums, j, np.float64(0)), more))
    else:
        store_part(sums, j, n, add(load_part(sums, j, n, zeros(np.float64(0))), more))


@helper
def backward_rows(sample, g, count, cut, eps, dy, x, work, dx):
    """Backward of row g of each of ``count`` samples, whose sums are added to those of its places."""
    length = cut.size // cut.groups
    lo, hi = g * length, (g + 1) * length
    for n in range(count):
        row, s, q = (sample + n) * cut.groups + g, 0.0, 0.0
        if dx is not None:
            center = convert(work.mean[row], x[0])
            s, q = row_sums(dy, x, (sample + n) * cut.size, work.gamma, lo, hi, center)
        fill_row(n, row, (s, q, length), eps, cut.centered, work, x[0])
    for j in range(lo, hi, LANES):
        backward_column(dy, x, sample * cut.size + j, count, j, hi - j, cut, work, dx)


@helper
def backward_task(t, batch, cut, eps, dy, x, work, dx):
    """Backward of the samples of task t, of ``batch`` samples in all."""
    for j in range(cut.size):
        work.dy[j] = 0.0
        work.dy_xhat[j] = 0.0
    end = min((t + 1) * cut.samples, batch)
    for sample in range(t * cut.samples, end, cut.together):
        for g in range(cut.groups):
            backward_rows(sample, g, min(cut.together, end - sample), cut, eps, dy, x, work, dx)
    fence()


@Kernel
def backward(dy, x, cut, gamma, statistics, eps, coefficients, added, dx):
    """Write dx unless it is None, and the sums of dy and dy * xhat over the samples of every task.

    The sums are added[tasks, 2, values of a sample]. ``cut`` has the numbers of `Cut` in a plain tuple, and
    coefficients[tasks, 6 * rows that are done at the same time] is memory in the dtype of x.
    """
    size, groups, samples, together, centered, streaming = cut
    for t in prange(added.shape[0]):
        n = np.int64(t)
        work = Sums(
            elements(gamma), elements(statistics[0]), elements(statistics[1]),
            elements(coefficients[n]), elements(added[n, 0]), elements(added[n, 1]),
        )  # fmt: skip
        task, batch = Cut(size, groups, samples, together, centered, streaming), statistics.shape[1] // groups
        backward_task(n, batch, task, eps, elements(dy), elements(x), work, elements(dx))
