"""Whether numbabn takes less time for a tensor than PyTorch's own function.

What its kernels gain grows with the tensor, and what its Python code takes does not: 60 us for a forward and
a backward call where it is in the caches, and some 300 us in a training step, which leaves little of it
there. So smaller tensors are PyTorch's. Where bits are to be the same for any number of threads
(`torch.use_deterministic_algorithms`), all tensors are numbabn's, and so are those that a compiler or an
export sees, and those on a GPU.
"""

import torch
from torch import Tensor

from numbabn.torch._autograd import is_traced
from numbabn.torch._norms import Activation

# Elements for each thread from which numbabn is faster, forward and backward together, for tensors that are
# contiguous and for others, which are channels_last. They are a third of those at which both take as long in
# float32 where every cache is emptied before every call (`python -m benchmarks.torch_sizes`, on two cores of
# AMD Zen 5 with AVX-512), since a step empties them less. With that third, training steps of MobileNetV2 on
# 32x3x96x96 in channels_last are 1.16 and 1.22 times as fast as PyTorch's in two runs; 1.08 and 1.12 times
# with all sizes done by numbabn, and 1.16 and 1.19 times with the numbers themselves.
LEAST = {
    "batch_norm": (100_000, 1_000_000),
    "instance_norm": (150_000, 60_000),
    "group_norm": (1_000_000, 250_000),
    "layer_norm": (1_500_000, 1_500_000),
    "rms_norm": (60_000, 60_000),
}
# The same where an activation follows, which PyTorch computes in a pass of its own.
LEAST_FOLLOWED = 100_000


def is_faster(function: str, x: Tensor, follows: Activation | None) -> bool:
    """Whether numbabn is the one to compute a function of x, and an activation that follows."""
    if is_traced() or not x.is_cpu or torch.are_deterministic_algorithms_enabled():
        return True
    contiguous, others = LEAST[function]
    least = contiguous if x.is_contiguous() else others
    if follows is not None:
        least = min(least, LEAST_FOLLOWED)
    return bool(x.numel() >= least * torch.get_num_threads())
