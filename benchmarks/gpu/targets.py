"""What is promised of a GPU, checked against a run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.peers import CUDNN, NATIVE, OPERATIONS
from benchmarks.gpu.results import Results
from benchmarks.libraries import COPY, FORWARD, NUMBABN
from benchmarks.targets import SMALLEST, Target, at_least
from tests.support.cases import Case

LARGE = 32_000_000  # bytes
OF_COPY, MEAN, HOST_US = 0.85, 1.1, 40


def check(results: Results) -> list[Target]:
    """Return every target that the run has the rows for."""
    found = [*_correct(results), *_bandwidth(results), *_rows(results), *_means(results), *_latency(results)]
    return [target for target in found if target is not None]


def of_copy(results: Results, operation: str, case: Case) -> float | None:
    """Return the bandwidth of numbabn, on the bytes of the model, over that of a copy of the same array."""
    medians = results.run.median_ms
    ours, copy = (medians.get((operation, case, library)) for library in (NUMBABN, COPY))
    if ours is None or copy is None:
        return None
    return (results.model(operation, case).moved / ours) / (2 * case.nbytes / copy)


def _correct(results: Results) -> Iterator[Target]:
    if made := results.of("check"):
        failed = tuple(f"{row['name']}: {row['detail']}" for row in made if not row["passed"])
        measured = f"{len(made) - len(failed)} of {len(made)} checks passed"
        yield Target("every check passes", measured, not failed, failed)


def _bandwidth(results: Results) -> Iterator[Target | None]:
    for operation in OPERATIONS:
        found = {case: of_copy(results, operation, case) for case in filter(_large, results.run.cases)}
        shares = {case: share for case, share in found.items() if share is not None}
        promise = f"{operation}: rows of 32 MB and more at {OF_COPY} of the bandwidth of a copy, or above"
        yield at_least(promise, shares, OF_COPY)


def _rows(results: Results) -> Iterator[Target | None]:
    for operation in OPERATIONS:
        for peer in (NATIVE, CUDNN):
            promise = f"{operation}: rows of 32 MB and more at least as fast as {peer}"
            yield at_least(promise, results.run.ratios(operation, peer, NUMBABN, _large), 1)


def _means(results: Results) -> Iterator[Target | None]:
    for operation in OPERATIONS:
        native, cudnn = (results.run.ratios(operation, peer, NUMBABN) for peer in (NATIVE, CUDNN))
        faster_peer = {
            case: min(peer[case] for peer in (native, cudnn) if case in peer) for case in native | cudnn
        }
        promise = f"{operation}: geometric mean over all rows {MEAN}x the better of PyTorch's two, or above"
        yield at_least(promise, faster_peer, MEAN, mean=True)


def _latency(results: Results) -> Iterator[Target]:
    for record in results.records("latency"):
        if record.library.startswith(f"{NUMBABN} (") and record.operation == FORWARD:
            us = record.median_ms * 1e3
            promise = f"{FORWARD}: {SMALLEST.name} within {HOST_US} us of host time, {record.library}"
            yield Target(promise, f"{us:.1f} us", us <= HOST_US)


def _large(case: Case) -> bool:
    return case.nbytes >= LARGE
