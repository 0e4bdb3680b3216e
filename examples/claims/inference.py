"""Claim: batch norm is another function in inference than in training.

Ioffe and Szegedy (2015), "Batch normalization", section 3.1: in training an output depends on the other
images of the batch; in inference it should not, so statistics of all data take the place of those of the
batch, and moving averages can track them. Wu and Johnson (2021), "Rethinking 'Batch' in BatchNorm": such
averages can be far off; they compute the statistics anew after training.

Trains a small CNN and an MLP with several batch sizes and momenta; momentum is here the weight of the new
batch in the average, and does not change what is learned. Compares the accuracy on test images with the
statistics of batches as large as in training, with running averages, with statistics of all training images
(``numbabn.recalibrate``), and with every image as a batch of its own::

    python -m examples.claims.inference
"""

from contextlib import ExitStack

import numpy as np
from training import accuracy, train

import numbabn as nbn
from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, percent, percent_spread, verdict
from examples.claims.study import Claim

NETWORKS = {"CNN": networks.cnn, "MLP": networks.mlp}
SIZES = [2, 8, 32, 128]
MOMENTA = [0.01, 0.1, 1.0]  # Keras' default, that of PyTorch and numbabn, and the last batch alone
RATE = 0.03  # of batches of 32, and in proportion to the size of others (Wu and He, 2018, section 4.1)
STYLES = {
    "statistics of each batch": {"color": plots.BLUE, "marker": "o"},
    "recalibrated": {"color": plots.GREEN, "marker": "^"},
    "every image alone": {"color": plots.RED, "marker": "D", "ls": "--"},
}
COLORS = [plots.ORANGE, plots.BLACK, plots.PURPLE]  # of running averages by their momentum


def run(data, rng, epochs, network, size, momentum):
    """Train one network; return its accuracy on test images with all kinds of statistics."""
    x_train, *test = data[0], data[1], data[3]
    net = NETWORKS[network](rng, x_train, networks.BATCH_NORM)
    layers = networks.batch_norms(net)
    for layer in layers:
        layer.momentum = momentum
    train(net, data, RATE * size / 32, epochs, size, rng)  # leaves it in evaluation mode
    averages, batches = accuracy(net, *test), in_training_mode(net, *test, size, rng)
    # One image is one value per channel in the MLP, of which there is no variance: numbabn refuses it.
    alone = in_training_mode(net, *test, 1, rng) if network == "CNN" else np.nan
    nbn.recalibrate(layers, net, [x_train])
    return {"averages": averages, "batches": batches, "alone": alone, "recalibrated": accuracy(net, *test)}


def in_training_mode(net, images, labels, size, rng):
    """Return the accuracy with the statistics of batches of this size."""
    order = rng.permutation(len(images))
    filled = np.resize(order, -(-len(order) // size) * size)  # the last batch, with images of the first one
    net.train()
    with ExitStack() as stack:
        for layer in networks.batch_norms(net):
            stack.enter_context(layer.frozen_stats())  # test images must not change the running averages
        found = np.concatenate([net(images[rows]).argmax(axis=1) for rows in filled.reshape(-1, size)])
    net.eval()
    return np.mean(found[: len(order)] == labels[order])


def curves(results):
    """Return {network: {kind of statistics: accuracies (sizes, seeds)}}."""
    found = {}
    for i, network in enumerate(results.grid["network"]):
        kinds = (results[name][i, :, 0] for name in ("batches", "recalibrated", "alone"))  # at any momentum
        found[network] = dict(zip(STYLES, kinds, strict=True))
        for j, momentum in enumerate(results.grid["momentum"]):
            found[network][f"averages, momentum {momentum:g}"] = results["averages"][i, :, j]
    return found


def table(results):
    """Return the accuracy with all kinds of statistics for every batch size."""
    rows = [["network", "statistics", *(f"batches of {size}" for size in results.grid["size"])]]
    for network, kinds in curves(results).items():
        for name, accuracies in kinds.items():
            if not np.isnan(accuracies).any():
                rows.append([network, name, *map(percent_spread, accuracies)])
    return rows


def figure(results):
    """Return a figure of the errors over the batch size, with all kinds of statistics."""
    sizes, found = results.grid["size"], curves(results)
    titles = [f"{network}: which statistics batch norm is tested with" for network in found]
    result, panels = plots.panels(*titles, width=6.2)
    for axes, kinds in zip(panels, found.values(), strict=True):
        for k, (name, accuracies) in enumerate(kinds.items()):
            averages = {"color": COLORS[k % 3], "marker": "s", "ls": ":"}
            plots.draw_errors(axes, sizes, accuracies, name, **STYLES.get(name, averages))
        plots.log_x(axes, sizes)
        axes.set_xlabel("images in a batch of training")
        plots.label_lines(axes)
    return result


def finding(results):
    """Say in how many settings the modes differ, where most, and what recalibration and single images do."""
    batches, averages = results["batches"], results["averages"]
    differ = effect(batches, averages) != 0
    most = np.unravel_index(np.abs((batches - averages).mean(axis=-1)).argmax(), differ.shape)
    network, size, momentum = (values[k] for values, k in zip(results.grid.values(), most, strict=True))
    alone = results["alone"][0, -1, 0]
    return (
        f"{verdict(differ)}: accuracy with running averages differs clearly from that with the statistics "
        f"of each batch in {differ.sum()} of {differ.size} settings, most in the {network} with batches of "
        f"{size} and momentum {momentum:g}: {percent(averages[most])} against {percent(batches[most])}, and "
        f"{percent(results['recalibrated'][most])} after recalibration; the CNN trained with the largest "
        f"batches has {percent(alone)} with every image as a batch of its own, against "
        f"{percent(batches[0, -1, 0])}."
    )


CLAIM = Claim(
    name="inference",
    statement="Batch norm is another function in inference than in training.",
    source=(
        'Ioffe and Szegedy (2015), "Batch normalization", section 3.1; '
        "Wu and Johnson (2021), \"Rethinking 'Batch' in BatchNorm\""
    ),
    grid={"network": list(NETWORKS), "size": SIZES, "momentum": MOMENTA},
    epochs=6,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
