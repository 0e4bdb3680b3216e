"""The verbs for one statistic per row, with parameters along it: `along_kernels`, cut up here.

A sample is ``groups`` rows, one after the other, and a row has ``members * inner`` values.
"""

import numpy as np

from numbabn.backends.cpu import along_kernels as kernels
from numbabn.backends.cpu import plan
from numbabn.backends.cpu.epilogue import array_of
from numbabn.backends.cpu.half import computed
from numbabn.backends.cpu.quiet import quiet
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.simd_memory import LINE
from numbabn.backends.verbs import Affine, Array, View

TASK_BYTES = 64 << 10  # of x in a task of the forward pass
# Samples of a task of the backward pass. Its sums take 3 / samples of the bytes of x and dy in float32, so
# that 32 samples are enough; fewer where there would not be 64 tasks, to keep many cores busy with some large
# images. Backward of 64x50257 on two threads takes 2.7 ms with 8 samples in a task, 3.6 with 4, and 2.4 with
# 16: 8 leave work for 8 cores there, 16 for 4.
MOST_ROWS, LEAST_ROWS, TASKS = 32, 8, 64


def forward(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """Write y; return the pair (mean, biased variance), and of RMS norm (0, mean square)."""
    statistics = np.empty((2, view.batch * view.groups))
    row = view.values * x.itemsize
    streaming = _streams(plan.touched(None, x, y), row, y)
    cut = view.groups, max(1, TASK_BYTES // row), int(affine.centered), streaming
    gamma, beta = affine.parameters
    gamma, beta = _in_places(gamma, view, x), _in_places(beta, view, x)
    kernels.forward(x.nbytes, x, cut, gamma, beta, affine.eps, statistics, y)
    return statistics


def backward(dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array | None) -> Array:
    """Write dx unless it is None; return the sums of dy and dy * xhat over all samples, [2, parameters]."""
    row, width = view.values * x.itemsize, view.groups * view.values
    sample = width * x.itemsize
    samples = max(LEAST_ROWS, min(MOST_ROWS, view.batch // TASKS), TASK_BYTES // sample)
    streaming = 0 if dx is None else _streams(plan.touched(dy, x, dx), row, dx)
    tasks = -(-view.batch // samples)
    sums, few = np.empty((tasks, 2, width)), np.empty((tasks, 2, width + LANES), computed(x.dtype))
    gamma = _in_places(affine.parameters[0], view, x)
    cut = width, view.groups, samples, int(affine.centered), streaming
    kernels.backward(2 * x.nbytes, dy, x, cut, gamma, statistics, affine.eps, few, sums, dx)
    total: Array = sums[0]
    return total if view.inner == 1 else total.reshape(2, -1, view.inner).sum(axis=2)


def _in_places(parameter: Array, view: View, x: Array) -> Array:
    """Return a parameter in the dtype x is computed in, with one value for each place in a sample."""
    values = parameter
    if values.dtype != x.dtype and values.dtype != (dtype := computed(x.dtype)):
        # What is beyond the dtype becomes infinity or 0, and nobody is warned.
        values = quiet().run(parameter.astype, dtype)
    return values if view.inner == 1 else np.repeat(values, view.inner)


def _streams(nbytes: int, row: int, out: Array) -> int:
    """Whether a pass writes past the caches: vectors of all rows must begin at cache lines then."""
    return int(plan.streams(nbytes) and row % LINE == 0 and array_of(out).ctypes.data % LINE == 0)
