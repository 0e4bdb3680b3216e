"""Claim: batch norm allows saturating activations.

Ioffe and Szegedy (2015), "Batch normalization", section 1: it keeps a network from being stuck where its
activations are saturated. Section 4.2.2: with batch norm, Inception reaches 69.8 % on ImageNet with sigmoids
in place of ReLU; without, it does not do better than chance.

Trains networks of eight hidden layers with sigmoid or tanh, with and without batch norm, at several learning
rates; each is judged at the one with the least training loss. First weights are those of He et al. (2015), or
four times as large, which drives units into saturation. A unit is saturated by an image where its slope is
below 5 % of the greatest slope of its activation::

    python -m examples.claims.saturation
"""

from itertools import product

import numpy as np
from minimal_nn import Sigmoid, Tanh
from training import train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import at, best, effect, listed, percent, percent_spread, verdict
from examples.claims.study import Claim

ACTIVATIONS = {"sigmoid": Sigmoid, "tanh": Tanh}
GREATEST_SLOPE = {"sigmoid": 1 / 4, "tanh": 1}
SATURATED = 0.05  # of the greatest slope: a unit with less is saturated
NORMS = [networks.NO_NORM, networks.BATCH_NORM]
SCALES = [1, 4]
RATES = [0.001, 0.01, 0.1, 1.0]
DEPTH, UNITS = 8, 64
SHOWN = 500  # training images on which saturation is measured


def run(data, rng, epochs, activation, scale, norm, rate):
    """Train one network; return saturated shares before and after, and its loss and accuracy after."""
    net = networks.mlp(
        rng, data[0], norm, depth=DEPTH, units=UNITS, scale=scale, activation=ACTIVATIONS[activation]
    )
    before = saturated(net, data[0][:SHOWN], activation)
    history = train(net, data, rate, epochs, 32, rng)
    return {
        "before": before,
        "after": saturated(net, data[0][:SHOWN], activation),
        "loss": history.losses[-1],
        "accuracy": history.accuracies[-1],
    }


def saturated(net, images, activation):
    """Return the share of saturated units, over all hidden layers and these images."""
    net.train()  # untrained running statistics would show nothing
    net(images)
    slopes = [
        layer.backward(np.ones_like(layer.y))
        for layer in net.layers
        if isinstance(layer, ACTIVATIONS[activation])
    ]
    return 1 - np.mean(np.array(slopes) >= SATURATED * GREATEST_SLOPE[activation])


def at_best(results, name):
    """Return a measurement (pairs, norms, seeds) at the best learning rate of every network.

    Networks of a pair have the same activation and the same scale of the first weights.
    """
    found = at(results[name], best(results["loss"]))
    return found.reshape(-1, *found.shape[2:])


def pairs(results):
    """Return the names of the pairs."""
    weights = ["" if scale == 1 else f" and {scale:g} times the weights" for scale in results.grid["scale"]]
    return [activation + text for activation, text in product(results.grid["activation"], weights)]


def table(results):
    """Return for every network the final accuracy, the saturated shares and the learning rate."""
    columns = [at_best(results, name) for name in ("accuracy", "before", "after")]
    rates = np.array(results.grid["rate"])[best(results["loss"])].ravel()
    rows = [["network", "accuracy", "saturated before", "saturated after", "best rate"]]
    for i, (pair, norm) in enumerate(product(pairs(results), results.grid["norm"])):
        cells = [percent_spread(column.reshape(len(rates), -1)[i]) for column in columns]
        rows.append([f"{pair}, {norm}", *cells, f"{rates[i]:g}"])
    return rows


def figure(results):
    """Return a figure of the accuracy and of the saturated share, with two rows for each pair."""
    result, (left, right) = plots.panels(
        f"Accuracy after {results.options['epochs']} epochs, one mark per seed",
        "Saturated units, before training (large open marks)\nand after (small filled marks)",
        width=5,
    )
    accuracy, before, after = (100 * at_best(results, name) for name in ("accuracy", "before", "after"))
    places = -np.arange(len(accuracy))
    for j, norm in enumerate(results.grid["norm"]):
        style, rows = {**plots.STYLES[norm], "ls": ""}, places + 0.15 - 0.3 * j
        for place, values, start, end in zip(rows, accuracy[:, j], before[:, j], after[:, j], strict=True):
            left.plot(values, np.full(len(values), place), alpha=0.6, **style)
            right.plot([start.mean(), end.mean()], [place, place], color=style["color"])
            right.plot(start.mean(), place, **style, ms=9, mfc="none")
            right.plot(end.mean(), place, **style)
        left.annotate(
            norm, (accuracy[0, j].mean(), rows[0]), (0, 8 - 16 * j), textcoords="offset points",
            color=style["color"], ha="center", va="center",
        )  # fmt: skip
    left.set_yticks(places, [pair.replace(" and ", " and\n") for pair in pairs(results)])
    right.set_yticks(places, [""] * len(places))
    for axes, what in [
        (left, "accuracy on test images (%)"),
        (right, "saturated units, mean over images (%)"),
    ]:
        axes.set(xlabel=what, xlim=(-3, 103), ylim=(places[-1] - 0.5, 0.6))
    return result


def finding(results):
    """Say what batch norm does to the accuracy of every pair, and how many units were saturated before."""
    accuracy, before = at_best(results, "accuracy"), at_best(results, "before")
    effects = effect(accuracy[:, 1], accuracy[:, 0])
    texts = [
        f"from {percent(plain)} to {percent(normed)} with {pair}{'' if clear else ' (no clear difference)'}"
        for pair, (plain, normed), clear in zip(pairs(results), accuracy, effects, strict=True)
    ]
    return (
        f"{verdict(effects)}: batch norm takes the accuracy of networks of {DEPTH} hidden layers "
        f"{listed(texts)}; before training, {listed([percent(share) for share in before[:, 0]])} of their "
        f"units are saturated without it, and at most {percent(before[:, 1].mean(axis=-1).max())} with it."
    )


CLAIM = Claim(
    name="saturation",
    statement="Batch norm allows saturating activations.",
    source='Ioffe and Szegedy (2015), "Batch normalization", sections 1 and 4.2.2',
    grid={"activation": list(ACTIVATIONS), "scale": SCALES, "norm": NORMS, "rate": RATES},
    epochs=10,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
