"""Kernels for channels whose values lie in long contiguous rows: x is flat, as `Rows` describes it.

One task of a fused kernel is a block of groups, statistics and result, while they sit in cache. A group is
what one statistic is taken over: one channel, or in group norm several, which are one row then.

Offsets into flat arrays, not views: making and releasing one view costs two atomic reference counts,
which is as much as summing 400 floats. What is called for every channel takes the ``elements`` of dy and x,
which are not counted. Some functions have nine parameters: a tuple with arrays in it counts references, too,
and dy and gain are apart because only for a parameter that is None does Numba leave out what is not needed
then.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from numbabn.backends.cpu.affine import (
    Traffic,
    affine,
    fill_gradient,
    fill_group_gradient,
    fill_normalize,
    put_affine_part,
)
from numbabn.backends.cpu.epilogue import array_of, bare, head, put
from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import (
    LANES,
    blend,
    computed,
    elements,
    fence,
    prefetch,
    splat,
    zeros,
)
from numbabn.backends.cpu.slab_sums import Rows, add_products, moments_task, products_task, slab_statistics
from numbabn.backends.verbs import Array

TASK = 65536  # elements of one task of apply


class Fused(NamedTuple):
    """How a fused kernel is cut up, by `plan`; made inside of kernels, as `Rows` is."""

    outer: int
    groups: int  # of all samples, where every sample has its own
    members: int  # channels of a group
    inner: int
    block: int  # groups of a task
    streaming: int  # whether results are written past the caches


class Norm(NamedTuple):
    """What the coefficients of all channels are made of, for a task, which takes it apart at once.

    Every access to an array in a tuple counts its references, atomically: too much for every channel. gamma
    and beta have one value for each channel of one sample.
    """

    statistics: Array  # mean and biased variance [2, groups]
    gamma: Array
    beta: Array | None  # None in the backward pass
    eps: float


@helper
def splat_coefficients(coefficients, gain, c, p):
    """(center, scale, shift, weight, gain) of channel c in every lane; without a gain the last one is 0.

    p is the channel's place in its sample. It is counted along: a division would take as long as 50 values.
    """
    g = zeros(coefficients[0, 0])
    if gain is not None:
        g = splat(gain[p])
    return (
        splat(coefficients[0, c]),
        splat(coefficients[1, c]),
        splat(coefficients[2, c]),
        splat(coefficients[3, c]),
        g,
    )


@helper
def blended(vectors, others, n):
    """The first n lanes of five vectors, and the last ones of five others."""
    k, a, b, w, g = vectors
    k1, a1, b1, w1, g1 = others
    return blend(k, k1, n), blend(a, a1, n), blend(b, b1, n), blend(w, w1, n), blend(g, g1, n)


@helper
def apply_range(dy, x, lo, hi, inner, coefficients, gain, traffic, out):
    """out = ((x - center) * scale + dy) * weight + shift over the flat range lo..hi, channel by channel.

    Vectors run over the end of one channel into the next, so that every streamed line is whole: half lines
    of 14x14 images doubled the time. Needs inner >= 16, lo and hi at ends of rows or inside long ones. What
    lies ``traffic.ahead`` elements further on is prefetched.
    """
    c, places = lo // inner % coefficients.shape[1], 1 if gain is None else len(gain)
    p, end = c % places, (lo // inner + 1) * inner
    vectors = splat_coefficients(coefficients, gain, c, p)
    streaming, ahead, like = traffic.streaming, traffic.ahead, array_of(out)[0]
    i = min(lo + head(array_of(x), lo, streaming, out), hi)
    if i > lo:
        put_affine_part(dy, x, lo, i - lo, vectors, gain, out)
    while True:
        body = i + (min(end, hi) - i) // LANES * LANES
        for j in range(i, body, LANES):
            prefetch(array_of(x), j + ahead, LANES)
            if dy is not None:
                prefetch(array_of(dy), j + ahead, LANES)
            put(affine(dy, x, j, like, vectors, gain), j, streaming, out)
        i = max(i, body)
        if end >= hi:
            break
        c = c + 1 if c + 1 < coefficients.shape[1] else 0
        p = p + 1 if p + 1 < places else 0
        others = splat_coefficients(coefficients, gain, c, p)
        if i < end:
            put(affine(dy, x, i, like, blended(vectors, others, end - i), gain), i, streaming, out)
            i += LANES
        vectors = others
        end += inner
    if i < hi:
        put_affine_part(dy, x, i, hi - i, vectors, gain, out)


@Kernel
def moments(x, outer, channels, inner, like, count, pair):
    """Partial moments of every channel: count[chunks], and (mean, m2) in pair[2, chunks, channels]."""
    for t in prange(channels * len(count)):
        moments_task(np.int64(t), x, Rows(outer, channels, inner), like, count, pair)


@Kernel
def products(dy, x, outer, channels, inner, mean, sums):
    """Partial sums of dy and dy * (x - mean) of every channel: sums[2, chunks, channels]."""
    for t in prange(channels * sums.shape[1]):
        products_task(np.int64(t), dy, x, Rows(outer, channels, inner), mean, sums)


@helper
def apply_task(t, dy, x, inner, coefficients, gain, streaming, out):
    """Apply the affine map to one of the tasks that ``apply_start`` bounds."""
    size, traffic = array_of(x).size, Traffic(streaming, 0)
    start, stop = apply_start(t, size, inner), apply_start(t + 1, size, inner)
    apply_range(bare(dy), bare(x), start, stop, inner, coefficients, gain, traffic, bare(out))
    fence()


@helper
def apply_start(t, size, inner):
    """Where apply's task t begins: at a row, or inside one that is longer than a task."""
    pieces = max(1, inner // TASK)
    rows = max(1, TASK // inner)
    return min(t // pieces * rows * inner + inner * (t % pieces) // pieces, size)


@Kernel
def apply(dy, x, cut, coefficients, gain, out):
    """out = ((x - center) * scale + dy) * weight + shift, with coefficients[4, channels] in this order.

    ``cut`` is (tasks, inner, streaming, threads). Every thread has the part of x that it had in ``moments``
    or ``products``, and goes from its last task to its first: what it read last is still in its cache.
    """
    tasks, inner, streaming, threads = cut
    for t in prange(threads):
        p = np.int64(t)
        for k in range(tasks * (p + 1) // threads - 1, tasks * p // threads - 1, -1):
            apply_task(k, dy, x, inner, coefficients, gain, streaming, out)


@helper
def apply_block(dy, x, c0, c1, rows, streaming, coefficients, gain, out):
    """Apply the affine map to the channels c0..c1, prefetching the next block, as large as this one."""
    size = (c1 - c0) * rows.inner
    traffic = Traffic(streaming, size)
    for n in range(rows.outer):
        start = (n * rows.channels + c0) * rows.inner
        apply_range(
            bare(dy),
            elements(x),
            start,
            start + size,
            rows.inner,
            coefficients,
            gain,
            traffic,
            bare(out),
        )
    fence()


@helper
def forward_task(t, x, cut, norm, coefficients, y):
    """Training forward of a block of groups."""
    outer, groups, members, inner, block, streaming = cut
    rows = Rows(outer, groups, members * inner)
    statistics, gamma, beta, eps = norm
    mean, var = statistics[0], statistics[1]
    first, last = t * block, min((t + 1) * block, groups)
    for g in range(first, last):
        mean[g], var[g] = slab_statistics(elements(x), g, rows, x[0])
    p = first * members % len(gamma)
    # In a loop of their own the divisions and square roots of many groups are under way at the same time.
    for g in range(first, last):
        std = np.sqrt(var[g] + eps)
        for c in range(g * members, (g + 1) * members):
            fill_normalize(c, mean[g], std, gamma[p], beta[p], coefficients)
            p = p + 1 if p + 1 < len(gamma) else 0
    channels = Rows(outer, groups * members, inner)
    apply_block(None, x, first * members, last * members, channels, streaming, coefficients, None, y)


@Kernel
def forward(x, cut, gamma, beta, eps, statistics, y):
    """Training forward; a task is a block of groups, statistics and result, while its slab is in cache.

    While a block is written the next one is prefetched, so that memory reads and writes at once:
    32x256x56x56 takes 2.5 ms with it and 4.2 without, where a copy takes 2.0. ``cut`` has the numbers of
    `Fused` in a plain tuple.
    """
    outer, groups, members, inner, block, streaming = cut
    coefficients = np.empty((4, groups * members), computed(x))
    for t in prange(-(-groups // block)):
        fused = Fused(outer, groups, members, inner, block, streaming)
        norm = Norm(statistics, gamma, beta, eps)
        forward_task(np.int64(t), x, fused, norm, coefficients, y)


@helper
def fill_gradients(first, std, norm, count, sums, coefficients):
    """``fill_gradient`` of groups of one channel each, from ``first`` on, for which there is a std.

    Divisions are loops of their own, which LLVM makes vectors of, and so are the square roots before: the
    backward pass of instance norm of 32x512x7x7 takes 0.85 of the time.
    """
    statistics, gamma, _, _ = norm
    mean, sum_dy, sum_dy_xhat = statistics[0], sums[0], sums[1]
    mean_dy, mean_dy_xhat = np.empty(len(std)), np.empty(len(std))
    for i in range(len(std)):
        sum_dy_xhat[first + i] /= std[i]
    for i in range(len(std)):
        mean_dy[i] = sum_dy[first + i] / count
    for i in range(len(std)):
        mean_dy_xhat[i] = sum_dy_xhat[first + i] / count
    p = first % len(gamma)
    for i in range(len(std)):
        means = mean_dy[i], mean_dy_xhat[i]
        fill_gradient(first + i, mean[first + i], std[i], gamma[p], means, coefficients)
        p = p + 1 if p + 1 < len(gamma) else 0


@helper
def backward_task(t, dy, x, cut, norm, gain, sums, coefficients, dx):
    """Training backward of a block of groups."""
    outer, groups, members, inner, block, streaming = cut
    rows = Rows(outer, groups * members, inner)
    statistics, _, _, eps = norm
    mean, var = statistics[0], statistics[1]
    first, last = t * block, min((t + 1) * block, groups)
    add_products(bare(dy), elements(x), rows, first, last, members, mean, sums)
    std, count = np.empty(last - first), np.float64(outer * inner)
    for i in range(len(std)):
        std[i] = np.sqrt(var[first + i] + eps)
    if gain is None:
        fill_gradients(first, std, norm, count, sums, coefficients)
    else:
        sum_dy, sum_dy_xhat = sums[0], sums[1]
        for i in range(len(std)):
            lo, g, added = (first + i) * members, first + i, (sum_dy, sum_dy_xhat)
            for c in range(lo, lo + members):
                sum_dy_xhat[c] /= std[i]
            fill_group_gradient(lo, members, mean[g], std[i], gain, count, added, coefficients)
    apply_block(dy, x, first * members, last * members, rows, streaming, coefficients, gain, dx)


@Kernel
def backward(dy, x, cut, statistics, gamma, gain, eps, sums, dx):
    """Training backward; a task is a block of groups, sums and result, while its slabs are in cache.

    The sums are sums[2, groups * members], of every channel. ``cut`` is as in ``forward``. ``gain`` is gamma
    in the dtype that x is computed in where groups have several channels, and else None.
    """
    outer, groups, members, inner, block, streaming = cut
    coefficients = np.empty((4, groups * members), computed(x))
    for t in prange(-(-groups // block)):
        fused = Fused(outer, groups, members, inner, block, streaming)
        norm = Norm(statistics, gamma, None, eps)
        backward_task(np.int64(t), dy, x, fused, norm, gain, sums, coefficients, dx)
