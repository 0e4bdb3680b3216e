"""The norms: how numbabn opens a call of each, and PyTorch's own formula for it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from numbabn.norms._call import Call, Needs
from numbabn.norms._epilogue import activation_of
from numbabn.norms.group import GroupCall
from numbabn.norms.layer import LayerCall, RMSCall


class Norm(NamedTuple):
    """A norm whose one number is ``size``: of groups, or of the last axes that are normalised together.

    Instance norm is group norm with as many groups as channels; batch norm has no such number.
    """

    name: str
    open: Callable[[Any, int], Call]  # of x and size
    statistics: Callable[[Sequence[int], int], int]  # how many there are for x of a shape, and a size
    formula: Callable[["Task", Tensor, "Parameters"], Tensor]  # PyTorch's


class Activation(NamedTuple):
    """What follows a norm in the same pass: options of all functions."""

    activation: str
    negative_slope: float

    def formula(self, y: Tensor) -> Tensor:
        """Return PyTorch's result."""
        if self.activation == "leaky_relu":
            return F.leaky_relu(y, self.negative_slope)
        return F.relu6(y) if self.activation == "relu6" else F.relu(y)


def activation_named(name: str | None, negative_slope: float) -> Activation | None:
    """Return an activation, or None without a name; raise if there is none of that name."""
    if name is None:
        return None
    activation_of(name, negative_slope)
    return Activation(name, negative_slope)


def followed(y: Tensor, activation: Activation | None) -> Tensor:
    """Return the activation of y by PyTorch's operators, or y itself without one."""
    return y if activation is None else activation.formula(y)


class Task(NamedTuple):
    """What is computed, but for the tensors."""

    norm: Norm
    size: int
    eps: float
    activation: Activation | None

    def formula(self, x: Tensor, parameters: "Parameters") -> Tensor:
        """Return the result of PyTorch's operators, which differentiate as often as one likes."""
        return followed(self.norm.formula(self, x, parameters), self.activation)

    def gradients(
        self, dy: Tensor, x: Tensor, parameters: "Parameters", needs: Needs
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias by the formula; they are recorded if gradients are."""
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases, because one of them may be a function of another, to which autograd would go on.
            x, weight, bias = (each if each is None else each.view_as(each) for each in (x, *parameters[:2]))
            y = self.formula(x, parameters._replace(weight=weight, bias=bias))
            wanted = [each for each, need in zip((x, weight, bias), needs, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=recorded))
        return tuple(next(found) if need else None for need in needs)


class Parameters(NamedTuple):
    """The tensors beside x: scale and shift, and known statistics of the channels, which are constants."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None = None
    var: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether statistics are given, and not taken of x."""
        return self.mean is not None


def _batch(task: Task, x: Tensor, parameters: Parameters) -> Tensor:
    weight, bias, mean, var = parameters
    if mean is None or var is None:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, task.eps)
    along = (1, -1, *(1,) * (x.dim() - 2))
    y = (x - mean.reshape(along)) * torch.rsqrt(var + task.eps).reshape(along)
    if weight is not None:
        y = y * weight.reshape(along)
    if bias is not None:
        y = y + bias.reshape(along)
    return y.to(x.dtype)  # the statistics may be in float64


def _group(task: Task, x: Tensor, parameters: Parameters) -> Tensor:
    return F.group_norm(x, task.size, parameters.weight, parameters.bias, task.eps)


def _layer(task: Task, x: Tensor, parameters: Parameters) -> Tensor:
    shape = list(x.shape[x.dim() - task.size :])
    return F.layer_norm(x, shape, parameters.weight, parameters.bias, task.eps)


def _rms(task: Task, x: Tensor, parameters: Parameters) -> Tensor:
    return F.rms_norm(x, list(x.shape[x.dim() - task.size :]), parameters.weight, task.eps)


def _last(x: Any, size: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - size, x.ndim))


def _samples(shape: Sequence[int], size: int) -> int:
    return math.prod(shape[: len(shape) - size])


BATCH = Norm("batch_norm", lambda x, _: Call(x, 1), lambda shape, _: shape[1], _batch)
GROUP = Norm(
    "group_norm", lambda x, size: GroupCall(x, 1, size, None), lambda shape, size: shape[0] * size, _group
)
LAYER = Norm("layer_norm", lambda x, size: LayerCall(x, _last(x, size), None), _samples, _layer)
RMS = Norm("rms_norm", lambda x, size: RMSCall(x, _last(x, size), None), _samples, _rms)
NORMS = (BATCH, GROUP, LAYER, RMS)
