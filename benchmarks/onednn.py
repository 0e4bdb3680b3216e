"""Time numbabn and a compiled program that calls oneDNN, in turn, on the shapes of ResNet-50.

The program is not part of this project. It takes a layout (nchw, nhwc or nChw16c), times training forward and
backward with output memory reused, and prints one line per shape::

    32x64x112x112 nchw 18.652 21.610 ncsp_bnorm:any

The fields are the shape as N, C, H, W, the layout, the times of forward and backward in milliseconds (each
the median of some 20 calls), and the name of oneDNN's implementation.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.libraries import BACKWARD, FORWARD, OUT
from benchmarks.measure import prepare, workers
from benchmarks.workers import Worker, environment
from tests.support.cases import RESNET50_NCHW, RESNET50_NHWC, Case

CALLS = 21  # the program makes as many
PLAIN, BLOCKED, NHWC = "nchw", "nChw16c", "nhwc"


@dataclass(frozen=True)
class Duel:
    """The times of one operation on one case: numbabn with ``out=``, and oneDNN in one of its layouts."""

    operation: str
    case: Case
    layout: str
    numbabn_ms: float
    onednn_ms: float

    @property
    def ratio(self) -> float:
        """Return the time of numbabn over the time of oneDNN."""
        return self.numbabn_ms / self.onednn_ms


def duels(program: str, threads: int, rounds: int) -> list[Duel]:
    """Time oneDNN and numbabn alternately, and return the medians over the rounds."""
    ours: dict[tuple[Case, str], list[float]] = defaultdict(list)
    theirs: dict[tuple[Case, str, str], list[float]] = defaultdict(list)
    with workers(threads, [OUT]) as crew:
        for _ in range(rounds):
            for layout in (PLAIN, BLOCKED):
                _run(program, layout, threads, theirs)
            _run_ours(crew[0], RESNET50_NCHW, ours)
            _run(program, NHWC, threads, theirs)
            _run_ours(crew[0], RESNET50_NHWC, ours)
    return [
        Duel(operation, case, layout, statistics.median(ours[case, operation]), statistics.median(times))
        for (case, operation, layout), times in theirs.items()
    ]


def _run(program: str, layout: str, threads: int, into: dict[tuple[Case, str, str], list[float]]) -> None:
    output = subprocess.run(
        [program, layout],
        env=os.environ | environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    for line in output.splitlines():
        shape, _, forward, backward, _ = line.split(maxsplit=4)
        case = _case(tuple(map(int, shape.split("x"))), layout)
        into[case, FORWARD, layout].append(float(forward))
        into[case, BACKWARD, layout].append(float(backward))


def _case(nchw: tuple[int, ...], layout: str) -> Case:
    n, c, h, w = nchw
    return Case((n, h, w, c), "NHWC") if layout == NHWC else Case(nchw, "NCHW")


def _run_ours(worker: Worker, cases: Iterable[Case], into: dict[tuple[Case, str], list[float]]) -> None:
    for case in cases:
        prepare(case, [worker])
        for operation in (FORWARD, BACKWARD):
            times = worker.ask("burst", operation, 0, CALLS)
            into[case, operation].append(statistics.median(times) / 1e6)
