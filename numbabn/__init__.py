"""Batch normalisation for NumPy arrays at the speed of memory, exact to the last bits.

Start with `BatchNorm`, or with `batch_norm_forward` and `batch_norm_backward`. Importing compiles nothing:
kernels compile on first use and are cached on disk.
"""

from numbabn._config import show_config
from numbabn.functional import (
    Saved,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    moments,
)
from numbabn.layers import BatchNorm
from numbabn.recalibration import recalibrate
from numbabn.streaming import Moments

__version__ = "0.1.0"

__all__ = [
    "BatchNorm",
    "Moments",
    "Saved",
    "__version__",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "moments",
    "recalibrate",
    "show_config",
]
