"""A chain of residual blocks in NumPy, y = max(norm(conv(x)) + x, 0), and the training step that is timed.

The convolutions are matrix products by BLAS and the same in all variants. The norm part, which is the norm,
the addition and ReLU, is NumPy's, or numbabn's with NumPy's addition and ReLU, or numbabn's in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import numbabn as nbn
from benchmarks.libraries import EPS, NUMBABN

KERNEL = 3  # height and width of the convolutions
AXES = (0, 2, 3)  # of a statistic of NCHW


@dataclass(frozen=True)
class Sizes:
    """The sizes of a chain: its input is (batch, channels, side, side)."""

    batch: int = 32
    channels: int = 64
    side: int = 56
    blocks: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the input, and of the output of every block."""
        return self.batch, self.channels, self.side, self.side


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the convolution of x, with zeros around it, whose result has the shape of x.

    One sample at a time becomes a matrix of a column per pixel, which stays in the caches.
    """
    n, _, h, w = x.shape
    y = np.empty((n, len(weight), h * w), x.dtype)
    matrix = weight.reshape(len(weight), -1)
    for columns, result in zip(_columns(x), y, strict=True):
        np.matmul(matrix, columns, out=result)
    return y.reshape(n, len(weight), h, w)


def convolve_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of x and of the weight of `convolve`."""
    dx = convolve(dy, weight.swapaxes(0, 1)[:, :, ::-1, ::-1])
    dweight = np.zeros((len(weight), weight[0].size), weight.dtype)
    for columns, gradient in zip(_columns(x), dy, strict=True):
        dweight += gradient.reshape(len(weight), -1) @ columns.T
    return dx, dweight.reshape(weight.shape)


def _columns(x: np.ndarray):
    """Yield for every sample a matrix whose columns are what the convolution reads for a pixel.

    All are the same memory, which the next sample overwrites.
    """
    _, c, h, w = x.shape
    edge = (KERNEL // 2, KERNEL // 2)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge))
    columns = np.empty((c, KERNEL, KERNEL, h, w), x.dtype)
    for sample in padded:
        columns[...] = sliding_window_view(sample, (KERNEL, KERNEL), axis=(1, 2)).transpose(0, 3, 4, 1, 2)
        yield columns.reshape(c * KERNEL * KERNEL, h * w)


class NormPart(Protocol):
    """Batch norm, addition and ReLU of one block, which keeps what its backward pass needs."""

    def __init__(self, channels: int, dtype: np.dtype) -> None: ...

    def forward(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return max(norm(v) + z, 0); v is not needed afterwards."""

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of v and z."""

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of gamma and beta from the last backward pass."""


class NumPyNorm:
    """The formulas in NumPy, with few temporary arrays."""

    def __init__(self, channels: int, dtype: np.dtype):
        self._gamma, self._beta = np.ones((channels, 1, 1), dtype), np.zeros((channels, 1, 1), dtype)

    def forward(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return max(norm(v) + z, 0), and keep it, the normalised v and the deviations."""
        xhat = v - v.mean(axis=AXES, keepdims=True)
        self._invstd = 1 / np.sqrt(np.square(xhat).mean(axis=AXES, keepdims=True) + v.dtype.type(EPS))
        xhat *= self._invstd
        y = xhat * self._gamma
        y += self._beta
        y += z
        self._xhat, self._y = xhat, np.maximum(y, 0, out=y)
        return y

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of v and z."""
        dz = dy * (self._y > 0)
        count = dz[:, 0].size
        dgamma = np.einsum("nchw,nchw->c", dz, self._xhat).reshape(self._gamma.shape)
        dbeta = dz.sum(axis=AXES).reshape(self._beta.shape)
        dv = self._xhat * (-dgamma / count)
        dv += dz
        dv -= dbeta / count
        dv *= self._gamma * self._invstd
        self.gradients = dgamma.ravel(), dbeta.ravel()
        return dv, dz


class PlainNorm:
    """The norm by numbabn, the addition and ReLU by NumPy."""

    def __init__(self, channels: int, dtype: np.dtype):
        self._norm = nbn.BatchNorm(channels, eps=EPS, dtype=dtype)

    def forward(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return max(norm(v) + z, 0), and keep it."""
        y = self._norm(v)
        y += z
        self._y = np.maximum(y, 0, out=y)
        return y

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of v and z."""
        dz = dy * (self._y > 0)
        return self._norm.backward(dz), dz

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of gamma and beta from the last backward pass."""
        return self._norm.grads["gamma"], self._norm.grads["beta"]


class FusedNorm:
    """All of it by numbabn, in one call."""

    def __init__(self, channels: int, dtype: np.dtype):
        self._norm = nbn.BatchNorm(channels, eps=EPS, activation="relu", dtype=dtype)

    def forward(self, v: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return max(norm(v) + z, 0)."""
        return self._norm(v, residual=z)

    def backward(self, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of v and z."""
        dv = self._norm.backward(dy)
        return dv, self._norm.dresidual

    @property
    def gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of gamma and beta from the last backward pass."""
        return self._norm.grads["gamma"], self._norm.grads["beta"]


NUMPY, FUSED = "NumPy", "numbabn, fused"
NORMS: Mapping[str, type[NormPart]] = {NUMPY: NumPyNorm, NUMBABN: PlainNorm, FUSED: FusedNorm}


class Step(NamedTuple):
    """What one training step gave, and its times in seconds."""

    loss: float
    gradients: list[np.ndarray]  # of weight, gamma and beta of every block, the last block first
    seconds: float
    norm_seconds: float  # of the norm parts, forward and backward


class Network:
    """A chain of blocks, whose loss is half the mean square of its output."""

    def __init__(self, sizes: Sizes, norm: Callable[[int, np.dtype], NormPart], dtype: np.dtype):
        rng = np.random.default_rng(0)
        shape = (sizes.channels, sizes.channels, KERNEL, KERNEL)
        deviation = np.sqrt(2 / (sizes.channels * KERNEL * KERNEL))
        self._weights = [(rng.standard_normal(shape) * deviation).astype(dtype) for _ in range(sizes.blocks)]
        self._norms = [norm(sizes.channels, dtype) for _ in range(sizes.blocks)]

    def step(self, x: np.ndarray) -> Step:
        """Go forward and backward once; the parameters stay as they are."""
        start, norm_seconds = perf_counter(), 0.0
        inputs = []
        for weight, norm in zip(self._weights, self._norms, strict=True):
            inputs.append(x)
            v = convolve(x, weight)
            norm_start = perf_counter()
            x = norm.forward(v, x)
            norm_seconds += perf_counter() - norm_start
        loss, dy = float(np.vdot(x, x)) / (2 * x.size), x / x.dtype.type(x.size)
        gradients: list[np.ndarray] = []
        while inputs:
            block = len(inputs) - 1
            norm_start = perf_counter()
            dv, dx = self._norms[block].backward(dy)
            norm_seconds += perf_counter() - norm_start
            dy, dweight = convolve_backward(dv, inputs.pop(), self._weights[block])
            dy += dx
            gradients += [dweight, *self._norms[block].gradients]
        return Step(loss, gradients, perf_counter() - start, norm_seconds)


def difference(first: Step, second: Step) -> float:
    """Return the largest relative difference of the losses, and of a gradient from its largest entry."""
    found = [abs(first.loss - second.loss) / abs(first.loss)]
    for ours, theirs in zip(first.gradients, second.gradients, strict=True):
        found.append(np.abs(ours - theirs).max() / np.abs(ours).max())
    return float(np.max(found))  # NaN if any is: Python's max would pass over it
