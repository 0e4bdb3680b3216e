"""The verbs for one statistic per row, with parameters along it, but for sums over samples: see `strips`.

The kernels read gamma and beta, of which every element has another value, in the dtype that they compute in,
which is that of x, or float32 for half types: they are converted where they have another.
"""

from typing import Any

import numpy as np

from numbabn.backends.cuda import along_kernels, arguments, copies, plan
from numbabn.backends.cuda.arguments import arrays_of
from numbabn.backends.cuda.plan import Rows
from numbabn.backends.cuda.workspaces import scratch
from numbabn.backends.verbs import Affine, Pair, View

Device = Any  # numbabn.backends.verbs.DeviceMemory
_FLOAT32 = np.dtype(np.float32)


def forward(x: Device, view: View, affine: Affine, y: Device, statistics: Pair) -> None:
    """Write y and the statistics (mean, biased variance), of RMS norm (0, mean square)."""
    gamma, beta = (_computed(x, *named) for named in zip(("gamma", "beta"), affine.parameters, strict=True))
    rows = _rows(view, 1, arrays_of(x, y), (gamma, beta))
    along_kernels.forward.launch(
        x, -(-rows.number // rows.height),
        x.address, rows, arguments.zero(x.dtype),
        arguments.along_map(gamma, beta, affine), arguments.moments(statistics),
        arguments.output(y, view, rows.vector),
    )  # fmt: skip


def backward(dy: Device, x: Device, view: View, statistics: Pair, affine: Affine, dx: Device) -> None:
    """Write dx."""
    gamma = _computed(x, "gamma", affine.parameters[0])
    rows = _rows(view, 2, arrays_of(x, dy, dx), (gamma,))
    along_kernels.backward.launch(
        x, -(-rows.number // rows.height),
        arguments.inputs(dy, x, view), rows, arguments.zero(x.dtype),
        arguments.statistics(statistics), arguments.along_scaling(gamma, affine), dx.address,
    )  # fmt: skip


def _rows(view: View, loaded: int, arrays: tuple[Device, ...], parameters: tuple[Device | None, ...]) -> Rows:
    """Return how arrays are cut up of which a block holds tiles of the first ``loaded`` at the same time."""
    itemsize = arrays[0].itemsize
    rows = plan.rows(view, itemsize, loaded)
    vector = plan.aligned(rows.vector, itemsize, *[array.address for array in arrays])
    if any(parameter is not None and parameter.address % plan.ALIGNMENT for parameter in parameters):
        vector = 0
    return rows if vector == rows.vector else rows._replace(vector=vector)


def _computed(x: Device, name: str, parameter: Device | None) -> Device | None:
    """Return a parameter, or None, in the dtype that kernels compute in for x: itself, or a copy."""
    dtype = _FLOAT32 if x.itemsize == arguments.HALF_BYTES else x.dtype
    if parameter is None or parameter.dtype == dtype:
        return parameter
    converted: Device = scratch(x, name, (parameter.size,), dtype)
    copies.copy(converted, parameter)
    return converted
