"""The verbs for one statistic per row, with parameters along it: `along_kernels`, and sums over the samples.

The kernels read gamma and beta, of which every element has another value, in the dtype of x: they are
converted where they have another.
"""

from typing import Any

import numpy as np

from numbabn.backends.cuda import along_kernels, arguments, copies, plan, strips
from numbabn.backends.cuda.arguments import Inputs
from numbabn.backends.cuda.plan import Rows
from numbabn.backends.verbs import Affine, Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory


def forward(x: Device, view: View, affine: Affine, y: Device, statistics: Pair) -> None:
    """Write y and the statistics (mean, biased variance), of RMS norm (0, mean square)."""
    gamma, beta = (_in_dtype_of(x, parameter) for parameter in affine.parameters)
    rows = _rows(view, 1, x, y, gamma, beta)
    along_kernels.forward.launch(
        x, -(-rows.count // rows.height),
        x.address, rows, x.dtype.type(0),
        arguments.along_map(gamma, beta, affine), arguments.moments(statistics), y.address,
    )  # fmt: skip


def backward(dy: Device, x: Device, view: View, statistics: Pair, affine: Affine, dx: Device) -> None:
    """Write dx."""
    gamma = _in_dtype_of(x, affine.parameters[0])
    rows = _rows(view, 2, x, dy, dx, gamma)
    along_kernels.backward.launch(
        x, -(-rows.count // rows.height),
        Inputs(dy.address, x.address), rows, x.dtype.type(0),
        arguments.statistics(statistics), arguments.along_scaling(gamma, affine), dx.address,
    )  # fmt: skip


def products(
    dy: Device, x: Device, view: View, statistics: Pair, eps: float, gradients: Pair, sums: Device
) -> None:
    """Write (sum of dy, sum of dy * xhat) of all samples to ``sums`` and to the gradients."""
    cut = plan.strips(view, all(array.address % plan.ALIGNMENT == 0 for array in (x, dy)))
    chunks = x.empty((2, cut.chunks, cut.groups * cut.length), np.dtype(np.float64))
    strips.products.launch(
        x, cut.chunks * cut.groups * cut.strips,
        Inputs(dy.address, x.address), cut, x.dtype.type(0),
        arguments.statistics(statistics), float(eps), chunks.address,
    )  # fmt: skip
    collect(chunks, cut.chunks, view, gradients, sums)


def collect(chunks: Device, count: int, view: View, gradients: Pair, sums: Device) -> None:
    """Add up float64 [2, count, places] to ``sums`` [2, groups * members], and write the gradients."""
    columns = view.groups * view.members
    inner = chunks.size // (2 * count * columns)
    strips.collect.launch(
        chunks, -(-columns // plan.LINE),
        chunks.address, count, columns, inner, arguments.results(sums, gradients),
    )  # fmt: skip


def _rows(view: View, loaded: int, *arrays: Device) -> Rows:
    """Return how arrays are cut up of which a block holds tiles of the first ``loaded`` at the same time."""
    rows = plan.rows(view, arrays[0].itemsize, loaded)
    aligned = all(array is None or array.address % plan.ALIGNMENT == 0 for array in arrays)
    return rows if aligned else rows._replace(vector=0)


def _in_dtype_of(x: Device, parameter: Device | None) -> Device | None:
    """Return a parameter, or None, in the dtype of x: itself, or a copy."""
    if parameter is None or parameter.dtype == x.dtype:
        return parameter
    converted = x.empty((parameter.size,), x.dtype)
    copies.copy(converted, parameter)
    return converted
