"""Running statistics, as PyTorch keeps them."""

import torch
from torch import Tensor


@torch.no_grad()
def track(running_mean: Tensor, running_var: Tensor, statistics: Tensor, momentum: float, count: int) -> None:
    """Move running statistics towards those of a batch with ``count`` values per channel."""
    mean, var = statistics
    running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
    running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))
