"""Measure the first use in a new process: the import, and a training step with an empty or a filled cache.

``python -m benchmarks.first_use`` prints a small table. Every run takes place in a new process; the import
and every shape have a new cache folder.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.tables import table
from tests.support.cases import Case

REPEATS = 5
CASES = (
    Case((32, 64), "NC"),
    Case((8192, 512), "NC"),
    Case((32, 64, 56, 56), "NCHW"),
    Case((32, 512, 7, 7), "NCHW"),
    Case((32, 56, 56, 64), "NHWC"),
)

IMPORT = """
from time import perf_counter
import numba
start = perf_counter()
import numbabn
print(perf_counter() - start)
"""

STEP = """
import sys
from time import perf_counter
import numpy as np
import numbabn
axis, *shape = map(int, sys.argv[1:])
x, dy = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
layer = numbabn.BatchNorm(shape[axis], axis=axis)
start = perf_counter()
layer(x)
layer.backward(dy)
print(perf_counter() - start)
"""

EVERYTHING_NAME = "training and inference, forward and backward, NCHW, NHWC and NC, float32 and float64"
EVERYTHING = """
from time import perf_counter
import numpy as np
import numbabn
start = perf_counter()
for shape, axis in (((32, 64, 56, 56), 1), ((32, 56, 56, 64), 3), ((8192, 512), 1)):
    for dtype in (np.float32, np.float64):
        x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        layer = numbabn.BatchNorm(shape[axis], axis=axis, dtype=dtype)
        for mode in layer.train, layer.eval:
            mode()(x)
            layer.backward(x)
print(perf_counter() - start)
"""


def main() -> None:
    rows = [["`import numbabn` beyond `import numba`", "", f"{import_seconds():.3f}", "<= 0.15"]]
    for case in CASES:
        empty, filled = step_seconds(case)
        rows.append([f"first training step, {case.name}", "empty", f"{empty:.2f}", "<= 3"])
        rows.append([f"first training step, {case.name}", "filled", f"{filled:.3f}", "<= 0.3"])
    empty, filled = everything_seconds()
    rows.append([EVERYTHING_NAME, "empty", f"{empty:.1f}", "<= 18"])
    rows.append([EVERYTHING_NAME, "filled", f"{filled:.2f}", ""])
    print(table(["", "cache", "seconds", "promised"], rows, text_columns=2))


def import_seconds() -> float:
    """Return the median time that importing numbabn adds to importing numba."""
    with tempfile.TemporaryDirectory() as cache:
        return statistics.median(_run(IMPORT, cache) for _ in range(REPEATS))


def step_seconds(case: Case) -> tuple[float, float]:
    """Return the seconds of a first training step with an empty cache, and their median with a filled one."""
    arguments = [str(number) for number in (case.axis, *case.shape)]
    with tempfile.TemporaryDirectory() as cache:
        empty = _run(STEP, cache, *arguments)
        return empty, statistics.median(_run(STEP, cache, *arguments) for _ in range(REPEATS))


def everything_seconds() -> tuple[float, float]:
    """Return the seconds of `EVERYTHING`, all of batch norm, with an empty cache and with a filled one."""
    with tempfile.TemporaryDirectory() as cache:
        return _run(EVERYTHING, cache), _run(EVERYTHING, cache)


def _run(script: str, cache: str, *arguments: str) -> float:
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", script, *arguments]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
