"""Measure numbabn and its peers side by side: ``python -m benchmarks.report``.

Writes ``report.md``, ``report.json``, ``speed.png`` and ``speed_summary.png``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.measure import Record, measure, workers
from benchmarks.onednn import Duel, duels
from benchmarks.tables import as_json, as_markdown
from benchmarks.targets import check
from tests.support.cases import CASES, Case

RESULTS = Path(__file__).parent / "results"
QUICK = ("32x64x56x56 NCHW", "32x512x7x7 NCHW", "32x56x56x64 NHWC", "32x64 NC", "8192x512 NC")


def main() -> None:
    options = _options()
    cases = [case for case in CASES if _wanted(case, options)]
    if not cases:
        raise SystemExit(f"No row matches {options.rows!r}; rows are named like {CASES[0].name!r}.")
    records: list[Record] = []
    with workers(options.threads) as crew:
        for case in (progress := tqdm(cases, unit="shape")):
            progress.set_description(case.name)
            records += measure(case, crew, options.rounds)
    against = duels(options.onednn, options.threads, options.rounds) if options.onednn else []
    _write(options.output, options.threads, records, against)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a handful of small shapes")
    parser.add_argument(
        "--rows", default="", metavar="PATTERN", help="regular expression, such as 'NHWC|32x64 '"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every library per row (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every library (default 2)")
    parser.add_argument(
        "--onednn", metavar="PATH", help="a program that times oneDNN; see benchmarks/onednn.py"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    return parser.parse_args()


def _wanted(case: Case, options: argparse.Namespace) -> bool:
    return bool(re.search(options.rows, case.name)) and (not options.quick or case.name in QUICK)


def _write(folder: Path, threads: int, records: list[Record], against: list[Duel]) -> None:
    from benchmarks.figures import speed, speed_summary  # matplotlib is not for the worker processes

    machine, targets = describe(threads), check(records, against)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps(as_json(machine, records, against, targets), indent=1) + "\n"
    )
    (folder / "report.md").write_text(as_markdown(machine, records, against, targets))
    speed(records, folder / "speed.png")
    speed_summary(records, folder / "speed_summary.png")
    for target in targets:
        print("met    " if target.met else "NOT MET", target.promise, "--", target.measured)
    print(f"Written: {folder}")


if __name__ == "__main__":
    main()
