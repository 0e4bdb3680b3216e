"""The CPU backend: the verbs of normalisation on flat, contiguous NumPy arrays; see `numbabn.backends.verbs`.

A pair is an array [2, n] of float64 where a verb makes it, and a tuple of two where it was given.
"""

from numbabn.backends.cpu import running, samples
from numbabn.backends.cpu.channels import (
    backward,
    backward_apply,
    backward_known,
    backward_reduce,
    forward,
    keep,
    moments,
    normalize,
)

__all__ = [
    "backward", "backward_apply", "backward_known", "backward_reduce", "forward", "keep", "moments",
    "normalize", "running", "samples",
]  # fmt: skip
