"""Turn a finished run into Markdown and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.libraries import (
    COPY,
    LIBRARIES,
    NUMBABN,
    ONEDNN,
    ONEDNN_BLOCKED,
    OPERATIONS,
    OUT,
    PEERS,
)
from benchmarks.measure import Record
from benchmarks.targets import Run, Target, geometric_mean
from tests.support.cases import Case

ABOUT = f"""\
All times are milliseconds of one call on float32, with the same number of threads for every library. Each
library runs in a process of its own with its threads bound to cores. The libraries take turns, burst by
burst, and the times of all rounds are pooled.

- `{OUT}` and oneDNN write into the same memory at every call; all other entries but the copies return a
  new array. The fastest of those is set in bold.
- `{ONEDNN}` is oneDNN 3.2 in the layout of the row, `{ONEDNN_BLOCKED}` in its own layout, nChw16c with
  AVX-512 and nChw8c with AVX2, where the channels fill its blocks. Only its training is measured. It is
  called through `ctypes`, whose own time is in every call.
- `copy`, the floor, moves the bytes of the operation with plain stores, all threads and reused memory: one
  read and one write, for backward two reads and one write.
- `NumPy copy` is `np.copyto`, for backward `np.add(..., out=)`: one thread.
- PyTorch runs without autograd's bookkeeping, NHWC as `channels_last`. `torch.compile` compiles the same
  calls, shapes fixed. JAX differentiates with `jax.vjp`, forward and backward compiled apart.
- Nobody updates running averages, except `numbabn layer`, which is there to show its cost on small arrays.
"""

# What each library is compared with: a fresh output, or the same memory at every call. The copy is the floor.
COMPARED = {
    **dict.fromkeys((OUT, *PEERS), NUMBABN),
    **dict.fromkeys((ONEDNN, ONEDNN_BLOCKED), OUT),
    COPY: NUMBABN,
}
MEANS = f"""\
Time of each library over the time of numbabn with a fresh output, but of oneDNN over that of `{OUT}`, in the
rows that both have."""


def as_json(machine: dict[str, str], records: list[Record], targets: list[Target]) -> dict[str, object]:
    """Return the run as plain data, which JSON can hold."""
    return {
        "machine": machine,
        "rows": [record.as_row() for record in records],
        "targets": [asdict(target) for target in targets],
    }


def as_markdown(machine: dict[str, str], records: list[Record], targets: list[Target]) -> str:
    """Return the run as a page of Markdown: the machine, the targets, then the tables."""
    parts = [
        "Written by `python -m benchmarks.report`.",
        bullets(machine),
        ABOUT.strip(),
        "![speed](speed.png)",
        "## Targets",
        promises(targets),
        misses(targets),
        "## Geometric means",
        MEANS,
        _means(Run(records)),
    ]
    for operation in OPERATIONS:
        parts += [f"## {operation.capitalize()}", _times(records, operation, lambda record: record.median_ms)]
    parts += ["## 90th percentiles"]
    for operation in OPERATIONS:
        parts += [f"### {operation.capitalize()}", _times(records, operation, lambda record: record.p90_ms)]
    return page("Speed of numbabn and its peers", *parts)


def page(title: str, *parts: str) -> str:
    """Return a Markdown page of a title and parts, with an empty line between any two of them."""
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def bullets(facts: Mapping[str, str]) -> str:
    """Return labels and texts as a Markdown list."""
    return "\n".join(f"- {label}: {text}" for label, text in facts.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, with all but the ``text_columns`` first columns aligned right."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def promises(targets: Iterable[Target]) -> str:
    """Return a table of what is promised, what was measured, and whether the promise is met."""
    rows = [("met" if t.met else "**not met**", t.promise, t.measured) for t in targets]
    return table(("", "promise", "measured"), rows, text_columns=3)


def misses(targets: Iterable[Target]) -> str:
    """Return a list of the rows outside the bound of their promise, even if the promise is for their mean."""
    outside = [f"- {target.promise}: {'; '.join(target.misses)}" for target in targets if target.misses]
    return "Rows outside the bound of their promise:\n\n" + "\n".join(outside or ["- none"])


def cells(
    times: Mapping[tuple[Case, str], float], case: Case, libraries: Iterable[str], fresh: Sequence[str] = ()
) -> list[str]:
    """Return the times of libraries on a case, the best of the ``fresh`` libraries in bold."""
    best = min((times[case, library] for library in fresh if (case, library) in times), default=None)
    texts = []
    for library in libraries:
        time = times.get((case, library))
        text = "" if time is None else _three_digits(time)
        texts.append(f"**{text}**" if library in fresh and time is not None and time == best else text)
    return texts


def _three_digits(value: float) -> str:
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def _means(run: Run) -> str:
    compared = {
        library: ours
        for library, ours in COMPARED.items()
        if any(run.ratios(operation, library, ours) for operation in OPERATIONS)
    }
    rows = []
    for operation in OPERATIONS:
        found = (run.ratios(operation, library, ours).values() for library, ours in compared.items())
        rows.append([operation, *(f"{geometric_mean(ratios):.2f}x" if ratios else "" for ratios in found)])
    return table(["", *compared], rows)


def _times(records: list[Record], operation: str, of: Callable[[Record], float]) -> str:
    times = {(record.case, record.library): of(record) for record in records if record.operation == operation}
    libraries = [name for name in LIBRARIES if any(library == name for _, library in times)]
    cases = dict.fromkeys(case for case, _ in times)
    rows = [[case.name, *cells(times, case, libraries, (NUMBABN, *PEERS))] for case in cases]
    return table(["ms", *libraries], rows)
