"""Measure streaming statistics against NumPy, scikit-learn and the memory: ``python -m benchmarks.moments``.

Everything takes turns in one process, so that a loud minute of the machine falls on all of it; reading the
same array is timed in the same turns. Threads are bound to cores (``OMP_PROC_BIND=true``): one that was idle
while NumPy ran would else wake on the busy core, and every call take the 8 ms until the system moves it.
Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``moments.md`` and ``moments.json``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numba
import numpy as np
from tqdm import tqdm

import numbabn as nbn
from benchmarks.floor import reader
from benchmarks.machine import describe
from benchmarks.measure import median_and_p90
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.tables import bullets, page, promises, table
from benchmarks.targets import Target
from benchmarks.workers import bind_threads

ROUNDS = 5
OURS, READ, NUMPY, SKLEARN = SHOWN = ("numbabn", "reading the array", "NumPy", "scikit-learn")

ABOUT = """\
`python -m benchmarks.moments`; milliseconds, median (p90), everything in turns in one process. NumPy is
`x.mean` and `x.var`, of numbers of 8 and 16 bits after `astype(float32)`; scikit-learn is
`StandardScaler().partial_fit`. Only numbabn and the reading use more than one thread. Share: of the bandwidth
of reading the same array."""

Times = dict[str, tuple[float, float, int]]  # name -> (median, p90) in milliseconds, number of calls


@dataclass(frozen=True)
class Row:
    """One array whose statistics are computed, and the speed that is promised for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | tuple[int, ...]
    bandwidth: float | None = None  # least share of the bandwidth of reading the array
    faster: tuple[str, float] | None = None  # (library, least factor by which numbabn is faster)
    omit: bool = False

    @property
    def label(self) -> str:
        """Return dtype, layout and shape as one label."""
        return f"{self.dtype} {self.name} {'x'.join(map(str, self.shape))}"

    def data(self) -> np.ndarray:
        """Return an array of floats around 0, or of integers over the whole range of their dtype."""
        rng = np.random.default_rng(0)
        if self.dtype.startswith("float"):
            return rng.standard_normal(self.shape, np.float32).astype(self.dtype)
        span = np.iinfo(self.dtype)
        return rng.integers(span.min, span.max, self.shape, self.dtype, endpoint=True)


ROWS = (
    Row("NC", (200_000, 256), "float32", -1, bandwidth=0.8, faster=(SKLEARN, 10)),
    Row("NC", (50_000, 1024), "float32", -1, bandwidth=0.8),
    Row("NCHW", (32, 64, 112, 112), "float32", 1, bandwidth=0.8),
    Row("NCHW", (256, 64, 28, 28), "float32", 1, bandwidth=0.8),
    Row("NCHW", (256, 512, 7, 7), "float32", 1, bandwidth=0.8),
    Row("NHWC", (512, 224, 224, 3), "uint8", -1, bandwidth=0.5, faster=(NUMPY, 8)),
    Row("NCHW", (512, 3, 224, 224), "uint8", 1),
    Row("NHWC, each pixel", (512, 224, 224, 3), "uint8", (1, 2, 3)),
    Row("NC", (100_000, 256), "float64", -1),
    Row("NC", (200_000, 256), "float16", -1),
    Row("NC", (200_000, 256), "int16", -1),
    Row("NC", (50_000, 256), "int32", -1),
    Row("NC", (50_000, 256), "int64", -1),
    Row("NC, NaN left out", (200_000, 256), "float32", -1, omit=True),
)


def calls(row: Row, x: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return the functions that are timed on a row, by name."""
    kept = row.axis if isinstance(row.axis, tuple) else (row.axis % x.ndim,)
    rest = tuple(axis for axis in range(x.ndim) if axis not in kept)
    policy = "omit" if row.omit else "propagate"
    found: dict[str, Callable[[], object]] = {
        OURS: lambda: nbn.Moments(row.axis, nan_policy=policy).update(x),
        READ: reader(x),
        NUMPY: lambda: _numpy(x, rest, row.omit),
    }
    if x.ndim == 2:
        try:
            from sklearn.preprocessing import StandardScaler
        except ImportError:
            return found
        found[SKLEARN] = lambda: StandardScaler().partial_fit(x)
    return found


def _numpy(x: np.ndarray, rest: tuple[int, ...], omit: bool) -> object:
    values = x if x.dtype.itemsize > 2 else x.astype(np.float32)
    mean, var = (np.nanmean, np.nanvar) if omit else (np.mean, np.var)
    return mean(values, axis=rest), var(values, axis=rest)


def measure(row: Row, rounds: int) -> Times:
    """Return the times of all functions on one row, which take turns."""
    x = row.data()
    timed = calls(row, x)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for call in timed.values():
        call()
    for _ in range(rounds):
        for name, call in timed.items():
            for _ in range(1 if name in (NUMPY, SKLEARN) else 5):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: (*median_and_p90(pooled), len(pooled)) for name, pooled in times.items()}


def verdicts(row: Row, found: Times) -> Iterator[Target]:
    """Yield one target for every promise that a row has."""
    if row.bandwidth:
        share = found[READ][0] / found[OURS][0]
        promise = f"{row.label}: at least {row.bandwidth} of the read bandwidth"
        yield Target(promise, f"{share:.2f}", share >= row.bandwidth)
    if row.faster and row.faster[0] in found:
        name, least = row.faster
        factor = found[name][0] / found[OURS][0]
        yield Target(f"{row.label}: at least {least:g}x {name}", f"{factor:.1f}x", factor >= least)


def as_markdown(machine: dict[str, str], results: list[tuple[Row, Times]]) -> str:
    """Return the run as a page of Markdown."""
    rows = []
    for row, found in results:
        times = [f"{found[n][0]:.2f} ({found[n][1]:.2f})" if n in found else "-" for n in SHOWN]
        nbytes = np.dtype(row.dtype).itemsize * math.prod(row.shape)
        rate, share = nbytes / found[OURS][0] / 1e6, found[READ][0] / found[OURS][0]
        rows.append([row.label, times[0], f"{rate:.1f}", f"{share:.2f}", *times[1:]])
    header = ["array", "numbabn", "GB/s", "share", "reading", "NumPy", "scikit-learn"]
    checked = [target for row, found in results for target in verdicts(row, found)]
    return page(
        "Streaming statistics: count, mean, variance and range in one pass",
        ABOUT,
        bullets(machine),
        table(header, rows),
        promises(checked),
    )


def main() -> None:
    """Measure all rows, print the page and write the files that the options ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moments", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"turns of everything per row (default {ROUNDS})"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of numbabn and the reading (default 2)"
    )
    add_options(parser)
    options = parser.parse_args()
    left_out = [*uninstalled("sklearn"), *fewer_rounds(options.rounds, ROUNDS)]
    output = Output.chosen(parser, options, left_out)
    bind_threads("benchmarks.moments")
    numba.set_num_threads(options.threads)
    results = [(row, measure(row, options.rounds)) for row in tqdm(ROWS, unit="array")]
    machine = describe(options.threads)
    records = [
        {"name": row.name, "shape": row.shape, "dtype": row.dtype, "times": found} for row, found in results
    ]
    numbers = {"machine": machine, "rows": records}
    output.deliver(Files("moments", as_markdown(machine, results), numbers))


if __name__ == "__main__":
    main()
