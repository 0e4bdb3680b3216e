"""The GPU backend: the verbs of normalisation on flat, dense device arrays; see `numbabn.backends.verbs`.

A pair is a tuple of two arrays here. Nothing waits for the device or copies from it: launches go to the
current stream of the library of x.
"""

from typing import Any

import numpy as np

from numbabn.backends.cuda import kernels, plan, running
from numbabn.backends.cuda.gpu import Kernel
from numbabn.backends.cuda.plan import Geometry, parameter
from numbabn.backends.cuda.workspace import streams, workspace
from numbabn.backends.verbs import Affine, Pair, View

__all__ = [
    "backward", "backward_apply", "backward_reduce", "forward", "moments", "normalize", "running", "scale",
]  # fmt: skip

Device = Any  # numbabn.backends.verbs.DeviceMemory


def moments(x: Device, view: View, like: np.floating | None = None) -> Pair:
    """Return the pair (mean, m2), m2 being the sum of squared deviations from the mean.

    Sums of a few thousand values have the dtype of the scalar ``like``, float64 unless given.
    """
    return _moments(x, view, np.float64(0) if like is None else like, divide=0)


def normalize(x: Device, view: View, statistics: Pair, affine: Affine, y: Device) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    (mean, var), (gamma, beta) = statistics, affine.parameters
    geometry = _geometry(view, 1, x, y)
    kernels.normalize.launch(
        x, geometry.groups * geometry.tiles,
        x.address, y.address, geometry, parameter(mean), parameter(var),
        parameter(gamma), parameter(beta), float(affine.eps), x.dtype.type(0),
    )  # fmt: skip


def forward(x: Device, view: View, affine: Affine, y: Device) -> Pair:
    """Write y, normalised with the statistics of x itself; return the pair (mean, biased variance)."""
    geometry, like, (gamma, beta) = _geometry(view, 1, x, y), x.dtype.type(0), affine.parameters
    mean, var = _vector(x, view), _vector(x, view)
    arguments = (
        x.address, y.address, geometry, parameter(gamma), parameter(beta), float(affine.eps),
        mean.address, var.address, *workspace(x, geometry), like,
    )  # fmt: skip
    if _meets(kernels.forward, x, geometry, arguments):
        kernels.forward.launch(x, geometry.groups * geometry.parts, *arguments)
        return mean, var
    statistics = _moments(x, view, like, divide=1)
    normalize(x, view, statistics, affine, y)
    return statistics


def backward_reduce(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair
) -> Device:
    """Return the pair (sum of dy, sum of dy * xhat), and write it to the gradients (dgamma, dbeta)."""
    sums = x.empty((2, view.groups), np.dtype(np.float64))
    _products(dy, x, view, statistics, eps, gradients, sums)
    return sums


def backward_apply(
    dy: Device,
    x: Device,
    view: View,
    statistics: Pair,
    affine: Affine,
    sums: Device,
    count: int,
    dx: Device,
) -> None:
    """Write dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

    The sums may be those of more arrays than this one, and ``count`` their number of values per statistic.
    """
    (mean, var), (gamma, _) = statistics, affine.parameters
    geometry = _geometry(view, 2, x, dy, dx)
    kernels.gradient.launch(
        x, geometry.groups * geometry.tiles,
        x.address, dy.address, dx.address, geometry, parameter(mean), parameter(var),
        parameter(gamma), float(affine.eps), parameter(sums), float(count), x.dtype.type(0),
    )  # fmt: skip


def backward(
    dy: Device,
    x: Device,
    view: View,
    statistics: Pair,
    affine: Affine,
    dx: Device,
    gradients: Pair,
) -> None:
    """Write dx and the gradients of the training forward."""
    (mean, var), (gamma, _) = statistics, affine.parameters
    geometry = _geometry(view, 2, x, dy, dx)
    sums = x.empty((2, view.groups), np.dtype(np.float64))
    arguments = (
        x.address, dy.address, dx.address, geometry, parameter(mean), parameter(var), parameter(gamma),
        float(affine.eps), sums.address, *map(parameter, gradients),
        *workspace(x, geometry), x.dtype.type(0),
    )  # fmt: skip
    if _meets(kernels.backward, x, geometry, arguments):
        kernels.backward.launch(x, geometry.groups * geometry.parts, *arguments)
        return
    _products(dy, x, view, statistics, affine.eps, gradients, sums)
    backward_apply(dy, x, view, statistics, affine, sums, view.values, dx)


def scale(dy: Device, view: View, statistics: Pair, affine: Affine, dx: Device) -> None:
    """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
    gamma, _ = affine.parameters
    normalize(dy, view, (None, statistics[1]), Affine((gamma, None), affine.eps), dx)


def _moments(x: Device, view: View, wide: np.floating, divide: int) -> Pair:
    """Return (mean, m2), or (mean, m2 / count) if ``divide``; sums of a tile in wide's dtype."""
    geometry = _geometry(view, 1, x)
    mean, m2 = _vector(x, view), _vector(x, view)
    kernels.moments.launch(
        x, geometry.groups * geometry.parts,
        x.address, geometry, divide, mean.address, m2.address,
        *workspace(x, geometry), x.dtype.type(0), wide,
    )  # fmt: skip
    return mean, m2


def _products(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair, sums: Device
) -> None:
    mean, var = statistics
    geometry = _geometry(view, 2, x, dy)
    kernels.products.launch(
        x, geometry.groups * geometry.parts,
        x.address, dy.address, geometry, parameter(mean), parameter(var), float(eps), sums.address,
        *map(parameter, gradients), *workspace(x, geometry), x.dtype.type(0),
    )  # fmt: skip


def _geometry(view: View, loaded: int, *arrays: Device) -> Geometry:
    """How to cut up arrays of which the first ``loaded`` are looked at together."""
    geometry = plan.geometry(view, arrays[0].itemsize, loaded)
    aligned = all(array.address % plan.ALIGNMENT == 0 for array in arrays)
    return geometry if aligned else geometry._replace(vector=0)


def _meets(kernel: Kernel, x: Device, geometry: Geometry, arguments: tuple[Any, ...]) -> bool:
    """Whether all blocks of a group are resident at once, each with one tile, so that x is read once.

    They wait for each other, so that launches on other streams must leave room for all of them.
    """
    if geometry.step > 1:
        return False
    if geometry.parts == 1:
        return True
    launches = max(plan.CONCURRENT_LAUNCHES, streams(x.device))
    return geometry.parts * launches <= kernel.resident(x, *arguments)


def _vector(x: Device, view: View) -> Device:
    return x.empty((view.groups,), np.dtype(np.float64))
