"""Claim: batch norm can represent the identity, and disappears at inference.

Ioffe and Szegedy (2015), "Batch normalization": with gamma = sqrt(var) and beta = mean the norm gives back
what it normalises (section 3), so that it takes nothing from what a network can represent. At inference, when
mean and variance are fixed, it is a linear transform (section 3.1), which the layer before it can do, too.

Trains an MLP and a CNN with batch norm. What reaches their first norm is standardised, scaled, shifted, and
given to a norm with gamma = sqrt(var + eps) and beta = mean in float32: the formulas in NumPy, and numbabn.
Then ``folded`` of examples/fold.py puts all norms into the layers before them, by ``nbn.fold_into_dense`` and
``nbn.fold_into_conv``, and networks with and without norms classify test images, in turns on one core::

    python -m examples.claims.folding
"""

from itertools import product

import numpy as np
from fold import folded, seconds
from minimal_nn import Sequential
from training import train

import numbabn as nbn
from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, percent, spread, verdict
from examples.claims.study import Claim

NETWORKS = {"MLP": networks.mlp, "CNN": networks.cnn}
LAYERS = {"NumPy's formulas": networks.NumPyBatchNorm, "numbabn": nbn.BatchNorm}
STYLES = {
    "NumPy's formulas": {"color": plots.ORANGE, "marker": "^"},
    "numbabn": {"color": plots.BLUE, "marker": "o"},
    "rounding of x": {"color": plots.BLACK, "marker": "", "ls": ":"},
}
RATE, BATCH, REPEATS = 0.03, 32, 200  # inferences, of which the fastest counts
SCALES = [1e-3, 1.0, 1e3]
OFFSETS = [1.0, 10.0, 100.0, 1e3, 1e4]  # in standard deviations
ROUNDINGS = 4  # that may add up to the error of the identity: of gamma, beta, their product with x, and y
SAME = 0.999  # of the predictions, at least
IMAGES = {"one image": 1, "100 images": 100}


def identity_error(x, layer):
    """Return how far y of a norm that is set to the identity is from x at most."""
    norm, (count, mean, m2) = layer(x.shape[1]), nbn.moments(x)
    for name, values in {"gamma": np.sqrt(m2 / count + norm.eps), "beta": mean}.items():
        norm.params[name][:] = values.reshape(norm.params[name].shape)
    return abs(norm(x) - x).max()


def identity_errors(x):
    """Return for all scales and offsets the error of each layer, and of rounding, in standard deviations."""
    standard, found = (x - x.mean()) / x.std(), []
    for scale, offset in product(SCALES, OFFSETS):
        values = np.float32(scale) * (standard + np.float32(offset))
        errors = [identity_error(values, layer) for layer in LAYERS.values()]
        found.append(np.array([*errors, np.spacing(abs(values).max()) / 2]) / scale)
    return np.reshape(found, (len(SCALES), len(OFFSETS), -1))


def run(data, rng, epochs, network):
    """Train a network; return what the identity, and folding, change in it."""
    x_train, x_test, *_ = data
    net = NETWORKS[network](rng, x_train, networks.BATCH_NORM)
    train(net, data, RATE, epochs, BATCH, rng)
    first = next(i for i, layer in enumerate(net.layers) if isinstance(layer, nbn.BatchNorm))
    reaching = Sequential(*net.layers[:first])(x_train[:500])
    reaching = reaching.reshape(*reaching.shape[:2], -1, 1)  # dense units as maps of one pixel
    nets = net, folded(net)
    before, after = (each(x_test) for each in nets)
    return {
        "identity": identity_errors(reaching),
        "same": np.mean(before.argmax(axis=1) == after.argmax(axis=1)),
        "logits": abs(after - before).max() / abs(before).max(),
        "ms": [1e3 * seconds(nets, x_test[:count], REPEATS) for count in IMAGES.values()],
    }


def table(results):
    """Return what folding changes in every network, and its times."""
    rows = [["network", "at once", "with norms (ms)", "folded (ms)", "same predictions", "change of logits"]]
    for i, network in enumerate(results.grid["network"]):
        for j, images in enumerate(IMAGES):
            times = [spread(results["ms"][i, :, j, k], 2) for k in range(2)]
            changes = [percent(results["same"][i]), f"{results['logits'][i].max():.0e}"]
            rows.append([network, images, *times, *changes])
    return rows


def figure(results):
    """Return a figure of the error of the identity, and of the times with and without norms."""
    titles = "Largest error of a norm that is set to the identity", "Time of inference after folding"
    result, (errors, times) = plots.panels(*titles, width=5.6)
    largest = results["identity"].max(axis=(0, 2))  # of networks and scales: (seeds, offsets, layers)
    for i, (name, style) in enumerate(STYLES.items()):
        plots.draw(errors, OFFSETS, largest[..., i], name, **style)
    errors.set(xscale="log", xlabel="mean of x (standard deviations)", ylabel="error (standard deviations)")
    errors.set_yscale("symlog", linthresh=1e-7)  # 0 is exact
    errors.set_ylim(bottom=-5e-8)
    plots.label_lines(errors)
    ratios = results["ms"][..., 1] / results["ms"][..., 0]
    names = [f"{name},\n{images}" for name in results.grid["network"] for images in IMAGES]
    for name, values in zip(names, 100 * ratios.swapaxes(1, 2).reshape(len(names), -1), strict=True):
        bars = times.barh(name, values.mean(), color=plots.BLUE)
        times.plot(values, [name] * len(values), "k.")
        times.bar_label(bars, fmt="%.0f %%", label_type="center", color="white")
    times.set_xlabel("time (% of that with norms)")
    times.axvline(100, color="k", ls=":")
    times.invert_yaxis()
    return result


def finding(results):
    """Say how exact the identity is, and what folding changes."""
    formulas, numbabn, rounding = np.moveaxis(results["identity"], (-1, 1), (0, -1))
    normed, folded = np.moveaxis(results["ms"], (-1, 1), (0, -1))
    exact, same = effect(ROUNDINGS * rounding, numbabn), effect(results["same"], SAME)
    faster, times = effect(normed, folded), (folded / normed).mean(axis=-1)
    worst = [f"{(each / rounding).max():.0f}" for each in (numbabn, formulas)]
    return (
        f"{verdict([*exact.ravel(), *same, *faster.ravel()])}: set to the identity, numbabn's norm is exact "
        f"to {worst[0]} roundings of float32 and NumPy's formulas to {worst[1]}, for means of up to "
        f"{OFFSETS[-1]:.0f} standard deviations; with the norms folded into the layers before them, "
        f"{percent(results['same'])} of the predictions are the same, and take {times.min():.0%} to "
        f"{times.max():.0%} of the time, clearly less in {(faster > 0).sum()} of {faster.size} cases."
    )


CLAIM = Claim(
    name="folding",
    statement="Batch norm can represent the identity, and disappears at inference.",
    source='Ioffe and Szegedy (2015), "Batch normalization", sections 3 and 3.1',
    grid={"network": list(NETWORKS)},
    epochs=5,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
    alone=True,
)

if __name__ == "__main__":
    main(CLAIM)
