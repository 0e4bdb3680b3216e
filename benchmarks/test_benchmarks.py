"""Time the operations of the report with pytest-benchmark, for a few rows or to follow one library over time.

An example is ``pytest benchmarks --benchmark-only -k "NHWC and backward"``; without ``-k`` the run is long.
The times are taken in worker processes, one per library as in the report; pytest-benchmark does the
statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.libraries import LIBRARIES, OPERATIONS
from benchmarks.measure import BURST_SECONDS, FEWEST_CALLS
from benchmarks.workers import UnavailableError, Worker
from tests.support.cases import CASES, Case

THREADS = 2


class ReplayClock:
    """A clock that only moves when a time measured elsewhere is replayed on it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds replayed so far."""
        return self.now

    def advance(self, nanoseconds: int) -> None:
        """Replay one measured time."""
        self.now += nanoseconds / 1e9


CLOCK = ReplayClock()


@pytest.fixture(scope="module")
def crew() -> Iterator[dict[str, Worker]]:
    started: dict[str, Worker] = {}
    yield started
    for worker in started.values():
        worker.close()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.replace(" ", "-"))
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def operations(library: str, case: Case, crew: dict[str, Worker]) -> list[str]:
    if library not in crew:
        crew[library] = Worker(library, THREADS)
    try:
        return crew[library].ask("prepare", case)
    except UnavailableError as error:
        pytest.skip(f"{library}: {error}")


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.replace(" ", "-"))
def test_speed(benchmark, operations, operation, case, library, crew) -> None:
    if operation not in operations:
        pytest.skip(f"{library} is not measured in this operation on this array")
    benchmark.group = f"{operation}, {case.name}"
    benchmark.name = library
    times = crew[library].ask("burst", operation, BURST_SECONDS, FEWEST_CALLS)
    replayed = iter(times)
    benchmark.pedantic(lambda: CLOCK.advance(next(replayed)), rounds=len(times))
