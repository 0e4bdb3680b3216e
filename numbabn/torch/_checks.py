"""Whether numbabn has kernels for the tensors of a call; PyTorch's own functions do all else."""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

_HALVES = (torch.float16, torch.bfloat16)
_DTYPES = (*_HALVES, torch.float32, torch.float64)
_TYPES = (Tensor, torch.nn.Parameter)


def has_kernels(
    x: Tensor, shape: tuple[int, ...], parameters: tuple[Tensor | None, ...], eps: float | None
) -> bool:
    """Whether there are kernels for x and its parameters, which are None or of this shape."""
    given = [each for each in parameters if each is not None]
    if not (torch.compiler.is_compiling() or _is_plain_call(x, given)):
        return False
    if x.dtype not in _DTYPES or x.layout is not torch.strided or x.numel() == 0:
        return False
    if not (x.device.type == "cpu" or (x.device.type == "cuda" and not torch.is_autocast_enabled("cuda"))):
        return False
    if eps is not None and not 0.0 < eps < math.inf:
        return False
    if not all(each.shape == shape and each.device == x.device for each in given):
        return False
    return _are_mixed_well(x, given)


def _are_mixed_well(x: Tensor, given: list[Tensor]) -> bool:
    """Whether all parameters have one dtype: that of x, or float32 where x is float16 or bfloat16."""
    if not given:
        return True
    dtype = given[0].dtype
    if not (dtype is x.dtype or (dtype is torch.float32 and x.dtype in _HALVES)):
        return False
    return all(each.dtype is dtype and each.layout is torch.strided for each in given)


def _is_plain_call(x: Tensor, given: list[Tensor]) -> bool:
    """Whether tensors are memory and nothing more, and nobody but autograd's backward pass follows the call.

    vmap and the other transforms of `torch.func`, forward-mode differentiation, and tracing of `torch.jit`,
    have to see PyTorch's own operators.
    """
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return False
    if forward_ad._current_level >= 0 or x.is_nested:
        return False
    return all(type(each) in _TYPES and not each.is_neg() for each in (x, *given))
