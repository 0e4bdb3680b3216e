"""PyTorch's modules of the five norms, whose forward pass is numbabn's.

They are subclasses with the same parameters, buffers, states, options and errors: what PyTorch's
documentation says of a module holds here.
"""

import copy
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from numbabn.torch import functional as F
from numbabn.torch._norms import Activation

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
]


class Normalization(nn.Module):
    """What all modules here have in common: what may follow them, and what PyTorch's tools see."""

    following: Activation | None = (
        None  # `numbabn.torch.convert` joins one to a module; states do not have it
    )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise the input.

        In a symbolic trace of `torch.fx` the module stays whole, as those of PyTorch do.
        """
        if isinstance(input, Proxy):
            tracer: Any = input.tracer
            leaf: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
            return leaf
        return self._normalize(input)

    def _normalize(self, x: Tensor) -> Tensor:
        """Call the function of the norm, with what follows it."""
        raise NotImplementedError

    def _then(self) -> dict[str, Any]:
        """Return what follows as the functions take it."""
        return {} if self.following is None else self.following._asdict()

    def extra_repr(self) -> str:
        """Return the options, as PyTorch does, and what follows."""
        text: str = super().extra_repr()
        return text if self.following is None else f"{text}, activation={self.following.activation}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Return PyTorch's own module with the same tensors, which `torch.jit.script` takes."""
        if self.following is not None:
            raise TypeError(
                "torch.jit.script cannot take a norm that an activation was joined to; "
                "pass numbabn.torch.revert(model)"
            )
        plain = copy.copy(self)
        plain.__class__ = original(type(self))
        return plain


def original(kind: type[Normalization]) -> type[nn.Module]:
    """Return the class of PyTorch that one of numbabn's takes the place of."""
    return kind.__bases__[-1]


class _BatchNorm(Normalization):
    def _normalize(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean of all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = self.running_mean, self.running_var
        of_batch = self.training or (mean is None and var is None)
        if self.training and not self.track_running_stats:
            mean = var = None
        scale = self.weight, self.bias
        return F.batch_norm(x, mean, var, *scale, of_batch, momentum, self.eps, **self._then())


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by `numbabn.torch.functional.batch_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.BatchNorm1d(2)(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).detach().round(decimals=3)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by `numbabn.torch.functional.batch_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> bn = numbabn.torch.BatchNorm2d(3)
    >>> bn(torch.randn(8, 3, 4, 4)).shape, isinstance(bn, torch.nn.BatchNorm2d)
    (torch.Size([8, 3, 4, 4]), True)
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by `numbabn.torch.functional.batch_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.BatchNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


class _InstanceNorm(Normalization):
    def _normalize(self, x: Tensor) -> Tensor:
        y: Tensor = super(Normalization, self).forward(
            x
        )  # which checks x, and adds a batch axis where it has none
        return y

    def _apply_instance_norm(self, x: Tensor) -> Tensor:
        of_input = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        tensors = self.running_mean, self.running_var, self.weight, self.bias
        return F.instance_norm(x, *tensors, of_input, momentum, self.eps, **self._then())


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d`, computed by `numbabn.torch.functional.instance_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.InstanceNorm1d(1)(torch.tensor([[[1.0, 3.0]]])).round(decimals=3)
    tensor([[[-1.,  1.]]])
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, computed by `numbabn.torch.functional.instance_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.InstanceNorm2d(3)(torch.randn(8, 3, 4, 4)).shape
    torch.Size([8, 3, 4, 4])
    """


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d`, computed by `numbabn.torch.functional.instance_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.InstanceNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


class GroupNorm(Normalization, nn.GroupNorm):
    """`torch.nn.GroupNorm`, computed by `numbabn.torch.functional.group_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.GroupNorm(2, 4)(torch.tensor([[1.0, 3.0, 10.0, 30.0]])).detach().round(decimals=3)
    tensor([[-1.,  1., -1.,  1.]])
    """

    def _normalize(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, **self._then())


class LayerNorm(Normalization, nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed by `numbabn.torch.functional.layer_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.LayerNorm(2)(torch.tensor([[1.0, 3.0], [10.0, 30.0]])).detach().round(decimals=3)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """

    def _normalize(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, **self._then())


class RMSNorm(Normalization, nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed by `numbabn.torch.functional.rms_norm`.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.RMSNorm(2)(torch.tensor([[1.0, 7.0]])).detach().round(decimals=3)
    tensor([[0.2000, 1.4000]])
    """

    def _normalize(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps, **self._then())
