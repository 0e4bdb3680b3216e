"""The CPU backend: the verbs of normalisation on flat, contiguous NumPy arrays; see `numbabn.backends.verbs`.

A pair is an array [2, n] of float64 where a verb makes it, and a tuple of two where it was given.
"""

from numbabn.backends.cpu import channels, plan, running, samples
from numbabn.backends.cpu.channels import backward_apply, backward_known, moments, normalize
from numbabn.backends.verbs import Affine, Array, Pair, View

__all__ = [
    "backward", "backward_apply", "backward_known", "backward_reduce", "forward", "moments", "normalize",
    "running",
]  # fmt: skip


def forward(x: Array, view: View, affine: Affine, y: Array) -> Array:
    """Write y, normalised with the statistics of x itself; return the pair (mean, biased variance)."""
    statistics: Array = (samples if plan.by_sample(view) else channels).forward(x, view, affine, y)
    return statistics


def backward_reduce(dy: Array, x: Array, view: View, statistics: Pair, eps: float, gradients: Pair) -> Array:
    """Return the pair (sum of dy, sum of dy * xhat), and write it to the gradients (dgamma, dbeta)."""
    verbs = samples if plan.by_sample(view) else channels
    sums: Array = verbs.backward_reduce(dy, x, view, statistics, eps, gradients)
    return sums


def backward(
    dy: Array, x: Array, view: View, statistics: Array, affine: Affine, dx: Array, gradients: Pair
) -> None:
    """Write dx and the gradients of the training forward."""
    verbs = samples if plan.by_sample(view) else channels
    verbs.backward(dy, x, view, statistics, affine, dx, gradients)
