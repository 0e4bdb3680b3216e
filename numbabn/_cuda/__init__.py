"""The GPU backend: the verbs of `numbabn._cpu` on flat, dense device arrays (`numbabn._arrays.DeviceArray`).

Nothing here waits for the device or copies from it; launches go to the current stream of the library of x.
Parameters and statistics are dense device arrays of one value per channel and of any float dtype; of float64
where a verb makes them.
"""

from typing import Any

import numpy as np

from numbabn._cuda import kernels, plan
from numbabn._cuda.gpu import Kernel
from numbabn._cuda.plan import Geometry, Shape
from numbabn._cuda.workspace import streams, workspace

Device = Any  # numbabn._arrays.DeviceArray, which is above this package
Parameter = tuple[int, int]  # address, kind


def moments(x: Device, shape: Shape, like: np.floating | None = None) -> tuple[Device, Device]:
    """Return (mean, m2) per channel: the mean, and the sum of squared deviations from it.

    ``like`` is a scalar of the dtype for sums of a few thousand values: float64 unless said.
    """
    mean, m2 = _vector(x, shape), _vector(x, shape)
    _moments(x, shape, mean, m2, np.float64(0) if like is None else like, divide=0)
    return mean, m2


def forward(
    x: Device, y: Device, shape: Shape, gamma: Device | None, beta: Device | None, eps: float
) -> tuple[Device, Device]:
    """Normalise with the statistics of x itself; return them as (mean, biased variance)."""
    geometry, like = _geometry(shape, 1, x, y), x.dtype.type(0)
    mean, var = _vector(x, shape), _vector(x, shape)
    arguments = (
        x.address, y.address, geometry, _parameter(gamma), _parameter(beta), float(eps),
        mean.address, var.address, *workspace(x, geometry), like,
    )  # fmt: skip
    if _meets(kernels.forward, x, geometry, arguments):
        kernels.forward.launch(x, geometry.groups * geometry.parts, *arguments)
        return mean, var
    _moments(x, shape, mean, var, like, divide=1)
    normalize(x, y, shape, mean, var, gamma, beta, eps)
    return mean, var


def normalize(
    x: Device,
    y: Device,
    shape: Shape,
    mean: Device | None,
    var: Device,
    gamma: Device | None,
    beta: Device | None,
    eps: float,
) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta with the statistics given."""
    geometry = _geometry(shape, 1, x, y)
    kernels.normalize.launch(
        x, geometry.groups * geometry.tiles,
        x.address, y.address, geometry, _parameter(mean), _parameter(var),
        _parameter(gamma), _parameter(beta), float(eps), x.dtype.type(0),
    )  # fmt: skip


def backward(
    dy: Device,
    x: Device,
    dx: Device,
    shape: Shape,
    gamma: Device | None,
    mean: Device,
    var: Device,
    eps: float,
    dgamma: Device | None,
    dbeta: Device | None,
) -> None:
    """Write dx, dgamma and dbeta of the training forward."""
    geometry = _geometry(shape, 2, x, dy, dx)
    sums = x.empty((2, shape[1]), np.dtype(np.float64))
    arguments = (
        x.address, dy.address, dx.address, geometry, _parameter(mean), _parameter(var), _parameter(gamma),
        float(eps), sums.address, _parameter(dgamma), _parameter(dbeta), *workspace(x, geometry),
        x.dtype.type(0),
    )  # fmt: skip
    if _meets(kernels.backward, x, geometry, arguments):
        kernels.backward.launch(x, geometry.groups * geometry.parts, *arguments)
        return
    _products(dy, x, shape, mean, var, eps, dgamma, dbeta, sums)
    backward_apply(dy, x, dx, shape, gamma, mean, var, eps, sums, shape[0] * shape[2])


def backward_reduce(
    dy: Device,
    x: Device,
    shape: Shape,
    mean: Device,
    var: Device,
    eps: float,
    dgamma: Device | None,
    dbeta: Device | None,
) -> Device:
    """Return (sum of dy, sum of dy * xhat), an array [2, channels]; write them to dbeta and dgamma too."""
    sums = x.empty((2, shape[1]), np.dtype(np.float64))
    _products(dy, x, shape, mean, var, eps, dgamma, dbeta, sums)
    return sums


def backward_apply(
    dy: Device,
    x: Device,
    dx: Device,
    shape: Shape,
    gamma: Device | None,
    mean: Device,
    var: Device,
    eps: float,
    sums: Device,
    count: int,
) -> None:
    """Write dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

    The sums may be those of more arrays than this one, and ``count`` their number of values per channel.
    """
    geometry = _geometry(shape, 2, x, dy, dx)
    kernels.gradient.launch(
        x, geometry.groups * geometry.tiles,
        x.address, dy.address, dx.address, geometry, _parameter(mean), _parameter(var),
        _parameter(gamma), float(eps), _parameter(sums), float(count), x.dtype.type(0),
    )  # fmt: skip


def scale(dy: Device, dx: Device, shape: Shape, gamma: Device | None, var: Device, eps: float) -> None:
    """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
    normalize(dy, dx, shape, None, var, gamma, None, eps)


def _moments(x: Device, shape: Shape, mean: Device, m2: Device, wide: np.floating, divide: int) -> None:
    geometry = _geometry(shape, 1, x)
    kernels.moments.launch(
        x, geometry.groups * geometry.parts,
        x.address, geometry, divide, mean.address, m2.address,
        *workspace(x, geometry), x.dtype.type(0), wide,
    )  # fmt: skip


def _products(
    dy: Device,
    x: Device,
    shape: Shape,
    mean: Device,
    var: Device,
    eps: float,
    dgamma: Device | None,
    dbeta: Device | None,
    sums: Device,
) -> None:
    geometry = _geometry(shape, 2, x, dy)
    kernels.products.launch(
        x, geometry.groups * geometry.parts,
        x.address, dy.address, geometry, _parameter(mean), _parameter(var), float(eps),
        sums.address, _parameter(dgamma), _parameter(dbeta), *workspace(x, geometry), x.dtype.type(0),
    )  # fmt: skip


def _geometry(shape: Shape, loaded: int, *arrays: Device) -> Geometry:
    """How to cut up arrays of which the first ``loaded`` are looked at together."""
    geometry = plan.geometry(shape, arrays[0].itemsize, loaded)
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


def _vector(x: Device, shape: Shape) -> Device:
    return x.empty((shape[1],), np.dtype(np.float64))


def _parameter(array: Device | None) -> Parameter:
    return (0, plan.NONE) if array is None else array.parameter
