"""Measure numbabn and its peers side by side: ``python -m benchmarks.report``.

Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``report.md``, ``report.json``,
``speed.png`` and ``speed_summary.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from benchmarks.libraries import LIBRARIES, ONEDNN, ONEDNN_BLOCKED, OPERATIONS, PEERS
from benchmarks.machine import describe
from benchmarks.measure import Record, measure, workers
from benchmarks.onednn_session import DISTRIBUTION
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.rows import add_rows, add_turns, fewer_rows, matching
from benchmarks.tables import as_json, as_markdown
from benchmarks.targets import Run, Target, announce, check
from tests.support.cases import CASES, Case

ROUNDS = 5
QUICK = ("32x64x56x56 NCHW", "32x512x7x7 NCHW", "32x56x56x64 NHWC", "32x64 NC", "8192x512 NC")


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    named = [case for case in CASES if not options.quick or case.name in QUICK]
    cases = matching(named, options.rows)
    output = Output.chosen(parser, options, _left_out(options, cases))
    records: list[Record] = []
    with workers(options.threads) as crew:
        for case in (progress := tqdm(cases, unit="shape")):
            progress.set_description(case.name)
            records += measure(case, crew, options.rounds)
    unmeasured = set(LIBRARIES) - {record.library for record in records}
    targets = check(records)
    output.deliver(_files(describe(options.threads), records, targets), sorted(unmeasured))
    announce(targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a handful of small shapes")
    add_rows(parser, "NHWC|32x64 ")
    add_turns(parser, ROUNDS)
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace, cases: list[Case]) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    rows, rounds = fewer_rows(cases, CASES), fewer_rounds(options.rounds, ROUNDS)
    return [*uninstalled("torch", "jax", DISTRIBUTION, "matplotlib"), *rounds, *rows]


def _files(machine: dict[str, str], records: list[Record], targets: list[Target]) -> Files:
    def draw(folder: Path) -> None:
        from benchmarks import figures  # imported here so that the worker processes do not load matplotlib

        run, foot = Run(records), f"{machine['Processor']}, {machine['Date'].split()[0]}"
        title = "Batch normalisation of float32 arrays:\ntime as a multiple of copying the same bytes"
        peers = (*PEERS, ONEDNN, ONEDNN_BLOCKED)
        panels = figures.Panels(title, OPERATIONS, columns=2, peers=peers)
        figures.speed(run, panels, foot, folder / "speed.png")
        figures.speed_summary(run, foot, folder / "speed_summary.png")

    page = as_markdown(machine, records, targets)
    return Files("report", page, as_json(machine, records, targets), draw)


if __name__ == "__main__":
    main()
