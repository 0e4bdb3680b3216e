"""Measure float16 and bfloat16 beside float32, and beside PyTorch on a CPU: ``python -m benchmarks.half``.

Prints the page; with ``--output FOLDER`` it leaves ``half.md`` and ``half.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from benchmarks.libraries import BACKWARD, EPS, FORWARD, Operations
from benchmarks.machine import describe
from benchmarks.measure import Record, flat, measure, workers
from benchmarks.output import Files, Output, add_options, fewer_rounds, uninstalled
from benchmarks.rows import add_turns
from benchmarks.tables import bullets, page, promises, table
from benchmarks.targets import Target, announce, at_least, at_most

ROUNDS = 5
NUMBABN, PYTORCH = "numbabn out=", "PyTorch"
FLOAT32, HALVES = "float32", ("float16", "bfloat16")
# Batch norm of the two layouts and layer norm, of 50 MB and more in float32.
SHAPES = (
    ("NCHW", (32, 64, 112, 112)),
    ("NCHW", (32, 256, 56, 56)),
    ("NHWC", (32, 56, 56, 256)),
    ("rows", (16384, 1024)),
)
ABOUT = """\
Times are milliseconds of one call, the medians of several rounds in which the libraries take turns, on all
dtypes of a shape. Parameters are float32. Results of numbabn go to `out=`, so that no memory is made."""


@dataclass(frozen=True)
class HalfCase:
    """A shape, read by batch norm in a layout or by layer norm as rows, and a dtype."""

    layout: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """Return one label, such as ``32x256x56x56 NCHW bfloat16``."""
        return f"{'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"

    @property
    def axis(self) -> int:
        """Return the axis of the parameters."""
        return 1 if self.layout == "NCHW" else -1


CASES = tuple(HalfCase(*shape, dtype) for shape in SHAPES for dtype in (FLOAT32, *HALVES))


@dataclass(frozen=True)
class Data:
    """The inputs of one case in float32; every library rounds x and dy to the dtype."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray

    @classmethod
    def of(cls, case: HalfCase) -> Data:
        """Return a million normal numbers, repeated to fill the arrays."""
        fill = partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
        x, dy = (np.resize(fill(1_000_003), case.shape) for _ in range(2))
        return cls(x, dy, fill(case.shape[case.axis]), fill(case.shape[case.axis]))


def numbabn(case: HalfCase, data: Data) -> Operations:
    import ml_dtypes

    import numbabn as nbn

    dtype = ml_dtypes.bfloat16 if case.dtype == "bfloat16" else case.dtype
    x, dy = data.x.astype(dtype), data.dy.astype(dtype)
    y, dx = np.empty_like(x), np.empty_like(x)
    batch = nbn.batch_norm_forward, nbn.batch_norm_backward
    layer = nbn.layer_norm_forward, nbn.layer_norm_backward
    forward, backward = layer if case.layout == "rows" else batch
    normalise = partial(forward, x, data.gamma, data.beta, axis=case.axis, eps=EPS, out=y)
    _, saved = normalise()
    return {FORWARD: normalise, BACKWARD: partial(backward, dy, saved, out=dx)}


def pytorch(case: HalfCase, data: Data) -> Operations:
    import torch

    torch.set_grad_enabled(False)
    kind, calls, everything = getattr(torch, case.dtype), torch.ops.aten, [True, True, True]
    x, dy = (torch.from_numpy(array).to(kind) for array in (data.x, data.dy))
    gamma, beta = torch.from_numpy(data.gamma), torch.from_numpy(data.beta)
    if case.layout == "rows":
        shape = x.shape[-1:]
        forward = partial(torch.native_layer_norm, x, shape, gamma, beta, EPS)
        _, mean, invstd = forward()
        rest = dy, x, shape, mean, invstd, gamma, beta, everything
        return {FORWARD: forward, BACKWARD: partial(calls.native_layer_norm_backward, *rest)}
    if case.layout == "NHWC":
        x, dy = x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2)  # channels_last
    forward = partial(torch.native_batch_norm, x, gamma, beta, None, None, True, 0.0, EPS)
    _, mean, invstd = forward()
    rest = dy, x, gamma, None, None, mean, invstd, True, EPS, everything
    return {FORWARD: forward, BACKWARD: partial(calls.native_batch_norm_backward, *rest)}


LIBRARIES = {NUMBABN: numbabn, PYTORCH: pytorch}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half", description=__doc__)
    add_turns(parser, ROUNDS)
    add_options(parser)
    options = parser.parse_args()
    left_out = [*uninstalled("torch"), *fewer_rounds(options.rounds, ROUNDS)]
    output = Output.chosen(parser, options, left_out)
    records: list[Record] = []
    with workers(options.threads, LIBRARIES, "benchmarks.half") as crew:
        for case in (progress := tqdm(CASES, unit="row")):
            progress.set_description(case.name)
            records += measure(case, crew, options.rounds)
    targets = list(check(records))
    output.deliver(_files(describe(options.threads), records, targets), [])
    announce(targets)


def _times(records: list[Record]) -> dict[tuple[str, HalfCase, str], float]:
    return {(record.operation, record.case, record.library): record.median_ms for record in records}


def check(records: list[Record]) -> Iterator[Target]:
    """Return one target per operation and dtype for the time of float32, and one for PyTorch's."""
    times = _times(records)
    for operation in (FORWARD, BACKWARD):
        for dtype in HALVES:
            of_float32, of_pytorch = {}, {}
            for layout, shape in SHAPES:
                case = HalfCase(layout, shape, dtype)
                mine = times[operation, case, NUMBABN]
                of_float32[case] = mine / times[operation, HalfCase(layout, shape, FLOAT32), NUMBABN]
                if (operation, case, PYTORCH) in times:
                    of_pytorch[case] = times[operation, case, PYTORCH] / mine
            found = (
                at_most(f"{operation}: {dtype} takes at most 0.6x the time of float32", of_float32, 0.6),
                at_least(f"{operation}: {dtype}, at least 3x PyTorch", of_pytorch, 3.0),
            )
            yield from (target for target in found if target is not None)


def _files(machine: dict[str, str], records: list[Record], targets: list[Target]) -> Files:
    times = _times(records)
    parts = ["Written by `python -m benchmarks.half`.", bullets(machine), ABOUT, promises(targets)]
    for operation in (FORWARD, BACKWARD):
        rows = []
        for case in CASES:
            found = [times.get((operation, case, library)) for library in LIBRARIES]
            rows.append([case.name, *("" if ms is None else f"{ms:.3g}" for ms in found)])
        parts += [f"## {operation.capitalize()}", table(["ms", *LIBRARIES], rows)]
    numbers = {
        "machine": machine,
        "rows": [flat(record) for record in records],
        "targets": [asdict(target) for target in targets],
    }
    return Files("half", page("Speed of float16 and bfloat16", *parts), numbers)


if __name__ == "__main__":
    main()
