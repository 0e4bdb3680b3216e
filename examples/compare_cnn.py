"""The CNN part of compare_norms.py: each norm at several batch sizes."""

from functools import partial

import numpy as np
from digits import cnn
from matplotlib.figure import Figure
from over_seeds import draw_finals, final, listed, mean_error, measure, verdict
from recalibrate import batch_norms
from training import accuracy, train

import numbabn as nbn

NAME = "compare_norms"
SETTING = "batch size"
EPOCHS = 12

GROUPS = 4  # of 4 and of 8 channels
NORMS = {
    "no norm": None,
    "batch norm": nbn.BatchNorm,
    "group norm": partial(nbn.GroupNorm, GROUPS),
    # One group is layer norm as Wu and He (2018) have it, section 3.1, with a gamma and a beta per channel.
    # nbn.LayerNorm has them per pixel, as Ba et al. (2016) have them per unit of a dense layer.
    "layer norm": partial(nbn.GroupNorm, 1),
    "instance norm": partial(nbn.InstanceNorm, scale=True, center=True),
}
RECALIBRATED = "batch norm, recalibrated"


def learning_rate(lr, batch_size):
    """Return the learning rate of a batch size, from that of batches of 32 (Wu and He, section 4.1)."""
    return lr * batch_size / 32


def compare(data, args):
    """Train the network with every norm at every batch size; return ``errors`` as in `over_seeds`.

    The networks with batch norm are listed twice, the second time with statistics of all training images.
    """
    exact = {size: [] for size in args.batch_sizes}

    def run(norm, size, rng, progress):
        net = cnn(rng, norm)
        history = train(net, data, learning_rate(args.lr, size), args.epochs, size, rng, progress)
        if batch_norms(net):
            exact[size].append([recalibrated_error(net, data)])
        return history

    errors = measure(NORMS, args.batch_sizes, args, run)
    return {**errors, RECALIBRATED: {size: np.array(found) for size, found in exact.items()}}


def recalibrated_error(net, data):
    """Return the error of a trained network by the exact statistics of all training images."""
    x_train, x_test, _, labels_test = data
    nbn.recalibrate(batch_norms(net), net, [x_train])
    return 1 - accuracy(net, x_test, labels_test)


def extent(by_size):
    """Return in words from where to where the mean error goes over the batch sizes."""
    low, high = (end(by_size, key=lambda size: final(by_size[size]).mean()) for end in (min, max))
    return f"from {mean_error(by_size[low])} at {low:g} to {mean_error(by_size[high])} at {high:g}"


def sentences(errors):
    """Return what the errors say of batch norm, group norm and running averages, in sentences."""
    smallest = min(errors["batch norm"])
    running, exact = (mean_error(errors[norm][smallest]) for norm in ("batch norm", RECALIBRATED))
    spans = listed([f"{extent(errors[norm])} with {norm}" for norm in ("batch norm", "group norm")])
    return [
        verdict(errors, "batch norm", "group norm", SETTING),
        f"Over the batch sizes, mean errors are {spans}.",
        (
            f"At {SETTING} {smallest:g}, batch norm makes {running} errors with its running averages, and "
            f"{exact} with exact statistics of the training images."
        ),
    ]


def figure(errors):
    """Return a figure of the final error over the batch size."""
    result = Figure(figsize=(7, 4.6), layout="constrained")
    axes = result.subplots()
    draw_finals(axes, errors, {RECALIBRATED: {"color": "C1", "ls": "--"}})
    axes.set(
        title="A small CNN on handwritten digits: means and ranges over the seeds", xlabel="images in a batch"
    )
    axes.legend()
    return result
