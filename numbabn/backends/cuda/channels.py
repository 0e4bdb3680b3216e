"""The verbs of batch norm on flat, dense device arrays, whose kernels also serve samples of channels.

Statistics are a tuple of two arrays here, and the sums of the backward pass are one array [2, channels]. A
channel has a gamma and a beta. No function waits for the device or copies from it: launches go to the current
stream of the library of x.

With a batch in the view, every sample has statistics of its own, as in instance norm: then there are results
of every sample, and no gradients of parameters, which `samples` adds up.
"""

from typing import Any, TypeAlias

import numpy as np

from numbabn.backends.cuda import arguments, kernels, plan, residency
from numbabn.backends.cuda.arguments import Cluster, Workspace, arrays_of
from numbabn.backends.cuda.gpu import stream_state
from numbabn.backends.cuda.launcher import AnyKernel, OnStream
from numbabn.backends.cuda.plan import Geometry, SampleGeometry
from numbabn.backends.cuda.workspaces import Scratch, scratch, workspace
from numbabn.backends.verbs import Affine, Gradient, Kept, Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory
Cut: TypeAlias = Geometry | SampleGeometry
_FLOAT64 = np.dtype(np.float64)


def keep(y: Device, view: View) -> Kept:
    """Return memory for what an activation keeps of y: a byte for each element, or for four; see `epilogue`.

    No phase is needed: where a byte is depends on the index of an element alone.
    """
    return Kept(y.empty((y.size // plan.sharing(view, y.itemsize),), np.dtype(np.uint8)), 0)


def moments(x: Device, view: View, like: np.floating | None = None) -> Pair:
    """Return the pair (mean, m2), m2 being the sum of squared deviations from the mean.

    Sums of a few thousand values have the dtype of the scalar ``like``, float64 unless given.
    """
    pair = float64(x, view.batch * view.groups), float64(x, view.batch * view.groups)
    write_moments(x, view, np.float64(0) if like is None else like, 0, pair)
    return pair


def normalize(x: Device, view: View, statistics: Pair, affine: Affine, y: Device) -> None:
    """Write y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    geometry = geometry_of(view, 1, x, y)
    read = arguments.inputs(x, None, view) if isinstance(x, Gradient) else x.address
    array, *_ = arrays_of(x)
    kernels.normalize.launch(
        array, geometry.groups * geometry.tiles,
        read, geometry, arguments.zero(array.dtype),
        arguments.statistics(statistics), arguments.affine_map(affine),
        arguments.output(y, view, geometry.vector),
    )  # fmt: skip


def forward(x: Device, view: View, affine: Affine, y: Device) -> Pair:
    """Write y, normalised with the statistics of x itself; return the pair (mean, biased variance)."""
    groups, like = view.batch * view.groups, arguments.zero(x.dtype)
    statistics = float64(x, groups), float64(x, groups)
    geometry = geometry_of(view, 1, x, y)
    read = x.address, geometry
    given = (
        like, arguments.affine_map(affine), arguments.moments(statistics),
        arguments.output(y, view, geometry.vector),
    )  # fmt: skip
    if not launched_once(kernels.forward, x, read, given):
        write_moments(x, view, like, 1, statistics)
        normalize(x, view, statistics, affine, y)
    return statistics


def backward_reduce(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair
) -> Scratch:
    """Return (sum of dy, sum of dy * xhat) as [2, channels], and write it to (dgamma, dbeta).

    What is returned is scratch memory, which the next call overwrites.
    """
    sums = scratch(x, "sums", (2, view.groups))
    write_products(dy, x, view, statistics, eps, gradients, sums)
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
    geometry = geometry_of(view, 2, x, dy, dx)
    kernels.gradient.launch(
        x, geometry.groups * geometry.tiles,
        arguments.inputs(dy, x, view), geometry, arguments.zero(x.dtype),
        arguments.statistics(statistics), arguments.scaling(affine), sums.address, int(count), dx.address,
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
    sums = scratch(x, "sums", (2, view.groups))
    backward_with_sums(dy, x, view, statistics, affine, dx, gradients, sums)


def backward_known(dy: Device, view: View, statistics: Pair, affine: Affine, dx: Device) -> None:
    """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
    gamma, _ = affine.parameters
    normalize(dy, view, (None, statistics[1]), Affine((gamma, None), affine.eps), dx)


def backward_with_sums(
    dy: Device,
    x: Device,
    view: View,
    statistics: Pair,
    affine: Affine,
    dx: Device,
    gradients: Pair,
    sums: Device,
) -> None:
    """`backward` where every channel has statistics of its own; with ``sums`` as `write_products`."""
    geometry = geometry_of(view, 2, x, dy, dx)
    read = arguments.inputs(dy, x, view), geometry
    given = (
        arguments.zero(x.dtype), arguments.statistics(statistics), arguments.scaling(affine), dx.address,
        arguments.results(sums, gradients),
    )  # fmt: skip
    if not launched_once(kernels.backward, x, read, given):
        write_products(dy, x, view, statistics, affine.eps, gradients, sums)
        backward_apply(dy, x, view, statistics, affine, sums, view.values, dx)


def write_moments(x: Device, view: View, wide: np.floating, divide: int, pair: Pair) -> None:
    """Write (mean, m2), or (mean, m2 / count) if ``divide`` is 1; a tile is summed in wide's dtype."""
    geometry = geometry_of(plan.merged(view), 1, x, shared=view.members > 1)
    kernels.moments.launch(
        x, geometry.groups * geometry.parts,
        x.address, geometry, workspace(x, geometry), arguments.zero(x.dtype), wide, divide,
        arguments.moments(pair),
    )  # fmt: skip


def write_products(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair, sums: Device
) -> None:
    """Write (sum of dy, sum of dy * xhat) to ``sums`` and to the gradients (dgamma, dbeta).

    ``sums`` are [2, samples, channels]; with several samples there can be no gradients.
    """
    geometry = geometry_of(view, 2, x, dy)
    kernels.products.launch(
        x, geometry.groups * geometry.parts,
        arguments.inputs(dy, x, view), geometry, workspace(x, geometry), arguments.zero(x.dtype),
        arguments.statistics(statistics), float(eps), arguments.results(sums, gradients),
    )  # fmt: skip


def geometry_of(view: View, loaded: int, *arrays: Device, shared: bool = False) -> Cut:
    """Return how arrays are cut up of which a block holds tiles of the first ``loaded`` at the same time.

    Results and gradients may be among them.
    """
    itemsize = arrays[0].dtype.itemsize
    geometry = plan.geometry(view, itemsize, loaded, shared)
    vector = plan.aligned(geometry.vector, itemsize, *[array.address for array in arrays_of(*arrays)])
    return geometry if vector == geometry.vector else geometry._replace(vector=vector)


def launched_once(kernel: AnyKernel, x: Device, read: tuple[Any, Cut], given: tuple[Any, ...]) -> bool:
    """Launch a kernel that reads x once, if its blocks may wait for each other, and return whether they may.

    ``read`` and ``given`` are what it takes before its workspace, and after it.
    """
    _, geometry = read
    if geometry.part_tiles > 1:
        return False
    on, blocks = OnStream(x.device, x.stream), geometry.groups * geometry.parts
    if geometry.parts == 1:
        kernel.launch(on, blocks, *read, workspace(on, geometry), *given)
        return True
    state, group = stream_state(on), Cluster(geometry.parts)
    fits = geometry.span <= plan.CLUSTER_CHANNELS
    if fits and kernel.runs_clusters(on, state, geometry.parts, *read, group, *given):
        kernel.launch(on, blocks, *read, group, *given, cluster=geometry.parts)
        return True
    space = workspace(on, geometry)
    if not kernel.may_wait(on, geometry.parts, *read, space, *given):
        return False

    def launch(permit: residency.Permit) -> None:
        kernel.launch(on, blocks, *read, Workspace(space.counters, space.partials, *permit), *given)

    return residency.launched(on, state, launch)


def float64(x: Device, *shape: int) -> Device:
    """Return an array without values for results of statistics of x.

    Mean and variance have one each: to allocate one for both and to take two views of it takes PyTorch 2.3
    us, and two allocations take 1.6, as measured on a CPU.
    """
    return x.empty(shape, _FLOAT64)
