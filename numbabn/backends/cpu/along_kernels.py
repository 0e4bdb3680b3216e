"""Kernels for one statistic per row, with parameters that vary along it.

They are for layer norm, RMS norm, and group norm of small maps. A sample is ``groups`` rows side by side, one
in layer norm and RMS norm, and x is flat samples of ``len(gamma)`` values; gamma and beta have the dtype
that x is computed in. A row's statistics and its result are computed while it is in cache. What a row gives
depends on nothing but the row: not on how many others there are, and not on its place among them.

``centered`` is 1 for layer norm, and 0 for RMS norm, whose mean is 0 by definition and whose variance is the
mean of the squares.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from numbabn.backends.cpu.affine import Traffic, gradient_coefficients, normalize_coefficients
from numbabn.backends.cpu.contiguous import row_moments, row_sums
from numbabn.backends.cpu.epilogue import (
    array_of,
    bare,
    give,
    give_part,
    of_row,
    put,
    put_part,
    take,
    take_part,
)
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
    prefetch,
    splat,
    store,
    store_part,
    sub,
    unaligned,
    zeros,
)

# Helpers here take the elements of arrays, as those of `contiguous` do. Some have nine parameters, for the
# reasons that `contiguous` gives.

# Values at least, from what is read to what is prefetched, and a row where it is longer. Rows of 768 and 1024
# that come from memory take 0.7 to 0.8 of the time, forward; 4096 values were too many for rows of 64.
AHEAD = 1024
# Samples whose sums for gamma and beta have the dtype x is computed in, and are added up in float64. Rows of
# 50257 values, whose sums leave the second cache, were no faster in panels of 1024 places of eight samples,
# 0.93 to 1.05 times as long, nor where all threads shared in adding up the sums of the tasks.
GROUP = 8


@helper
def forward_row(x, first, gamma, beta, lo, hi, vectors, traffic, y):
    """Write y = ((x - k) * a + b) * gamma + beta of the places lo..hi of the sample that begins at first.

    ``vectors`` are k, a and b.
    """
    (k, a, b), streaming = vectors, traffic.streaming
    like = gamma[0]
    body = lo + (hi - lo) // LANES * LANES
    for j in range(lo, body, LANES):
        prefetch(x, first + j + traffic.ahead, LANES)
        xhat = fma(sub(load(x, first + j, like), k), a, b)
        put(fma(xhat, load(gamma, j, like), load(beta, j, like)), first + j, streaming, y)
    n = hi - body
    if n > 0:
        xhat = fma(sub(load_part(x, first + body, n, k), k), a, b)
        value = fma(xhat, load_part(gamma, body, n, k), load_part(beta, body, n, k))
        put_part(value, first + body, n, y)


@helper
def forward_task(t, cut, x, gamma, beta, eps, statistics, y):
    """Normalise the rows of task t.

    ``cut`` is (values of a sample, groups, rows of a task, centered, streaming).
    """
    size, groups, rows, centered, streaming = cut
    mean, var = statistics[0], statistics[1]
    length, like = size // groups, gamma[0]
    traffic = Traffic(streaming, max(length, AHEAD))
    lo = t * rows % groups * length
    for row in range(t * rows, min((t + 1) * rows, len(mean))):
        mean[row], var[row] = row_moments(x, row * length, length, centered, like)
        center = convert(mean[row], like)
        scale, shift = normalize_coefficients(mean[row], np.sqrt(var[row] + eps), 1.0, 0.0, center)
        vectors = splat(center), splat(convert(scale, like)), splat(convert(shift, like))
        out = of_row(y, row, length)
        forward_row(x, row * length - lo, gamma, beta, lo, lo + length, vectors, traffic, out)
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
            np.int64(t), task, elements(x), elements(gamma), elements(beta), eps, statistics, bare(y)
        )


class Sums(NamedTuple):
    """What the backward pass of a task works on besides x, dy and dx: elements of arrays."""

    gamma: Any
    mean: Any
    var: Any
    few_dy: Any  # sums of dy over at most `GROUP` samples, at every place of a sample
    few_dy_xhat: Any
    dy: Any  # sums over the samples of the task, in float64
    dy_xhat: Any


class Cut(NamedTuple):
    """How the backward pass is cut up."""

    size: int  # values of a sample
    groups: int  # rows of a sample
    samples: int  # of a task
    centered: int
    streaming: int  # whether dx is written past the caches


@helper
def row_coefficients(row, products, eps, centered, work, like):
    """Return center, scale and shift of xhat, and scale, shift and weight of dx, in every lane.

    They are those of `arithmetic`, in the dtype of like. ``products`` are the row's ``row_sums`` with dy, and
    its length.
    """
    (s, q, length), mean, std = products, work.mean[row], np.sqrt(work.var[row] + eps)
    center = convert(mean, like)
    mean_dy_xhat = (q - (mean - center) * s) / std / length
    mean_dy = s / length if centered else 0.0
    a, b = normalize_coefficients(mean, std, 1.0, 0.0, center)
    scale, shift, weight = gradient_coefficients(mean, std, 1.0, mean_dy, mean_dy_xhat, center)
    return (
        (splat(center), splat(convert(a, like)), splat(convert(b, like))),
        (splat(convert(scale, like)), splat(convert(shift, like)), splat(convert(weight, like))),
    )


@helper
def backward_row(dy, x, first, lo, hi, coefficients, traffic, work, dx):
    """Add the places lo..hi of the sample that begins at first to the sums; write a dx that is not None."""
    (k, a, b), (scale, shift, weight) = coefficients
    like, none = x[0], zeros(x[0])
    body = lo + (hi - lo) // LANES * LANES
    for j in range(lo, body, LANES):
        i = first + j
        prefetch(array_of(dy), i + traffic.ahead, LANES)
        prefetch(x, i + traffic.ahead, LANES)
        e, d = take(dy, i, like), sub(load(x, i, like), k)
        give(dy, i, e)
        store(work.few_dy, j, add(load(work.few_dy, j, like), e))
        store(work.few_dy_xhat, j, fma(e, fma(d, a, b), load(work.few_dy_xhat, j, like)))
        if dx is not None:
            value = fma(d, scale, mul(e, load(work.gamma, j, like)))
            put(fma(value, weight, shift), i, traffic.streaming, dx)
    i, j, n = first + body, body, hi - body
    if n > 0:
        e, d = take_part(dy, i, n, none), sub(load_part(x, i, n, k), k)
        give_part(dy, i, n, e)
        store_part(work.few_dy, j, n, add(load_part(work.few_dy, j, n, none), e))
        few = load_part(work.few_dy_xhat, j, n, none)
        store_part(work.few_dy_xhat, j, n, fma(e, fma(d, a, b), few))
        if dx is not None:
            value = fma(d, scale, mul(e, load_part(work.gamma, j, n, none)))
            store_part(dx, i, n, fma(value, weight, shift))


@helper
def backward_sample(sample, cut, eps, dy, x, work, dx):
    """Backward of the rows of a sample. A row of up to 4096 float32 is read again from the first cache."""
    length, first = cut.size // cut.groups, sample * cut.size
    traffic = Traffic(cut.streaming, max(length, AHEAD))
    for g in range(cut.groups):
        row, lo, s, q = sample * cut.groups + g, g * length, 0.0, 0.0
        part = of_row(dy, row, length)
        if dx is not None:
            center = convert(work.mean[row], x[0])
            s, q = row_sums(part, x, first, work.gamma, lo, lo + length, center)
        coefficients = row_coefficients(row, (s, q, length), eps, cut.centered, work, x[0])
        backward_row(part, x, first, lo, lo + length, coefficients, traffic, work, dx)


@helper
def add_few(size, first, work):
    """Add the sums over a few samples to those of the task, which have no value yet if ``first``."""
    if first:
        for j in range(size):
            work.dy[j] = work.few_dy[j]
            work.dy_xhat[j] = work.few_dy_xhat[j]
    else:
        for j in range(size):
            work.dy[j] += work.few_dy[j]
            work.dy_xhat[j] += work.few_dy_xhat[j]


@helper
def backward_task(t, batch, cut, eps, dy, x, work, dx):
    """Backward of the samples of task t, of ``batch`` samples in all."""
    begin, end = t * cut.samples, min((t + 1) * cut.samples, batch)
    for start in range(begin, end, GROUP):
        for j in range(cut.size):
            work.few_dy[j] = work.few_dy_xhat[j] = 0.0
        for sample in range(start, min(start + GROUP, end)):
            backward_sample(sample, cut, eps, dy, x, work, dx)
        add_few(cut.size, start == begin, work)
    fence()


@helper
def aligned(array):
    """Return the elements of an array from its first cache line on.

    Vectors that are loaded, added to and stored at every sample lie in one line each then: the backward pass
    of 4096x1024 takes 0.94 of the time. The memory, that of an argument of the kernel, outlives the view.
    """
    return elements(array[unaligned(array, 0) :])


@helper
def add_tasks(added):
    """Add the sums of all tasks to those of the first one, in order; NumPy takes 3 us to add two."""
    for t in range(1, added.shape[0]):
        for j in range(added.shape[2]):
            added[0, 0, j] += added[t, 0, j]
            added[0, 1, j] += added[t, 1, j]


@Kernel
def backward(dy, x, cut, gamma, statistics, eps, few, added, dx):
    """Write dx unless it is None, and the sums of dy and dy * xhat over all samples to added[0].

    Until then added[tasks, 2, values of a sample] has the sums of each task. ``cut`` has the numbers of `Cut`
    in a plain tuple, and few[tasks, 2, values of a sample + 16] is memory in the dtype that x is computed in.
    """
    size, groups, samples, centered, streaming = cut
    for t in prange(added.shape[0]):
        n = np.int64(t)
        work = Sums(
            elements(gamma), elements(statistics[0]), elements(statistics[1]),
            aligned(few[n, 0]), aligned(few[n, 1]), elements(added[n, 0]), elements(added[n, 1]),
        )  # fmt: skip
        task, batch = Cut(size, groups, samples, centered, streaming), statistics.shape[1] // groups
        backward_task(n, batch, task, eps, bare(dy), elements(x), work, elements(dx))
    add_tasks(added)
