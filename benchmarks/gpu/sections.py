"""The sections of the benchmark, each in a process of its own: one that fails or hangs takes no other down.

``python -m benchmarks.gpu.sections NAME SECONDS FILE`` runs one and appends its rows to a file of JSON lines
as they come.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.gpu import speed
from benchmarks.gpu.results import Row, check, message
from benchmarks.gpu.timing import Clock
from benchmarks.machine import describe_gpu
from tests.cuda import hardware, runner
from tests.cuda.runner import Outcome


@dataclass(frozen=True)
class Section:
    """What is done, the seconds that it may take, and a function of them that returns its rows."""

    title: str
    seconds: int
    rows: Callable[[float], Iterator[Row]]


def _environment(seconds: float) -> Iterator[Row]:
    for label, text in describe_gpu().items():
        yield {"kind": "fact", "label": label, "text": text}
    yield from missing(hardware.LIBRARIES)


def missing(libraries: Iterable[str]) -> Iterator[Row]:
    """Say which libraries are not checked, and why."""
    for name in libraries:
        if reason := hardware.missing(name):
            yield message(f"{name} is not checked: {reason}", lacks=name)


def checks(outcomes: Iterable[Outcome]) -> Iterator[Row]:
    """Return how checks went."""
    return (check(*outcome) for outcome in outcomes)


# In the order of what must be known first; together below 8 minutes.
SECTIONS: Mapping[str, Section] = {
    "environment": Section("environment", 20, _environment),
    "cases": Section(
        "the cases of the benchmark against float64, and the same bits in every run",
        70,
        lambda seconds: checks(chain(runner.whole_cases(), runner.repeat())),
    ),
    "table": Section("the shared table of tests", 60, lambda seconds: checks(runner.shared_table())),
    "speed-32": Section("speed at batch 32", 90, lambda seconds: speed.at_batch(32)),
    "latency": Section(
        "host time of a small array", 30, lambda seconds: speed.latency(runner.usable(), Clock())
    ),
    "behaviour": Section("streams and CUDA graphs", 40, lambda seconds: checks(runner.streams())),
    "speed-128": Section("speed at batch 128", 70, lambda seconds: speed.at_batch(128)),
    "compiled": Section("torch.compile", 80, lambda seconds: speed.compiled(0.8 * seconds)),
}


def main() -> None:
    name, seconds, path = sys.argv[1:]
    with Path(path).open("a") as file:
        for row in SECTIONS[name].rows(float(seconds)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
