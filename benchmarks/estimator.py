"""Measure StreamingStandardScaler against scikit-learn's StandardScaler: ``python -m benchmarks.estimator``.

Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``estimator.md`` and ``estimator.json``.
Both scalers run in this process, whose threads they share: NumPy uses none of its own for this work. They
take turns, burst by burst.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.measure import median_and_p90
from benchmarks.output import Files, Output, add_options, fewer_rounds
from benchmarks.tables import bullets, page, promises, table
from benchmarks.targets import Target
from benchmarks.workers import burst
from numbabn.sklearn import StreamingStandardScaler

SHAPES = ((200_000, 256), (50_000, 30), (1_000, 20))
DTYPES = ("float32", "float64")
SCALERS = (StandardScaler, StreamingStandardScaler)
TARGETS = {"transform": 3.0, "partial_fit": 10.0}  # least ratio of the times, on the first shape in float32
LARGEST_ERROR = 1e-6
ROUNDS = 7
BURST_SECONDS = 0.2
FEWEST_CALLS = 3

Operations = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """The times of both scalers in one operation, in milliseconds."""

    operation: str
    shape: tuple[int, int]
    dtype: str
    theirs_ms: float
    theirs_p90_ms: float
    mine_ms: float
    mine_p90_ms: float

    @property
    def ratio(self) -> float:
        """Return how many times faster numbabn is."""
        return self.theirs_ms / self.mine_ms


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimator", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"turns of each scaler per row (default {ROUNDS})"
    )
    add_options(parser)
    options = parser.parse_args()
    output = Output.chosen(parser, options, fewer_rounds(options.rounds, ROUNDS))
    cases = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]
    rows = [row for case in tqdm(cases, unit="shape") for row in measure(*case, options.rounds)]
    machine, checked = describe(), targets(rows)
    found = {
        "machine": machine,
        "targets": [asdict(target) for target in checked],
        "rows": [asdict(row) for row in rows],
    }
    output.deliver(Files("estimator", markdown(machine, checked, rows), found))


def data(shape: tuple[int, int], dtype: str) -> np.ndarray:
    """Return features of several means and spreads; a million normal numbers are repeated to fill them."""
    rng = np.random.default_rng(0)
    x = np.resize(rng.standard_normal(1_000_003, dtype=np.float32), shape)
    return (x * rng.uniform(0.5, 2, shape[1]) + rng.normal(0, 1, shape[1])).astype(dtype)


def operations(scaler_class: type, x: np.ndarray) -> Operations:
    """Return the calls of one scaler that are timed, written as its users write them."""
    scaler, weights = scaler_class().fit(x), np.ones(len(x))
    memory = scaler.transform(x)
    identity = scaler_class().fit(memory)  # standardised data stay the same when transformed in place
    return {
        "transform": partial(scaler.transform, x),
        "transform, copy=False": partial(identity.transform, memory, copy=False),
        "inverse_transform": partial(scaler.inverse_transform, x),
        "partial_fit": lambda: scaler_class().partial_fit(x),
        "partial_fit, sample_weight": lambda: scaler_class().partial_fit(x, sample_weight=weights),
        "fit_transform": lambda: scaler_class().fit_transform(x),
    }


def measure(shape: tuple[int, int], dtype: str, rounds: int) -> Iterator[Row]:
    """Time every operation of both scalers on one array."""
    x = data(shape, dtype)
    theirs, mine = (operations(scaler_class, x) for scaler_class in SCALERS)
    for operation in theirs:
        times: tuple[list[int], list[int]] = ([], [])
        for _ in range(rounds):
            for pooled, function in zip(times, (theirs[operation], mine[operation]), strict=True):
                pooled += burst(function, BURST_SECONDS, FEWEST_CALLS)
        figures = [nanoseconds / 1e6 for pooled in times for nanoseconds in median_and_p90(pooled)]
        yield Row(operation, shape, dtype, *figures)


def errors() -> tuple[float, float]:
    """Return the largest differences in float32 of transform from StandardScaler's and from the formula."""
    x = data(SHAPES[0], "float32")
    theirs, mine = (scaler_class().fit(x) for scaler_class in SCALERS)
    y, from_theirs, from_formula = mine.transform(x), 0.0, 0.0
    for part in np.array_split(np.arange(len(x)), 50):  # so that only one part at a time is in float64
        exact = (x[part].astype(np.float64) - mine.mean_) / mine.scale_
        from_theirs = max(from_theirs, float(np.abs(y[part] - theirs.transform(x[part])).max()))
        from_formula = max(from_formula, float(np.abs(y[part] - exact).max()))
    return from_theirs, from_formula


def targets(rows: list[Row]) -> list[Target]:
    """Return one target for every promise, of speed and of accuracy."""
    found: list[Target] = []
    for row in rows:
        least = TARGETS.get(row.operation)
        if least and (row.shape, row.dtype) == (SHAPES[0], DTYPES[0]):
            promise = f"{row.operation}, float32 {row.shape}: at least {least:g}x StandardScaler"
            found.append(Target(promise, f"{row.ratio:.1f}x", row.ratio >= least))
    from_theirs, from_formula = errors()
    promise = f"transform, float32 {SHAPES[0]}: within {LARGEST_ERROR:g} of StandardScaler"
    measured = f"{from_theirs:.1e}, and within {from_formula:.1e} of the formula in float64"
    return [*found, Target(promise, measured, from_theirs <= LARGEST_ERROR)]


def markdown(machine: dict[str, str], checked: list[Target], rows: list[Row]) -> str:
    """Return the run as a page of Markdown."""
    cells = [
        [
            f"{row.operation}, {row.dtype} {row.shape}",
            f"{row.theirs_ms:.3g} ({row.theirs_p90_ms:.3g})",
            f"{row.mine_ms:.3g} ({row.mine_p90_ms:.3g})",
            f"{row.ratio:.1f}x",
        ]
        for row in rows
    ]
    return page(
        "StreamingStandardScaler and StandardScaler",
        "Written by `python -m benchmarks.estimator`.",
        bullets(machine),
        promises(checked),
        "Medians of one call in milliseconds, with the 90th percentile.",
        table(["", "StandardScaler", "StreamingStandardScaler", "ratio"], cells),
    )


if __name__ == "__main__":
    main()
