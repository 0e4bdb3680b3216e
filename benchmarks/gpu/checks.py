"""The sections that check: results against float64, the same bits in every run, streams, CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

import numbabn as nbn
from benchmarks.gpu import arrays, streams
from benchmarks.gpu.speed import Row, message
from tests import table
from tests.backends import BACKENDS, MissingError
from tests.cases import CASES, Case
from tests.problems import Problem

LIBRARIES = ("cupy", "torch", "numba")
WORKERS = 8  # most of the time goes to the reference in NumPy
REPEATS = 20
REPEATED = ("32x64x112x112 NCHW", "32x512x7x7 NCHW", "64x3x224x224 NCHW", "32x56x56x64 NHWC", "32x64 NC")


class Job(NamedTuple):
    """One row of a table for one library."""

    library: str
    name: str
    check: Callable[..., Any]
    arguments: tuple[Any, ...]


def shared_table(libraries: Iterable[str] = LIBRARIES, large: bool = True) -> Iterator[Row]:
    """Check the table that the tests have for all backends, with arrays of every library."""
    rows = table.rows(large)
    yield from _run([Job(library, *row) for library in _usable(libraries) for row in rows], "shared table")


def whole_cases(cases: Iterable[Case] = CASES, libraries: Iterable[str] = LIBRARIES) -> Iterator[Row]:
    """Compare every case at its full size with float64, for the first library that there is."""
    library = next(iter(_usable(libraries)), None)
    largest_first = sorted(cases, key=lambda case: -case.size)
    if library is not None:
        jobs = [Job(library, case.name, table.values, (_problem(case),)) for case in largest_first]
        yield from _run(jobs, "cases of the benchmark")


def repeat(cases: Iterable[Case] = CASES, libraries: Iterable[str] = LIBRARIES) -> Iterator[Row]:
    """Compare the bits of many runs, which differ in what else the device does."""
    chosen = [case for case in cases if case.name in REPEATED]
    jobs = [Job(library, case.name, _repeat, (case,)) for library in _usable(libraries) for case in chosen]
    yield from _run(jobs, f"cases with the same bits in {REPEATS} runs")


def behaviour() -> Iterator[Row]:
    """Check streams and CUDA graphs of each library."""
    for name, checks in streams.CHECKS.items():
        library = arrays.module(name)
        if library is None:
            yield message(f"streams and graphs of {name} are not checked: not installed, or it sees no GPU")
            continue
        for check in checks:
            yield _outcome(f"{name}: {str(check.__doc__).rstrip('.')}", lambda c=check, m=library: c(m))


def _usable(libraries: Iterable[str]) -> list[str]:
    return [name for name in libraries if _missing(name) is None]


def missing(libraries: Iterable[str] = LIBRARIES) -> Iterator[Row]:
    """Say which libraries cannot be checked."""
    for name in libraries:
        if reason := _missing(name):
            yield message(f"{name} is not checked: {reason}")


def _missing(name: str) -> str | None:
    try:
        BACKENDS[name]()
    except MissingError as reason:
        return str(reason)
    return None


def _problem(case: Case) -> Problem:
    return Problem(case.shape, axis=case.axis, offset=3.0)


def _run(jobs: list[Job], what: str) -> Iterator[Row]:
    """Run jobs in threads, each with backends of its own; a row for every failure, and one to sum up."""
    own = threading.local()

    def run(job: Job) -> None:
        backends = own.__dict__.setdefault("backends", {})
        backend = backends.get(job.library) or backends.setdefault(job.library, BACKENDS[job.library]())
        job.check(backend, *job.arguments)

    failed = dict.fromkeys((job.library for job in jobs), 0)
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting = [(job, pool.submit(run, job)) for job in jobs]
        for job, result in waiting:
            outcome = _outcome(f"{job.library}: {job.name}", result.result)
            if not outcome["passed"]:
                failed[job.library] += 1
                yield outcome
    for library, failures in failed.items():
        count = sum(job.library == library for job in jobs)
        name = f"{library}: {what}"
        detail = f"{count - failures} of {count}"
        yield {"kind": "check", "name": name, "passed": not failures, "detail": detail}


def _repeat(backend: Any, case: Case) -> None:
    problem = _problem(case)
    given = problem.x(), problem.dy(), problem.gamma(), problem.beta()
    x, dy, gamma, beta = (backend.put(array) for array in given)
    first: list[bytes] = []
    for _ in range(REPEATS):
        y, saved = nbn.batch_norm_forward(x, gamma, beta, axis=case.axis)
        results = (y, saved.mean, saved.var, *nbn.batch_norm_backward(dy, saved))
        bits = [np.asarray(backend.download(result)).tobytes() for result in results]
        first = first or bits
        assert bits == first, "bits differ between runs"


def _outcome(name: str, check: Callable[[], Any]) -> Row:
    try:
        detail = check()
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"[:500]
        return {"kind": "check", "name": name, "passed": False, "detail": detail}
    return {"kind": "check", "name": name, "passed": True, "detail": detail or ""}
