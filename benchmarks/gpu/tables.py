"""Turns a run into a page of Markdown."""

from __future__ import annotations

from benchmarks.gpu import targets, traffic
from benchmarks.gpu.peers import ENTRIES, OPERATIONS
from benchmarks.gpu.results import ASSUMED, ASSUMED_BYTES_PER_SECOND, Results
from benchmarks.libraries import NUMBABN
from benchmarks.tables import bullets, cells, misses, page, promises, table
from benchmarks.targets import Target
from tests.support.cases import Case

NOT_RUN = "not yet run on hardware"
WRITTEN = "Written by `python -m benchmarks.gpu`."

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
        return page("On a GPU", f"**{NOT_RUN}.** {WRITTEN}", *_model(results))
    parts = [WRITTEN, bullets(results.facts), ABOUT, "![speed](gpu.png)"]
    parts += ["## Targets", promises(met), misses(met), "## Checks", _checks(results)]
    parts += ["## Host time of a call", _latency(results)]
    for operation in OPERATIONS:
        parts += [f"## {operation.capitalize()}", _times(results, operation)]
    if messages := results.of("message"):
        parts += ["## Remarks", "\n".join(f"- {row['text']}" for row in messages)]
    return page("On a GPU", *parts)


def _model(results: Results) -> list[str]:
    parts = ["## The byte model", ABOUT_MODEL]
    for operation in OPERATIONS:
        rows = []
        for case in results.cases:
            model = results.model(operation, case)
            moved = (f"{model.read / 1e6:.2f}", f"{model.written / 1e6:.2f}")
            us = f"{model.moved / ASSUMED_BYTES_PER_SECOND * 1e6:.1f}"
            rows.append([case.name, " + ".join(model.kernels), *moved, _of_least(model, operation, case), us])
        header = ["", "kernels", "MB read", "MB written", "x least", "us, at least"]
        parts += [f"### {operation.capitalize()}", table(header, rows, text_columns=2)]
    return parts


def _of_least(model: traffic.Traffic, operation: str, case: Case) -> str:
    return f"{model.moved / traffic.floor(operation, case):.2f}"


def _checks(results: Results) -> str:
    rows = [("passed" if r["passed"] else "**failed**", r["name"], r["detail"]) for r in results.of("check")]
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    return table(("", "check", ""), escaped, text_columns=3)


def _latency(results: Results) -> str:
    records = results.records("latency")
    times = {(record.library, record.operation): f"{record.median_ms * 1e3:.1f}" for record in records}
    rows = [
        [library, *(times.get((library, operation), "") for operation in OPERATIONS)]
        for library in dict.fromkeys(record.library for record in records)
    ]
    return table(["us for 32x64 NC", *OPERATIONS], rows)


def _times(results: Results, operation: str) -> str:
    medians = results.run.median_ms
    times_us = {(case, library): ms * 1e3 for (of, case, library), ms in medians.items() if of == operation}
    libraries = [name for name in ENTRIES if any(library == name for _, library in times_us)]
    rows = []
    for case in dict.fromkeys(case for case, _ in times_us):
        model = results.model(operation, case)
        derived = [_of_least(model, operation, case), *_rates(results, operation, case)]
        times = cells(times_us, case, libraries)
        rows.append([case.name, " + ".join(model.kernels), *times, *derived])
    header = ["us", "kernels", *libraries, "x least", "GB/s of the model", "of a copy"]
    return table(header, rows, text_columns=2)


def _rates(results: Results, operation: str, case: Case) -> list[str]:
    ours = results.run.median_ms.get((operation, case, NUMBABN))
    share = targets.of_copy(results, operation, case)
    rate = "" if ours is None else f"{results.model(operation, case).moved / ours / 1e6:.0f}"
    return [rate, "" if share is None else f"{share:.2f}"]
