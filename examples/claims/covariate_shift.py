"""Claim: batch norm works because it reduces internal covariate shift.

Ioffe and Szegedy (2015), "Batch normalization", section 1: training is slow because the inputs of a layer
change their distribution while the layers below learn. Santurkar et al. (2018), "How does batch normalization
help optimization?", contradict: noise after batch norm brings shift, and hardly harms (section 2.1); what
batch norm changes is how smooth the loss surface is (section 3.1, figure 4).

Trains an MLP without norm, with batch norm, and with batch norm followed by noise: every unit is scaled and
shifted at random, anew at every step, in three strengths. Weights, batches and learning rate are the same.
Measured are the shift of the layers' inputs by a step, and along the gradient how much loss and gradient
change. What explains the speed, which is the mean accuracy over all epochs, must put every two networks in
its order::

    python -m examples.claims.covariate_shift
"""

from functools import partial
from itertools import combinations

import numpy as np
from minimal_nn import SGD, softmax_cross_entropy
from training import accuracy, batches

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, listed, percent, percent_spread, spread, verdict
from examples.claims.networks import BATCH_NORM, NO_NORM
from examples.claims.probes import along_gradient, layer_inputs, shift
from examples.claims.study import Claim

NOISY = {"with noise": 1, "with twice the noise": 2, "with four times the noise": 4}
STYLES = {
    name: {"color": color, "marker": "^", "ls": ":"}
    for name, color in zip(NOISY, (plots.SKY, plots.ORANGE, plots.RED), strict=True)
}
DEPTH, BATCH = 8, 32
# Of 0.001, 0.003, 0.01, 0.03 and 0.1, this is the rate at which the network without norm is fastest on the
# digits. Batch norm is as fast at three times the rate.
RATE = 0.01
LENGTHS = [RATE * factor for factor in (0.5, 1, 2, 5, 10)]  # with momentum 0.9, a step has up to the last
PROBE, EVERY = 500, 10  # images that show the layers' inputs, and at every how many steps all is measured


def build(rng, images, name):
    """Return a network; the first weights, and the batches drawn afterwards, are the same for all names."""
    (noise,) = rng.spawn(1)
    net = networks.mlp(rng, images, BATCH_NORM if name in NOISY else name, depth=DEPTH)
    return networks.noisy(net, NOISY[name], noise) if name in NOISY else net


def run(data, rng, epochs, network):
    """Train a network; return its accuracy and the means of all measurements in every epoch."""
    x_train, x_test, labels_train, labels_test = data
    net = build(rng, x_train, network)
    sgd, found = SGD(net, lr=RATE), []
    for _ in range(epochs):
        net.train()
        measured = []
        for step, rows in enumerate(batches(len(x_train), BATCH, rng)):
            images, labels = x_train[rows], labels_train[rows]
            if step % EVERY == 0:
                before = layer_inputs(net, x_train[:PROBE])
                changes = along_gradient(net, images, labels, LENGTHS)
            _, dlogits = softmax_cross_entropy(net(images), labels)
            net.backward(dlogits)
            sgd.step()
            if step % EVERY == 0:
                measured.append((shift(before, layer_inputs(net, x_train[:PROBE])), *changes))
        net.eval()
        found.append((accuracy(net, x_test, labels_test), *np.mean(measured, axis=0)))
    return dict(zip(("accuracy", "shift", "gradient", "loss"), np.transpose(found), strict=True))


def ordered(results, name):
    """Return for every two networks whether less of something goes with more speed, or neither differs."""
    speeds, values = results["accuracy"].mean(axis=-1), results[name].mean(axis=-1)
    pairs = combinations(range(len(speeds)), 2)
    return np.array([effect(speeds[i], speeds[j]) == effect(values[j], values[i]) for i, j in pairs])


def numbers(values, text=percent):
    """Return the mean of a measurement as text."""
    return text(values.mean(axis=-1)) if np.isfinite(values).all() else "no number"


def table(results):
    """Return the means over all epochs of every network."""
    rows = [["network", "accuracy", "shift by a step", "change of the gradient", "range of the loss"]]
    for i, network in enumerate(results.grid["network"]):
        shares = [numbers(results[name][i], percent_spread) for name in ("accuracy", "shift", "gradient")]
        rows.append([network, *shares, numbers(results["loss"][i], partial(spread, digits=2))])
    return rows


def figure(results):
    """Return a figure of accuracy, shift and change of the gradient over the epochs."""
    titles = (
        f"Accuracy of an MLP of {DEPTH} hidden layers",
        "Shift of a layer's inputs by one step",
        "Change of the gradient along a step",
    )
    labels = "accuracy on test images (%)", "distance (% of their spread)", "change (% of its length)"
    result, panels = plots.panels(*titles)
    epochs = 1 + np.arange(results.options["epochs"])
    for axes, name, label in zip(panels, ("accuracy", "shift", "gradient"), labels, strict=True):
        for network, values in zip(results.grid["network"], results[name], strict=True):
            plots.draw(axes, epochs, 100 * values, network, **STYLES.get(network, {}))
        axes.set(xlabel="epoch", ylabel=label)
    panels[1].set_yscale("symlog", linthresh=1)
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].set_ylim(bottom=0)
    for axes in panels:
        plots.label_lines(axes)
    return result


def finding(results):
    """Say how fast the networks learn, and what of the measurements goes with it."""
    speeds = results["accuracy"].mean(axis=-1)
    fits = {name: ordered(results, name) for name in ("shift", "gradient", "loss")}
    faster = effect(speeds[1], speeds[0])
    none = "" if faster > 0 else "batch norm does not learn clearly faster here; "
    columns = (results[name] for name in ("accuracy", "shift", "gradient"))
    texts = [
        f"{numbers(accuracies)} {network} ({numbers(shifts)} and {numbers(gradients)})"
        for network, accuracies, shifts, gradients in zip(results.grid["network"], *columns, strict=True)
    ]
    return (
        f"{verdict(faster * fits['shift'].all())}: {none}which of two networks is faster, if any, the shift "
        f"tells in {fits['shift'].sum()} of {fits['shift'].size} pairs, the change of the gradient on a step "
        f"in {fits['gradient'].sum()} and the range of the loss there in {fits['loss'].sum()}; accuracies, "
        f"with shift and change of the gradient in brackets, are {listed(texts)}."
    )


CLAIM = Claim(
    name="covariate_shift",
    statement="Batch norm works because it reduces internal covariate shift.",
    source='Ioffe and Szegedy (2015), "Batch normalization", section 1; contradicted by Santurkar et al. '
    '(2018), "How does batch normalization help optimization?"',
    grid={"network": [NO_NORM, BATCH_NORM, *NOISY]},
    epochs=8,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
