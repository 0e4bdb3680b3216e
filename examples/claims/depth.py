"""Claim: batch norm lets deeper networks train.

De and Smith (2020), "Batch normalization biases residual blocks towards the identity function in deep
networks": it greatly increases the depth to which residual networks train. For plain networks, sources
differ: He et al. (2016), "Deep residual learning", section 4.1, find that gradients have healthy norms with
batch norm; Yang et al. (2019), "A mean field theory of batch normalization", that it makes them grow
exponentially with the number of layers, so that very deep plain networks do not train.

Trains networks of 5 to 60 hidden layers of 64 units, plain and residual, with and without batch norm, at
several learning rates; each is judged at the one with the least training loss. The residual network differs
from the plain one only in the connections around its blocks (batch norm, ReLU, dense layer)::

    python -m examples.claims.depth
"""

import numpy as np
from matplotlib.ticker import MaxNLocator
from minimal_nn import Dense, Flatten, Residual, Sequential, softmax_cross_entropy
from training import train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import at, best, effect, listed, percent_spread, verdict
from examples.claims.study import Claim

KINDS = {"plain": Sequential, "residual": Residual}
NORMS = [networks.NO_NORM, networks.BATCH_NORM]
DEPTHS = [5, 10, 20, 40, 60]
RATES = [0.0003, 0.003, 0.03]
UNITS, BATCH_SIZE = 64, 64
PLACES = np.linspace(0, 1, 13)  # where gradients are measured: 0 is the first hidden layer, 1 the last
TRAINED = 0.8  # accuracy from which a network counts as trained


def network(rng, images, kind, norm, depth):
    """Return a network of this many hidden dense layers, and a list of these."""
    bias = norm == networks.NO_NORM  # a norm follows every hidden layer, and its beta does the same
    sizes = [images[0].size, *[UNITS] * (depth - 1)]
    first, *others = dense = [Dense(size, UNITS, bias=bias, rng=rng) for size in sizes]
    blocks = [KINDS[kind](*networks.hidden(norm, UNITS), layer) for layer in others]
    end = [*networks.hidden(norm, UNITS), Dense(UNITS, networks.CLASSES, rng=rng)]
    return Sequential(Flatten(), first, *blocks, *end), dense


def measured(depth):
    """Return the indices of the hidden layers whose gradients are measured."""
    return np.rint(PLACES * (depth - 1)).astype(int)


def run(data, rng, epochs, kind, norm, depth, rate):
    """Train one network; return logarithms of its gradients before, and its loss and accuracy after."""
    net, dense = network(rng, data[0], kind, norm, depth)
    _, dlogits = softmax_cross_entropy(net(data[0][:BATCH_SIZE]), data[2][:BATCH_SIZE])
    net.backward(dlogits)
    gradients = [np.linalg.norm(dense[i].grads["weight"].astype(float)) for i in measured(depth)]
    gradients = np.log10(np.maximum(gradients, 1e-30))  # zero has no logarithm
    history = train(net, data, rate, epochs, BATCH_SIZE, rng)
    return {"gradient": gradients, "loss": history.losses[-1], "accuracy": history.accuracies[-1]}


def accuracies_of(results):
    """Return the accuracies (kinds, norms, depths, seeds), each at its best learning rate."""
    return at(results["accuracy"], best(results["loss"]))


def ratios(results):
    """Return the gradient of the first hidden layer over that of the last (kinds, norms, depths).

    They are those before training, the same at all learning rates; means over the seeds are geometric.
    """
    logarithms = results["gradient"][:, :, :, 0].mean(axis=-2)
    return 10 ** (logarithms[..., 0] - logarithms[..., -1])


def times(ratio):
    """Return a ratio as text with two digits, such as 120,000."""
    return f"{float(f'{ratio:.2g}'):,g}"


def table(results):
    """Return for every network and depth the final accuracy and how gradients change through the layers."""
    accuracies, changes = accuracies_of(results), ratios(results)
    rows = [["network", *(f"{depth} layers" for depth in results.grid["depth"])]]
    for i, kind in enumerate(results.grid["kind"]):
        for j, norm in enumerate(results.grid["norm"]):
            rows.append([f"{kind}, {norm}: accuracy", *map(percent_spread, accuracies[i, j])])
            rows.append([f"{kind}, {norm}: first gradient / last", *map(times, changes[i, j])])
    return rows


def figure(results):
    """Return a figure of the accuracy over the depth, and of the gradients in the deepest networks."""
    kinds, depths = results.grid["kind"], results.grid["depth"]
    titles = [f"{kind.capitalize()} networks after {results.options['epochs']} epochs" for kind in kinds]
    result, panels = plots.panels(*titles, f"Gradients in {depths[-1]} layers before training")
    *first, last = panels
    for i, (axes, kind) in enumerate(zip(first, kinds, strict=True)):
        for j, norm in enumerate(results.grid["norm"]):
            plots.draw(axes, depths, 100 * accuracies_of(results)[i, j].T, norm)
            style = {**plots.STYLES[norm], "ls": ":" if kind == "plain" else "-"}
            gradients = results["gradient"][i, j, -1, 0]
            plots.draw(last, 1 + measured(depths[-1]), gradients, f"{kind}, {norm}", **style)
        axes.set(xlabel="hidden layers", ylabel="accuracy on test images (%)", ylim=(0, 102), xticks=depths)
    last.set(xlabel="hidden layer", ylabel="norm of the gradient of its weights")
    last.yaxis.set_major_locator(MaxNLocator(integer=True))
    last.yaxis.set_major_formatter("$10^{{{x:.0f}}}$")
    for axes in panels:
        plots.label_lines(axes)
    return result


def finding(results):
    """Say to which depth plain and residual networks train with and without batch norm."""
    depths = results.grid["depth"]
    trained = np.where(accuracies_of(results) >= TRAINED, np.array(depths)[:, None], 0)
    deepest = trained.max(axis=2)  # (kinds, norms, seeds)
    texts = [
        f"{kind} networks train {to_depth(normed)} with batch norm and {to_depth(plain)} without"
        for kind, (plain, normed) in zip(results.grid["kind"], deepest, strict=True)
    ]
    plain, normed = map(times, ratios(results)[0, :, -1])
    return (
        f"{verdict(effect(deepest[:, 1], deepest[:, 0]))}: of {depths[0]} to {depths[-1]} hidden layers, "
        f"{listed(texts)}, to {100 * TRAINED:.0f} % accuracy; before training, the gradient in the first of "
        f"{depths[-1]} plain layers is {normed} times that in the last with batch norm, and {plain} times "
        f"without."
    )


def to_depth(deepest):
    """Return in words to which depth networks train, in the median over the seeds."""
    depth = np.quantile(deepest, 0.5, method="lower")
    return f"up to {depth:g} layers" if depth else "at no depth"


CLAIM = Claim(
    name="depth",
    statement="Batch norm lets deeper networks train.",
    source='De and Smith (2020), "Batch normalization biases residual blocks towards the identity function '
    'in deep networks", abstract',
    grid={"kind": list(KINDS), "norm": NORMS, "depth": DEPTHS, "rate": RATES},
    epochs=10,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
