"""The bytes per second of a finished run of the scaling benchmark, and its page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from benchmarks.libraries import COPY, OUT
from benchmarks.measure import Record
from benchmarks.scaling_libraries import LIBRARIES, STRONG_LIBRARIES, ScalingCase
from benchmarks.tables import bullets, cells, page, table

ABOUT = f"""\
GB/s: the least bytes of the operation over the median time of one call on float32. Training forward and
inference read one array and write one; backward reads two and writes one. All libraries but NumPy, which has
one thread, have the same number of threads, each bound to a core. They take turns, burst by burst, and the
times of all rounds are pooled. Arrays of more than 256 MB are in the memory of one library at a time, and
every library has one turn.

- `{OUT}` and `{COPY}` write into the same memory at every call, the others return a new array.
- `{COPY}` moves the bytes with plain stores and all threads.
- NumPy is not measured on arrays of more than 256 MB."""
STRONG = """\
The same arrays with fewer threads; each column names the library and the number of threads."""


def rate(record: Record) -> float:
    """Return the gigabytes per second of a record."""
    return record.case.held / record.median_ms / 1e6


def nbytes(count: int) -> str:
    """Return a number of bytes as three digits and a unit."""
    power = min((len(str(count)) - 1) // 3, 3)
    return f"{count / 1000**power:.3g} {('B', 'KB', 'MB', 'GB')[power]}"


class Rates:
    """The gigabytes per second of a run, by operation and layout, with all threads and with fewer."""

    def __init__(self, records: Iterable[Record]):
        self._rates = {(record.case, record.library): rate(record) for record in records}
        cases = list(dict.fromkeys(case for case, _ in self._rates))
        self.operations = list(dict.fromkeys(case.operation for case in cases))
        self.layouts = list(dict.fromkeys(case.layout for case in cases))
        self.counts = sorted({case.threads for case in cases})

    def by_size(self, operation: str, layout: str) -> dict[tuple[ScalingCase, str], float]:
        """Return the rates with all threads, by case and library, from the smallest to the largest array."""
        return {
            (case, library): value
            for (case, library), value in self._rates.items()
            if (case.operation, case.layout, case.threads) == (operation, layout, self.counts[-1])
        }

    def by_threads(self, operation: str, layout: str) -> dict[ScalingCase, dict[tuple[str, int], float]]:
        """Return the rates of the arrays that are measured with several numbers of threads.

        They are by the case with all threads, and then by library and number of threads.
        """
        found: dict[ScalingCase, dict[tuple[str, int], float]] = {}
        for (case, library), value in self._rates.items():
            if (case.operation, case.layout) == (operation, layout) and library in STRONG_LIBRARIES:
                most = replace(case, threads=self.counts[-1])
                found.setdefault(most, {})[library, case.threads] = value
        return {case: rates for case, rates in found.items() if len({count for _, count in rates}) > 1}


def as_markdown(machine: Mapping[str, str], rates: Rates) -> str:
    """Return the run as a page of Markdown: the machine, then the rates by size and by threads."""
    parts = ["Written by `python -m benchmarks.scaling`.", bullets(machine), ABOUT, "![scaling](scaling.png)"]
    for operation in rates.operations:
        for layout in rates.layouts:
            found = rates.by_size(operation, layout)
            if found:
                parts += [f"## {operation.capitalize()}, {layout}", _sizes(found)]
    if len(rates.counts) > 1:
        parts += ["## Strong scaling", STRONG, _threads(rates)]
    return page("Speed of batch norm against the size of the array", *parts)


def _sizes(rates: Mapping[tuple[ScalingCase, str], float]) -> str:
    cases = dict.fromkeys(case for case, _ in rates)
    lines = [[_label(case.shape), nbytes(case.nbytes), *cells(rates, case, LIBRARIES)] for case in cases]
    return table(["GB/s", "size", *LIBRARIES], lines)


def _threads(rates: Rates) -> str:
    found = {
        case: by_threads
        for operation in rates.operations
        for layout in rates.layouts
        for case, by_threads in rates.by_threads(operation, layout).items()
    }
    columns = [(library, threads) for library in STRONG_LIBRARIES for threads in rates.counts]
    lines = []
    for case, by_threads in found.items():
        values = (f"{by_threads[key]:.3g}" if key in by_threads else "" for key in columns)
        lines.append([f"{case.operation}, {_label(case.shape)} {case.layout}", *values])
    return table(["GB/s", *(f"{library}, {threads}" for library, threads in columns)], lines)


def _label(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
