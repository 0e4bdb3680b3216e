"""Measure batch norm with ReLU, and with an addition and ReLU: ``python -m benchmarks.epilogue``.

Prints the page; with ``--output FOLDER`` or ``--write`` it leaves ``epilogue.md`` and ``epilogue.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict

from tqdm import tqdm

from benchmarks.epilogue_libraries import (
    CHAIN,
    COMPILED,
    IN_PLACE,
    JAX,
    LIBRARIES,
    PLAIN,
    PLAIN_OUT,
    PYTORCH,
    EpilogueCase,
)
from benchmarks.libraries import BACKWARD, BOTH, COPY, FORWARD, NUMBABN, ONEDNN, ONEDNN_BLOCKED, OUT
from benchmarks.machine import describe
from benchmarks.measure import Record, measure, workers
from benchmarks.onednn_session import DISTRIBUTION
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.rows import add_rows, add_turns, fewer_rows, matching
from benchmarks.tables import bullets, cells, misses, page, promises, table
from benchmarks.targets import LARGE, Run, Target, announce, at_least, at_most, geometric_mean

ROUNDS = 5
OPERATIONS = (FORWARD, BACKWARD, BOTH)
BATCH = 32
SIZES = ((64, 112), (256, 56), (512, 28), (1024, 14), (128, 28), (64, 14))  # channels, height and width
CASES = tuple(
    EpilogueCase((BATCH, c, s, s) if layout == "NCHW" else (BATCH, s, s, c), layout, residual)
    for residual in (False, True)
    for layout in ("NCHW", "NHWC")
    for c, s in SIZES
)
FRESH = (NUMBABN, CHAIN, PYTORCH, IN_PLACE, COMPILED, JAX)
ABOUT = f"""\
All times are milliseconds of one call in training on float32, measured as those of
`python -m benchmarks.report`. `relu` is y = max(norm(x), 0), `add+relu` is y = max(norm(x) + z, 0); backward
gives dx, dgamma and dbeta, and the gradient of z. The fastest library with a fresh output is set in bold.

- `{NUMBABN}` does all in one call, `{OUT}` writes into the same arrays at every call.
- `{PLAIN}` is the forward call of numbabn's batch norm with nothing after it, `{CHAIN}` that call with
  NumPy's `+` and `maximum` after it, and `dy * (y > 0)` before the backward call.
- PyTorch is `batch_norm`, `+` and `relu` through autograd, `{IN_PLACE}` the same with `add_` and `relu_`,
  NHWC as `channels_last`. `{COMPILED}` compiles the first of the two, shapes fixed; its backward pass
  overwrites what forward kept, and is not repeated alone. JAX differentiates with `jax.vjp`, forward and
  backward compiled apart.
- `{ONEDNN}` is oneDNN 3.2 with `fuse_norm_relu` in the layout of the row, `{ONEDNN_BLOCKED}` in its own
  layout, nChw16c with AVX-512 and nChw8c with AVX2. It is called through `ctypes`, whose own time is in every
  call, and writes into the same memory at every call. Its `fuse_norm_add_relu` is not made for CPUs.
- `{COPY}` moves the bytes of the operation with plain stores, all threads and reused memory; the mask of
  signs, a bit for each value, is not counted."""

# What each library is compared with: like with like, a fresh output or the same memory at every call.
COMPARED = {
    OUT: NUMBABN,
    CHAIN: NUMBABN,
    PYTORCH: NUMBABN,
    IN_PLACE: OUT,
    COMPILED: NUMBABN,
    JAX: NUMBABN,
    ONEDNN: OUT,
    ONEDNN_BLOCKED: OUT,
    COPY: OUT,
}
MEANS = f"""\
Time of each library over the time of numbabn with a fresh output, but of `{IN_PLACE}`, oneDNN and `{COPY}`
over that of `{OUT}`."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    cases = matching(CASES, options.rows)
    output = Output.chosen(parser, options, _left_out(options, cases))
    records: list[Record] = []
    with workers(options.threads, LIBRARIES, "benchmarks.epilogue_libraries") as crew:
        for case in (progress := tqdm(cases, unit="row")):
            progress.set_description(case.name)
            records += measure(case, crew, options.rounds)
    unmeasured = set(LIBRARIES) - {record.library for record in records}
    targets = check(records)
    output.deliver(_files(describe(options.threads), records, targets), sorted(unmeasured))
    announce(targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epilogue", description=__doc__)
    add_rows(parser, "^relu|14x14.*NCHW")
    add_turns(parser, ROUNDS)
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace, cases: list[EpilogueCase]) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    rows, rounds = fewer_rows(cases, CASES), fewer_rounds(options.rounds, ROUNDS)
    return [*uninstalled("torch", "jax", DISTRIBUTION), *rounds, *rows]


def check(records: list[Record]) -> list[Target]:
    """Return every target for which the run has the necessary rows."""
    run = Run(records)
    return [target for target in (*_near_plain(run), *_against_peers(run)) if target is not None]


def _near_plain(run: Run) -> Iterable[Target | None]:
    for epilogue in ("relu", "add+relu"):
        for fused, plain, outputs in ((NUMBABN, PLAIN, "fresh outputs"), (OUT, PLAIN_OUT, "out=")):
            ratios = run.ratios(
                FORWARD, fused, plain, lambda case, of=epilogue: case.epilogue == of and case.nbytes >= LARGE
            )
            promise = f"{FORWARD}: {epilogue}, 50 MB and more, {outputs}: at most 1.1x the norm alone"
            yield at_most(promise, ratios, 1.1)


def _against_peers(run: Run) -> Iterable[Target | None]:
    for peer, least in ((IN_PLACE, 4.0), (PYTORCH, 2.5), (COMPILED, 1.3)):
        ours = COMPARED[peer]
        promise = f"{BOTH}: every row, {ours}: at least {least:g}x {peer}"
        yield at_least(promise, run.ratios(BOTH, peer, ours), least)
    promise = f"{BOTH}: every row of relu NCHW, {OUT}: at most 1.15x oneDNN's blocked layout"
    yield at_most(promise, run.ratios(BOTH, OUT, ONEDNN_BLOCKED), 1.15)


def _files(machine: dict[str, str], records: list[Record], targets: list[Target]) -> Files:
    parts = ["Written by `python -m benchmarks.epilogue`.", bullets(machine), ABOUT]
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
    return Files("epilogue", page("Speed of batch norm with what follows it", *parts), numbers)


def _means(run: Run) -> str:
    rows = []
    for epilogue, layout in dict.fromkeys((case.epilogue, case.layout) for case in run.cases):
        for operation in OPERATIONS:
            ratios = (
                run.ratios(
                    operation, library, ours,
                    lambda case, of=(epilogue, layout): (case.epilogue, case.layout) == of,
                )
                for library, ours in COMPARED.items()
            )  # fmt: skip
            means = [f"{geometric_mean(found.values()):.2f}x" if found else "" for found in ratios]
            rows.append([f"{epilogue} {layout}, {operation}", *means])
    return table(["", *COMPARED], rows)


def _times(records: list[Record], operation: str) -> str:
    times = {(r.case, r.library): r.median_ms for r in records if r.operation == operation}
    p90 = {(r.case, r.library): r.p90_ms for r in records if r.operation == operation}
    libraries = [name for name in LIBRARIES if any(library == name for _, library in times)]
    rows = [
        [case.name, *cells(times, case, libraries, FRESH), *cells(p90, case, (NUMBABN, OUT))]
        for case in dict.fromkeys(case for case, _ in times)
    ]
    return table(["ms", *libraries, f"{NUMBABN} p90", f"{OUT} p90"], rows)


if __name__ == "__main__":
    main()
