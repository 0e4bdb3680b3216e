"""Claim: batch norm belongs before the activation, and makes the bias in front of it redundant.

Ioffe and Szegedy (2015), "Batch normalization", section 3.2: they normalise what goes into an activation,
because the distribution of what comes out of one changes its shape in training; the bias in front is left
out, because subtracting the mean cancels it and beta takes its place.

Trains an MLP with batch norm before or after each activation, with and without biases in its hidden layers,
from first weights of several scales: large ones saturate the sigmoid. Every network has the best of three
learning rates, by its loss in training. Also measures the gradient of these biases in the first batch, in
proportion to that of the weights::

    python -m examples.claims.placement
"""

from itertools import pairwise, product

import numpy as np
from minimal_nn import Dense, Flatten, ReLU, Sequential, Sigmoid, softmax_cross_entropy
from training import train

import numbabn as nbn
from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, percent, percent_spread, verdict
from examples.claims.study import Claim

ACTIVATIONS = {"ReLU": ReLU, "sigmoid": Sigmoid}
PLACES = {"before": {"color": plots.BLUE, "marker": "o"}, "after": {"color": plots.RED, "marker": "s"}}
SCALES = [1, 10, 100]
RATES = [0.01, 0.05, 0.25]
DEPTH, UNITS, BATCH = 3, 128, 32
LEAST = 1e-9  # drawn for smaller gradients, and for none at all, as the scale is logarithmic
ROUNDING = 1e-5  # part of the weights' gradient below which one is the rounding error of a sum in float32


def network(rng, images, activation, place, bias, scale):
    """Return an MLP with batch norm before or after each activation, and with hidden biases or without."""
    layers = [Flatten()]
    for inputs, outputs in pairwise([images[0].size, *[UNITS] * DEPTH]):
        dense = Dense(inputs, outputs, bias=bias, rng=rng)
        dense.params["weight"] *= np.float32(scale)
        two = [nbn.BatchNorm(outputs), ACTIVATIONS[activation]()]
        layers += [dense, *(two if place == "before" else reversed(two))]
    return Sequential(*layers, Dense(UNITS, networks.CLASSES, rng=rng))


def run(data, rng, epochs, activation, place, bias, scale, rate):
    """Train one network; return its final loss and accuracy, and the first gradient of its biases."""
    net = network(rng, data[0], activation, place, bias, scale)
    gradient = bias_gradient(net, data[0][:BATCH], data[2][:BATCH]) if bias else np.nan
    history = train(net, data, rate, epochs, BATCH, rng)
    return {"loss": history.losses[-1], "accuracy": history.accuracies[-1], "gradient": gradient}


def bias_gradient(net, images, labels):
    """Return max |db| / max |dW| of the hidden layer where it is largest."""
    _, dlogits = softmax_cross_entropy(net(images), labels)
    net.backward(dlogits)
    hidden = [layer.grads for layer in net.layers[:-1] if isinstance(layer, Dense)]
    return max(np.abs(grads["bias"]).max() / np.abs(grads["weight"]).max() for grads in hidden)


def accuracies(results):
    """Return the accuracy of every network at its best rate: (activation, place, bias, scale, seed)."""
    losses = np.nan_to_num(results["loss"], nan=np.inf).mean(axis=-1)
    chosen = losses.argmin(axis=-1)[..., None, None]
    return np.take_along_axis(results["accuracy"], chosen, axis=-2)[..., 0, :]


def gradients(results):
    """Return the gradients of the biases, from before training: (activation, place, scale, seed)."""
    return results["gradient"][:, :, results.grid["bias"].index(True), :, 0]


def table(results):
    """Return accuracies and gradients for both orders, at the smallest and the largest scale."""
    rows = [["activation", "scale of weights", "batch norm", "with biases", "without", "max |db| / max |dW|"]]
    scales = results.grid["scale"]
    for i, activation in enumerate(results.grid["activation"]):
        for k, j in product((0, -1), range(len(PLACES))):
            both = map(percent_spread, accuracies(results)[i, j, :, k])
            rows.append(
                [activation, f"{scales[k]:g}", list(PLACES)[j], *both, size(gradients(results)[i, j, k])]
            )
    return rows


def size(gradient):
    """Return the largest of numbers as text, if there are any."""
    return "no number" if np.isnan(gradient).all() else f"{np.nanmax(gradient):.0e}"


def figure(results):
    """Return a figure of the accuracy over the scale of the weights, and of the gradient of the biases."""
    activations, scales = results.grid["activation"], results.grid["scale"]
    titles = [f"MLP with {name}, batch norm before or after it" for name in activations]
    result, axes = plots.panels(*titles, "Gradient of the biases in hidden layers")
    for i, (activation, found) in enumerate(zip(activations, accuracies(results), strict=True)):
        for j, (place, style) in enumerate(PLACES.items()):
            plots.draw(axes[i], scales, 100 * found[j, 0].T, f"{place}, biases", **style)
            plots.draw(axes[i], scales, 100 * found[j, 1].T, f"{place}, no biases", **style, ls="--", mfc="w")
            shown = np.maximum(np.nan_to_num(gradients(results)[i, j].T), LEAST)
            plots.draw(axes[-1], scales, shown, f"norm {place} {activation}", **style, ls="-:"[i])
        axes[i].set(ylabel="accuracy on test images (%)", ylim=(0, 102))
    axes[-1].set(yscale="log", ylabel="max |db| / max |dW|")
    for shown in axes:
        plots.log_x(shown, scales)
        shown.set_xlabel("scale of the first weights (1: He et al.)")
        plots.label_lines(shown)
    return result


def finding(results):
    """Say where the order matters, and whether the bias in front of batch norm is redundant."""
    found = accuracies(results)
    before, after = found[:, 0], found[:, 1]
    better, changed = effect(before, after), effect(before[:, 0], before[:, 1]) != 0
    redundant = (gradients(results)[:, 0].max(axis=-1) < ROUNDING) & ~changed
    most = np.unravel_index((before - after).mean(axis=-1).argmax(), better.shape)
    return (
        f"{verdict([*better.ravel(), *redundant.ravel()])}: batch norm before the activation is clearly "
        f"better than after it in {(better > 0).sum()} of {better.size} settings and clearly worse in "
        f"{(better < 0).sum()}, most in its favour with {results.grid['activation'][most[0]]} and first "
        f"weights times {results.grid['scale'][most[2]]:g} ({percent(before[most])} against "
        f"{percent(after[most])}); in proportion to the gradient of the weights, the largest of biases in "
        f"front of it is {size(gradients(results)[:, 0])}, and they change the accuracy clearly in "
        f"{changed.sum()} of {changed.size} settings."
    )


CLAIM = Claim(
    name="placement",
    statement="Batch norm belongs before the activation, and makes the bias in front of it redundant.",
    source='Ioffe and Szegedy (2015), "Batch normalization", section 3.2',
    grid={
        "activation": list(ACTIVATIONS),
        "place": list(PLACES),
        "bias": [True, False],
        "scale": SCALES,
        "rate": RATES,
    },
    epochs=6,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
