"""Measure what the norm takes of a training step of residual blocks in NumPy: ``python -m benchmarks.step``.

Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``step.md``, ``step.json`` and
``step.png``. All variants take turns in one process. Threads are bound to cores (``OMP_PROC_BIND=true``), as
in `benchmarks.moments`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numba
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks.libraries import NUMBABN
from benchmarks.machine import describe
from benchmarks.measure import median_and_p90
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.step_network import FUSED, NORMS, NUMPY, Network, Sizes, Step, difference
from benchmarks.tables import bullets, page, table
from benchmarks.workers import bind_threads

ROUNDS = 3
SIZES = Sizes()
LARGEST_DIFFERENCE = 1e-4  # of the loss and the gradients in float32, between any variant and NumPy's
ABOUT = """\
One training step, forward and backward, of a chain of residual blocks, y = max(norm(conv(x)) + x, 0), in
float32 NCHW. The 3x3 convolutions are matrix products by NumPy's BLAS, the same in all variants: they are
the rest of the step, with the loss and a sum of two gradients in each block. The norm part is batch norm,
addition and ReLU, forward and backward:

- `NumPy`: the formulas, with few temporary arrays;
- `numbabn`: the norm by `BatchNorm`, `+=`, `np.maximum` and `dy * (y > 0)` by NumPy;
- `numbabn, fused`: `BatchNorm(activation="relu")`, called with `residual=`.

BLAS and numbabn have the same number of threads. Times are milliseconds, medians of the rounds, in which the
variants take turns after one step of each that is not timed. Before, the loss and the gradients of all
parameters are compared."""


@dataclass(frozen=True)
class Row:
    """The times of one variant in milliseconds."""

    variant: str
    step_ms: float
    step_p90_ms: float
    norm_ms: float
    norm_p90_ms: float

    @classmethod
    def of(cls, variant: str, steps: Sequence[Step]) -> Row:
        """Return the row of timed steps."""
        times = ([step.seconds * 1e3 for step in steps], [step.norm_seconds * 1e3 for step in steps])
        return cls(variant, *median_and_p90(times[0]), *median_and_p90(times[1]))

    @property
    def share(self) -> float:
        """Return the part of the step that the norm part takes."""
        return self.norm_ms / self.step_ms


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    sizes = replace(SIZES, batch=options.batch)
    output = Output.chosen(parser, options, _left_out(options))
    bind_threads("benchmarks.step")
    numba.set_num_threads(options.threads)
    with threadpool_limits(options.threads, user_api="blas"):
        rows, largest = measure(sizes, options.rounds)
    output.deliver(_files(describe(options.threads), sizes, rows, largest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"timed steps of every variant (default {ROUNDS})"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of BLAS and of numbabn (default 2)")
    parser.add_argument(
        "--batch", type=int, default=SIZES.batch, help=f"images in a step (default {SIZES.batch})"
    )
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    found = [*uninstalled("matplotlib"), *fewer_rounds(options.rounds, ROUNDS)]
    if options.batch < SIZES.batch:
        found.append(f"{SIZES.batch - options.batch} of {SIZES.batch} images in a step")
    return found


def measure(sizes: Sizes, rounds: int) -> tuple[list[Row], float]:
    """Return the times of all variants, and the largest difference of a loss or gradient from NumPy's.

    Raises
    ------
    RuntimeError
        If a variant computes something else.
    """
    x = np.random.default_rng(1).standard_normal(sizes.shape, dtype=np.float32)
    networks = {variant: Network(sizes, norm, x.dtype) for variant, norm in NORMS.items()}
    largest = agreement({variant: network.step(x) for variant, network in networks.items()})
    steps: dict[str, list[Step]] = {variant: [] for variant in networks}
    for _ in tqdm(range(rounds), unit="round"):
        for variant, network in networks.items():
            steps[variant].append(network.step(x))
    return [Row.of(variant, timed) for variant, timed in steps.items()], largest


def agreement(steps: Mapping[str, Step]) -> float:
    """Return the largest difference from NumPy's step; raise a RuntimeError if it is too large."""
    differences = {variant: difference(steps[NUMPY], step) for variant, step in steps.items()}
    for variant, found in differences.items():
        if not found <= LARGEST_DIFFERENCE:  # NaN, too, is a failure
            raise RuntimeError(f"{variant}: loss or gradients differ from NumPy's by {found:.1e}")
    return max(differences.values())


def _files(machine: dict[str, str], sizes: Sizes, rows: list[Row], largest: float) -> Files:
    chain = f"{sizes.blocks} blocks of {'x'.join(map(str, sizes.shape))}"
    text = page(
        "What the norm takes of a training step",
        "Written by `python -m benchmarks.step`.",
        bullets(machine),
        ABOUT,
        f"The chain has {chain}. Of a gradient, the largest difference from NumPy's over its largest entry,\n"
        f"and of the loss the relative difference, is {largest:.1e} at most.",
        "![step](step.png)",
        _times(rows),
        _worth({row.variant: row for row in rows}),
    )
    numbers = {
        "machine": machine,
        "sizes": asdict(sizes),
        "difference": largest,
        "rows": [asdict(row) | {"share": row.share} for row in rows],
    }

    def draw(folder: Path) -> None:
        from benchmarks.figures import step_shares

        shares = {row.variant: (row.step_ms / 1e3, row.norm_ms / 1e3) for row in rows}
        step_shares(shares, f"A training step of {chain}, float32", machine["Processor"], folder / "step.png")

    return Files("step", text, numbers, draw)


def _times(rows: list[Row]) -> str:
    first = rows[0]
    cells = [
        [
            row.variant,
            f"{row.step_ms:.0f} ({row.step_p90_ms:.0f})",
            f"{row.norm_ms:.0f} ({row.norm_p90_ms:.0f})",
            f"{row.share:.1%}",
            f"{first.norm_ms / row.norm_ms:.2f}x",
            f"{first.step_ms / row.step_ms:.2f}x",
        ]
        for row in rows
    ]
    header = ["ms (90th percentile)", "step", "norm part", "share", "norm part faster", "step faster"]
    return table(header, cells)


def _worth(rows: Mapping[str, Row]) -> str:
    plain, fused = rows[NUMBABN], rows[FUSED]
    return (
        f"Fusing makes the norm part {plain.norm_ms / fused.norm_ms:.2f}x as fast as numbabn's norm with "
        f"NumPy's addition and ReLU, and the step {plain.step_ms / fused.step_ms:.2f}x."
    )


if __name__ == "__main__":
    main()
