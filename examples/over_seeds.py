"""What several seeds say about norms: differences with their spread, in words, in a figure and in a file.

``errors[norm][setting]`` is an array (seeds, epochs): the part of the test images that are not recognised.
The setting is what is varied besides the norm, such as the batch size.
"""

import json

import numpy as np
from matplotlib.ticker import LogLocator
from tqdm import tqdm

# Standard deviations that a mean difference must exceed to count. Between equal norms chance exceeds 2 in one
# of 90 comparisons of 5 seeds (Student's t of 2 * sqrt(5), 4 degrees of freedom); a sentence makes 4 or 5.
CLEAR = 2


def measure(norms, settings, args, run):
    """Train networks with every norm in every setting from every seed; return ``errors``.

    ``run(norm, setting, rng, progress)`` trains one network and returns its `training.History`.
    """
    seeds = range(args.seed, args.seed + args.seeds)
    total = len(settings) * len(seeds) * args.epochs
    width = max(map(len, norms))
    errors = {name: {} for name in norms}
    for name, norm in norms.items():
        with tqdm(total=total, desc=f"{name:{width}}", unit="epoch") as progress:
            for setting in settings:
                runs = [run(norm, setting, np.random.default_rng(seed), progress) for seed in seeds]
                errors[name][setting] = 1 - np.array([history.accuracies for history in runs])
    return errors


def final(curves):
    """Return the error after the last epoch, one value per seed."""
    return curves[:, -1]


def mean_error(curves):
    """Return the mean of the final errors, as text."""
    return f"{final(curves).mean():.1%}"


def listed(texts):
    """Join texts as in a sentence: "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def relation(curves, rivals):
    """Return whether there are "more" or "fewer" errors than with a rival norm, or neither: "like".

    Final errors of the same seed are compared, which has drawn the same first weights and the same batches.
    A mean difference counts if it exceeds `CLEAR` times the standard deviation of the differences.
    """
    gaps = final(curves) - final(rivals)
    if abs(gaps.mean()) <= CLEAR * gaps.std(ddof=1):
        return "like"
    return "more" if gaps.mean() > 0 else "fewer"


def verdict(errors, norm, rival, setting):
    """Say at which values of a setting a norm makes more errors than a rival, fewer, or neither."""
    where = {"more": [], "fewer": [], "like": []}
    for value, curves in errors[norm].items():
        rivals = errors[rival][value]
        text = f"{value:g} ({mean_error(curves)} against {mean_error(rivals)})"
        where[relation(curves, rivals)].append(text)
    seeds = len(final(curves))
    clauses = {
        "more": f"{norm} makes more errors than {rival}",
        "fewer": f"{norm} makes fewer errors than {rival}",
        "like": f"{norm} and {rival} differ by no more than {CLEAR} standard deviations over {seeds} seeds",
    }
    text = "; ".join(
        f"{clauses[kind]} at {setting}{'s' if len(places) > 1 else ''} {listed(places)}"
        for kind, places in where.items()
        if places
    )
    return f"{text[0].upper()}{text[1:]}."


def draw_band(axes, x, curves, **style):
    """Draw the mean of curves (seeds, points) as a line, and their range as a band."""
    (line,) = axes.plot(x, curves.mean(axis=0), **style)
    axes.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.12)


def draw_finals(axes, errors, styles):
    """Draw the final errors in percent over the setting: lines are means over the seeds, bars their range.

    ``styles[norm]`` are options of matplotlib's ``errorbar``.
    """
    settings = list(next(iter(errors.values())))
    for i, (norm, by_setting) in enumerate(errors.items()):
        finals = 100 * np.array([final(curves) for curves in by_setting.values()])
        beside = 1.03 ** (i - (len(errors) - 1) / 2)  # so that the bars of the norms do not hide each other
        style = {"label": norm, "marker": "o", "capsize": 2, **styles.get(norm, {})}
        x = beside * np.array(settings)
        mean = finals.mean(axis=1)
        axes.errorbar(x, mean, (mean - finals.min(axis=1), finals.max(axis=1) - mean), **style)
    axes.set_xscale("log")
    axes.set_xticks(settings, labels=[f"{value:g}" for value in settings])
    axes.minorticks_off()
    draw_percent(axes)


def draw_percent(axes):
    """Make the vertical axis one of errors in percent, on a logarithmic scale."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()
    axes.set_ylabel("errors on test images (%)")


def print_table(errors, setting):
    """Print mean and standard deviation of the final errors of every norm at every value of the setting."""
    print(f"\nErrors on test images by {setting} (+- standard deviation over the seeds):\n")
    width = max(map(len, errors))
    values = next(iter(errors.values()))
    print(f"{'':{width}}" + "".join(f"  {value:>14g}" for value in values))
    for norm, by_setting in errors.items():
        finals = [final(curves) for curves in by_setting.values()]
        cells = [f"{each.mean():.1%} +- {each.std(ddof=1):.1%}" for each in finals]
        print(f"{norm:{width}}" + "".join(f"  {cell:>14}" for cell in cells))


def save(path, figure, options, errors, sentences):
    """Write the figure to ``path`` with the ending .png, and errors and sentences with the ending .json."""
    figure.savefig(path.with_suffix(".png"), dpi=110)
    curves = {
        norm: {f"{value:g}": np.round(each, 6).tolist() for value, each in by_setting.items()}
        for norm, by_setting in errors.items()
    }
    kept = {"sentences": sentences, "options": options, "errors[norm][setting][seed][epoch]": curves}
    path.with_suffix(".json").write_text(json.dumps(kept, separators=(",", ":")) + "\n", encoding="utf-8")
