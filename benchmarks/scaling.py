"""Measure bytes per second against the size of the array and the threads: ``python -m benchmarks.scaling``.

Arrays of float32 from 4 KB to 4 GB, each four times as large as the one before. A layout's arrays have:

- NCHW and NHWC: from 4 MB on maps of 56x56 with 64 channels, in batches of 5, 20, 80, ...; below that the
  batch is 5, and the side of the maps is halved down to 7, then the number of channels is quartered;
- NC: at 4 KB 16 samples of 64 channels; both double up to 1024 channels, then the batch is quadrupled.

Larger arrays than those of 256 MB are held by one worker process at a time, in one round, so that 15 GB of
memory suffice for all rows; those for which there is less memory are left out. Three sizes are measured with
fewer threads, too: one, two, four and so on. Prints the page; with ``--output FOLDER`` or ``--write`` it
leaves ``scaling.md``, ``scaling.json`` and ``scaling.png``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from benchmarks.libraries import BACKWARD, FORWARD, INFERENCE
from benchmarks.machine import available_memory, describe
from benchmarks.measure import Record, measure, measure_alone, workers
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.rows import add_rows, add_turns, fewer_rows, matching
from benchmarks.scaling_libraries import LIBRARIES, STRONG_LIBRARIES, ScalingCase
from benchmarks.scaling_tables import Rates, as_markdown, nbytes, rate

ROUNDS = 3
THREADS = os.cpu_count() or 1
OPERATIONS = (FORWARD, INFERENCE, BACKWARD)
LAYOUTS = ("NCHW", "NHWC", "NC")
STEPS = range(11)  # of the size of the array, from 4 KB to 4 GB
STRONG_STEPS = (3, 5, 8)  # 256 KB, 4 MB and 256 MB
LARGEST_OF_ALL = 300_000_000  # bytes: the workers hold larger arrays one after the other
LARGEST_OF_QUICK = 1_100_000
# A turn of all libraries on arrays of 4 GB takes about half a minute, most of it for new memory: more rounds
# would take longer than all other rows together.
ROUNDS_ALONE = 1
SPARE = 2_000_000_000  # bytes for the processes themselves, and for the memory that numbabn keeps


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    named = [case for case in rows(options.threads) if not options.quick or case.nbytes <= LARGEST_OF_QUICK]
    cases = _fitting(matching(named, options.rows))
    output = Output.chosen(parser, options, _left_out(options, cases))
    records = list(_measured(cases, options.rounds))
    unmeasured = set(LIBRARIES) - {record.library for record in records}
    output.deliver(_files(describe(options.threads), records), sorted(unmeasured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="arrays of up to 1 MB")
    add_rows(parser, "inference.*NHWC")
    add_turns(parser, ROUNDS, THREADS)
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace, cases: list[ScalingCase]) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    everything = rows(max(options.threads, THREADS))
    found = [*fewer_rounds(options.rounds, ROUNDS), *fewer_rows(cases, everything)]
    return [*uninstalled("torch", "matplotlib"), *found]


def shape(layout: str, step: int) -> tuple[int, ...]:
    """Return the shape of the array of a layout that is ``4**step`` times as large as the smallest."""
    if layout == "NC":
        channels = min(64 * 2**step, 1024)
        return 1024 * 4**step // channels, channels
    batch, channels = 5 * 4 ** max(step - 5, 0), min(4 ** (step + 1), 64)
    side = 7 * 2 ** min(max(step - 2, 0), 3)
    return (batch, channels, side, side) if layout == "NCHW" else (batch, side, side, channels)


def rows(threads: int) -> list[ScalingCase]:
    """Return all rows; those of one array with several numbers of threads are next to each other."""
    return [
        ScalingCase(shape(layout, step), layout, operation, count)
        for layout in LAYOUTS
        for operation in OPERATIONS
        for step in STEPS
        for count in (_counts(threads) if step in STRONG_STEPS else [threads])
    ]


def _counts(threads: int) -> list[int]:
    """Return the powers of two below ``threads``, and ``threads``."""
    return [*(2**power for power in range((threads - 1).bit_length())), threads]


def _fitting(cases: list[ScalingCase]) -> list[ScalingCase]:
    """Return the rows for which there is memory; say which ones there is none for."""
    available = available_memory()
    if available is None:
        return cases
    fitting = [case for case in cases if case.held + SPARE <= available]
    for case in cases:
        if case not in fitting:
            needed = nbytes(case.held + SPARE)
            print(f"{case.name} is left out: it takes {needed} of memory, {nbytes(available)} are available")
    if not fitting:
        raise SystemExit("There is no memory for any row.")
    return fitting


def _measured(cases: list[ScalingCase], rounds: int) -> Iterator[Record]:
    most = max(case.threads for case in cases)
    with ExitStack() as owner:
        crews = {}
        for threads in dict.fromkeys(case.threads for case in cases):
            libraries = LIBRARIES if threads == most else STRONG_LIBRARIES
            crews[threads] = owner.enter_context(workers(threads, libraries, "benchmarks.scaling_libraries"))
        for case in (progress := tqdm(cases, unit="row")):
            progress.set_description(case.name)
            crew = crews[case.threads]
            if case.nbytes <= LARGEST_OF_ALL:
                yield from measure(case, crew, rounds)
            else:
                yield from measure_alone(case, crew, ROUNDS_ALONE)


def _files(machine: dict[str, str], records: list[Record]) -> Files:
    rates = Rates(records)

    def draw(folder: Path) -> None:
        from benchmarks import scaling_figure  # so that the worker processes do not load matplotlib

        foot = f"{machine['Processor']}, {machine['Caches']}, {machine['Date'].split()[0]}"
        scaling_figure.scaling(rates, foot, folder / "scaling.png")

    numbers = {
        "machine": machine,
        "rows": [record.as_row() | {"gigabytes_per_second": rate(record)} for record in records],
    }
    return Files("scaling", as_markdown(machine, rates), numbers, draw)


if __name__ == "__main__":
    main()
