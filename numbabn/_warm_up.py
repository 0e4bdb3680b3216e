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
from numbabn.norms.layer import LayerNorm
from numbabn.norms.moments import moments
from numbabn.statistics.moments import Moments

# Shapes whose calls together reach all kernels of a layout: an array for one thread, one for several, and in
# NCHW one with so few channels that several threads share a channel. Rows are samples, each normalised by
# itself, as by layer norm and RMS norm; layouts with a C have channels.
ROWS = "rows"
SHAPES = {
    "NC": ((64, 32), (4096, 128)),
    "NCHW": ((2, 4, 32, 32), (8, 64, 32, 32), (8, 3, 128, 128)),
    "NHWC": ((4, 8, 8, 32), (8, 32, 32, 64)),
    ROWS: ((64, 256), (4096, 256)),
}


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


def _training_of_rows(x: Any) -> None:
    layer = LayerNorm(x.shape[-1])
    layer.backward(layer(x))


def _inference_of_rows(x: Any) -> None:
    LayerNorm(x.shape[-1]).eval()(x)


OPERATIONS = {"training": _training, "inference": _inference, "statistics": _statistics}
OF_ROWS = {"training": _training_of_rows, "inference": _inference_of_rows}  # RMS norm has the same kernels
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
        if self.layout == ROWS:
            OF_ROWS[self.operation](x)
        else:
            OPERATIONS[self.operation](x, self.layout.index("C"))


def _exists(layout: str, dtype: str, operation: str) -> bool:
    if layout == ROWS:
        return dtype in FLOATS and operation in OF_ROWS
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
