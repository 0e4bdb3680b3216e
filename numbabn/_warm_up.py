"""Fill the cache of kernels, so that no later process waits for the compiler: ``python -m numbabn warm-up``.

Kernels depend on how channels lie in memory, on the dtype, and on whether the work is shared between threads,
not on exact shapes. So a few calls on small arrays compile what calls on arrays of any size need.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from numbabn.backends.compilation import LOGGER, Compilation
from numbabn.norms.batch import BatchNorm, batch_norm_inference
from numbabn.norms.group import GroupNorm
from numbabn.norms.instance import InstanceNorm
from numbabn.norms.layer import LayerNorm
from numbabn.norms.moments import moments
from numbabn.statistics.moments import Moments

# Shapes whose calls together reach all kernels of a layout: an array for one thread, one for several, and one
# with so few channels, or with such large samples, that several threads share a channel or a sample; or with
# so many channels of few values that a thread takes some channels of all samples. Rows are normalised each
# by itself, as by layer norm and RMS norm; groups as by group norm and instance norm; the other layouts are
# those of batch norm.
SHAPES = {
    "NC": ((64, 32), (4096, 128)),
    "NCHW": ((2, 4, 32, 32), (8, 64, 32, 32), (8, 3, 128, 128)),
    "NHWC": ((4, 8, 8, 32), (8, 32, 32, 64)),
    "rows": ((64, 256), (4096, 256)),
    "NCHW-groups": ((2, 64, 8, 8), (8, 64, 64, 64), (2, 8, 256, 256)),
    "NHWC-groups": ((4, 8, 8, 32), (8, 28, 28, 64), (1, 128, 128, 64)),
}
BY_SAMPLE = ("rows", "NCHW-groups", "NHWC-groups")  # layouts in which every sample has statistics of its own


def _training(x: Any, axis: int) -> None:
    layer = BatchNorm(x.shape[axis], axis=axis)
    layer.backward(layer(x))
    layer.eval()  # fine-tuning: statistics are constants
    layer.backward(layer(x))


def _inference(x: Any, axis: int) -> None:
    if x.dtype.kind == "f":
        BatchNorm(x.shape[axis], axis=axis).eval()(x)
    else:
        channels = x.shape[axis]
        batch_norm_inference(x, np.zeros(channels), np.ones(channels), axis=axis, dtype=np.float32)


def _statistics(x: Any, axis: int) -> None:
    if x.dtype.kind == "f":
        moments(x, axis=axis)
    seen = Moments(axis=axis).update(x)
    seen.merge(seen.copy())
    seen.normalize(x)


def _layers_by_sample(layout: str, x: Any) -> Iterator[Any]:
    """Return the layers of a layout; RMS norm has the kernels of layer norm."""
    if layout == "rows":
        yield LayerNorm(x.shape[-1])
    else:
        axis = layout.index("C")
        channels = x.shape[axis]
        yield GroupNorm(channels // 4, channels, axis=axis)
        yield InstanceNorm(channels, axis=axis, scale=True, center=True)


OPERATIONS = {"training": _training, "inference": _inference, "statistics": _statistics}
FLOATS = ("float32", "float64")
DTYPES = (*FLOATS, "uint8")  # the last one for images


@dataclass(frozen=True)
class Step:
    """One call that compiles what it needs."""

    layout: str
    shape: tuple[int, ...]
    dtype: str
    operation: str

    def run(self) -> None:
        """Make the call on zeros."""
        x = np.zeros(self.shape, self.dtype)
        if self.layout not in BY_SAMPLE:
            OPERATIONS[self.operation](x, self.layout.index("C"))
            return
        for layer in _layers_by_sample(self.layout, x):
            layer(x)
            if self.operation == "training":
                layer.backward(x)


def _exists(layout: str, dtype: str, operation: str) -> bool:
    if layout in BY_SAMPLE:
        return dtype in FLOATS and operation != "statistics"
    return dtype in FLOATS or operation != "training"


def steps(layouts: Iterable[str], dtypes: Iterable[str], operations: Iterable[str]) -> list[Step]:
    """Return the calls that compile all of this; there may be none."""
    return [
        Step(layout, shape, dtype, operation)
        for layout in layouts
        for dtype in dtypes
        for operation in operations
        if _exists(layout, dtype, operation)
        for shape in SHAPES[layout]
    ]


@contextmanager
def compilations() -> Iterator[list[Compilation]]:
    """Collect what is compiled in this context."""
    found: list[Compilation] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(record.msg, Compilation):
                found.append(record.msg)

    collector, level = Collector(), LOGGER.level
    LOGGER.addHandler(collector)
    LOGGER.setLevel(logging.INFO)
    try:
        yield found
    finally:
        LOGGER.removeHandler(collector)
        LOGGER.setLevel(level)
