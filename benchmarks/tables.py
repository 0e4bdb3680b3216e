"""Turn a finished run into Markdown and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.libraries import BACKWARD, COPY, LIBRARIES, NUMBABN, OPERATIONS, OUT, PEERS
from benchmarks.measure import Record, flat
from benchmarks.onednn import BLOCKED, NHWC, PLAIN, Duel
from benchmarks.targets import Run, Target, geometric_mean
from tests.support.cases import Case

ABOUT = """\
All times are milliseconds of one call on float32, with the same number of threads for every library. Each
library runs in a process of its own with its threads bound to cores. The libraries take turns, burst by
burst, and the times of all rounds are pooled.

- `numbabn out=` writes into an array given by the caller; all other entries but the copies return a new one.
  The fastest of those is set in bold.
- `copy`, the floor, moves the bytes of the operation with plain stores, all threads and reused memory: one
  read and one write, for backward two reads and one write.
- `NumPy copy` is `np.copyto`, for backward `np.add(..., out=)`: one thread.
- PyTorch runs without autograd's bookkeeping, NHWC as `channels_last`. `torch.compile` compiles the same
  calls, shapes fixed. JAX differentiates with `jax.vjp`, forward and backward compiled apart.
- Nobody updates running averages, except `numbabn layer`, which is there to show its cost on small arrays.
"""

ABOUT_ONEDNN = """\
numbabn with `out=` and a program that calls oneDNN directly, output memory reused by both, in turn. `nChw16c`
is oneDNN's own blocked layout, `nchw` and `nhwc` are those of NumPy users."""


def as_json(
    machine: dict[str, str], records: list[Record], against: list[Duel], targets: list[Target]
) -> dict[str, object]:
    """Return the run as plain data, which JSON can hold."""
    return {
        "machine": machine,
        "rows": [record.as_row() for record in records],
        "onednn": [flat(duel) | {"ratio": duel.ratio} for duel in against],
        "targets": [asdict(target) for target in targets],
    }


def as_markdown(
    machine: dict[str, str], records: list[Record], against: list[Duel], targets: list[Target]
) -> str:
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
        "Time of each library over the time of numbabn with a fresh output.",
        _means(Run(records)),
    ]
    for operation in OPERATIONS:
        parts += [f"## {operation.capitalize()}", _times(records, operation, lambda record: record.median_ms)]
    parts += _duels(against)
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
    libraries = [library for library in (OUT, *PEERS, COPY) if run.ratios(OPERATIONS[0], library, NUMBABN)]
    rows = []
    for operation in OPERATIONS:
        means = (geometric_mean(run.ratios(operation, library, NUMBABN).values()) for library in libraries)
        rows.append([operation, *(f"{mean:.2f}x" for mean in means)])
    return table(["", *libraries], rows)


def _times(records: list[Record], operation: str, of: Callable[[Record], float]) -> str:
    times = {(record.case, record.library): of(record) for record in records if record.operation == operation}
    libraries = [name for name in LIBRARIES if any(library == name for _, library in times)]
    cases = dict.fromkeys(case for case, _ in times)
    rows = [[case.name, *cells(times, case, libraries, (NUMBABN, *PEERS))] for case in cases]
    return table(["ms", *libraries], rows)


def _duels(against: list[Duel]) -> list[str]:
    if not against:
        return []
    parts = ["## Against oneDNN", ABOUT_ONEDNN]
    for operation in (OPERATIONS[0], BACKWARD):
        duels = {(duel.case, duel.layout): duel for duel in against if duel.operation == operation}
        layouts = (PLAIN, BLOCKED, NHWC)
        rows = []
        for case in dict.fromkeys(case for case, _ in duels):
            found = [duels.get((case, layout)) for layout in layouts]
            ours = next(duel.numbabn_ms for duel in found if duel)
            against_ours = [f"{duel.onednn_ms:.3f} ({duel.ratio:.2f}x)" if duel else "" for duel in found]
            rows.append([case.name, f"{ours:.3f}", *against_ours])
        header = ["ms (numbabn over oneDNN)", OUT, *(f"oneDNN {layout}" for layout in layouts)]
        parts += [f"### {operation.capitalize()}", table(header, rows)]
    return parts
