"""Claim: batch norm allows higher learning rates.

Ioffe and Szegedy (2015), "Batch normalization", section 3.3: without it, large steps make activations and
gradients grow until training diverges; with it, the scale of the weights does not matter to the layers above.

Trains an MLP of two hidden layers with and without batch norm at learning rates over four decades, for the
same number of epochs, with plain momentum and no schedule::

    python -m examples.claims.learning_rate
"""

import numpy as np
from training import train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, percent, percent_spread, verdict
from examples.claims.study import Claim

NORMS = [networks.NO_NORM, networks.BATCH_NORM]
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
TRAINED = 0.9  # accuracy from which a rate is said to train


def run(data, rng, epochs, norm, rate):
    """Train one network and return its final accuracy on test images."""
    net = networks.mlp(rng, data[0], norm)
    return {"accuracy": train(net, data, rate, epochs, 32, rng).accuracies[-1]}


def largest_rates(results):
    """Return for every norm and seed the largest learning rate that trains, or 0 where none does."""
    rates = np.array(results.grid["rate"])[:, None]
    return np.where(results["accuracy"] >= TRAINED, rates, 0).max(axis=1)


def up_to(rates):
    """Return in words up to which rate networks train, in the median over the seeds."""
    rate = np.median(rates)
    return f"up to {rate:g}" if rate else "at no learning rate"


def table(results):
    """Return the final accuracy of both networks at every rate."""
    rows = [["learning rate", *results.grid["norm"]]]
    for rate, accuracies in zip(results.grid["rate"], results["accuracy"].swapaxes(0, 1), strict=True):
        rows.append([f"{rate:g}", *map(percent_spread, accuracies)])
    return rows


def figure(results):
    """Return a figure of the accuracy over the learning rate."""
    epochs = results.options["epochs"]
    result, (axes,) = plots.panels(f"Accuracy of an MLP after {epochs} epochs of training", width=7)
    for norm, accuracies in zip(results.grid["norm"], results["accuracy"], strict=True):
        plots.draw(axes, results.grid["rate"], 100 * accuracies.T, norm)
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy on test images (%)", ylim=(0, 102))
    plots.label_lines(axes)
    return result


def finding(results):
    """Say up to which rates both networks train, and what the largest common one costs."""
    plain, normed = largest_rates(results)
    best = results["accuracy"].mean(axis=-1).max(axis=-1)
    return (
        f"{verdict(effect(normed, plain))}: of learning rates over four decades, the MLP trains to "
        f"{100 * TRAINED:.0f} % {up_to(normed)} with batch norm and {up_to(plain)} without; at its best "
        f"rate it reaches {percent(best[1])} with and {percent(best[0])} without."
    )


CLAIM = Claim(
    name="learning_rate",
    statement="Batch norm allows higher learning rates.",
    source='Ioffe and Szegedy (2015), "Batch normalization", section 3.3',
    grid={"norm": NORMS, "rate": RATES},
    epochs=8,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
