"""The norms as operators of PyTorch, ``torch.ops.numbabn``, which torch.compile and torch.export keep whole.

But torch.compile has another way for batch norm: see `_compiled`.

An operator takes and returns tensors and numbers alone, and the number of elements of what it returns is
known from shapes. So an activation is a name, empty where there is none, and its bits are copied to a tensor
that is large enough for them wherever they begin.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from numbabn.norms._call import Needs
from numbabn.torch import _kernels
from numbabn.torch._kernels import Bits, Left
from numbabn.torch._norms import NORMS, Activation, Norm, Parameters, Task

_TASK = "int size, float eps, str activation, float slope"
_FORWARD = (
    f"(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, {_TASK})"
    " -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor statistics, Tensor bits, bool known, "
    f"bool[3] needs, {_TASK}) -> Tensor[]"
)


class _Operators(NamedTuple):
    """The two operators of a norm."""

    forward: Any
    backward: Any


def forward(task: Task, x: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the statistics, and the bits of an activation."""
    result: tuple[Tensor, Tensor, Tensor] = _OPERATORS[task.norm.name].forward(
        x, *parameters, *_numbers(task)
    )
    return result


def _numbers(task: Task) -> tuple[int, float, str, float]:
    """Inverse of `_task`."""
    return task.size, task.eps, *(task.activation or ("", 0.0))


def _task(norm: Norm, size: int, eps: float, activation: str, slope: float) -> Task:
    return Task(norm, size, eps, Activation(activation, slope) if activation else None)


def _forward(
    norm: Norm, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, *numbers: Any
) -> tuple[Tensor, ...]:
    parameters = Parameters(weight, bias, mean, var)
    y, statistics, bits, _ = _kernels.forward(_task(norm, *numbers), x, parameters)
    return y, statistics, _packed(bits, _bits_like(norm, x, numbers))


def _forward_fake(norm: Norm, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    numbers = others[4:]
    statistics = x.new_empty((2, norm.statistics(x.shape, numbers[0])), dtype=torch.float64)
    return torch.empty_like(x), statistics, _bits_like(norm, x, numbers)


def _bits_like(norm: Norm, x: Tensor, numbers: Sequence[Any]) -> Tensor:
    """Return memory for the bits of an activation, wherever they begin, and for their phase.

    A bit for each element, and for each statistic what fills its last word; on a GPU up to a byte.
    """
    size, _, activation, _ = numbers
    if not activation:
        return x.new_empty(0, dtype=torch.uint8)
    nbytes = x.numel() // (1 if x.is_cuda else 8) + 4 * norm.statistics(x.shape, size) + 64
    return x.new_empty(nbytes, dtype=torch.uint8)


def _packed(bits: Bits | None, memory: Tensor) -> Tensor:
    """Return the memory with the bits at its beginning, and their phase in its last byte."""
    if bits is not None:
        memory[: bits.memory.numel()] = bits.memory
        memory[-1] = bits.phase
    return memory


def _unpacked(memory: Tensor) -> Bits | None:
    return Bits(memory, int(memory[-1])) if memory.numel() else None


def _backward(
    norm: Norm, dy: Tensor, x: Tensor, weight: Any, bias: Any, statistics: Tensor, bits: Tensor, *others: Any
) -> list[Tensor]:
    known, needs, *numbers = others
    left = Left(_task(norm, *numbers), x, weight, bias, statistics, _unpacked(bits), known)
    return [gradient for gradient in _kernels.backward(left, dy, tuple(needs)) if gradient is not None]


def _backward_fake(norm: Norm, dy: Tensor, x: Tensor, weight: Any, bias: Any, *others: Any) -> list[Tensor]:
    needs = others[3]
    results = (
        torch.empty_like(x),
        *(each if each is None else torch.empty_like(each) for each in (weight, bias)),
    )
    return [result for result, need in zip(results, needs, strict=True) if need]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, mean, _, *ctx.numbers = inputs
    _, statistics, bits = output
    ctx.known = mean is not None
    ctx.save_for_backward(x, weight, bias, statistics, bits)
    ctx.set_materialize_grads(False)


def _differentiate(norm: Norm, ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    rest = None, None, *(None for _ in ctx.numbers)
    if dy is None:
        return None, None, None, *rest
    x, weight, bias, statistics, bits = ctx.saved_tensors
    needs: Needs = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        left = Left(_task(norm, *ctx.numbers), x, weight, bias, statistics, None, ctx.known)
        return *left.gradients(dy, needs), *rest
    operator = _OPERATORS[norm.name].backward
    found = iter(operator(dy, x, weight, bias, statistics, bits, ctx.known, list(needs), *ctx.numbers))
    return *(next(found) if need else None for need in needs), *rest


def _register(norm: Norm) -> _Operators:
    name = f"numbabn::{norm.name}"
    forward = torch.library.custom_op(name, partial(_forward, norm), mutates_args=(), schema=_FORWARD)
    backward = torch.library.custom_op(
        f"{name}_backward", partial(_backward, norm), mutates_args=(), schema=_BACKWARD
    )
    forward.register_fake(partial(_forward_fake, norm))
    backward.register_fake(partial(_backward_fake, norm))
    forward.register_autograd(partial(_differentiate, norm), setup_context=_set_up)
    return _Operators(forward, backward)


_OPERATORS = {norm.name: _register(norm) for norm in NORMS}
