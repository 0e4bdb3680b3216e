"""What is promised of a GPU, checked against a run."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.gpu.peers import CUDNN, NATIVE, OPERATIONS
from benchmarks.gpu.results import Results
from benchmarks.libraries import COPY, FORWARD, NUMBABN
from benchmarks.targets import SMALLEST, Target, geometric_mean
from tests.cases import Case

LARGE = 32_000_000  # bytes
OF_COPY, MEAN, HOST_US = 0.85, 1.1, 40


def check(results: Results) -> list[Target]:
    """Return every target that the run has the rows for."""
    return [*_correct(results), *_bandwidth(results), *_rows(results), *_means(results), *_latency(results)]


def of_copy(results: Results, operation: str, case: Case) -> float | None:
    """Return the bandwidth of numbabn, on the bytes of the model, over that of a copy of the same array."""
    medians = results.run.median_ms
    ours, copy = (medians.get((operation, case, library)) for library in (NUMBABN, COPY))
    if ours is None or copy is None:
        return None
    return (results.model(operation, case).moved / ours) / (2 * case.nbytes / copy)


def better(results: Results, operation: str, case: Case) -> float | None:
    """Return the time of the faster of PyTorch's two over that of numbabn."""
    medians = results.run.median_ms
    peers = [medians[key] for peer in (NATIVE, CUDNN) if (key := (operation, case, peer)) in medians]
    ours = medians.get((operation, case, NUMBABN))
    return min(peers) / ours if peers and ours else None


def _large(results: Results) -> list[Case]:
    return [case for case in results.run.cases if case.nbytes >= LARGE]


def _correct(results: Results) -> Iterator[Target]:
    made = results.of("check")
    if made:
        failed = tuple(f"{row['name']}: {row['detail']}" for row in made if not row["passed"])
        measured = f"{len(made) - len(failed)} of {len(made)} checks passed"
        yield Target("every check passes", measured, not failed, failed)


def _bandwidth(results: Results) -> Iterator[Target]:
    for operation in OPERATIONS:
        found = {case: of_copy(results, operation, case) for case in _large(results)}
        shares = {case: share for case, share in found.items() if share is not None}
        promise = f"{operation}: rows of 32 MB and more at {OF_COPY} of the bandwidth of a copy, or above"
        yield from _every(promise, shares, OF_COPY)


def _rows(results: Results) -> Iterator[Target]:
    for operation in OPERATIONS:
        for peer in (NATIVE, CUDNN):
            large = set(_large(results))
            ratios = results.run.ratios(operation, peer, NUMBABN, large.__contains__)
            promise = f"{operation}: rows of 32 MB and more at least as fast as {peer}"
            yield from _every(promise, ratios, 1)


def _means(results: Results) -> Iterator[Target]:
    for operation in OPERATIONS:
        found = [better(results, operation, case) for case in results.run.cases]
        ratios = [ratio for ratio in found if ratio is not None]
        if ratios:
            mean = geometric_mean(ratios)
            promise = (
                f"{operation}: geometric mean over all rows {MEAN}x the better of PyTorch's two, or above"
            )
            yield Target(promise, f"{mean:.2f}x over {len(ratios)} rows", mean >= MEAN)


def _latency(results: Results) -> Iterator[Target]:
    for record in results.latencies:
        if record.library.startswith(f"{NUMBABN} (") and record.operation == FORWARD:
            us = record.median_ms * 1e3
            promise = f"{FORWARD}: {SMALLEST.name} within {HOST_US} us of host time, {record.library}"
            yield Target(promise, f"{us:.1f} us", us <= HOST_US)


def _every(promise: str, ratios: dict[Case, float], least: float) -> Iterator[Target]:
    if ratios:
        behind = tuple(f"{case.name} {ratio:.2f}" for case, ratio in ratios.items() if not ratio >= least)
        mean, worst = geometric_mean(ratios.values()), min(ratios.values(), default=math.nan)
        measured = f"mean {mean:.2f}, worst {worst:.2f} over {len(ratios)} rows"
        yield Target(promise, measured, not behind, behind)
