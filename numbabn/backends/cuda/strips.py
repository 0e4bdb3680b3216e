"""Sums over samples, which are the gradients of gamma and beta; in an order that depends on shapes alone.

`add_products` reads x and dy once more, before the kernel that writes dx, perhaps over dy. That one could add
up the rows that it has, in registers, where they are no longer than 1024 elements: not before it is measured.

In the kernels ``strips`` is a `plan.Strips`, the other tuples are those of `arguments`.
"""

from typing import Any

import numpy as np

from numbabn.backends.cuda import arguments, plan
from numbabn.backends.cuda.arguments import arrays_of
from numbabn.backends.cuda.coefficients import normalize_coefficients
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.epilogue import derived, derived_four
from numbabn.backends.cuda.gpu import (
    Kernel,
    array_load,
    array_load_four,
    convert,
    cuda,
    device,
    load,
    shared_load,
    shared_store,
    sqrt,
    store,
)
from numbabn.backends.cuda.parameters import load_parameter, store_parameter
from numbabn.backends.cuda.sums import add_value, tree
from numbabn.backends.cuda.tiles import CENTER, ROW, SCRATCH
from numbabn.backends.cuda.workspaces import scratch
from numbabn.backends.verbs import Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory


def add_products(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair, sums: Device
) -> None:
    """Write (sum of dy, sum of dy * xhat) of all samples to ``sums`` [2, channels], and to the gradients.

    For views with outer = 1, whose samples are read as they lie side by side.
    """
    addresses = [array.address for array in arrays_of(x, dy)]
    cut = plan.strips(view, plan.aligned(plan.VECTOR, x.itemsize, *addresses) > 0)
    chunks = scratch(x, "chunks", (2, cut.chunks, cut.groups * cut.length))
    _products.launch(
        x, cut.chunks * cut.groups * cut.strips,
        arguments.inputs(dy, x, view), cut, arguments.zero(x.dtype),
        arguments.statistics(statistics), float(eps), chunks.address,
    )  # fmt: skip
    _add(chunks, cut.chunks, view.inner, view, gradients, sums)


def add_samples(several: Device, view: View, gradients: Pair, sums: Device) -> None:
    """Add up [2, samples, channels] over the samples; write ``sums`` [2, channels] and the gradients."""
    _add(several, view.batch, 1, view, gradients, sums)


def _add(several: Device, count: int, inner: int, view: View, gradients: Pair, sums: Device) -> None:
    """Add up [2, count, channels, inner] over count and inner; write ``sums`` and the gradients."""
    columns = view.groups * view.members
    _collect.launch(
        several, -(-columns // plan.LINE),
        several.address, count, columns, inner, arguments.results(sums, gradients),
    )  # fmt: skip


@Kernel
def _products(inputs, strips, like, statistics, eps, sums):
    """Sums of dy and of dy * xhat at every place of a group, over the samples of a chunk.

    ``sums`` is the address of float64 [2, chunks, places of a sample]. A thread has a place, or four that lie
    side by side; the block has as many samples at the same time as it has threads for. Threads that are left
    over, too few for one more sample, sum what is not used, see `leave`.
    """
    t, threads = np.int64(cuda.threadIdx.x), np.int64(cuda.blockDim.x)
    strip = np.int64(cuda.blockIdx.x)
    chunk = quotient(strip, strips.groups * strips.strips)
    strip -= chunk * strips.groups * strips.strips
    g = quotient(strip, strips.strips)
    height, sample = quotient(threads, strips.width), quotient(t, strips.width)
    place = ((strip - g * strips.strips) * strips.width + t - sample * strips.width) * strips.lanes
    s0, s1, s2, s3 = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    l0, l1, l2, l3 = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    q0, q1, q2, q3 = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    m0, m1, m2, m3 = convert(0.0, like), convert(0.0, like), convert(0.0, like), convert(0.0, like)
    end = min((chunk + 1) * strips.chunk, strips.samples)
    for start in range(chunk * strips.chunk, end, threads):
        count = min(threads, end - start)
        fill_samples(strips, start, count, g, like, statistics, eps)
        if place < strips.length:
            first = (start * strips.groups + g) * strips.length + place
            step = strips.groups * strips.length
            for e in range(sample, count, height):
                i = first + e * step
                k, a = shared_load(CENTER, e, like), shared_load(CENTER + ROW, e, like)
                b = shared_load(CENTER + 2 * ROW, e, like)
                if strips.lanes > 1:
                    d0, d1, d2, d3 = array_load_four(inputs.dy, i, strips.vector, like)
                    d0, d1, d2, d3 = derived_four(inputs, i, d0, d1, d2, d3)
                    x0, x1, x2, x3 = array_load_four(inputs.x, i, strips.vector, like)
                    s1, l1 = add_value(s1, l1, d1)
                    s2, l2 = add_value(s2, l2, d2)
                    s3, l3 = add_value(s3, l3, d3)
                    q1, m1 = add_value(q1, m1, d1 * ((x1 - k) * a + b))
                    q2, m2 = add_value(q2, m2, d2 * ((x2 - k) * a + b))
                    q3, m3 = add_value(q3, m3, d3 * ((x3 - k) * a + b))
                else:
                    d0, x0 = derived(inputs, i, array_load(inputs.dy, i, like)), array_load(inputs.x, i, like)
                s0, l0 = add_value(s0, l0, d0)
                q0, m0 = add_value(q0, m0, d0 * ((x0 - k) * a + b))
    places = strips.groups * strips.length
    address = sums + 8 * (chunk * places + g * strips.length)
    more = 8 * strips.chunks * places
    leave(s0, l0, q0, m0, strips, address, more, place)
    if strips.lanes > 1:
        leave(s1, l1, q1, m1, strips, address + 8, more, place)
        leave(s2, l2, q2, m2, strips, address + 16, more, place)
        leave(s3, l3, q3, m3, strips, address + 24, more, place)


@device
def fill_samples(strips, start, count, g, like, statistics, eps):
    """Write coefficients with (x - center) * scale + shift = xhat for group g of ``count`` samples."""
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # those of the samples before have been read
    if t < count:
        index = (start + t) * strips.groups + g
        mean = load_parameter(statistics.mean, statistics.mean_kind, index, 0.0)
        var = load_parameter(statistics.var, statistics.var_kind, index, 1.0)
        center = convert(mean, like)
        scale, shift = normalize_coefficients(mean, sqrt(var + eps), 1.0, 0.0, np.float64(center))
        shared_store(CENTER, t, center)
        shared_store(CENTER + ROW, t, convert(scale, like))
        shared_store(CENTER + 2 * ROW, t, convert(shift, like))
    cuda.syncthreads()


@device
def leave(s, low_s, q, low_q, strips, address, more, place):
    """Write the sums of the threads that have the same place to ``address`` and ``more`` bytes further on."""
    t, width = np.int64(cuda.threadIdx.x), strips.width
    cuda.syncthreads()
    shared_store(SCRATCH, t, np.float64(s) - np.float64(low_s))
    shared_store(SCRATCH + ROW, t, np.float64(q) - np.float64(low_q))
    tree(width, quotient(np.int64(cuda.blockDim.x), width) * width, np.float64(0))
    if t < width and place < strips.length:
        store(address, place, shared_load(SCRATCH, t, np.float64(0)))
        store(address + more, place, shared_load(SCRATCH + ROW, t, np.float64(0)))


@Kernel
def _collect(sums, count, columns, inner, results):
    """Add up float64 [2, count, columns, inner] to [2, columns], and write the gradients dbeta and dgamma.

    ``results`` are `arguments.Results`. A block has some columns, and several threads for each of them.
    """
    t, zero = np.int64(cuda.threadIdx.x), np.float64(0)
    height = np.int64(cuda.blockDim.x) // plan.LINE
    i = t // plan.LINE
    c = np.int64(cuda.blockIdx.x) * plan.LINE + t - i * plan.LINE
    s, q = zero, zero
    if c < columns:
        for k in range(i, count, height):
            first = (k * columns + c) * inner
            for j in range(first, first + inner):
                s += load(sums, j, zero)
                q += load(sums, count * columns * inner + j, zero)
    shared_store(SCRATCH, t, s)
    shared_store(SCRATCH + ROW, t, q)
    tree(np.int64(plan.LINE), height * plan.LINE, zero)
    if t < plan.LINE and c < columns:
        s, q = shared_load(SCRATCH, t, zero), shared_load(SCRATCH + ROW, t, zero)
        store(results.sums, c, s)
        store(results.sums, columns + c, q)
        store_parameter(results.dbeta, results.dbeta_kind, c, s)
        store_parameter(results.dgamma, results.dgamma_kind, c, q)
