"""How the figures of the claims look: colours, lines with their spread, and labels beside them.

The colours are those of Okabe and Ito (2008), "Color universal design", which people with any kind of colour
vision can tell apart; what is drawn differs in its line or marker, too.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from sklearn.isotonic import isotonic_regression

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
STYLES = {  # of what appears in several figures
    "no norm": {"color": BLACK, "marker": "s", "ls": "--"},
    "batch norm": {"color": BLUE, "marker": "o"},
    "group norm": {"color": ORANGE, "marker": "^"},
    "layer norm": {"color": GREEN, "marker": "v"},
    "instance norm": {"color": PURPLE, "marker": "D"},
    "dropout": {"color": RED, "marker": "P", "ls": "--"},
}
LINE_HEIGHT = 12  # points, of labels beside each other
LEAST_ERROR = 0.1  # percent, drawn where there is no error at all, which a logarithmic scale cannot show


def panels(*titles, width=4.8, height=4.2):
    """Return a figure and a list of its axes, which lie side by side and have these titles."""
    figure = Figure(figsize=(width * len(titles), height), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title, fontsize="medium")
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def draw(axes, x, values, label, **style):
    """Draw the means of ``values`` (seeds, places) over x, with the range over the seeds as a band."""
    style = {"lw": 1.6, "ms": 4, **STYLES.get(label, {}), **style}
    (line,) = axes.plot(x, np.mean(values, axis=0), label=label, **style)
    axes.fill_between(
        x, np.min(values, axis=0), np.max(values, axis=0), color=line.get_color(), alpha=0.15, lw=0
    )


def mark_level(axes, level, text):
    """Draw a thin line across the axes at this height, with a text below its right end."""
    axes.axhline(level, color="grey", lw=0.8, zorder=0)
    axes.annotate(
        text, (0.99, level), (0, -3), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
        color="dimgrey", fontsize="small", ha="right", va="top",
    )  # fmt: skip


def draw_errors(axes, x, accuracies, label, **style):
    """Draw the errors in percent on a logarithmic scale, from accuracies (places, seeds)."""
    draw(axes, x, np.maximum(100 * (1 - accuracies.T), LEAST_ERROR), label, **style)
    axes.set_ylabel("errors on test images (%)")
    log_y(axes)


def log_y(axes):
    """Make the vertical axis logarithmic, with plain numbers such as 1, 2, 5 and 10."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()


def log_x(axes, values):
    """Make the horizontal axis logarithmic, with ticks at these values alone."""
    axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.minorticks_off()


def label_lines(axes):
    """Write the label of every line to the right of its end, in its colour and clear of the others.

    It is called when everything is drawn and the scales are set, because it keeps places of the page. A line
    without any point has no label.
    """
    named = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    lines = [line for line in named if np.isfinite(line.get_xydata()).all(axis=1).any()]
    if not lines:
        return  # networks that diverge have no numbers to draw
    axes.figure.draw_without_rendering()
    ends = [axes.transData.transform(_end(line))[1] * 72 / axes.figure.dpi for line in lines]
    places = _spread_out(np.array(ends), LINE_HEIGHT)
    for line, end, place in zip(lines, ends, places, strict=True):
        axes.annotate(
            line.get_label(), _end(line), (8, place - end), textcoords="offset points", va="center",
            color=line.get_color(), annotation_clip=False, fontsize="small",
        )  # fmt: skip


def _end(line):
    """Return the last point of a line that can be drawn."""
    points = line.get_xydata()
    return points[np.isfinite(points).all(axis=1)][-1]


def _spread_out(places, least):
    """Return the numbers that are nearest to these, in the same order, and this far apart at the least."""
    order = np.argsort(places, kind="stable")
    steps = least * np.arange(len(places))
    result = np.empty_like(places)
    result[order] = isotonic_regression(places[order] - steps) + steps
    return result
