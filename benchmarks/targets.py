"""Check the speed that numbabn promises against the times of a finished run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.libraries import (
    BACKWARD,
    COPY,
    FORWARD,
    INFERENCE,
    LAYER,
    NUMBABN,
    ONEDNN,
    ONEDNN_BLOCKED,
    OPERATIONS,
    OUT,
    PEERS,
)
from benchmarks.measure import Record
from tests.support.cases import RESNET50_NCHW, RESNET50_NHWC, Case

LARGE = 50_000_000  # bytes
SMALLEST = Case((32, 64), "NC")


@dataclass(frozen=True)
class Target:
    """One promise: its text, what was measured, whether it is met, and the rows outside its bound."""

    promise: str
    measured: str
    met: bool
    misses: tuple[str, ...] = ()


class Run:
    """The median times of a run, by operation, case and library."""

    def __init__(self, records: Iterable[Record]):
        self.median_ms = {(r.operation, r.case, r.library): r.median_ms for r in records}
        self.cases = list(dict.fromkeys(case for _, case, _ in self.median_ms))

    def ratios(
        self, operation: str, slower: str, faster: str, of: Callable[[Case], bool] = lambda case: True
    ) -> dict[Case, float]:
        """Return the time of ``slower`` over the time of ``faster``, for every case that has both."""
        found = {}
        for case in filter(of, self.cases):
            above, below = ((operation, case, library) for library in (slower, faster))
            if above in self.median_ms and below in self.median_ms:
                found[case] = self.median_ms[above] / self.median_ms[below]
        return found


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def announce(targets: Iterable[Target]) -> None:
    """Print one line for every target."""
    for target in targets:
        print("met    " if target.met else "NOT MET", target.promise, "--", target.measured)


def check(records: list[Record]) -> list[Target]:
    """Return every target for which the run has the necessary rows."""
    run = Run(records)
    found = [*_fastest(run), *_means(run), *_large(run), *_latency(run), *_onednn(run)]
    return [target for target in found if target is not None]


def _fastest(run: Run) -> Iterable[Target]:
    for operation in OPERATIONS:
        ratios = {
            f"{case.name} against {peer}": ratio
            for peer in PEERS
            for case, ratio in run.ratios(operation, peer, NUMBABN).items()
        }
        if ratios:
            rows, behind = len(ratios), _misses(ratios, below=1)
            measured = f"{rows - len(behind)} of {rows} comparisons, the closest {min(ratios.values()):.2f}x"
            promise = f"{operation}: every row at least as fast as every peer, fresh output"
            yield Target(promise, measured, not behind, behind)


def _means(run: Run) -> Iterable[Target]:
    for operation, least in ((FORWARD, 3.0), (BACKWARD, 1.5), (INFERENCE, 1.2)):
        ratios = run.ratios(operation, "PyTorch", NUMBABN)
        if ratios:
            mean = geometric_mean(ratios.values())
            promise = f"{operation}: geometric mean over rows at least {least}x PyTorch eager, fresh output"
            yield Target(promise, f"{mean:.2f}x over {len(ratios)} rows", mean >= least)


def _large(run: Run) -> Iterable[Target | None]:
    def nchw(case: Case) -> bool:
        return case.layout == "NCHW" and case.nbytes >= LARGE

    def channels_last(case: Case) -> bool:
        return case.layout in ("NHWC", "NC") and case.nbytes >= LARGE

    for operation, least in ((FORWARD, 5.0), (BACKWARD, 3.0)):
        promise = f"{operation}: NCHW of 50 MB and more, out=: at least {least:g}x PyTorch eager"
        yield at_least(promise, run.ratios(operation, "PyTorch", OUT, nchw), least)
        promise = f"{operation}: NCHW of 50 MB and more, out=: at most 1.25x a plain copy of the bytes"
        yield at_most(promise, run.ratios(operation, OUT, COPY, nchw), 1.25)
    promise = f"{FORWARD}: NHWC and NC of 50 MB and more, out=: at least 4x PyTorch eager"
    yield at_least(promise, run.ratios(FORWARD, "PyTorch", OUT, channels_last), 4.0)


def _latency(run: Run) -> Iterable[Target]:
    for operation, most in ((FORWARD, 10), (INFERENCE, 6), (BACKWARD, 10)):
        functional, layer = (
            run.median_ms.get((operation, SMALLEST, library), math.nan) * 1e3 for library in (NUMBABN, LAYER)
        )
        if not math.isnan(functional):
            promise = f"{operation}: (32, 64) within {most} us"
            yield Target(promise, f"{functional:.1f} us", functional <= most)
            promise = f"{operation}: (32, 64) through the layer within 5 us more"
            yield Target(promise, f"{layer - functional:+.1f} us", layer - functional <= 5)


def _onednn(run: Run) -> Iterable[Target | None]:
    sets = (
        ("NCHW rows against the faster of oneDNN's layouts", RESNET50_NCHW, (ONEDNN, ONEDNN_BLOCKED), 0.9),
        ("NHWC rows against oneDNN's nhwc", RESNET50_NHWC, (ONEDNN,), 1.0),
    )
    for operation in (FORWARD, BACKWARD):
        for name, cases, layouts, most in sets:
            ratios: dict[Case, float] = {}
            for layout in layouts:
                for case, ratio in run.ratios(operation, OUT, layout, cases.__contains__).items():
                    ratios[case] = max(ratio, ratios.get(case, 0.0))
            yield at_most(f"{operation}: {name}, out=: mean at most {most}x", ratios, most, mean=True)
            yield at_most(f"{operation}: {name}, out=: no row above 1.2x", ratios, 1.2)


def at_least(promise: str, ratios: dict[Case, float], least: float, mean: bool = False) -> Target | None:
    """Return the target of ``least`` or more for every ratio or their geometric mean; None without rows."""
    return _bounded(promise, ratios, mean, min, lambda value: value >= least)


def at_most(promise: str, ratios: dict[Case, float], most: float, mean: bool = False) -> Target | None:
    """Return the target of ``most`` or less for every ratio or their geometric mean; None without rows."""
    return _bounded(promise, ratios, mean, max, lambda value: value <= most)


def _bounded(
    promise: str,
    ratios: dict[Case, float],
    mean: bool,
    worst: Callable[[Iterable[float]], float],
    holds: Callable[[float], bool],
) -> Target | None:
    if not ratios:
        return None
    average, extreme = geometric_mean(ratios.values()), worst(ratios.values())
    measured = f"mean {average:.2f}x, worst {extreme:.2f}x over {len(ratios)} rows"
    misses = tuple(f"{case.name} {ratio:.2f}x" for case, ratio in ratios.items() if not holds(ratio))
    return Target(promise, measured, holds(average if mean else extreme), misses)


def _misses(ratios: dict[str, float], below: float) -> tuple[str, ...]:
    return tuple(f"{row} {ratio:.2f}x" for row, ratio in ratios.items() if ratio < below)
