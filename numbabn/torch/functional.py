"""The five norms with the signatures of `torch.nn.functional`, and an activation in the same pass.

Each asks whether numbabn has kernels for the tensors and takes less time for them than PyTorch, and calls the
function of PyTorch if not: for tensors of few elements, integers, sparse tensors, subclasses of
`torch.Tensor`, empty batches, under `torch.func.vmap`, in forward-mode differentiation, and for whatever
PyTorch refuses, with its own error.

On the CPU numbabn computes batch norm of 100 000 elements or more for each thread, in channels_last of a
million; instance norm of 150 000 and 60 000, group norm of a million and 250 000, layer norm of 1.5 million,
RMS norm of 60 000, and each of 100 000 or fewer where an activation follows. So the bits of a sample can
change with the size of its batch and the number of threads. After
``torch.use_deterministic_algorithms(True)``, in ``torch.compile`` and in an export it computes all of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from numbabn.torch._autograd import normalize
from numbabn.torch._checks import has_kernels
from numbabn.torch._norms import (
    BATCH,
    GROUP,
    LAYER,
    RMS,
    Parameters,
    Task,
    activation_named,
    followed,
)
from numbabn.torch._running import track
from numbabn.torch._worth import is_faster

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def batch_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Normalise every channel of a batch, as `torch.nn.functional.batch_norm`.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of channel c in the batch if ``training``, else with the running
    ones.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64, shape (N, C, *)
        x, in any memory format, which the result keeps.
    running_mean, running_var : Tensor of shape (C,), or None
        Updated in place if ``training``: ``running = (1 - momentum) * running + momentum * batch``, with the
        unbiased variance.
    weight, bias : Tensor of shape (C,), optional
        Scale and shift, of the dtype of x, or float32 beside float16 and bfloat16.
    training : bool, default False
        Whether to use the statistics of the batch.
    momentum : float, default 0.1
        Weight of the new batch.
    eps : float, default 1e-5
        Added to the variance.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass; PyTorch's function has none.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0.

    Returns
    -------
    Tensor
        y: shape, dtype and memory format of x.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As PyTorch's function; and if there is no such activation.

    Notes
    -----
    Ioffe and Szegedy (2015), "Batch normalization: accelerating deep network training by reducing internal
    covariate shift". Where numbabn computes it, as the documentation of the module says, the result is that
    of `numbabn.batch_norm_forward`: the same bits in every run and for any number of threads.

    Examples
    --------
    >>> import torch
    >>> import numbabn.torch.functional as F
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> F.batch_norm(x, None, None, training=True).round(decimals=3)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    tensors = input, running_mean, running_var, weight, bias
    if has_torch_function_variadic(*tensors):
        options = {"activation": activation, "negative_slope": negative_slope}
        return _overridden(batch_norm, tensors, *tensors, training, momentum, eps, **options)
    follows = activation_named(activation, negative_slope)
    if not (
        (running_mean is None) == (running_var is None)
        and input.dim() > 1
        and has_kernels(input, (input.shape[1],), tensors[1:], eps)
        and is_faster("batch_norm", input, follows)
        and (input.numel() > input.shape[1] if training else running_mean is not None)
    ):
        y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return followed(y, follows)
    task = Task(BATCH, 0, eps, follows)
    if not training:
        return normalize(task, input, Parameters(weight, bias, running_mean, running_var))[0]
    y, statistics = normalize(task, input, Parameters(weight, bias))
    if running_mean is not None and running_var is not None:
        track(running_mean, running_var, statistics, momentum, input.numel() // input.shape[1])
    return y


def instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Normalise every channel of every sample, as `torch.nn.functional.instance_norm`.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of channel c of sample n if ``use_input_stats``, else with the
    running ones.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64, shape (N, C, *)
        x, in any memory format, which the result keeps.
    running_mean, running_var : Tensor of shape (C,), or None
        Updated in place if ``use_input_stats``, with the means of the statistics over all samples.
    weight, bias : Tensor of shape (C,), optional
        Scale and shift, of the dtype of x, or float32 beside float16 and bfloat16.
    use_input_stats : bool, default True
        Whether to use the statistics of x.
    momentum : float, default 0.1
        Weight of the new batch.
    eps : float, default 1e-5
        Added to the variance.
    activation, negative_slope
        As for `batch_norm`.

    Returns
    -------
    Tensor
        y: shape, dtype and memory format of x.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As PyTorch's function; and if there is no such activation.

    Notes
    -----
    Ulyanov, Vedaldi and Lempitsky (2016), "Instance normalization: the missing ingredient for fast
    stylization".

    Examples
    --------
    >>> import torch
    >>> import numbabn.torch.functional as F
    >>> F.instance_norm(torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])).round(decimals=3)
    tensor([[[-1.,  1.]],
    <BLANKLINE>
            [[-1.,  1.]]])
    """
    tensors = input, running_mean, running_var, weight, bias
    if has_torch_function_variadic(*tensors):
        options = {"activation": activation, "negative_slope": negative_slope}
        return _overridden(instance_norm, tensors, *tensors, use_input_stats, momentum, eps, **options)
    follows = activation_named(activation, negative_slope)
    if not (
        (running_mean is None) == (running_var is None)
        and input.dim() > 2
        and has_kernels(input, (input.shape[1],), tensors[1:], eps)
        and is_faster("instance_norm", input, follows)
        and (input.numel() > input.shape[0] * input.shape[1] if use_input_stats else running_mean is not None)
    ):
        y = F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return followed(y, follows)
    if not use_input_stats:
        task = Task(BATCH, 0, eps, follows)
        return normalize(task, input, Parameters(weight, bias, running_mean, running_var))[0]
    samples, channels = input.shape[:2]
    y, statistics = normalize(Task(GROUP, channels, eps, follows), input, Parameters(weight, bias))
    if running_mean is not None and running_var is not None:
        means = statistics.reshape(2, samples, channels).mean(1)
        track(running_mean, running_var, means, momentum, input.numel() // (samples * channels))
    return y


def group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Normalise groups of channels of every sample, as `torch.nn.functional.group_norm`.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of sample n over the channels of group g and all other axes.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64, shape (N, C, *)
        x, in any memory format, which the result keeps.
    num_groups : int
        G, a divisor of C.
    weight, bias : Tensor of shape (C,), optional
        Scale and shift, of the dtype of x, or float32 beside float16 and bfloat16.
    eps : float, default 1e-5
        Added to the variance.
    activation, negative_slope
        As for `batch_norm`.

    Returns
    -------
    Tensor
        y: shape, dtype and memory format of x.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As PyTorch's function; and if there is no such activation.

    Notes
    -----
    Wu and He (2018), "Group normalization". PyTorch's result is contiguous in some cases where x is not.

    Examples
    --------
    >>> import torch
    >>> import numbabn.torch.functional as F
    >>> F.group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2).round(decimals=3)
    tensor([[-1.,  1., -1.,  1.]])
    """
    tensors = input, weight, bias
    if has_torch_function_variadic(*tensors):
        options = {"activation": activation, "negative_slope": negative_slope}
        return _overridden(group_norm, tensors, input, num_groups, weight, bias, eps, **options)
    follows = activation_named(activation, negative_slope)
    if not (
        input.dim() > 1
        and has_kernels(input, (input.shape[1],), tensors[1:], eps)
        and is_faster("group_norm", input, follows)
        and 0 < num_groups < input.numel()
        and input.shape[1] % num_groups == 0
    ):
        y = F.group_norm(input, num_groups, weight, bias, eps)
        return followed(y, follows)
    return normalize(Task(GROUP, num_groups, eps, follows), input, Parameters(weight, bias))[0]


def layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Normalise every sample by itself, as `torch.nn.functional.layer_norm`.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean and the biased variance over the last axes.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64, shape (\*, \*normalized_shape)
        x, which is copied unless its last axes lie contiguously in memory.
    normalized_shape : sequence of int
        Lengths of the last axes, which are normalised together.
    weight, bias : Tensor of shape ``normalized_shape``, optional
        Scale and shift, of the dtype of x, or float32 beside float16 and bfloat16.
    eps : float, default 1e-5
        Added to the variance.
    activation, negative_slope
        As for `batch_norm`.

    Returns
    -------
    Tensor
        y: shape, dtype and memory format of x.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As PyTorch's function; and if there is no such activation.

    Notes
    -----
    Ba, Kiros and Hinton (2016), "Layer normalization".

    Examples
    --------
    >>> import torch
    >>> import numbabn.torch.functional as F
    >>> F.layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), (2,)).round(decimals=3)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    tensors = input, weight, bias
    if has_torch_function_variadic(*tensors):
        options = {"activation": activation, "negative_slope": negative_slope}
        return _overridden(layer_norm, tensors, input, normalized_shape, weight, bias, eps, **options)
    follows = activation_named(activation, negative_slope)
    shape = tuple(normalized_shape)
    if not (
        shape
        and has_kernels(input, shape, tensors[1:], eps)
        and is_faster("layer_norm", input, follows)
        and input.shape[-len(shape) :] == shape
    ):
        return followed(F.layer_norm(input, shape, weight, bias, eps), follows)
    return normalize(Task(LAYER, len(shape), eps, follows), input, Parameters(weight, bias))[0]


def rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    r"""Divide every sample by its root mean square, as `torch.nn.functional.rms_norm`.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \gamma

    with the mean over the last axes.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64, shape (\*, \*normalized_shape)
        x, which is copied unless its last axes lie contiguously in memory.
    normalized_shape : sequence of int
        Lengths of the last axes, which are normalised together.
    weight : Tensor of shape ``normalized_shape``, optional
        Scale, of the dtype of x, or float32 beside float16 and bfloat16.
    eps : float, optional
        Added to the mean of the squares; the machine epsilon of the dtype of x unless given, and that of
        float32 for float16 and bfloat16.
    activation, negative_slope
        As for `batch_norm`.

    Returns
    -------
    Tensor
        y: shape, dtype and memory format of x.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As PyTorch's function; and if there is no such activation.

    Notes
    -----
    Zhang and Sennrich (2019), "Root mean square layer normalization".

    Examples
    --------
    >>> import torch
    >>> import numbabn.torch.functional as F
    >>> F.rms_norm(torch.tensor([[1.0, 7.0]]), (2,)).round(decimals=3)
    tensor([[0.2000, 1.4000]])
    """
    tensors = input, weight
    if has_torch_function_variadic(*tensors):
        options = {"activation": activation, "negative_slope": negative_slope}
        return _overridden(rms_norm, tensors, input, normalized_shape, weight, eps, **options)
    follows = activation_named(activation, negative_slope)
    shape = tuple(normalized_shape)
    if not (
        shape
        and has_kernels(input, shape, tensors[1:], eps)
        and is_faster("rms_norm", input, follows)
        and input.shape[-len(shape) :] == shape
    ):
        return followed(F.rms_norm(input, shape, weight, eps), follows)
    if eps is None:
        eps = torch.finfo(torch.float64 if input.dtype is torch.float64 else torch.float32).eps
    return normalize(Task(RMS, len(shape), eps, follows), input, Parameters(weight, None))[0]


def _overridden(function: Any, tensors: tuple[Any, ...], *arguments: Any, **options: Any) -> Tensor:
    """Let a subclass of Tensor, or a mode, that overrides PyTorch's functions decide what this one does."""
    result: Tensor = handle_torch_function(function, tensors, *arguments, **options)
    return result
