"""The GPU backend: the verbs of normalisation on flat, dense device arrays; see `numbabn.backends.verbs`."""

from numbabn.backends.cuda import running, samples
from numbabn.backends.cuda.channels import (
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
