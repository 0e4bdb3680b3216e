"""The recurrent part of compare_norms.py: norms inside the step of a recurrent network.

An image is a sequence of its 8 rows of 8 pixels, of which the network reads one per step; the state after the
last one is classified.

Batch norm has no natural place here. The statistics of summed inputs differ from step to step, so that batch
norm would need running statistics for each of them, and would have none for the steps beyond the longest
sequence of the training data (Ba, Kiros and Hinton 2016, "Layer normalization", section 3.1). Layer norm and
RMS norm take theirs from one sample at one step.
"""

import numpy as np
from matplotlib.figure import Figure
from minimal_nn import Dense, Sequential
from over_seeds import draw_band, draw_finals, draw_percent, measure, verdict
from recurrent import Recurrent, layer_norm, no_norm, rms_norm
from training import train

NAME = "compare_norms_rnn"
SETTING = "learning rate"
EPOCHS = 20

BATCH_SIZE, HIDDEN = 32, 64
LOW = 0.05  # the error that is waited for
FACTORS = (1 / 10, 1 / 3, 1, 10 / 3, 10)  # the learning rates, relative to --lr
NORMS = {"no norm": no_norm, "layer norm": layer_norm, "RMS norm": rms_norm}


def rnn(rng, norm):
    """Return a network that reads 8 rows and classifies its last state."""
    return Sequential(Recurrent(8, HIDDEN, norm=norm, rng=rng), Dense(HIDDEN, 10, rng=rng))


def compare(data, args):
    """Train the network with every norm at every learning rate; return ``errors`` as in `over_seeds`."""
    x_train, x_test, *labels = data
    rows = x_train[:, 0], x_test[:, 0], *labels

    def run(norm, rate, rng, progress):
        return train(rnn(rng, norm), rows, rate, args.epochs, BATCH_SIZE, rng, progress)

    return measure(NORMS, [float(f"{args.lr * factor:.1g}") for factor in FACTORS], args, run)


def middle(rates):
    """Return the learning rate in the middle, which is --lr."""
    return sorted(rates)[len(rates) // 2]


def first_below(curves):
    """Return in words in which epoch the mean error is below `LOW` for the first time."""
    below = curves.mean(axis=0) < LOW
    return f"in epoch {below.argmax() + 1}" if below.any() else f"in none of {len(below)} epochs"


def sentences(errors):
    """Return what the errors say of layer norm, in sentences."""
    rate = middle(errors["no norm"])
    normed, plain = (first_below(errors[norm][rate]) for norm in ("layer norm", "no norm"))
    return [
        verdict(errors, "layer norm", "no norm", SETTING),
        f"At {SETTING} {rate:g}, mean errors fall below {LOW:.0%} {normed} with layer norm, {plain} without.",
    ]


def figure(errors):
    """Return a figure of the error by epoch at the middle learning rate, and of the final error by rate."""
    result = Figure(figsize=(11, 4.6), layout="constrained")
    by_epoch, by_rate = result.subplots(1, 2)
    rate = middle(errors["no norm"])
    for norm in errors:
        curves = 100 * errors[norm][rate]
        draw_band(by_epoch, np.arange(1, curves.shape[1] + 1), curves, label=norm)
    by_epoch.set(title=f"{SETTING.capitalize()} {rate:g}: means and ranges over the seeds", xlabel="epoch")
    by_epoch.xaxis.get_major_locator().set_params(integer=True)
    draw_percent(by_epoch)
    by_epoch.legend()
    draw_finals(by_rate, errors, {})
    by_rate.set(title="After the last epoch: means and ranges", xlabel=SETTING)
    return result
