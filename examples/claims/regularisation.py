"""Claim: batch norm is a mild regulariser.

Ioffe and Szegedy (2015), "Batch normalization", section 3.4: in training, what a network makes of an image
depends on the other images of its batch; this helps it to generalise, and makes dropout less necessary.

Trains an MLP as it is, with dropout, with batch norm and with both, on few and on all training images, with
the same number of updates at a rate at which all learn digits, and compares accuracy and loss with those on
test images. Also measures how much mean and std of a layer's input vary between batches::

    python -m examples.claims.regularisation
"""

import numpy as np
from minimal_nn import Dense, Dropout, ReLU, Sequential, softmax_cross_entropy
from training import batches, train

from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, listed, spread, verdict
from examples.claims.study import Claim

KINDS = {  # name: norm, whether there is dropout, how it is drawn
    networks.NO_NORM: (networks.NO_NORM, False, {}),
    "dropout": (networks.NO_NORM, True, {}),
    networks.BATCH_NORM: (networks.BATCH_NORM, False, {}),
    "both": (networks.BATCH_NORM, True, {"color": plots.GREEN, "marker": "X"}),
}
DROPPED = 0.5  # part of the hidden units, as Srivastava et al. (2014) take
IMAGES = [150, 500, None]  # None: all
RATE, BATCH = 0.03, 32
SIZES = 2 ** np.arange(1, 9)  # of the batches whose statistics are compared
ROUNDS = 8  # through all images, without repeating one: large batches vary less than independent draws


def run(data, rng, epochs, kind, count):
    """Train one network with ``count`` images; return its scores and the noise of batch statistics."""
    x_train, x_test, labels_train, labels_test = data
    chosen = rng.permutation(len(x_train))[:count]
    images, labels = x_train[chosen], labels_train[chosen]
    norm, dropped, _ = KINDS[kind]
    masks = rng.spawn(1)[0]  # another generator, so that dropout does not change which batches are drawn

    def activation():
        return Sequential(ReLU(), Dropout(DROPPED, rng=masks)) if dropped else ReLU()

    net = networks.mlp(rng, images, norm, activation=activation)
    updates = epochs * (len(x_train) // BATCH)
    train(net, (images, x_test, labels, labels_test), RATE, updates // (len(images) // BATCH), BATCH, rng)
    return {
        "images": len(images),
        "train": scores(net, images, labels),
        "test": scores(net, x_test, labels_test),
        "noise": noise(layer_input(net, x_train), rng),
    }


def scores(net, images, labels):
    """Return accuracy in percent and loss of a network in evaluation mode."""
    logits = net(images)
    return 100 * np.mean(logits.argmax(axis=1) == labels), softmax_cross_entropy(logits, labels)[0]


def layer_input(net, images):
    """Return what the last hidden dense layer gives, which is the input of batch norm where there is one."""
    last = max(i for i, layer in enumerate(net.layers[:-1]) if isinstance(layer, Dense))
    return Sequential(*net.layers[: last + 1])(images)


def noise(x, rng):
    """Return how much mean and std vary between batches, as parts of the std of x; a pair for every size."""
    found = []
    for size in SIZES:
        taken = x[np.concatenate([batches(len(x), size, rng) for _ in range(ROUNDS)])]
        found.append([np.mean(f(taken, axis=1).std(axis=0) / x.std(axis=0)) for f in (np.mean, np.std)])
    return found


def gaps(results):
    """Return how much better accuracy and loss are on training images: (score, network, images, seed)."""
    better = results["train"] - results["test"]
    return np.array([better[..., 0], -better[..., 1]])


def table(results):
    """Return accuracies and gaps, for every number of images and network."""
    rows = [["images", "network", "training images (%)", "test images (%)", "gap (points)", "gap of loss"]]
    points, losses = gaps(results)
    for j, counts in enumerate(results["images"][0]):
        for i, kind in enumerate(results.grid["kind"]):
            both = (spread(results[name][i, j, :, 0]) for name in ("train", "test"))
            loss = "none" if np.isnan(losses[i, j]).any() else spread(losses[i, j], 2)
            rows.append([f"{counts[0]:g}", kind, *both, spread(points[i, j]), loss])
    return rows


def figure(results):
    """Return a figure of both gaps over the number of images, and of the noise."""
    result, axes = plots.panels(
        "MLP: accuracy on training minus test images",
        "MLP: loss on test minus training images",
        "Variation between batches of a batch norm's input",
    )
    counts = results["images"][0, :, 0]
    for shown, gap in zip(axes[:2], gaps(results), strict=True):
        for kind, values in zip(results.grid["kind"], gap, strict=True):
            plots.draw(shown, counts, values.T, kind, **KINDS[kind][-1])
        plots.log_x(shown, counts)
        shown.set_xlabel("training images")
    axes[0].set_ylabel("gap (percentage points)")
    axes[1].set_ylabel("gap (cross-entropy)")
    measured = 100 * results["noise"][results.grid["kind"].index(networks.BATCH_NORM), -1]
    plots.draw(axes[2], SIZES, measured[..., 0], "mean", color=plots.BLUE, marker="o")
    plots.draw(axes[2], SIZES, measured[..., 1], "std", color=plots.RED, marker="^")
    axes[2].plot(SIZES, 100 * SIZES**-0.5, color=plots.BLACK, ls=":", label="1 / √N")
    plots.log_x(axes[2], SIZES)
    plots.log_y(axes[2])
    axes[2].set(xlabel="images in a batch, N", ylabel="std over batches (% of the std of all images)")
    for shown in axes:
        plots.label_lines(shown)
    return result


def finding(results):
    """Say where the gaps are smaller with batch norm, and how large they are with the fewest images."""
    kinds, counts, gap = results.grid["kind"], results["images"][0, :, 0], gaps(results)
    plain, normed = (kinds.index(norm) for norm in (networks.NO_NORM, networks.BATCH_NORM))
    smaller = effect(gap[:, plain], gap[:, normed]) > 0
    texts = [f"{gap[0, i, 0].mean():.1f} with {kind}" for i, kind in enumerate(kinds)]
    return (
        f"{verdict(smaller)}: with batch norm the gap between training and test images is clearly smaller "
        f"than without for {smaller[0].sum()} of {len(counts)} numbers of images in accuracy and for "
        f"{smaller[1].sum()} in loss; from {counts[0]:g} images it is, in points of accuracy, "
        f"{listed(texts)}."
    )


CLAIM = Claim(
    name="regularisation",
    statement="Batch norm is a mild regulariser.",
    source='Ioffe and Szegedy (2015), "Batch normalization", section 3.4',
    grid={"kind": list(KINDS), "count": IMAGES},
    epochs=30,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
