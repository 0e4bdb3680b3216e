"""The verbs of all norms but batch norm: every sample has statistics of its own.

Small samples are done in one launch, and so are large ones of columns where there are as many as threads. Any
other large one is done by itself with the verbs of batch norm, which share it between threads, while it is in
the cache.
"""

from typing import Any

import numpy as np

from numbabn.backends.cpu import along, channels, columns, plan, rows
from numbabn.backends.cpu.affine import fill_group_gradient_all
from numbabn.backends.cpu.channels import fill
from numbabn.backends.cpu.half import bits, computed
from numbabn.backends.cpu.quiet import quiet
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.verbs import Affine, Array, Gradient, Kept, Pair, Result, View


def keep(y: Array, view: View) -> Kept:
    """Return memory for what an activation keeps of y: in rows `along`, each begins at a word."""
    if not plan.runs_along(view):
        return channels.keep(y, view)
    words = view.batch * view.groups * -(-view.values // LANES)
    return Kept(channels.words(words), 0)


def forward(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """Write y; return the pair (mean, biased variance), and of RMS norm (0, mean square)."""
    if x.itemsize == 2:
        x, y = bits(x), bits(y)
    if plan.runs_along(view):
        return along.forward(x, view, affine, y)
    statistics = np.empty((2, view.batch, view.groups))
    flat = statistics.reshape(2, -1)
    at_once = rows.forward if plan.uses_rows(view) else columns.forward_samples
    if not at_once(x, view, affine, flat, y):
        one, of_one = view._replace(batch=1), channels.forward if view.members == 1 else _forward_in_phases
        for n, (part, result) in enumerate(zip(_samples(x, view), _samples(y, view), strict=True)):
            statistics[:, n] = of_one(part, one, affine, result)
    return flat


def _forward_in_phases(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """`forward` of a large sample whose groups have several channels."""
    family = rows if plan.uses_rows(view) else columns
    pair = channels.merged(*family.moments(x, plan.groups_of(view), computed(x.dtype).type(0)))
    with np.errstate(all="ignore"):
        pair[1] /= view.values
    channels.normalize(x, plan.channels_of(view), _repeated(pair, view), affine, y)
    return pair


def backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> None:
    """Write dx and the gradients of the training forward."""
    quiet().run(_backward, dy, x, view, statistics, affine, dx, gradients)


def _backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> None:
    if x.itemsize == 2:
        dy, x, dx = bits(dy), bits(x), bits(dx)
    flat = _flat(gradients)
    if plan.runs_along(view):
        fill(flat, along.backward(dy, x, view, statistics, affine, dx))
        return
    sums = np.empty((2, view.batch, view.groups * view.members))
    at_once = rows.backward if plan.uses_rows(view) else columns.backward_samples
    if not at_once(dy, x, view, statistics, affine, sums.reshape(2, -1), dx):
        one, shaped = view._replace(batch=1), statistics.reshape(2, view.batch, view.groups)
        of_one = channels.backward_with_sums if view.members == 1 else _backward_in_phases
        parts = zip(_samples(dy, view), _samples(x, view), _samples(dx, view), strict=True)
        for n, (part_dy, part_x, result) in enumerate(parts):
            given = np.ascontiguousarray(shaped[:, n])
            sums[:, n] = of_one(part_dy, part_x, one, given, affine, result, (None, None))
    fill(flat, sums.sum(axis=1))


def _backward_in_phases(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> Array:
    """`channels.backward_with_sums` of a large sample whose groups have several channels."""
    sums = _sums(dy, x, view, statistics, affine.eps)
    dtype, count = computed(x.dtype), np.float64(view.outer * view.inner)
    gain = affine.parameters[0].astype(dtype)
    coefficients = np.empty((4, len(gain)), dtype)
    fill_group_gradient_all(statistics, gain, affine.eps, count, sums, coefficients)
    family = rows if plan.uses_rows(view) else columns
    family.apply(dy, x, plan.channels_of(view), coefficients, dx, gain)
    return sums


@np.errstate(all="ignore")
def backward_reduce(dy: Array, x: Array, view: View, statistics: Pair, eps: float, gradients: Pair) -> Array:
    """Return the pair (sum of dy, sum of dy * xhat) over all samples, and write it to (dgamma, dbeta)."""
    if x.itemsize == 2:
        dy, x = bits(dy), bits(x)
    ones = np.ones(view.groups * view.members)
    affine = Affine((ones, ones), eps)
    if plan.runs_along(view):
        total: Array = along.backward(dy, x, view, statistics, affine, None)
    else:
        total = _sums_of_samples(dy, x, view, statistics, affine).sum(axis=1)
    fill(_flat(gradients), total)
    return total


def _sums_of_samples(dy: Array, x: Array, view: View, statistics: Array, affine: Affine) -> Array:
    """Return the sums of dy and dy * xhat of every channel of every sample, [2, batch, channels]."""
    sums = np.empty((2, view.batch, view.groups * view.members))
    if plan.uses_rows(view) and view.outer == 1:
        all_channels = View(1, 1, sums[0].size, 1, view.inner)
        repeated = _repeated(statistics, view)
        added: Array = rows.products(dy, x, all_channels, repeated[0]).sum(axis=1)
        added[1] /= np.sqrt(repeated[1] + affine.eps)
        return added.reshape(sums.shape)
    flat = sums.reshape(2, -1)
    if plan.uses_rows(view) or not columns.backward_samples(dy, x, view, statistics, affine, flat, None):
        one, shaped = view._replace(batch=1), statistics.reshape(2, view.batch, view.groups)
        for n, (part_dy, part_x) in enumerate(zip(_samples(dy, view), _samples(x, view), strict=True)):
            sums[:, n] = _sums(part_dy, part_x, one, shaped[:, n], affine.eps)
    return sums


def _sums(dy: Array, x: Array, view: View, statistics: Array, eps: float) -> Array:
    """Return the sums of dy and dy * xhat of every channel of one sample."""
    repeated = np.ascontiguousarray(_repeated(statistics, view))
    return channels.backward_reduce(dy, x, plan.channels_of(view), repeated, eps, (None, None))


def _samples(array: Any, view: View) -> list[Any]:
    """Return the parts of an array, or of a `Result` or `Gradient`, that belong to each sample."""
    batch = view.batch
    if not isinstance(array, (Result, Gradient)):
        return list(array.reshape(batch, -1))
    (first, second), size = array[:2], array[0].size // batch
    others = [None] * batch if second is None else second.reshape(batch, -1)
    pairs = enumerate(zip(first.reshape(batch, -1), others, strict=True))
    kind: Any = type(array)
    return [kind(one, other, array.kept, array.phase + n * size, *array[4:]) for n, (one, other) in pairs]


def _repeated(pair: Pair, view: View) -> Array:
    """Return for every channel what its group has."""
    return np.repeat(pair, view.members, axis=1)


def _flat(gradients: Pair) -> Pair:
    """Return gradients of any shape, which are contiguous, as vectors over the same memory."""
    return tuple(None if gradient is None else gradient.reshape(-1) for gradient in gradients)
