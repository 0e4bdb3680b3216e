"""Claim: batch norm makes training converge in fewer epochs.

Ioffe and Szegedy (2015), "Batch normalization", section 4.2.2 and figure 3: with batch norm, Inception
reaches its accuracy on ImageNet in less than half as many training steps, and in 14 times fewer with other
changes, among them a higher learning rate.

Trains an MLP and a CNN with and without batch norm at several learning rates, and counts the epochs until a
network reaches 97 % of the better final accuracy of both, with and without. Each network is judged at one
learning rate: that of the fewest errors over all epochs on a fifth of the training images, of which it has
seen only the others by then. For the result it is trained again, on all training images::

    python -m examples.claims.convergence
"""

import numpy as np
from sklearn.model_selection import train_test_split
from training import train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import at, best, effect, listed, spread, verdict
from examples.claims.study import Claim

NETWORKS = {"MLP": networks.mlp, "CNN": networks.cnn}
NORMS = [networks.NO_NORM, networks.BATCH_NORM]
RATES = [0.01, 0.03, 0.1, 0.3, 1.0]
BATCH_SIZE = 128  # of which an epoch of the digits has 11: few enough to count epochs
SHARE = 0.97  # of the best final accuracy, which is to be reached


def run(data, rng, epochs, network, norm, rate):
    """Train one network twice; return its mean error for validation and its accuracies on test images."""
    x_train, _, labels_train, _ = data
    parts = train_test_split(x_train, labels_train, test_size=0.2, stratify=labels_train, random_state=0)
    seen, held_out, labels_seen, labels_held_out = parts
    make = NETWORKS[network]
    validation = (seen, held_out, labels_seen, labels_held_out)
    chooses = train(make(rng, x_train, norm), validation, rate, epochs, BATCH_SIZE, rng)
    history = train(make(rng, x_train, norm), data, rate, epochs, BATCH_SIZE, rng)
    return {"error": 1 - np.mean(chooses.accuracies), "accuracy": history.accuracies}


def targets(results):
    """Return for the MLP and the CNN the accuracy that is to be reached, in whole percent."""
    final = at(results["accuracy"], best(results["error"]))[..., -1].mean(axis=-1)
    return np.floor(100 * SHARE * final.max(axis=-1)) / 100


def epochs_to(accuracies, target):
    """Return after how many epochs the target is reached; one more than there are, if it never is.

    Between the ends of two epochs the accuracy is taken for a straight line, which begins at guessing.
    """
    reached = accuracies >= target
    last = reached.argmax(axis=-1)[..., None]  # the epoch that ends above the target
    earlier = np.insert(accuracies, 0, 1 / networks.CLASSES, axis=-1)
    below, above = (np.take_along_axis(each, last, -1)[..., 0] for each in (earlier, accuracies))
    crossed = last[..., 0] + (target - below) / np.where(reached.any(axis=-1), above - below, 1)
    return np.where(reached.any(axis=-1), crossed, accuracies.shape[-1] + 1)


def duration(accuracies, target):
    """Return the epochs to the target as text, of accuracies (seeds, epochs)."""
    needed, epochs = epochs_to(accuracies, target), accuracies.shape[-1]
    if late := int((needed > epochs).sum()):
        return f"over {epochs} epochs in {late} of {len(needed)} runs"
    return f"{spread(needed)} epochs"


def table(results):
    """Return the epochs to the target at every learning rate; the rate that was chosen is marked."""
    rows = [["network", *(f"rate {rate:g}" for rate in results.grid["rate"])]]
    for i, (name, target) in enumerate(zip(results.grid["network"], targets(results), strict=True)):
        for j, norm in enumerate(results.grid["norm"]):
            cells = [duration(accuracies, target) for accuracies in results["accuracy"][i, j]]
            cells[best(results["error"])[i, j]] += " (chosen)"
            rows.append([f"{name}, {norm}, to {100 * target:.0f} %", *cells])
    return rows


def figure(results):
    """Return a figure of the accuracy after every epoch, for the MLP and for the CNN."""
    names, chosen = results.grid["network"], best(results["error"])
    curves = at(results["accuracy"], chosen)
    epochs = np.arange(1, curves.shape[-1] + 1)
    result, panels = plots.panels(*(f"{name}: accuracy at the best learning rate of each" for name in names))
    for i, (axes, target) in enumerate(zip(panels, targets(results), strict=True)):
        for j, norm in enumerate(results.grid["norm"]):
            label = f"{norm}, rate {results.grid['rate'][chosen[i, j]]:g}"
            plots.draw(axes, epochs, 100 * curves[i, j], label, **plots.STYLES[norm])
        plots.mark_level(axes, 100 * target, f"target {100 * target:.0f} %")
        axes.set(xlabel="epochs of training", ylabel="accuracy on test images (%)")
        plots.label_lines(axes)
    return result


def finding(results):
    """Say how many epochs both kinds of networks need, with and without batch norm."""
    curves = at(results["accuracy"], best(results["error"]))
    needed = np.array(
        [epochs_to(each, target) for each, target in zip(curves, targets(results), strict=True)]
    )
    texts = [
        f"to {100 * target:.0f} % accuracy the {name} takes {duration(normed, target)} with batch norm and "
        f"{duration(plain, target)} without"
        for name, target, (plain, normed) in zip(
            results.grid["network"], targets(results), curves, strict=True
        )
    ]
    return (
        f"{verdict(effect(needed[:, 0], needed[:, 1]))}: {listed(texts)}, each at the best of "
        f"{len(results.grid['rate'])} learning rates."
    )


CLAIM = Claim(
    name="convergence",
    statement="Batch norm makes training converge in fewer epochs.",
    source='Ioffe and Szegedy (2015), "Batch normalization", section 4.2.2 and figure 3',
    grid={"network": list(NETWORKS), "norm": NORMS, "rate": RATES},
    epochs=20,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
