"""Measure layer, RMS, group and instance norm beside the peers: ``python -m benchmarks.family``.

Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``family.md`` and ``family.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict

from tqdm import tqdm

from benchmarks.family_libraries import LIBRARIES, FamilyCase
from benchmarks.libraries import BACKWARD, BOTH, COPY, FORWARD, LAYER, NUMBABN, ONEDNN, OUT
from benchmarks.machine import describe
from benchmarks.measure import Record, measure, workers
from benchmarks.onednn_session import DISTRIBUTION
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.rows import add_rows, add_turns, fewer_rows, matching
from benchmarks.tables import bullets, cells, misses, page, promises, table
from benchmarks.targets import LARGE, Run, Target, announce, at_least, at_most, geometric_mean
from tests.support.cases import RESNET50_NCHW, RESNET50_NHWC

ROUNDS = 5
OPERATIONS = (FORWARD, BACKWARD, BOTH)
PEERS = ("PyTorch", "torch.compile", "JAX")
SMALLEST = FamilyCase("layer", (32, 768))
ROWS = ((32, 768), (8192, 768), (2048, 4096), (32, 128, 1024), (131072, 64), (64, 50257))
CASES = (
    *(FamilyCase(norm, shape) for norm in ("layer", "rms") for shape in ROWS),
    *(
        FamilyCase(norm, case.shape, case.layout)
        for norm in ("group", "instance")
        for case in (*RESNET50_NCHW, *RESNET50_NHWC)
    ),
)
ABOUT = """\
All times are milliseconds of one call on float32, measured as those of `python -m benchmarks.report`. Group
norm has 32 groups; all norms have gamma, and all but RMS norm beta. The fastest library with a fresh output
is set in bold. PyTorch runs without autograd's bookkeeping, but for the backward passes of RMS and instance
norm, which have no single call of their own.

oneDNN 3.2 is called through `ctypes`, whose own time is in every call. It writes into the same memory at
every call, so it is compared with `numbabn out=`. Of these norms it has layer norm alone: group norm came
with oneDNN 3.3, whose wheels need the runtimes of SYCL and TBB; none of them is built with GNU OpenMP."""

MEANS = f"""\
Time of each library over the time of numbabn with a fresh output, but of {ONEDNN} over that of `{OUT}`."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    cases = matching(CASES, options.rows)
    output = Output.chosen(parser, options, _left_out(options, cases))
    records: list[Record] = []
    with workers(options.threads, LIBRARIES, "benchmarks.family_libraries") as crew:
        for case in (progress := tqdm(cases, unit="row")):
            progress.set_description(case.name)
            records += measure(case, crew, options.rounds)
    unmeasured = set(LIBRARIES) - {record.library for record in records}
    targets = check(records)
    output.deliver(_files(describe(options.threads), records, targets), sorted(unmeasured))
    announce(targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    add_rows(parser, "layer|group.*NHWC")
    add_turns(parser, ROUNDS)
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace, cases: list[FamilyCase]) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    rows, rounds = fewer_rows(cases, CASES), fewer_rounds(options.rounds, ROUNDS)
    return [*uninstalled("torch", "jax", DISTRIBUTION), *rounds, *rows]


def check(records: list[Record]) -> list[Target]:
    """Return every target for which the run has the necessary rows."""
    run = Run(records)
    found = [*_against_pytorch(run), _near_copy(run), *_latency(run)]
    return [target for target in found if target is not None]


def _against_pytorch(run: Run) -> Iterable[Target | None]:
    for norms, leasts in ((("layer", "rms"), (1.5, 2.0)), (("group", "instance"), (2.0, 2.0))):
        names = " and ".join(norms)
        for operation, least in zip((FORWARD, BACKWARD), leasts, strict=True):
            ratios = run.ratios(operation, "PyTorch", NUMBABN, lambda case, of=norms: case.norm in of)
            yield at_least(f"{operation}: {names} norm, every row at least as fast as PyTorch", ratios, 1.0)
            promise = f"{operation}: {names} norm, geometric mean at least {least:g}x PyTorch"
            yield at_least(promise, ratios, least, mean=True)


def _near_copy(run: Run) -> Target | None:
    ratios = run.ratios(FORWARD, OUT, COPY, lambda case: case.nbytes >= LARGE)
    return at_most(f"{FORWARD}: 50 MB and more, out=: at most 1.25x a plain copy of the bytes", ratios, 1.25)


def _latency(run: Run) -> Iterable[Target]:
    for library, most in ((NUMBABN, 10), (LAYER, 15)):
        ms = run.median_ms.get((FORWARD, SMALLEST, library))
        if ms is not None:
            promise = f"{FORWARD}: {SMALLEST.name}, {library}, within {most} us"
            yield Target(promise, f"{ms * 1e3:.1f} us", ms * 1e3 <= most)


def _files(machine: dict[str, str], records: list[Record], targets: list[Target]) -> Files:
    parts = ["Written by `python -m benchmarks.family`.", bullets(machine), ABOUT]
    parts += ["## Targets", promises(targets), misses(targets)]
    parts += ["## Geometric means", MEANS]
    parts.append(_means(Run(records)))
    for operation in OPERATIONS:
        parts += [f"## {operation.capitalize()}", _times(records, operation)]
    numbers = {
        "machine": machine,
        "rows": [record.as_row() for record in records],
        "targets": [asdict(target) for target in targets],
    }
    return Files("family", page("Speed of layer, RMS, group and instance norm", *parts), numbers)


def _means(run: Run) -> str:
    compared = [(library, OUT if library == ONEDNN else NUMBABN) for library in (OUT, *PEERS, ONEDNN, COPY)]
    rows = []
    for norm in dict.fromkeys(case.norm for case in run.cases):
        for operation in OPERATIONS:
            ratios = (
                run.ratios(operation, library, ours, lambda case, of=norm: case.norm == of)
                for library, ours in compared
            )
            means = [f"{geometric_mean(found.values()):.2f}x" if found else "" for found in ratios]
            rows.append([f"{norm}, {operation}", *means])
    return table(["", *(library for library, _ in compared)], rows)


def _times(records: list[Record], operation: str) -> str:
    times = {(r.case, r.library): r.median_ms for r in records if r.operation == operation}
    p90 = {(r.case, r.library): r.p90_ms for r in records if r.operation == operation}
    cases = dict.fromkeys(case for case, _ in times)
    rows = [
        [case.name, *cells(times, case, LIBRARIES, (NUMBABN, *PEERS)), *cells(p90, case, (NUMBABN, OUT))]
        for case in cases
    ]
    return table(["ms", *LIBRARIES, f"{NUMBABN} p90", f"{OUT} p90"], rows)


if __name__ == "__main__":
    main()
