"""Draw finished runs: the times of every row, their geometric means, and the errors of the libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.libraries import COPY, NUMBABN, ONEDNN, ONEDNN_BLOCKED, OPERATIONS, OUT, PEERS
from benchmarks.targets import Run, geometric_mean
from tests.support.cases import Case

COLOURS = {
    OUT: "#0b6e75",
    NUMBABN: "#4fb3b0",
    "PyTorch": "#e4572e",
    "torch.compile": "#f2a541",
    "JAX": "#7a5195",
    "NumPy": "#8d99a6",
    ONEDNN: "#3a6ea5",
    ONEDNN_BLOCKED: "#8fb8de",
    "numbabn, fused": "#0b6e75",
    "PyTorch native": "#e4572e",
    "PyTorch cuDNN": "#7a5195",
    "CuPy": "#8d99a6",
}
MARKERS = {
    "PyTorch": "o", "torch.compile": "D", "JAX": "s", "NumPy": "v", ONEDNN: "^", ONEDNN_BLOCKED: ">",
    "PyTorch native": "o", "PyTorch cuDNN": "s", "CuPy": "v",
}  # fmt: skip
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
EXACT = 1e-8  # an error of zero is drawn here, because a logarithmic axis has no zero
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


@dataclass(frozen=True)
class Panels:
    """The contents of the figure of all rows: a title, one panel per operation, and the peers as markers."""

    title: str
    operations: Sequence[str]
    columns: int
    peers: Sequence[str]


def speed(run: Run, panels: Panels, foot: str, path: Path) -> None:
    """Draw times as multiples of the time of a copy, in one panel per operation and one line per shape."""
    rows = math.ceil(len(panels.operations) / panels.columns)
    size = (7 + 3 * panels.columns, rows * (0.21 * len(run.cases) + 0.9) + 0.9)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, panels.columns, figsize=size, sharex=True, squeeze=False, layout="constrained"
        )
        for panel, operation in zip(axes.flat, panels.operations, strict=True):
            _rows(panel, run, operation)
        for panel in axes[:, 1:].flat:
            panel.set_yticklabels([])
        figure.suptitle(
            panels.title, x=0.01, ha="left", fontsize=13, weight="bold",
        )  # fmt: skip
        keys = _keys(run, panels)
        figure.legend(handles=keys, loc="outside upper right", ncols=3, fontsize=10, frameon=False)
        figure.supxlabel(foot, fontsize=8, color="0.4")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def speed_summary(run: Run, foot: str, path: Path) -> None:
    """Draw the geometric mean over all shapes as one bar per library, in one panel per operation.

    oneDNN is not among them: it has not every operation, and blocked not every shape.
    """
    shown = (OUT, NUMBABN, *PEERS)
    libraries = [name for name in COLOURS if name in shown and run.ratios(OPERATIONS[0], name, COPY)]
    with mpl.rc_context(STYLE | {"ytick.labelsize": 9}):
        figure, panels = plt.subplots(
            1, len(OPERATIONS), figsize=(12, 2.7), sharey=True, layout="constrained"
        )
        for panel, operation in zip(panels, OPERATIONS, strict=True):
            _bars(panel, run, operation, libraries)
        rows = len(run.cases)
        figure.suptitle(
            f"Time as a multiple of copying the same bytes (geometric mean over {rows} shapes, float32)",
            x=0.01, ha="left", fontsize=11, weight="bold",
        )  # fmt: skip
        figure.supxlabel(foot, fontsize=8, color="0.4")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def accuracy(panels: list[tuple[str, dict[str, dict[str, float]]]], path: Path) -> None:
    """Draw errors against the offset of the data, one panel per quantity; constant data stand apart."""
    with mpl.rc_context(STYLE | {"axes.spines.left": True}):
        figure, axes = plt.subplots(1, len(panels), figsize=(10, 3.6), sharey=True, layout="constrained")
        for panel, (title, errors) in zip(axes, panels, strict=True):
            _errors(panel, errors)
            panel.set_title(title)
        axes[0].legend(frameon=False, loc="upper left")
        figure.supxlabel("offset of the data, standard deviation 1 (float32)", fontsize=9)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def step_shares(seconds: dict[str, tuple[float, float]], title: str, foot: str, path: Path) -> None:
    """Draw one bar per variant of a step, whose right end is the norm part.

    ``seconds`` has the times of the whole step and of its norm part by variant.
    """
    rest = "0.85"
    with mpl.rc_context(STYLE | {"font.size": 10}):
        figure, panel = plt.subplots(figsize=(9, 0.5 * len(seconds) + 1.3), layout="constrained")
        for line, (variant, (step, norm)) in enumerate(seconds.items()):
            panel.barh(line, step - norm, color=rest, height=0.7)
            panel.barh(line, norm, left=step - norm, color=COLOURS[variant], height=0.7)
            panel.text((step - norm) / 2, line, f"convolutions {step - norm:.2f} s", ha="center", va="center")
            panel.text(
                step, line, f"  norm part {norm:.2f} s, {norm / step:.0%} of {step:.2f} s", va="center"
            )
        panel.set_yticks(range(len(seconds)), seconds)
        panel.set_ylim(len(seconds) - 0.5, -0.5)
        panel.set_xlim(0, 1.5 * max(step for step, _ in seconds.values()))
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)
        panel.set_title(title)
        figure.supxlabel(foot, fontsize=8, color="0.4")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _errors(panel: Axes, errors: dict[str, dict[str, float]]) -> None:
    for library, by_input in errors.items():
        shown = [max(error, EXACT) for error in by_input.values()]
        ours = library == NUMBABN
        style = {"color": COLOURS[OUT if ours else library], "marker": MARKERS.get(library, "o")}
        style |= {"ms": 8, "lw": 3, "zorder": 3} if ours else {"ms": 6, "lw": 1.5, "zorder": 2}
        panel.plot(range(len(shown) - 1), shown[:-1], label=library, mec="white", **style)
        panel.plot([len(shown) - 0.6], shown[-1:], mec="white", **style)
        labels = [text.replace(" ", "\n") for text in by_input]
    panel.set_xticks([*range(len(labels) - 1), len(labels) - 0.6], labels)
    panel.set_yscale("log")
    powers = {10.0**power: f"$10^{{{power}}}$" for power in range(-7, 0)}
    panel.set_yticks([EXACT, *powers], ["exact", *powers.values()])
    panel.set_ylim(EXACT / 2, 1)
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color="0.9")


def _rows(panel: Axes, run: Run, operation: str) -> None:
    lines = _lines(run.cases)
    for library, thickness in ((NUMBABN, 0.72), (OUT, 0.36)):
        for case, ratio in run.ratios(operation, library, COPY).items():
            panel.barh(lines[case], ratio - 1, left=1, height=thickness, color=COLOURS[library], zorder=2)
    for peer, marker in MARKERS.items():
        ratios = run.ratios(operation, peer, COPY)
        heights = [lines[case] for case in ratios]
        panel.plot(
            ratios.values(), heights, marker, color=COLOURS[peer], ms=5, mew=0.5, mec="white", zorder=3
        )
    panel.axvline(1, color="0.15", lw=1, zorder=4)
    panel.set_title(operation.capitalize())
    panel.set_yticks(list(lines.values()), [case.name for case in lines])
    panel.set_ylim(max(lines.values()) + 0.8, -0.8)
    panel.set_xscale("log")
    _multiples(panel)
    panel.grid(axis="x", color="0.9")
    panel.tick_params(axis="x", labelbottom=True)


def _lines(cases: list[Case]) -> dict[Case, float]:
    """Return the vertical position of every case, with a gap where the layout changes."""
    lines, height = {}, 0.0
    for case, previous in zip(cases, [cases[0], *cases], strict=False):
        height += 0.7 * (case.layout != previous.layout)
        lines[case] = height
        height += 1
    return lines


def _bars(panel: Axes, run: Run, operation: str, libraries: list[str]) -> None:
    means = [geometric_mean(run.ratios(operation, library, COPY).values()) for library in libraries]
    panel.barh(libraries, means, color=[COLOURS[library] for library in libraries], height=0.75)
    for line, mean in enumerate(means):
        panel.text(mean, line, f" {mean:.1f}", va="center", fontsize=8.5, color="0.2")
    panel.axvline(1, color="0.15", lw=1)
    panel.text(1, len(libraries) - 0.4, "copy", ha="center", va="top", fontsize=8, color="0.2")
    panel.set_ylim(len(libraries) - 0.4, -0.6)
    panel.set_title(operation.capitalize())
    panel.set_xlim(0, 1.18 * max(means))
    panel.set_xticks([])
    panel.spines["bottom"].set_visible(False)


def _keys(run: Run, panels: Panels) -> list[Patch | Line2D]:
    bars = [Patch(color=COLOURS[NUMBABN], label="numbabn"), Patch(color=COLOURS[OUT], label="numbabn, out=")]
    measured = [peer for peer in panels.peers if run.ratios(panels.operations[0], peer, COPY)]
    return bars + [
        Line2D([], [], ls="", marker=MARKERS[peer], color=COLOURS[peer], ms=6, label=peer)
        for peer in measured
    ]


def _multiples(panel: Axes) -> None:
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.xaxis.set_minor_locator(NullLocator())
