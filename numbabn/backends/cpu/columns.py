"""The verbs for channels whose values lie apart, inner < 16: `column_kernels`, cut up by `plan`."""

import functools

import numpy as np

from numbabn.backends.cpu import column_kernels as kernels
from numbabn.backends.cpu import plan
from numbabn.backends.cpu.half import computed
from numbabn.backends.cpu.jit import thread_count
from numbabn.backends.verbs import Affine, Array, Pair, View


def moments(x: Array, view: View, like: np.floating) -> tuple[Array, Array]:
    """Return (count[chunks], (mean, m2) as [2, chunks, groups])."""
    copies, chunks = plan.sums(view, x.nbytes)
    count, pair = np.empty(chunks), np.empty((2, chunks, view.groups))
    kernels.moments(x.nbytes, x, copies, view.inner, like, count, pair)
    return count, pair


def products(dy: Array, x: Array, view: View, mean: Array) -> Array:
    """Return (sum of dy, sum of dy * (x - mean)), an array [2, chunks, groups]."""
    copies, chunks = plan.sums(view, 2 * x.nbytes)
    sums = np.empty((2, chunks, view.groups))
    kernels.products(2 * x.nbytes, dy, x, copies, view.inner, mean, sums)
    return sums


def apply(
    dy: Array | None, x: Array, view: View, coefficients: Array, out: Array, gain: Array | None = None
) -> None:
    """Write the map of x, or of x and dy, that `affine` describes, with its coefficients[4, groups]."""
    nbytes = plan.touched(dy, x, out)
    kernels.apply(nbytes, dy, x, _parts(view, nbytes), coefficients, gain, out)


def forward(x: Array, view: View, affine: Affine, statistics: Array, y: Array) -> bool:
    """Fill statistics[2, groups] and y in one launch; return True."""
    if plan.small(x.nbytes):
        kernels.forward_small(x, *_cut(view), *affine.parameters, affine.eps, statistics, y)
    else:
        (_, chunks), cut = plan.sums(view, x.nbytes), _parts(view, plan.touched(None, x, y))
        kernels.forward(x.nbytes, x, chunks, cut, *affine.parameters, affine.eps, statistics, y)
    return True


def normalize(x: Array, view: View, statistics: Pair, affine: Affine, y: Array) -> bool:
    """Fill y of a small array in one launch, or return False."""
    if not plan.small(y.nbytes):
        return False
    kernels.normalize(x, *_cut(view), *statistics, *affine.parameters, affine.eps, y)
    return True


def backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, sums: Array, dx: Array
) -> bool:
    """Fill sums[2, groups] and dx in one launch; return True."""
    (gamma, _), nbytes = affine.parameters, 2 * x.nbytes
    if plan.small(nbytes):
        kernels.backward_small(dy, x, *_cut(view), statistics, gamma, affine.eps, sums, dx)
    else:
        (_, chunks), cut = plan.sums(view, nbytes), _parts(view, plan.touched(dy, x, dx))
        kernels.backward(nbytes, dy, x, chunks, cut, statistics, gamma, affine.eps, sums, dx)
    return True


def forward_samples(x: Array, view: View, affine: Affine, statistics: Array, y: Array) -> bool:
    """Fill statistics[2, batch * groups] and y in one launch, or return False: threads share samples."""
    sample = x.nbytes // view.batch
    if not plan.a_thread_each(view, sample):
        return False
    shaped = statistics.reshape(2, view.batch, view.groups)
    copies, chunks = plan.sums(plan.groups_of(view), sample)
    cut = chunks, copies, view.inner, view.members, int(plan.streams(plan.touched(None, x, y)))
    kernels.forward_samples(x.nbytes, x, cut, *affine.parameters, affine.eps, shaped, y)
    return True


def backward_samples(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, sums: Array, dx: Array | None
) -> bool:
    """Fill sums[2, batch * groups * members] and dx in one launch, or return False as `forward_samples`."""
    sample = 2 * x.nbytes // view.batch
    if not plan.a_thread_each(view, sample):
        return False
    gamma, _ = affine.parameters
    gain = gamma.astype(computed(x.dtype)) if view.members > 1 else None
    given = statistics.reshape(2, view.batch, view.groups)
    added = sums.reshape(2, view.batch, view.groups * view.members)
    streaming = dx is not None and plan.streams(plan.touched(dy, x, dx))
    copies, chunks = plan.sums(plan.channels_of(view), sample)
    cut = chunks, copies, view.inner, view.members, int(streaming)
    kernels.backward_samples(2 * x.nbytes, dy, x, cut, given, gamma, gain, affine.eps, added, dx)
    return True


def _parts(view: View, nbytes: int) -> tuple[int, ...]:
    """How a pass that touches so many bytes is cut up: what ``column_kernels.apply`` takes."""
    copies, chunks = plan.columns(view, nbytes)
    return chunks, copies, view.inner, int(plan.streams(nbytes)), thread_count()


@functools.lru_cache(1024)
def _cut(view: View) -> tuple[int, int]:
    """How a small array is cut up: pixels side by side in a row, and inner."""
    copies, _ = plan.columns(view, 0)
    return copies, view.inner
