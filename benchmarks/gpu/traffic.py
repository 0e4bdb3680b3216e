"""The byte model: what the kernels of an operation read and write, and how many there are.

A kernel's arguments say what it moves: whole arrays under the names x and dy (read), y and dx (written),
values per channel in named tuples, and partial sums where several blocks share a channel. An array that two
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
from numbabn.backends.cuda import arguments
from numbabn.backends.cuda.merging import SAMPLE_BYTES
from numbabn.backends.cuda.plan import Geometry
from tests.support.cases import Case

VERBS: dict[str, Callable[[launches.Shape, Any, int], list[launches.Launch]]] = {
    FORWARD: launches.forward,
    INFERENCE: launches.inference,
    BACKWARD: launches.backward,
}
BYTES = {
    arguments.NONE: 0,
    arguments.FLOAT16: 2,
    arguments.BFLOAT16: 2,
    arguments.FLOAT32: 4,
    arguments.FLOAT64: 8,
}
READ, WRITTEN = ("x", "dy"), ("y", "dx")
SUMS_BYTES = MOMENTS_BYTES = 16  # two float64 per channel


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
    """Return what an operation moves where ``resident`` blocks of a group run at once."""
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
    names = {*given, *(arguments.Inputs._fields if "inputs" in given else ())}
    read = whole * sum(name in names for name in READ)
    written = whole * sum(name in names for name in WRITTEN)
    read += channels * (SUMS_BYTES if "sums" in given else 0)
    for value in given.values():
        if isinstance(value, arguments.Statistics | arguments.Map | arguments.Scaling):
            read += channels * _kind_bytes(value)
        elif isinstance(value, arguments.Results):
            written += channels * (SUMS_BYTES + _kind_bytes(value))
        elif isinstance(value, arguments.Moments):
            written += channels * MOMENTS_BYTES
    if geometry.parts > 1 and "workspace" in given:
        # Where all blocks of a group read them, all but one find them in the L2 cache.
        partials = geometry.groups * geometry.parts * geometry.span * SAMPLE_BYTES
        read, written = read + partials, written + partials
    return read, written


def _kind_bytes(value: Any) -> int:
    """Return the bytes of one channel in the arrays of a tuple that go with a kind."""
    return sum(BYTES[getattr(value, name)] for name in value._fields if name.endswith("_kind"))
