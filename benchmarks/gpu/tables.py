"""Turns a run into a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.gpu import targets, traffic
from benchmarks.gpu.peers import ENTRIES, OPERATIONS
from benchmarks.gpu.results import ASSUMED, ASSUMED_BYTES_PER_SECOND, Results
from benchmarks.libraries import NUMBABN
from benchmarks.measure import Record
from benchmarks.tables import table
from benchmarks.targets import Target
from tests.cases import Case

NOT_RUN = "not yet run on hardware"

ABOUT = """\
Float32, times by CUDA events behind work that keeps the device busy until the host has enqueued a burst of
calls; inputs are used in turn so that none is found in the L2 cache, results are fresh arrays from each
library's own allocator. Medians; the libraries take turns.

- `numbabn` works on CuPy's arrays where CuPy is installed, `numbabn out=` writes into an array given.
- `CuPy` is the formula in CuPy, as people write it. `PyTorch native` and `PyTorch cuDNN` are the calls that
  autograd makes, NHWC as `channels_last`; PyTorch takes its own kernels where cuDNN has none.
- `copy` is a copy on the device, one read and one write, for every operation alike.
- The model's bytes count an array twice where two kernels read it, though part of it may be in the L2 cache;
  `x least` is these bytes over those of reading every input and writing the result once."""

ABOUT_MODEL = f"""\
Bytes that the kernels read and write, over those of reading every input and writing the result once, and the
least time that they take on {ASSUMED}."""


def as_markdown(results: Results, met: list[Target]) -> str:
    """Return the page; where nothing was run it says so first."""
    if not results.ran:
        return _page("# On a GPU", f"**{NOT_RUN}.** Written by `python -m benchmarks.gpu`.", *_model(results))
    facts = "\n".join(f"- {row['label']}: {row['text']}" for row in results.of("fact"))
    parts = ["# On a GPU", "Written by `python -m benchmarks.gpu`.", facts, ABOUT, "![speed](gpu.png)"]
    parts += ["## Targets", _targets(met), "## Checks", _checks(results)]
    parts += ["## Host time of a call", _latency(results.latencies)]
    for operation in OPERATIONS:
        parts += [f"## {operation.capitalize()}", _times(results, operation)]
    if messages := results.of("message"):
        parts += ["## Remarks", "\n".join(f"- {row['text']}" for row in messages)]
    return _page(*parts)


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _model(results: Results) -> list[str]:
    parts = ["## The byte model", ABOUT_MODEL]
    for operation in OPERATIONS:
        rows = []
        for case in results.cases:
            model, least = results.model(operation, case), traffic.floor(operation, case)
            us = model.moved / ASSUMED_BYTES_PER_SECOND * 1e6
            rows.append([case.name, " + ".join(model.kernels), *_moved(model, least), f"{us:.1f}"])
        header = ["", "kernels", "MB read", "MB written", "x least", "us, at least"]
        parts += [f"### {operation.capitalize()}", table(header, rows, text_columns=2)]
    return parts


def _moved(model: traffic.Traffic, least: int) -> list[str]:
    return [f"{model.read / 1e6:.2f}", f"{model.written / 1e6:.2f}", f"{model.moved / least:.2f}"]


def _targets(met: list[Target]) -> str:
    rows = [("met" if target.met else "**not met**", target.promise, target.measured) for target in met]
    misses = [f"- {target.promise}: {'; '.join(target.misses)}" for target in met if target.misses]
    return table(("", "promise", "measured"), rows, text_columns=3) + "\n\n" + "\n".join(misses)


def _checks(results: Results) -> str:
    rows = [("passed" if r["passed"] else "**failed**", r["name"], r["detail"]) for r in results.of("check")]
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    return table(("", "check", ""), escaped, text_columns=3)


def _latency(records: Sequence[Record]) -> str:
    times = {(record.library, record.operation): record.median_ms * 1e3 for record in records}
    rows = []
    for library in dict.fromkeys(record.library for record in records):
        cells = (times.get((library, operation)) for operation in OPERATIONS)
        rows.append([library, *("" if us is None else f"{us:.1f}" for us in cells)])
    return table(["us for 32x64 NC", *OPERATIONS], rows)


def _times(results: Results, operation: str) -> str:
    medians = results.run.median_ms
    libraries = [name for name in ENTRIES if any(key[0] == operation and key[2] == name for key in medians)]
    rows = []
    for case in results.run.cases:
        model, least = results.model(operation, case), traffic.floor(operation, case)
        times = [medians.get((operation, case, name)) for name in libraries]
        if any(time is not None for time in times):
            shown = ["" if time is None else _microseconds(time) for time in times]
            derived = [f"{model.moved / least:.2f}", *_rates(results, operation, case)]
            rows.append([case.name, " + ".join(model.kernels), *shown, *derived])
    header = ["us", "kernels", *libraries, "x least", "GB/s of the model", "of a copy"]
    return table(header, rows, text_columns=2)


def _rates(results: Results, operation: str, case: Case) -> list[str]:
    ours = results.run.median_ms.get((operation, case, NUMBABN))
    share = targets.of_copy(results, operation, case)
    rate = "" if ours is None else f"{results.model(operation, case).moved / ours / 1e6:.0f}"
    return [rate, "" if share is None else f"{share:.2f}"]


def _microseconds(ms: float) -> str:
    return np.format_float_positional(ms * 1e3, precision=3, fractional=False, trim="-")
