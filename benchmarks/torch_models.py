"""Measure training steps of PyTorch models with numbabn's norms: ``python -m benchmarks.torch_models``.

A step of MobileNetV2, ResNet-18 and small transformers is timed as PyTorch has it, after
``numbabn.torch.convert``, and through ``torch.compile``. Prints the page; with ``--output FOLDER`` or
``--write`` it leaves ``torch_models.md`` and ``torch_models.json``. Eager modes take turns in one process for
each row, and those through ``torch.compile`` in another one.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import numbabn.torch
from benchmarks.machine import describe
from benchmarks.measure import Record
from benchmarks.output import Files, Output, add_options, fewer_rounds
from benchmarks.rows import add_rows, add_turns, fewer_rows, matching
from benchmarks.tables import bullets, cells, misses, page, promises, table
from benchmarks.targets import Run, Target, announce, at_least
from benchmarks.torch_networks import CLASSES, NETWORKS, without_norms
from benchmarks.workers import in_new_process, timed

ROUNDS = 3
SECONDS, FEWEST_STEPS = 1.0, 2  # of a turn
LEARNING_RATE = 1e-4  # small, so that networks without norms stay finite; it does not change the time
LARGEST_DIFFERENCE = 1e-4  # of the first loss in float32, relative, with and without numbabn
STEP = "training step"

EAGER, CONVERTED, FUSED = "PyTorch", "convert", "convert(fuse=True)"
COMPILED, COMPILED_CONVERTED = "torch.compile", "convert, torch.compile"
BARE = "PyTorch without norms"
MODES: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    EAGER: lambda network: network,
    CONVERTED: numbabn.torch.convert,
    FUSED: partial(numbabn.torch.convert, fuse=True),
    COMPILED: partial(torch.compile, dynamic=False),
    COMPILED_CONVERTED: lambda network: torch.compile(numbabn.torch.convert(network), dynamic=False),
    BARE: without_norms,
}
THROUGH_COMPILE = (COMPILED, COMPILED_CONVERTED)
# Of two modes the first takes the place of the second.
REPLACED = {CONVERTED: EAGER, FUSED: EAGER, COMPILED_CONVERTED: COMPILED}
ABOUT = f"""\
Times are milliseconds of one training step in float32, the medians of the rounds: forward, cross entropy,
backward and a step of SGD with momentum, of networks that start from the same weights. The first step of a
mode, in which it compiles, is not timed, and its loss is compared with that of the same mode without numbabn.
Images are in NCHW or `channels_last`, transformers read sequences of vectors.

The eager modes of a row take turns in a process of their own, and those through `torch.compile` in another:
what a process did before changes how often PyTorch's allocator gives memory back to the system, and with
that all times. After other rows in one process, a step of MobileNetV2 on 32x3x96x96 in NCHW with `convert`
was 1.04 and 1.09 times as fast as without, and 1.36 times alone, in another run.

- `{EAGER}`: eager, PyTorch's own modules;
- `{CONVERTED}`, `{FUSED}`: eager, after `numbabn.torch.convert`; with `fuse`, a norm and the ReLU that
  follows it are one pass. The transformers have no such pair;
- `{COMPILED}`, and the same after `convert`. Not in `channels_last`, because its compiler lays out
  convolutions on the CPU in `channels_last` itself;
- `{BARE}`: eager, with identities in the place of the norms.

The share of the norms is what a step takes more than `{BARE}`, over the step. With `fuse` the norms do the
work of most ReLUs, too, which then are a part of neither."""


@dataclass(frozen=True)
class Row:
    """A network, and the shape and the memory format of its batch."""

    network: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def name(self) -> str:
        """Return one label, such as ``ResNet-18 16x3x224x224 NCHW``."""
        return f"{self.network} {'x'.join(map(str, self.shape))} {self.layout}".strip()

    @property
    def memory_format(self) -> torch.memory_format:
        """Return PyTorch's name of the layout."""
        return torch.channels_last if self.layout == "channels_last" else torch.contiguous_format

    def modes(self, through_compile: bool) -> list[list[str]]:
        """Return the modes that are measured, by the process that they share; PyTorch's norms come first."""
        compiled = through_compile and self.layout != "channels_last"
        eager = [mode for mode in MODES if mode not in THROUGH_COMPILE]
        return [eager, list(THROUGH_COMPILE)] if compiled else [eager]


ROWS = (
    *(
        Row(network, shape, layout)
        for network in ("MobileNetV2", "ResNet-18")
        for shape in ((16, 3, 224, 224), (32, 3, 96, 96))
        for layout in ("NCHW", "channels_last")
    ),
    Row("transformer, LayerNorm", (16, 128, 256)),
    Row("transformer, RMSNorm", (16, 128, 256)),
)


@dataclass(frozen=True)
class Batch:
    """What a network is trained on."""

    x: Tensor
    labels: Tensor

    @classmethod
    def of(cls, row: Row) -> Batch:
        """Return normal numbers, with a label for every image, or for every vector of a sequence."""
        random = torch.Generator().manual_seed(0)
        x = torch.randn(row.shape, generator=random).to(memory_format=row.memory_format)
        labelled = row.shape[:1] if x.dim() == 4 else row.shape[:-1]
        return cls(x, torch.randint(CLASSES, (math.prod(labelled),), generator=random))


class Trained:
    """A network that is trained on one batch, in one mode."""

    def __init__(self, network: nn.Module, mode: str, batch: Batch) -> None:
        self.forward = MODES[mode](network)
        self.batch = batch
        self.sgd = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9)

    def step(self) -> float:
        """Make one training step, and return its loss."""
        self.sgd.zero_grad()
        loss = cross_entropy(self.forward(self.batch.x).flatten(0, -2), self.batch.labels)
        loss.backward()
        self.sgd.step()
        return loss.item()


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    rows = matching(ROWS, options.rows)
    output = Output.chosen(parser, options, _left_out(options, rows))
    records: list[Record] = []
    for row in (progress := tqdm(rows, unit="row")):
        progress.set_description(row.name)
        for modes in row.modes(options.compile):
            records += in_new_process(options.threads, measure, row, modes, options.rounds)
    targets = list(check(records))
    output.deliver(_files(describe(options.threads), records, targets))
    announce(targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_models", description=__doc__)
    parser.add_argument(
        "--no-compile",
        dest="compile",
        action="store_false",
        help="leave out torch.compile, which takes most of the time",
    )
    add_rows(parser, "ResNet.*224")
    add_turns(parser, ROUNDS)
    add_options(parser)
    return parser


def _left_out(options: argparse.Namespace, rows: list[Row]) -> list[str]:
    """Return what the committed results show but this run does not measure."""
    found = [*fewer_rounds(options.rounds, ROUNDS), *fewer_rows(rows, ROWS)]
    return found if options.compile else ["torch.compile", *found]


def measure(row: Row, modes: list[str], rounds: int) -> list[Record]:
    """Time the training step of a row in every mode; the modes take turns.

    Raises
    ------
    RuntimeError
        If a mode computes something else.
    """
    torch.manual_seed(0)
    network = NETWORKS[row.network]().to(memory_format=row.memory_format)
    batch = Batch.of(row)
    trained = {mode: Trained(copy.deepcopy(network), mode, batch) for mode in modes}
    agree({mode: each.step() for mode, each in trained.items()})
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode, each in trained.items():
            times[mode] += (nanoseconds / 1e6 for nanoseconds in timed(each.step, SECONDS, FEWEST_STEPS))
    if any(not math.isfinite(each.step()) for each in trained.values()):
        raise RuntimeError(f"{row.name}: a loss is not finite, and times of such numbers mean nothing")
    return [Record.of(STEP, row, mode, pooled) for mode, pooled in times.items()]


def agree(losses: Mapping[str, float]) -> None:
    """Raise a RuntimeError if the first loss of a mode that has norms is not that of the first one."""
    expected = next(iter(losses.values()))
    for mode, loss in losses.items():
        difference = abs(loss - expected) / abs(expected)
        if mode != BARE and not difference <= LARGEST_DIFFERENCE:  # NaN, too, is a failure
            raise RuntimeError(f"{mode}: the first loss differs from PyTorch's by {difference:.1e}")


def check(records: list[Record]) -> Iterator[Target]:
    """Return every target for which the run has the necessary rows."""
    run = Run(records)

    def speedups(mode: str, network: str = "", layout: str = "") -> dict[Row, float]:
        return run.ratios(
            STEP, REPLACED[mode], mode, lambda row: network in row.network and layout in row.layout
        )

    mobile = "MobileNetV2"
    joined = run.ratios(STEP, CONVERTED, FUSED, lambda row: row.network == mobile)
    found = (
        at_least(
            f"{mobile}, NCHW: convert at least 1.25x PyTorch", speedups(CONVERTED, mobile, "NCHW"), 1.25
        ),
        at_least(
            f"{mobile}, channels_last: convert at least 1.35x PyTorch",
            speedups(CONVERTED, mobile, "channels_last"),
            1.35,
        ),
        at_least(f"{mobile}: convert(fuse=True) at least as fast as convert", joined, 1.0),
        at_least("ResNet-18: convert at least 1.03x PyTorch", speedups(CONVERTED, "ResNet-18"), 1.03),
        *(
            at_least(f"no row slower with {mode} than with {REPLACED[mode]}", speedups(mode), 1.0)
            for mode in REPLACED
        ),
    )
    yield from (target for target in found if target is not None)


def shares(run: Run) -> dict[str, dict[Row, float]]:
    """Return the part of the step that the norms take, by mode that is not compiled, and row."""
    return {
        mode: {row: 1 - part for row, part in run.ratios(STEP, BARE, mode).items()}
        for mode in (EAGER, CONVERTED, FUSED)
    }


def _files(machine: dict[str, str], records: list[Record], targets: list[Target]) -> Files:
    run = Run(records)
    speedups = {mode: run.ratios(STEP, other, mode) for mode, other in REPLACED.items()}
    text = page(
        "Training steps of PyTorch models",
        "Written by `python -m benchmarks.torch_models`.",
        bullets(machine),
        ABOUT,
        "## Targets",
        promises(targets),
        misses(targets),
        "## Times as fast",
        f"`{COMPILED_CONVERTED}` beside `{COMPILED}`, the others beside `{EAGER}`.",
        _table("times as fast", run, speedups, "{:.2f}x"),
        "## Share of the norms",
        _table("part of the step", run, shares(run), "{:.1%}"),
        "## Medians",
        _times(run, records, lambda record: record.median_ms),
        "## 90th percentiles",
        _times(run, records, lambda record: record.p90_ms),
    )
    numbers = {
        "machine": machine,
        "rows": [record.as_row() for record in records],
        "shares": {
            mode: {row.name: part for row, part in found.items()} for mode, found in shares(run).items()
        },
        "targets": [asdict(target) for target in targets],
    }
    return Files("torch_models", text, numbers)


def _table(what: str, run: Run, columns: Mapping[str, Mapping[Row, float]], form: str) -> str:
    """Return a table of the rows, with a number of each mode that has one."""
    shown = {mode: found for mode, found in columns.items() if found}
    lines = [
        [row.name, *(form.format(found[row]) if row in found else "" for found in shown.values())]
        for row in run.cases
    ]
    return table([what, *shown], lines)


def _times(run: Run, records: list[Record], of: Callable[[Record], float]) -> str:
    times = {(record.case, record.library): of(record) for record in records}
    modes = [mode for mode in MODES if any(mode == measured for _, measured in times)]
    return table(["ms", *modes], [[row.name, *cells(times, row, modes)] for row in run.cases])


if __name__ == "__main__":
    main()
