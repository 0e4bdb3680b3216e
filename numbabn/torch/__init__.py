"""PyTorch's norms at the speed of memory: functions, modules, and one line for a whole model.

``model = numbabn.torch.convert(model)`` lets numbabn compute the norms of a model, on the CPU and, not yet
run on hardware, on GPUs; `revert` undoes it. ``pip install "numbabn[torch]"`` installs what it needs.
"""

try:
    from torch import __version__ as _version
except ImportError as error:
    raise ImportError('numbabn.torch needs PyTorch 2.13 or newer: pip install "numbabn[torch]"') from error
if _version < (2, 13):  # a TorchVersion, which compares as a version
    raise ImportError(
        f'numbabn.torch needs PyTorch 2.13 or newer, and this is {_version}: pip install -U "numbabn[torch]"'
    )

from numbabn.torch import functional
from numbabn.torch.conversion import convert, revert
from numbabn.torch.modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "convert",
    "functional",
    "revert",
]
