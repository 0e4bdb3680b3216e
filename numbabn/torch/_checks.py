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
    compiling = torch.compiler.is_compiling()
    if not (compiling or _is_followed_by_autograd_alone()):
        return False
    if not (_is_memory(x, compiling) and x.dtype in _DTYPES and x.numel()):
        return False
    if not (x.is_cpu or (x.is_cuda and not torch.is_autocast_enabled("cuda"))):
        return False
    if eps is not None and not 0.0 < eps < math.inf:
        return False
    dtype = None  # that of all parameters: of x, or float32 where x is float16 or bfloat16
    for each in parameters:
        if each is None:
            continue
        if dtype is None:
            dtype = each.dtype
            if not (dtype is x.dtype or (dtype is torch.float32 and x.dtype in _HALVES)):
                return False
        if not (each.dtype is dtype and _is_memory(each, compiling) and each.shape == shape):
            return False
        if each.device != x.device:
            return False
    return True


def _is_followed_by_autograd_alone() -> bool:
    """Whether nobody but autograd's backward pass follows the call.

    vmap and the other transforms of `torch.func`, forward-mode differentiation, and tracing of `torch.jit`,
    have to see PyTorch's own operators.
    """
    transforms: bool = torch._C._are_functorch_transforms_active()
    return not transforms and torch._C._get_tracing_state() is None and forward_ad._current_level < 0


def _is_memory(tensor: Tensor, compiling: bool) -> bool:
    """Whether a tensor is memory and nothing more; to torch.compile any strided one is."""
    if tensor.layout is not torch.strided:
        return False
    return compiling or (type(tensor) in _TYPES and not tensor.is_neg() and not tensor.is_nested)
