"""The measuring protocol: libraries take turns, so that a disturbance of the machine slows all of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.libraries import LIBRARIES, OPERATIONS
from benchmarks.workers import UnavailableError, Worker
from tests.support.cases import Case

BURST_SECONDS = 0.06
FEWEST_CALLS = 5
ALONE_SECONDS = 0.5
FEWEST_CALLS_ALONE = 3


@dataclass(frozen=True)
class Record:
    """The times of one library in one operation on one case, pooled over the rounds."""

    operation: str
    case: Case
    library: str
    median_ms: float
    p90_ms: float
    calls: int

    @classmethod
    def of(cls, operation: str, case: Case, library: str, times_ms: Sequence[float]) -> Record:
        """Return the record of calls that took ``times_ms`` milliseconds."""
        return cls(operation, case, library, *median_and_p90(times_ms), len(times_ms))

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Record:
        """Return the record of a row that `as_row` made; other fields of the row are ignored."""
        case = Case(tuple(row["shape"]), row["layout"])
        names = ("operation", "library", "median_ms", "p90_ms", "calls")
        return cls(case=case, **{name: row[name] for name in names})

    def as_row(self) -> dict[str, Any]:
        """Return the record as plain data, which JSON can hold."""
        return flat(self)


def median_and_p90(times: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 90th percentile of times."""
    return statistics.median(times), float(np.percentile(times, 90))


def flat(item: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain data, those of its ``case`` beside the others."""
    fields = asdict(item)
    case = fields.pop("case")
    return {"name": item.case.name, **case, **fields}


@contextmanager
def workers(
    threads: int, libraries: Iterable[str] = tuple(LIBRARIES), table: str = "benchmarks.libraries"
) -> Iterator[list[Worker]]:
    """Start one worker process per library of a table, and end them all when the context ends."""
    started = [Worker(library, threads, table) for library in libraries]
    try:
        yield started
    finally:
        for worker in started:
            worker.close()


def prepare(case: Case, crew: list[Worker]) -> dict[Worker, list[str]]:
    """Let all workers prepare a case at the same time, and return the operations that each can time.

    A worker whose library is not installed is closed and removed from ``crew``.
    """
    for worker in crew:
        worker.send("prepare", case)
    return {worker: _prepared(worker, crew) for worker in list(crew)}


def _prepared(worker: Worker, crew: list[Worker]) -> list[str]:
    try:
        return worker.receive()
    except UnavailableError as error:
        print(f"{worker.library} is skipped: {error}")
        crew.remove(worker)
        worker.close()
        return []


def measure(case: Case, crew: list[Worker], rounds: int) -> Iterator[Record]:
    """Time every operation of every worker on one case; the workers take turns."""
    able = prepare(case, crew)
    for operation in OPERATIONS:
        times: dict[Worker, list[int]] = {worker: [] for worker, can in able.items() if operation in can}
        for _ in range(rounds):
            for worker, pooled in times.items():
                pooled += worker.ask("burst", operation, BURST_SECONDS, FEWEST_CALLS)
        for worker, pooled in times.items():
            yield _pooled(operation, case, worker, pooled)
    for worker in crew:
        worker.ask("release")


def measure_alone(case: Case, crew: list[Worker], rounds: int) -> Iterator[Record]:
    """Time as `measure` does, but let a worker hold its arrays during its own turn only.

    For arrays of which the memory has no room for those of all workers. A call on them takes up to seconds,
    so a turn has few, and the one that a worker makes as it prepares is the warm-up.
    """
    times: dict[tuple[str, Worker], list[int]] = {}
    for _ in range(rounds):
        for worker in list(crew):
            worker.send("prepare", case)
            able = _prepared(worker, crew)
            for operation in able:
                pooled = times.setdefault((operation, worker), [])
                pooled += worker.ask("timed", operation, ALONE_SECONDS, FEWEST_CALLS_ALONE)
            if worker in crew:
                worker.ask("release")
    for (operation, worker), pooled in times.items():
        yield _pooled(operation, case, worker, pooled)


def _pooled(operation: str, case: Case, worker: Worker, nanoseconds: Iterable[int]) -> Record:
    return Record.of(operation, case, worker.library, [time / 1e6 for time in nanoseconds])
