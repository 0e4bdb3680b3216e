"""Claim: small batches break batch norm, and group norm does not care.

Wu and He (2018), "Group normalization", figure 1: on ImageNet, a ResNet-50 with batch norm makes more errors
the fewer images a batch has, and one with group norm does not.

Trains a small CNN and an MLP with each norm in batches of 2 to 256 images, for the same number of epochs,
with a learning rate in proportion to the batch size, as in their section 4.1; the largest batches are few
updates. Batch norm is also shown with exact statistics of the training images in place of its running
averages (``numbabn.recalibrate``), because small batches make both training and these averages noisy::

    python -m examples.claims.batch_size
"""

import numpy as np
from training import accuracy, train

import numbabn as nbn
from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, percent_spread, verdict
from examples.claims.study import Claim

NETWORKS = {"CNN": networks.cnn, "MLP": networks.mlp}
SIZES = [2, 8, 32, 128, 256]
RATE = 0.03  # of batches of 32
MOST_LOST = 0.02  # of the accuracy at the best size; small batches that lose more are said to break a norm
RECALIBRATED = "batch norm, recalibrated"


def run(data, rng, epochs, network, norm, size):
    """Train one network; return its accuracy on test images, with running averages and recalibrated."""
    x_train, x_test, _, labels_test = data
    pixels = (x_train.shape[-1] // 2) ** 2 if network == "CNN" else 1  # of a channel in the last hidden layer
    found = {"accuracy": np.nan, "recalibrated": np.nan, "values": pixels * size}
    if network == "MLP" and norm == "instance norm":
        return found  # a channel of an image is one value there, which minus its mean is 0
    net = NETWORKS[network](rng, x_train, norm)
    found["accuracy"] = train(net, data, RATE * size / 32, epochs, size, rng).accuracies[-1]
    if norm == networks.BATCH_NORM:
        nbn.recalibrate(networks.batch_norms(net), net, [x_train])
        found["recalibrated"] = accuracy(net, x_test, labels_test)
    return found


def curves(results):
    """Return {network: {norm: accuracies (sizes, seeds)}} of all that were trained."""
    found = {network: {} for network in results.grid["network"]}
    for i, network in enumerate(found):
        for j, norm in enumerate(results.grid["norm"]):
            for name, kind in ((norm, "accuracy"), (RECALIBRATED, "recalibrated")):
                if not np.isnan(results[kind][i, j]).any():
                    found[network][name] = results[kind][i, j]
    return found


def best(accuracies):
    """Return the number of the size with the best accuracy."""
    return accuracies.mean(axis=-1).argmax()


def broken(accuracies):
    """Return for every size below the best whether accuracy is clearly worse, by more than `MOST_LOST`."""
    k = best(accuracies)
    much = (accuracies[k] - accuracies).mean(axis=-1) > MOST_LOST
    return much & (effect(accuracies[k], accuracies) > 0) & (np.arange(len(accuracies)) < k)


def table(results):
    """Return accuracies with the smallest and the best batches, and which are too small for a network."""
    sizes = results.grid["size"]
    rows = [["network", "norm", f"batches of {sizes[0]}", "best size", "best accuracy", "too small"]]
    for network, norms in curves(results).items():
        for norm, accuracies in norms.items():
            k = best(accuracies)
            small = [str(size) for size, bad in zip(sizes, broken(accuracies), strict=True) if bad]
            first, most = percent_spread(accuracies[0]), percent_spread(accuracies[k])
            rows.append([network, norm, first, str(sizes[k]), most, ", ".join(small) or "none"])
    return rows


def figure(results):
    """Return a figure of the errors over the batch size."""
    epochs, sizes, found = results.options["epochs"], results.grid["size"], curves(results)
    titles = [f"{network} after {epochs} epochs with each batch size" for network in found]
    result, panels = plots.panels(*titles, width=6)
    for axes, norms in zip(panels, found.values(), strict=True):
        for norm, accuracies in norms.items():
            style = {"color": plots.SKY, "marker": "o", "ls": ":"} if norm == RECALIBRATED else {}
            plots.draw_errors(axes, sizes, accuracies, norm, **style)
        plots.log_x(axes, sizes)
        axes.set_xlabel("images in a batch")
        plots.label_lines(axes)
    return result


def finding(results):
    """Say what both norms lose in the smallest batches, and how many values their statistics come from."""
    found, smallest = curves(results), results.grid["size"][0]
    holds, clauses = [], []
    for network, values in zip(found, results["values"][:, 0, 0, 0], strict=True):
        three = [found[network][norm] for norm in (networks.BATCH_NORM, RECALIBRATED, "group norm")]
        normed, exact, grouped = (100 * (each[best(each)] - each[0]).mean() for each in three)
        holds.append(broken(three[0])[0] and not broken(three[2])[0])
        clauses.append(
            f"{normed:.1f} points with batch norm ({exact:.1f} recalibrated) and {grouped:.1f} with group "
            f"norm in the {network}, whose last hidden layer has {values:g} values per channel of a batch"
        )
    return (
        f"{verdict(holds)}: with batches of {smallest} in place of the best size, accuracy falls by "
        f"{', and by '.join(clauses)}."
    )


CLAIM = Claim(
    name="batch_size",
    statement="Small batches break batch norm, and group norm does not care.",
    source='Wu and He (2018), "Group normalization", figure 1 and section 4.1',
    grid={"network": list(NETWORKS), "norm": list(networks.NORMS), "size": SIZES},
    epochs=5,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
