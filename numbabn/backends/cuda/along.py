"""The verbs for one statistic per row, with parameters along it, but for sums over samples: see `strips`.

The kernels read gamma and beta, of which every element has another value, in the dtype of x: they are
converted where they have another.
"""

from typing import Any

from numbabn.backends.cuda import along_kernels, arguments, copies, plan
from numbabn.backends.cuda.arguments import arrays_of
from numbabn.backends.cuda.plan import Rows
from numbabn.backends.verbs import Affine, Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory


def forward(x: Device, view: View, affine: Affine, y: Device, statistics: Pair) -> None:
    """Write y and the statistics (mean, biased variance), of RMS norm (0, mean square)."""
    gamma, beta = (_in_dtype_of(x, parameter) for parameter in affine.parameters)
    rows = _rows(view, 1, *arrays_of(x, y, gamma, beta))
    along_kernels.forward.launch(
        x, -(-rows.number // rows.height),
        x.address, rows, x.dtype.type(0),
        arguments.along_map(gamma, beta, affine), arguments.moments(statistics),
        arguments.output(y, view, rows.vector),
    )  # fmt: skip


def backward(dy: Device, x: Device, view: View, statistics: Pair, affine: Affine, dx: Device) -> None:
    """Write dx."""
    gamma = _in_dtype_of(x, affine.parameters[0])
    rows = _rows(view, 2, *arrays_of(x, dy, dx, gamma))
    along_kernels.backward.launch(
        x, -(-rows.number // rows.height),
        arguments.inputs(dy, x, view), rows, x.dtype.type(0),
        arguments.statistics(statistics), arguments.along_scaling(gamma, affine), dx.address,
    )  # fmt: skip


def _rows(view: View, loaded: int, *arrays: Device) -> Rows:
    """Return how arrays are cut up of which a block holds tiles of the first ``loaded`` at the same time."""
    rows = plan.rows(view, arrays[0].itemsize, loaded)
    aligned = all(array.address % plan.ALIGNMENT == 0 for array in arrays)
    return rows if aligned else rows._replace(vector=0)


def _in_dtype_of(x: Device, parameter: Device | None) -> Device | None:
    """Return a parameter, or None, in the dtype of x: itself, or a copy."""
    if parameter is None or parameter.dtype == x.dtype:
        return parameter
    converted = x.empty((parameter.size,), x.dtype)
    copies.copy(converted, parameter)
    return converted
