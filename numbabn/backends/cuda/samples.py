"""The verbs of all norms but batch norm on device arrays: every sample has statistics of its own."""

from typing import Any

from numbabn.backends.cuda import along, arguments, kernels, plan, strips
from numbabn.backends.cuda.channels import (
    backward_with_sums,
    float64,
    geometry_of,
    normalize,
    write_moments,
    write_products,
)
from numbabn.backends.cuda.channels import forward as forward_of_channels
from numbabn.backends.cuda.channels import keep as keep_of_channels
from numbabn.backends.cuda.workspaces import Scratch, scratch
from numbabn.backends.verbs import Affine, Kept, Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory


def keep(y: Device, view: View) -> Kept:
    """Return memory for what an activation keeps of y."""
    return keep_of_channels(y, view)


def forward(x: Device, view: View, affine: Affine, y: Device) -> Pair:
    """Write y; return the pair (mean, biased variance), and of RMS norm (0, mean square)."""
    if view.members == 1 and not plan.runs_along(view):
        return forward_of_channels(x, view, affine, y)
    statistics = float64(x, view.batch * view.groups), float64(x, view.batch * view.groups)
    if plan.runs_along(view):
        along.forward(x, view, affine, y, statistics)
    else:  # x is read twice: a tile of a channel is too little to take shared statistics of
        write_moments(x, view, arguments.zero(x.dtype), 1, statistics)
        normalize(x, view, statistics, affine, y)
    return statistics


def backward_reduce(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair
) -> Scratch:
    """Return (sum of dy, sum of dy * xhat) as `channels.backward_reduce` does."""
    sums = _added(x, view)
    if plan.runs_along(view):
        strips.add_products(dy, x, view, statistics, eps, gradients, sums)
    elif view.batch == 1:
        write_products(dy, x, view, statistics, eps, gradients, sums)
    else:
        several = _sums_of_samples(x, view)
        write_products(dy, x, view, statistics, eps, (None, None), several)
        strips.add_samples(several, view, gradients, sums)
    return sums


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
    wanted = any(gradient is not None for gradient in gradients)
    if plan.runs_along(view):
        if wanted:  # first, since dx may be written over dy
            strips.add_products(dy, x, view, statistics, affine.eps, gradients, _added(x, view))
        along.backward(dy, x, view, statistics, affine, dx)
        return
    sums = _sums_of_samples(x, view)
    written = gradients if view.batch == 1 else (None, None)
    if view.members > 1:
        write_products(dy, x, view, statistics, affine.eps, written, sums)
        _shared_gradient(dy, x, view, statistics, affine, sums, dx)
    else:
        backward_with_sums(dy, x, view, statistics, affine, dx, written, sums)
    if wanted and view.batch > 1:
        strips.add_samples(sums, view, gradients, _added(x, view))


def _added(x: Device, view: View) -> Scratch:
    """Return scratch memory for the sums of every channel over all samples."""
    return scratch(x, "added", (2, view.groups * view.members))


def _sums_of_samples(x: Device, view: View) -> Scratch:
    """Return scratch memory for the sums of every channel of every sample."""
    return scratch(x, "sums", (2, view.batch * view.groups * view.members))


def _shared_gradient(
    dy: Device, x: Device, view: View, statistics: Pair, affine: Affine, sums: Device, dx: Device
) -> None:
    """Write dx where several channels share statistics, from the ``sums`` of `write_products`."""
    geometry, scaling = geometry_of(view, 2, x, dy, dx), arguments.scaling(affine)
    totals = scratch(x, "totals", (2, view.batch * view.groups))
    kernels.weigh.launch(
        x, view.batch * view.groups, sums.address, view.groups, view.members, scaling, totals.address
    )
    kernels.shared_gradient.launch(
        x, geometry.groups * geometry.tiles,
        arguments.inputs(dy, x, view), geometry, arguments.zero(x.dtype),
        arguments.statistics(statistics), scaling, totals.address, view.values, dx.address,
    )  # fmt: skip
