"""The verbs for one statistic per row, with parameters along it: `along_kernels`, their work cut up here."""

import numpy as np

from numbabn.backends.cpu import along_kernels as kernels
from numbabn.backends.cpu import plan
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.simd_memory import LINE
from numbabn.backends.verbs import Affine, Array, View

TASK_BYTES = 64 << 10  # of x in a task of the forward pass
# Rows of a task of the backward pass. Its sums take 2 / rows of the bytes of x and dy in float32, so that 32
# rows are enough; fewer where there would not be 64 tasks, to keep many cores busy with some large images.
MOST_ROWS, LEAST_ROWS, TASKS = 32, 4, 64
GROUP_BYTES = 256 << 10  # of x and dy in a group of rows, which is read twice, from the second-level cache


def forward(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """Write y; return the pair (mean, biased variance), and of RMS norm (0, mean square)."""
    statistics = np.empty((2, view.batch))
    row = view.members * x.itemsize
    cut = max(1, TASK_BYTES // row), int(affine.centered), _streams(plan.touched(None, x, y), row, y)
    kernels.forward(x.nbytes, x, cut, *affine.parameters, affine.eps, statistics, y)
    return statistics


def backward(dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array | None) -> Array:
    """Write dx unless it is None; return the sums of dy and dy * xhat over all rows, [2, members]."""
    row = view.members * x.itemsize
    rows = max(LEAST_ROWS, min(MOST_ROWS, view.batch // TASKS), TASK_BYTES // row)
    group = max(1, min(kernels.GROUP, GROUP_BYTES // (2 * row)))
    streaming = 0 if dx is None else _streams(plan.touched(dy, x, dx), row, dx)
    sums = np.empty((-(-view.batch // rows), 2, view.members + LANES))
    gamma, _ = affine.parameters
    cut = rows, group, int(affine.centered), streaming
    kernels.backward(2 * x.nbytes, dy, x, cut, gamma, statistics, affine.eps, sums, dx)
    total: Array = sums[:, :, : view.members].sum(axis=0)
    return total


def _streams(nbytes: int, row: int, out: Array) -> int:
    """Whether a pass writes past the caches: vectors of all rows must begin at cache lines then."""
    return int(plan.streams(nbytes) and row % LINE == 0 and out.ctypes.data % LINE == 0)
