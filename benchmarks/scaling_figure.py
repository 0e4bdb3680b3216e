"""Draw a finished run of the scaling benchmark."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.figures import COLOURS, MARKERS, STYLE
from benchmarks.libraries import COPY, NUMBABN, OUT
from benchmarks.scaling_libraries import LIBRARIES
from benchmarks.scaling_tables import Rates, nbytes

LINES = {
    library: {"color": COLOURS[library], "marker": MARKERS[library], "lw": 1.3}
    for library in LIBRARIES
    if library in MARKERS
} | {
    NUMBABN: {"color": COLOURS[NUMBABN], "marker": "o", "lw": 2},
    OUT: {"color": COLOURS[OUT], "marker": "o", "lw": 2.5},
    COPY: {"color": "0.15", "marker": "", "ls": "--", "lw": 1.3},
}
SIZES = {4e3: "4 KB", 64e3: "64 KB", 1e6: "1 MB", 16e6: "16 MB", 256e6: "256 MB", 4e9: "4 GB"}


def scaling(rates: Rates, foot: str, path: Path) -> None:
    """Draw GB/s against the size of the array, a panel per operation and layout.

    Below are panels of the first operation's GB/s against the number of threads, if there are several.
    """
    lines = len(rates.operations) + (len(rates.counts) > 1)
    size = max(9, 1 + 3.8 * len(rates.layouts)), 1.2 + 2.4 * lines
    with mpl.rc_context(STYLE | {"axes.spines.left": True, "ytick.major.size": 3}):
        figure, axes = plt.subplots(
            lines, len(rates.layouts), figsize=size, sharey="row", squeeze=False, layout="constrained"
        )
        for column, layout in enumerate(rates.layouts):
            for row, operation in enumerate(rates.operations):
                _by_size(axes[row, column], rates, operation, layout)
            if len(rates.counts) > 1:
                _by_threads(axes[-1, column], rates, layout)
        for panel in axes.flat:
            panel.set_ylim(bottom=0)
            panel.grid(axis="y", color="0.9")
        for panel in axes[:, 0]:
            panel.set_ylabel("GB/s")
        figure.suptitle(
            "Batch normalisation of float32 arrays:\nbytes per second against size and threads",
            x=0.01, ha="left", fontsize=13, weight="bold",
        )  # fmt: skip
        keys = [Line2D([], [], ms=6, label=library, **LINES[library]) for library in LIBRARIES]
        figure.legend(handles=keys, loc="outside upper right", ncols=3, fontsize=10, frameon=False)
        figure.supxlabel(foot, fontsize=8, color="0.4")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _by_size(panel: Axes, rates: Rates, operation: str, layout: str) -> None:
    found = rates.by_size(operation, layout)
    for library, style in LINES.items():
        points = {case.nbytes: rate for (case, name), rate in found.items() if name == library}
        panel.plot(points.keys(), points.values(), ms=4.5, mec="white", mew=0.5, **style)
    panel.set_title(f"{operation.capitalize()}, {layout}")
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(list(SIZES)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: SIZES[size]))
    panel.xaxis.set_minor_locator(NullLocator())


def _by_threads(panel: Axes, rates: Rates, layout: str) -> None:
    """Draw one group per array; within it, the numbers of threads are side by side."""
    operation = rates.operations[0]
    ticks = {}
    for group, (case, found) in enumerate(rates.by_threads(operation, layout).items()):
        places = {count: group * (len(rates.counts) + 0.6) + i for i, count in enumerate(rates.counts)}
        for library in dict.fromkeys(name for name, _ in found):
            points = {places[count]: rate for (name, count), rate in sorted(found.items()) if name == library}
            panel.plot(points.keys(), points.values(), ms=4.5, mec="white", mew=0.5, **LINES[library])
        ticks |= {place: str(count) for count, place in places.items()}
        middle = sum(places.values()) / len(places)
        panel.text(middle, -0.22, nbytes(case.nbytes), transform=panel.get_xaxis_transform(), ha="center")
    panel.set_title(f"{operation.capitalize()}, {layout}: threads")
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.tick_params(axis="x", length=0)
