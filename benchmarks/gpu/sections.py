"""The sections of the benchmark, each in a process of its own: one that fails or hangs takes no other down.

``python -m benchmarks.gpu.sections NAME SECONDS FILE`` runs one and appends its rows to a file of JSON lines
as they come.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What is done, and the seconds that it may take."""

    title: str
    seconds: int
    rows: Callable[[float], Iterator[Row]]


def _environment(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import checks, machine

    return chain(machine.facts(), checks.missing())


def _cases(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import checks

    return chain(checks.whole_cases(), checks.repeat())


def _behaviour(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import checks

    return checks.behaviour()


def _table(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import checks

    return checks.shared_table()


def _latency(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import arrays, speed
    from benchmarks.gpu.timing import Clock

    return speed.latency(arrays.libraries(), Clock())


def _speed(batch: int) -> Callable[[float], Iterator[Row]]:
    def rows(seconds: float) -> Iterator[Row]:
        from benchmarks.gpu import arrays, machine, peers, speed
        from benchmarks.gpu.timing import Clock

        names = tuple(name for name in peers.ENTRIES if name != peers.COMPILED)
        measured = speed.speed(speed.cases(batch), names, arrays.libraries(), Clock(), machine.l2_bytes())
        return chain(measured, speed.resident_blocks())

    return rows


def _compiled(seconds: float) -> Iterator[Row]:
    from benchmarks.gpu import arrays, machine, speed

    return speed.compiled(arrays.libraries(), 0.8 * seconds, machine.l2_bytes())


# In the order of what must be known first; together below 8 minutes.
SECTIONS: Mapping[str, Section] = {
    "environment": Section("environment", 20, _environment),
    "cases": Section(
        "the cases of the benchmark against float64, and the same bits in every run", 70, _cases
    ),
    "table": Section("the shared table of tests", 60, _table),
    "speed-32": Section("speed at batch 32", 90, _speed(32)),
    "latency": Section("host time of a small array", 30, _latency),
    "behaviour": Section("streams and CUDA graphs", 40, _behaviour),
    "speed-128": Section("speed at batch 128", 70, _speed(128)),
    "compiled": Section("torch.compile", 80, _compiled),
}


def main() -> None:
    name, seconds, path = sys.argv[1:]
    with Path(path).open("a") as file:
        for row in SECTIONS[name].rows(float(seconds)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
