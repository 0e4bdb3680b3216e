"""Draws a run: every row as a multiple of the time of a copy."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.figures import COLOURS, STYLE, TICKS
from benchmarks.gpu.peers import COMPILED, CUDNN, CUPY, NATIVE, OPERATIONS
from benchmarks.gpu.results import Results
from benchmarks.libraries import COPY, NUMBABN

MARKERS = {
    CUPY: ("v", "#8d99a6"),
    NATIVE: ("o", "#e4572e"),
    CUDNN: ("s", "#7a5195"),
    COMPILED: ("D", "#f2a541"),
}


def speed(results: Results, path: Path) -> None:
    """Draw one panel per operation and one line per row."""
    cases = results.run.cases
    about = {row["label"]: row["text"] for row in results.of("fact")}
    with mpl.rc_context(STYLE):
        size = (14, 0.2 * len(cases) + 2)
        figure, panels = plt.subplots(1, len(OPERATIONS), figsize=size, sharey=True, layout="constrained")
        for panel, operation in zip(panels, OPERATIONS, strict=True):
            _rows(panel, results, operation)
        figure.suptitle(
            "Batch normalisation of float32 arrays on a GPU:\ntime as a multiple of a copy on the device",
            x=0.01, ha="left", fontsize=13, weight="bold",
        )  # fmt: skip
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=5, fontsize=10, frameon=False)
        figure.supxlabel(f"{about.get('GPU', '')}, {about.get('Date', '')}", fontsize=8, color="0.4")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _rows(panel: Axes, results: Results, operation: str) -> None:
    lines = {case: line for line, case in enumerate(results.run.cases)}
    ours = results.run.ratios(operation, NUMBABN, COPY)
    heights = [lines[case] for case in ours]
    panel.barh(heights, [ratio - 1 for ratio in ours.values()], left=1, color=COLOURS[NUMBABN], label=NUMBABN)
    for peer, (marker, colour) in MARKERS.items():
        ratios = results.run.ratios(operation, peer, COPY)
        heights = [lines[case] for case in ratios]
        panel.plot(ratios.values(), heights, marker, color=colour, ms=5, mew=0.5, mec="white", label=peer)
    panel.axvline(1, color="0.15", lw=1)
    panel.set_title(operation.capitalize())
    panel.set_yticks(list(lines.values()), [case.name for case in lines])
    panel.set_ylim(len(lines), -1)
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="x", color="0.9")
