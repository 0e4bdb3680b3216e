"""The byte model: what the kernels of an operation read and write, and how many there are.

A kernel's arguments say what it moves: whole arrays under the names x and dy (read), y and dx (written), one
value per channel under the others, and partial sums where several blocks share a channel. An array that two
launches read counts twice, though the second launch may find part of it in the L2 cache: the model cannot say
how much. Values per channel count once a launch, though every block reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu import launches
from benchmarks.libraries import BACKWARD, FORWARD, INFERENCE
from numbabn.backends.cuda import plan
from numbabn.backends.cuda.plan import Geometry
from tests.support.cases import Case

VERBS: dict[str, Callable[[launches.Shape, Any, int], list[launches.Launch]]] = {
    FORWARD: launches.forward,
    INFERENCE: launches.inference,
    BACKWARD: launches.backward,
}
BYTES = {plan.NONE: 0, plan.FLOAT16: 2, plan.BFLOAT16: 2, plan.FLOAT32: 4, plan.FLOAT64: 8}
PARTIAL_BYTES = 24  # three float64 per channel and part
READ, WRITTEN = ("x", "dy"), ("y", "dx")
READ_PER_CHANNEL, WRITTEN_PER_CHANNEL = ("mean", "var", "gamma", "beta", "sums"), ("dgamma", "dbeta")
STATISTICS = {"means": 1, "variances": 1, "sums": 2}  # float64 per channel, where a kernel writes them


@dataclass(frozen=True)
class Traffic:
    """Bytes moved by one call, and the kernels that move them."""

    read: int
    written: int
    kernels: tuple[str, ...]

    @property
    def moved(self) -> int:
        """Return the bytes read and written."""
        return self.read + self.written


def canonical(case: Case) -> launches.Shape:
    """Return (outer, channels, inner) of a case's array."""
    inner = int(np.prod(case.shape[case.axis + 1 :]))
    return case.size // (case.channels * inner), case.channels, inner


def traffic(operation: str, shape: launches.Shape, dtype: Any, resident: int) -> Traffic:
    """Return what an operation moves where ``resident`` blocks of a kernel run at once."""
    made = VERBS[operation](shape, dtype, resident)
    parts = [_of_launch(launch, np.dtype(dtype).itemsize) for launch in made]
    return Traffic(
        sum(read for read, _ in parts),
        sum(written for _, written in parts),
        tuple(launch.name for launch in made),
    )


def floor(operation: str, case: Case) -> int:
    """Return the bytes of float32 that no implementation can do without: every array once."""
    return (3 if operation == BACKWARD else 2) * case.nbytes


def _of_launch(launch: launches.Launch, itemsize: int) -> tuple[int, int]:
    """Return (bytes read, bytes written) of one launch."""
    given = launch.named
    geometry: Geometry = given["geometry"]
    channels = geometry.channels
    whole = geometry.outer * channels * geometry.inner * itemsize
    read = whole * sum(name in given for name in READ)
    written = whole * sum(name in given for name in WRITTEN)
    for name, value in given.items():
        if isinstance(value, tuple) and name in READ_PER_CHANNEL:
            read += channels * BYTES[value[1]] * STATISTICS.get(name, 1)
        elif isinstance(value, tuple) and name in WRITTEN_PER_CHANNEL:
            written += channels * BYTES[value[1]]
        elif name in STATISTICS:
            written += channels * 8 * STATISTICS[name]
    if geometry.parts > 1 and "partials" in given:
        partials = geometry.groups * geometry.parts * geometry.block * PARTIAL_BYTES
        read, written = read + partials, written + partials
    return read, written
