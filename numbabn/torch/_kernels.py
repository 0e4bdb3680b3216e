"""The forward and the backward pass of any norm on tensors, through what is below numbabn's public functions.

Nothing here is differentiable, and nothing is checked: `numbabn.torch.functional` decides what comes here.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from numbabn.arrays import library_of
from numbabn.arrays.layout import Layout
from numbabn.backends.verbs import Affine, Kept
from numbabn.norms import _call
from numbabn.norms._epilogue import Passed, activation_of
from numbabn.norms._saved import Origin, Saved
from numbabn.torch._arrays import array_of, optional_array, recognised, result_like, tensor_of
from numbabn.torch._norms import Activation, Parameters, Task
from numbabn.torch._threads import on_threads


class Bits(NamedTuple):
    """Where the derivative of an activation is 1. ``phase`` is added to the index of an element."""

    memory: Tensor
    phase: int


class Reading(NamedTuple):
    """How a forward pass read its arrays; to find it out again is a third of a small backward pass.

    It holds no memory of x, so that hooks of saved tensors may move that elsewhere.
    """

    layout: Layout
    affine: Affine
    values: int  # of each statistic


class Result(NamedTuple):
    """The results of a forward pass."""

    y: Tensor
    statistics: Tensor  # [2, n]: means and biased variances, in float64
    bits: Bits | None
    reading: Reading


class Left(NamedTuple):
    """What a forward pass leaves for its backward pass."""

    task: Task
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    statistics: Tensor
    bits: Bits | None
    known: bool  # whether the statistics are constants
    reading: Reading | None = None

    def gradients(self, dy: Tensor, needs: _call.Needs) -> tuple[Tensor | None, ...]:
        """Return what `backward` does by PyTorch's formula, as a function that can be differentiated."""
        known = self.statistics if self.known else (None, None)
        return self.task.gradients(dy, self.x, Parameters(self.weight, self.bias, *known), needs)


def forward(task: Task, x: Tensor, parameters: Parameters) -> Result:
    """Return y, a new tensor of the dtype and memory format of x, and what the backward pass needs."""
    return on_threads(_forward, task, x, parameters)


def backward(left: Left, dy: Tensor, needs: _call.Needs) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight and bias, of which what is not needed is None."""
    return on_threads(_backward, left, dy.resolve_neg(), needs)


def _forward(task: Task, x: Tensor, parameters: Parameters) -> Result:
    y = result_like(x)
    call = task.norm.open(array_of(x), task.size)
    call.write_to(recognised(y))
    if task.activation is not None:
        call.follow(*task.activation, None)
    affine = call.affine(optional_array(parameters.weight), optional_array(parameters.bias), task.eps)
    statistics = known = None
    if parameters.mean is not None and parameters.var is not None:
        # A copy, because the running statistics may change before the backward pass.
        statistics = torch.stack((parameters.mean, parameters.var)).to(torch.float64)
        known = pair(statistics)
    _, saved = call.normalize(affine, known, None)
    if statistics is None:
        statistics = joined(saved._statistics)
    kept = None if saved._passed is None else saved._passed.kept
    bits = None if kept is None else Bits(tensor_of(kept.memory), kept.phase)
    return Result(y, statistics, bits, Reading(saved._layout, affine, saved._count))


def _backward(left: Left, dy: Tensor, needs: _call.Needs) -> tuple[Tensor | None, ...]:
    saved = _saved(left)
    dx = result_like(left.x) if needs[0] else None
    _, dweight, dbias = _call.backward(array_of(dy), saved, optional_array(dx), None, needs, None)
    return dx, *(None if array is None else tensor_of(array) for array in (dweight, dbias))


def _saved(left: Left) -> Saved:
    """Return what numbabn's forward pass left."""
    task, reading, x = left.task, left.reading, recognised(left.x)
    passed = None if left.bits is None else _passed(left.bits, task.activation)
    statistics = pair(left.statistics)
    if reading is not None and reading.layout.matches(x):
        origin: Origin = "given" if left.known else "x"
        return Saved(
            task.norm.name, x, reading.layout, reading.affine, statistics, reading.values, origin, passed
        )
    call = task.norm.open(x, task.size)
    affine = call.affine(optional_array(left.weight), optional_array(left.bias), task.eps)
    return call.recalled(affine, statistics, left.known, passed)


def _passed(bits: Bits, activation: Activation | None) -> Passed:
    derivative = 1.0 if activation is None else activation_of(*activation).derivative
    return Passed(Kept(recognised(bits.memory), bits.phase), derivative, False)


def pair(statistics: Tensor) -> Any:
    """Return statistics as backends take them: one array on the CPU, a tuple of two on a GPU."""
    if statistics.is_cpu:
        return statistics.numpy()
    return recognised(statistics[0]), recognised(statistics[1])


def joined(statistics: Any) -> Tensor:
    """Return statistics of a backend as one tensor [2, n], over their memory where they are one array."""
    first, second = statistics
    if library_of(first).on_host:
        return tensor_of(statistics)
    return torch.stack((tensor_of(first), tensor_of(second)))
