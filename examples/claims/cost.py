"""Claim: batch norm is a large part of the time of a training step.

Gitman and Ginsburg (2017), "Comparison of batch normalization and weight normalization algorithms for the
large-scale image classification", abstract: it "accounts for a significant fraction of training run-time" and
is difficult to accelerate, because the bandwidth of memory bounds it.

Times steps of a chain of convolutions, each with ReLU and before it no norm, the formulas in NumPy, or
numbabn's layer; or with numbabn's layer that has the ReLU inside. Maps have 56x56 pixels: images made larger
by repetition. All runs on one core, and what is not the norm is the same NumPy code. The norm's share is what
it takes more, with its ReLU, than ReLU without norm. "Seeds" are repetitions here: each is the median of some
steps, in which the variants take turns::

    python -m examples.claims.cost
"""

from itertools import pairwise
from time import perf_counter

import numpy as np
from minimal_nn import SGD, Conv2d, Dense, Flatten, ReLU, Sequential, softmax_cross_entropy

import numbabn as nbn
from examples.claims import plots
from examples.claims.command import main
from examples.claims.evidence import effect, listed, percent, percent_spread, spread, verdict
from examples.claims.networks import CLASSES, NO_NORM, NumPyBatchNorm
from examples.claims.study import Claim

SIDE, BATCH, BLOCKS = 56, 8, 3
LARGE = 0.25  # of a step
VARIANTS = {  # a function of the number of channels that returns what follows a convolution
    NO_NORM: lambda channels: [ReLU()],
    "NumPy": lambda channels: [NumPyBatchNorm(channels), ReLU()],
    "numbabn": lambda channels: [nbn.BatchNorm(channels), ReLU()],
    "numbabn, fused": lambda channels: [nbn.BatchNorm(channels, activation="relu")],
}
NORMS = list(VARIANTS)[1:]


def network(variant, kernel, channels, seed):
    """Return a chain of convolutions, with the same first weights for all variants."""
    rng, layers = np.random.default_rng(seed), []
    for inputs, outputs in pairwise([1, *[channels] * BLOCKS]):
        layers.append(Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, rng=rng))
        layers += VARIANTS[variant](channels)
    return Sequential(*layers, Flatten(), Dense(channels * SIDE**2, CLASSES, rng=rng))


def timed_step(net, sgd, images, labels):
    """Take a training step; return the milliseconds of all of it, and of norms and ReLUs in it."""

    def call(layer, function, x):
        begin = perf_counter()
        y = function(x)
        spent[isinstance(layer, NumPyBatchNorm | nbn.BatchNorm | ReLU)] += perf_counter() - begin
        return y

    spent, start, x = [0.0, 0.0], perf_counter(), images
    for layer in net.layers:
        x = call(layer, layer, x)
    _, dy = softmax_cross_entropy(x, labels)
    for layer in reversed(net.layers):
        dy = call(layer, layer.backward, dy)
    sgd.step()
    return 1e3 * (perf_counter() - start), 1e3 * spent[True]


def run(data, rng, epochs, kernel, channels):
    """Return the milliseconds of a step and of its norms and ReLUs, for every variant."""
    rows, seed = rng.permutation(len(data[0]))[:BATCH], rng.integers(1 << 32)
    images, labels = data[0][rows], data[2][rows]
    for axis in (2, 3):
        images = images.repeat(-(-SIDE // images.shape[axis]), axis).take(range(SIDE), axis)
    nets = [network(variant, kernel, channels, seed) for variant in VARIANTS]
    sgds = [SGD(net, lr=0.01) for net in nets]
    steps = [
        [timed_step(net, sgd, images, labels) for net, sgd in zip(nets, sgds, strict=True)]
        for _ in range(1 + epochs)
    ]  # in the first round kernels are compiled and memory is taken
    return dict(zip(("step", "norm and ReLU"), np.median(steps[1:], axis=0).T, strict=True))


def shares(results):
    """Return the part of a step that the norm alone takes, of shape (norms, kernels, channels, seeds)."""
    both, steps = (np.moveaxis(results[name], -1, 0) for name in ("norm and ReLU", "step"))
    return (both[1:] - both[0]) / steps[1:]  # the first variant has only ReLU


def table(results):
    """Return the time of a step without norm, and the share of every norm in a step with it."""
    rows = [["convolution", "channels", "step without norm (ms)", *(f"norm by {norm}" for norm in NORMS)]]
    for i, kernel in enumerate(results.grid["kernel"]):
        for j, channels in enumerate(results.grid["channels"]):
            parts = map(percent_spread, shares(results)[:, i, j])
            rows.append([f"{kernel}x{kernel}", f"{channels}", spread(results["step"][i, j, :, 0]), *parts])
    return rows


def figure(results):
    """Return a figure of the times of a step, one panel for each size of the kernel."""
    kernels, channels = results.grid["kernel"], results.grid["channels"][-1]
    titles = [f"A training step with {k}x{k} convolutions, {channels} channels" for k in kernels]
    result, panels = plots.panels(*titles, width=6, height=3.2)
    means = [results[name][:, -1].mean(axis=1) for name in ("step", "norm and ReLU")]
    for axes, step, part in zip(panels, *means, strict=True):
        axes.barh(list(VARIANTS), step - part, color="lightgrey")
        bars = axes.barh(list(VARIANTS), part, left=step - part, color=plots.BLUE)
        axes.bar_label(bars, [f"{each:.0%}" for each in part / step], padding=4, color=plots.BLUE)
        axes.text(0.02 * step.max(), 0, "convolutions and the rest", va="center", fontsize="small")
        axes.margins(x=0.1)
        axes.set_xlabel("milliseconds; blue: norm and ReLU, and their share of the step")
        axes.invert_yaxis()
    return result


def finding(results):
    """Say which part of a step every norm takes, at the number of channels where it is largest."""
    parts = shares(results)
    sizes = [
        f"{listed([percent(each) for each in found])} with {kernel}x{kernel} convolutions"
        for kernel, found in zip(results.grid["kernel"], parts.mean(axis=-1).max(axis=-1).T, strict=True)
    ]
    return (
        f"{verdict(effect(parts, LARGE))}: of a training step the norm alone takes up to {listed(sizes)}, by "
        f"NumPy's formulas, numbabn's layer and that layer with the ReLU inside; {LARGE:.0%} would be large."
    )


CLAIM = Claim(
    name="cost",
    statement="Batch norm is a large part of the time of a training step.",
    source='Gitman and Ginsburg (2017), "Comparison of batch normalization and weight normalization '
    'algorithms for the large-scale image classification", abstract',
    grid={"kernel": [1, 3], "channels": [16, 32, 64]},
    epochs=3,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
    alone=True,
)

if __name__ == "__main__":
    main(CLAIM)
