"""Claim: batch norm makes training less sensitive to the initialisation.

Ioffe and Szegedy (2015), "Batch normalization", abstract: it allows us to be less careful about
initialisation. Section 3.3 gives a reason: the output of batch norm does not depend on the scale of the
weights before it.

Trains an MLP of five hidden layers with and without batch norm, whose first hidden weights are those of He et
al. (2015) times a factor, over four decades. Every network is trained at several learning rates and judged at
the one with the least training loss, which is chosen for each factor anew::

    python -m examples.claims.initialisation
"""

import numpy as np
from training import train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import at, best, effect, percent, percent_spread, spread, verdict
from examples.claims.study import Claim

NORMS = [networks.NO_NORM, networks.BATCH_NORM]
SCALES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
RATES = [0.0003, 0.003, 0.03, 0.3]
DEPTH = 5
TRAINED = 0.8  # accuracy from which a network counts as trained


def run(data, rng, epochs, norm, scale, rate):
    """Train one network; return its training loss and its accuracy on test images in the end."""
    net = networks.mlp(rng, data[0], norm, depth=DEPTH, scale=scale)
    history = train(net, data, rate, epochs, 32, rng)
    return {"loss": history.losses[-1], "accuracy": history.accuracies[-1]}


def accuracies_of(results):
    """Return the accuracies (norms, scales, seeds) at the best learning rate of every norm and scale."""
    return at(results["accuracy"], best(results["loss"]))


def table(results):
    """Return the final accuracy and the best learning rate of both networks at every scale."""
    norms, rates = results.grid["norm"], np.array(results.grid["rate"])
    accuracies, chosen = accuracies_of(results), rates[best(results["loss"])]
    rows = [["first weights times", *norms, *(f"{norm}: best rate" for norm in norms)]]
    for i, scale in enumerate(results.grid["scale"]):
        rows.append([f"{scale:g}", *map(percent_spread, accuracies[:, i]), *(f"{r:g}" for r in chosen[:, i])])
    return rows


def figure(results):
    """Return a figure of the accuracy over the scale of the first weights."""
    title = f"Accuracy of an MLP of {DEPTH} hidden layers after {results.options['epochs']} epochs"
    result, (axes,) = plots.panels(title, width=7)
    for norm, accuracies in zip(results.grid["norm"], accuracies_of(results), strict=True):
        plots.draw(axes, results.grid["scale"], 100 * accuracies.T, norm)
    axes.set(
        xscale="log", xlabel="first weights, as multiples of those of He et al. (2015)",
        ylabel="accuracy on test images (%)", ylim=(0, 102),
    )  # fmt: skip
    plots.mark_level(axes, 100 * TRAINED, f"{100 * TRAINED:.0f} %: trained")
    plots.label_lines(axes)
    return result


def finding(results):
    """Say from how many scales both networks train, and what they reach at the worst."""
    accuracies, scales = accuracies_of(results), results.grid["scale"]
    plain, normed = (accuracies >= TRAINED).sum(axis=1)
    worst = accuracies.mean(axis=-1).min(axis=-1)
    return (
        f"{verdict(effect(normed, plain))}: of {len(scales)} scales of the first weights over "
        f"{np.log10(scales[-1] / scales[0]):g} decades, the MLP trains to {100 * TRAINED:.0f} % accuracy "
        f"from {spread(normed)} with batch norm and from {spread(plain)} without; from its worst scale it "
        f"reaches {percent(worst[1])} with and {percent(worst[0])} without, each at the best of "
        f"{len(results.grid['rate'])} learning rates."
    )


CLAIM = Claim(
    name="initialisation",
    statement="Batch norm makes training less sensitive to the initialisation.",
    source='Ioffe and Szegedy (2015), "Batch normalization", abstract and section 3.3',
    grid={"norm": NORMS, "scale": SCALES, "rate": RATES},
    epochs=8,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
