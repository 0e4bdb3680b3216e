"""Tensors for the tests, and what is compared: results and gradients of two functions."""

import torch

# Largest errors, relative to the largest value of a result: some roundings of each dtype.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 3e-6, torch.float64: 1e-12}


def leaf(tensor, dtype=None):
    """A copy that requires grad, in the same memory format; None of None."""
    if tensor is None:
        return None
    return tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_(tensor.is_floating_point())


def results(function, *tensors):
    """What a function returns, and the gradients of all tensors that it can have."""
    y = function(*tensors)
    inputs = [each for each in tensors if each is not None and each.requires_grad]
    # Of few digits, so that it is the same gradient in every dtype.
    weights = torch.linspace(-1, 2, y.numel()).bfloat16().reshape(y.shape).to(y.dtype)
    gradients = torch.autograd.grad(y, inputs, weights) if y.requires_grad else ()
    return y.detach(), *gradients


def assert_close(found, expected, tolerance=None):
    """All results agree in shape, dtype and values; ``expected`` may be in float64."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach(), other.detach()
        assert one.shape == other.shape
        limit = tolerance or TOLERANCES[one.dtype]
        largest = max(1.0, float(other.abs().nan_to_num(0.0, 0.0, 0.0).max())) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=limit * largest, equal_nan=True)


def formatted(x, layout):
    """x in another layout of memory."""
    if layout == "channels_last":
        axes = (0, *range(2, x.dim()), 1)
        back = (0, x.dim() - 1, *range(1, x.dim() - 1))
        return x.permute(axes).contiguous().permute(back)
    if layout == "strided":
        return torch.cat((x, x), -1)[..., : x.shape[-1]]
    return x
