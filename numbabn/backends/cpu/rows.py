"""The verbs for long contiguous rows, inner >= 16: `row_kernels` with their work cut up by `plan`."""

import numpy as np

from numbabn.backends.cpu import plan
from numbabn.backends.cpu import row_kernels as kernels
from numbabn.backends.cpu.half import computed
from numbabn.backends.cpu.jit import thread_count
from numbabn.backends.verbs import Affine, Array, View


def moments(x: Array, view: View, like: np.floating) -> tuple[Array, Array]:
    """Return (count[chunks], (mean, m2) as [2, chunks, groups])."""
    chunks = plan.row_chunks(view, x.itemsize)
    count, pair = np.empty(chunks), np.empty((2, chunks, view.groups))
    kernels.moments(x.nbytes, x, view.outer, view.groups, view.inner, like, count, pair)
    return count, pair


def products(dy: Array, x: Array, view: View, mean: Array) -> Array:
    """Return (sum of dy, sum of dy * (x - mean)), an array [2, chunks, groups]."""
    sums = np.empty((2, plan.row_chunks(view, x.itemsize), view.groups))
    kernels.products(2 * x.nbytes, dy, x, view.outer, view.groups, view.inner, mean, sums)
    return sums


def apply(
    dy: Array | None, x: Array, view: View, coefficients: Array, out: Array, gain: Array | None = None
) -> None:
    """Write the map of x, or of x and dy, that `affine` describes, with its coefficients[4, groups]."""
    nbytes = plan.touched(dy, x, out)
    cut = plan.apply_tasks(view), view.inner, int(plan.streams(nbytes)), thread_count()
    kernels.apply(nbytes, dy, x, cut, coefficients, gain, out)


def forward(x: Array, view: View, affine: Affine, statistics: Array, y: Array) -> bool:
    """Fill statistics[2, batch * groups] and y in one pass over memory; return False if phases are better."""
    block = plan.block_groups(view, x.itemsize, arrays=1)
    if not block:
        return False
    cut = _cut(view, block, plan.touched(None, x, y))
    kernels.forward(x.nbytes, x, cut, *affine.parameters, affine.eps, statistics, y)
    return True


def backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, sums: Array, dx: Array
) -> bool:
    """Fill sums[2, batch * groups * members] and dx in one pass; return False where phases are better."""
    block = plan.block_groups(view, x.itemsize, arrays=2)
    if not block:
        return False
    cut, gamma = _cut(view, block, plan.touched(dy, x, dx)), affine.parameters[0]
    gain = gamma.astype(computed(x.dtype)) if view.members > 1 else None
    kernels.backward(2 * x.nbytes, dy, x, cut, statistics, gamma, gain, affine.eps, sums, dx)
    return True


def _cut(view: View, block: int, nbytes: int) -> tuple[int, ...]:
    """Return the numbers of ``row_kernels.Fused``."""
    groups = view.batch * view.groups
    return view.outer, groups, view.members, view.inner, block, int(plan.streams(nbytes))
