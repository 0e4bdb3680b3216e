"""What the verbs of the GPU backend launch, found by recording launches in a list instead of making them.

Numba-cuda must be installed, but neither a GPU nor a driver: the arrays are made-up addresses that no kernel
reads. The library itself decides what it launches, so that nothing here has to be kept in step with it.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from numbabn.backends import cuda as backend
from numbabn.backends.cuda import channels, gpu, residency, workspaces
from numbabn.backends.cuda.launcher import StreamState
from numbabn.backends.verbs import Affine, Gradient, Result, View

Shape = tuple[int, int, int]  # outer, channels, inner

EPS = 1e-5
_PAGE = 4096
_addresses = itertools.count(_PAGE, _PAGE)


def view_of(shape: Shape) -> View:
    """Return how the verbs read an array of this shape."""
    outer, channels, inner = shape
    return View(1, outer, channels, 1, inner)


class Array:
    """A stand-in for a device array, which has everything that a verb asks of one but the memory."""

    device = 0
    stream = 0

    def __init__(
        self, shape: tuple[int, ...], dtype: Any = np.float32, strides: tuple[int, ...] | None = None
    ):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.itemsize = self.dtype.itemsize
        self.strides = strides or tuple(self.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        self.address = next(_addresses)

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return another stand-in, as a result of this array's library and device."""
        return Array(shape, dtype)


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, how many blocks, and what it is given."""

    kernel: gpu.Kernel
    blocks: int
    arguments: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Return the name of the kernel."""
        return self.kernel.function.__name__

    @property
    def named(self) -> dict[str, Any]:
        """Return the arguments by the names that the kernel has for them."""
        return inspect.signature(self.kernel.function).bind(*self.arguments).arguments


@contextmanager
def recorded(resident: int, clusters: bool = False) -> Iterator[list[Launch]]:
    """Record all launches in a list, as on a device that runs ``resident`` blocks of a group at once.

    With ``clusters`` it runs clusters of blocks, of any size.
    """
    launches: list[Launch] = []

    def launch(kernel: gpu.Kernel, array: Any, blocks: int, *arguments: Any, cluster: int = 1) -> None:
        launches.append(Launch(kernel, blocks, arguments))

    def may_wait(kernel: gpu.Kernel, array: Any, blocks: int, *arguments: Any) -> bool:
        return blocks <= resident

    def with_permit(array: Any, state: StreamState, launch: Callable[[Any], None]) -> bool:
        launch(residency.Permit(next(_addresses), 1))
        return True

    memory, state = SimpleNamespace(address=next(_addresses)), StreamState(False, False)
    with (
        mock.patch.object(gpu.Kernel, "launch", launch),
        mock.patch.object(gpu.Kernel, "may_wait", may_wait),
        mock.patch.object(gpu.Kernel, "runs_clusters", return_value=clusters),
        mock.patch.object(gpu, "device_zeros", return_value=memory),
        mock.patch.object(gpu, "stream_state", return_value=state),
        mock.patch.object(channels, "stream_state", return_value=state),
        mock.patch.object(residency, "launched", with_permit),
        mock.patch.dict(workspaces._pieces, clear=True),
        mock.patch.dict(workspaces._slabs, clear=True),
    ):
        yield launches


def forward(shape: Shape, dtype: Any, resident: int, clusters: bool = False) -> list[Launch]:
    """Return the launches of a training forward."""
    x, y = Array(shape, dtype), Array(shape, dtype)
    affine = Affine((Array(shape[1:2]), Array(shape[1:2])), EPS)
    with recorded(resident, clusters) as launches:
        backend.forward(x, view_of(shape), affine, y)
    return launches


def family(view: View, dtype: Any, resident: int, followed: bool = False) -> list[Launch]:
    """Return the launches of a training forward and backward where every sample has its own statistics.

    With ``followed`` the norm is followed by a ReLU and the addition of a residual.
    """
    x, y, dy, dx = (Array((math.prod(view),), dtype) for _ in range(4))
    gamma, beta, dgamma, dbeta = (Array((view.groups * view.members,), dtype) for _ in range(4))
    affine = Affine((gamma, beta), EPS)
    result, gradient = epilogue(y, dy, view) if followed else (y, dy)
    with recorded(resident) as launches:
        statistics = backend.samples.forward(x, view, affine, result)
        backend.samples.backward(gradient, x, view, statistics, affine, dx, (dgamma, dbeta))
    return launches


def epilogue(y: Array, dy: Array, view: View) -> tuple[Result, Gradient]:
    """Return what is passed in place of y and dy where a ReLU and the addition of a residual follow."""
    kept, phase = backend.keep(y, view)
    residual, dresidual = Array(y.shape, y.dtype), Array(y.shape, y.dtype)
    return Result(y, residual, kept, phase, None, None), Gradient(dy, dresidual, kept, phase, 0.0)


def followed(shape: Shape, dtype: Any, resident: int) -> list[Launch]:
    """Return the launches of a forward and a backward of batch norm that a ReLU follows, and a residual.

    The forward pass is one in training, then one with known statistics.
    """
    x, y, dy, dx = (Array(shape, dtype) for _ in range(4))
    view, affine = view_of(shape), Affine((Array(shape[1:2]), Array(shape[1:2])), EPS)
    gradients = Array(shape[1:2]), Array(shape[1:2])
    result, gradient = epilogue(y, dy, view)
    with recorded(resident) as launches:
        statistics = backend.forward(x, view, affine, result)
        backend.backward(gradient, x, view, statistics, affine, dx, gradients)
        backend.normalize(x, view, statistics, affine, result)
        backend.backward_known(gradient, view, statistics, affine, dx)
    return launches


def inference(shape: Shape, dtype: Any, resident: int) -> list[Launch]:
    """Return the launches of a forward with running statistics."""
    x, y = Array(shape, dtype), Array(shape, dtype)
    mean, var, gamma, beta = (Array(shape[1:2]) for _ in range(4))
    with recorded(resident) as launches:
        backend.normalize(x, view_of(shape), (mean, var), Affine((gamma, beta), EPS), y)
    return launches


def backward(shape: Shape, dtype: Any, resident: int, clusters: bool = False) -> list[Launch]:
    """Return the launches of a training backward."""
    dy, x, dx = (Array(shape, dtype) for _ in range(3))
    statistics = Array(shape[1:2], np.float64), Array(shape[1:2], np.float64)
    gamma, dgamma, dbeta = (Array(shape[1:2]) for _ in range(3))
    affine = Affine((gamma, None), EPS)
    with recorded(resident, clusters) as launches:
        backend.backward(dy, x, view_of(shape), statistics, affine, dx, (dgamma, dbeta))
    return launches
