"""Batch norm as torch.compile takes it: the statistics are an operator, the rest is PyTorch's.

The compiler fuses what is done to every element with what comes before and after it, and computes it again in
the backward pass, rather than keep the results or masks of activations. One operator for the whole norm kept
it from that: a step of MobileNetV2, 32x3x96x96, took 2.7 times as long as without numbabn, because masks of
the activations behind such an operator were kept in another order of memory than all else. So it takes 1.03
times as long (`python -m benchmarks.torch_models`). The sums of the backward pass are no operator, for which
the compiler would lay out dy in NCHW.
"""

from typing import Any

import torch
from torch import Tensor

from numbabn.norms._call import Call
from numbabn.torch._arrays import array_of
from numbabn.torch._kernels import joined
from numbabn.torch._norms import Parameters, Task, followed
from numbabn.torch._threads import on_threads

# Without it the compiler, whose convolutions lay everything out in channels_last, copies x back to the layout
# that it has in eager mode.
_ANY_LAYOUT = (torch.Tag.flexible_layout,)


def normalize(task: Task, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Return y and the statistics [2, C] that x was normalised with, in float64."""
    if parameters.mean is not None and parameters.var is not None:
        return task.formula(x, parameters), torch.stack((parameters.mean, parameters.var)).double()
    result: tuple[Tensor, Tensor] = _Training.apply(x, parameters.weight, parameters.bias, task.eps)
    y, statistics = result
    return followed(y, task.activation), statistics


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        statistics, coefficients = _statistics(x, eps)
        y = _standardized(x, coefficients)
        y = y if weight is None else y * _along(weight, x)
        y = y if bias is None else y + _along(bias, x)
        ctx.save_for_backward(x, weight, coefficients)
        ctx.of_bias = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(statistics)
        return y.to(x.dtype), statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, weight, coefficients = ctx.saved_tensors
        xhat = _standardized(x, coefficients)
        dy, count = dy.to(xhat.dtype), x.numel() // x.shape[1]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        sum_dy, sum_dy_xhat = dy.sum(axes), (dy * xhat).sum(axes)
        scale = coefficients[2] if weight is None else coefficients[2] * weight
        dx = dy - _along(sum_dy / count, x) - xhat * _along(sum_dy_xhat / count, x)
        dweight = None if weight is None else sum_dy_xhat.to(weight.dtype)
        dbias = None if ctx.of_bias is None else sum_dy.to(ctx.of_bias)
        return (dx * _along(scale, x)).to(x.dtype), dweight, dbias, None


def _standardized(x: Tensor, coefficients: Tensor) -> Tensor:
    """Return xhat. The mean is in two parts, so that none of its digits are lost in float32."""
    high, low, invstd = (_along(each, x) for each in coefficients)
    return ((x - high) - low) * invstd


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per channel, to be broadcast to x."""
    return values.reshape(1, -1, *(1,) * (x.dim() - 2))


def _computed(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that x of a dtype is computed in."""
    return dtype if dtype is torch.float64 else torch.float32


@torch.library.custom_op("numbabn::batch_norm_statistics", mutates_args=(), tags=_ANY_LAYOUT)
def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (mean, biased variance) [2, C] in float64, and (high, low part of the mean, 1 / std) [3, C].

    The second is in the dtype that x is computed in: the compiler would compute it from the first in float64,
    for every element again.
    """

    def work() -> tuple[Tensor, Tensor]:
        count, moments = Call(array_of(x), 1).moments()
        statistics = joined(moments)
        statistics[1] /= count
        mean, var = statistics
        high = mean.to(_computed(x.dtype))
        coefficients = torch.stack((high.double(), mean - high, torch.rsqrt(var + eps)))
        return statistics, coefficients.to(high.dtype)

    return on_threads(work)


@_statistics.register_fake
def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    statistics = x.new_empty((2, channels), dtype=torch.float64)
    return statistics, x.new_empty((3, channels), dtype=_computed(x.dtype))
