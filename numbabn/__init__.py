"""Normalisation for arrays at the speed of memory, exact to the last bits.

Start with `BatchNorm`, or with `batch_norm_forward` and `batch_norm_backward`. Importing compiles nothing:
kernels compile on first use, which the logger "numbabn" tells at the level INFO, and are cached on disk.
"""

import logging

from numbabn import states as states
from numbabn._config import show_config
from numbabn.arrays.memory import set_pool_limit
from numbabn.folding import fold_into_conv, fold_into_dense
from numbabn.norms._saved import Saved
from numbabn.norms.batch import BatchNorm, batch_norm_backward, batch_norm_forward, batch_norm_inference
from numbabn.norms.group import GroupNorm, group_norm_backward, group_norm_forward
from numbabn.norms.instance import InstanceNorm, instance_norm_backward, instance_norm_forward
from numbabn.norms.layer import (
    LayerNorm,
    RMSNorm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from numbabn.norms.moments import moments
from numbabn.norms.recalibrate import recalibrate
from numbabn.statistics.moments import Moments

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is printed is the user's choice

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Moments",
    "RMSNorm",
    "Saved",
    "__version__",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "fold_into_conv",
    "fold_into_dense",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "moments",
    "recalibrate",
    "rms_norm_backward",
    "rms_norm_forward",
    "set_pool_limit",
    "show_config",
]
