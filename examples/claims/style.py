"""Claim: instance norm removes the contrast and brightness of an image and keeps its content.

Ulyanov, Vedaldi and Lempitsky (2016), "Instance normalization: the missing ingredient for fast stylization":
the norm makes a network independent of the contrast of its input. Huang and Belongie (2017), "Arbitrary style
transfer in real-time with adaptive instance normalization", take mean and variance of a channel for style.

Changes the two sample photographs of scikit-learn (there are no other ``--data`` for this claim): contrast
and brightness, the strength of the colours, and in three ways that are not linear or not the same everywhere.
The photographs and their changed copies are one batch, which passes instance norm or, for comparison, batch
norm. Measured are the distance between a copy and its photograph, and how their edges correlate::

    python -m examples.claims.style
"""

import numpy as np
from sklearn.datasets import load_sample_images

import numbabn as nbn
from examples.claims import networks, plots
from examples.claims.command import main
from examples.claims.evidence import effect, listed, percent, percent_spread, spread, verdict
from examples.claims.study import Claim

INSTANCE_NORM = "instance norm"
LAYERS = {
    networks.NO_NORM: lambda images: images,
    networks.BATCH_NORM: nbn.BatchNorm(3),
    INSTANCE_NORM: nbn.InstanceNorm(3),
}
MARKS = {networks.NO_NORM: (11, 10), networks.BATCH_NORM: (6, -18), INSTANCE_NORM: (7, 10)}  # sizes, label
REMOVED, LOST = 0.1, 0.05  # what may be left of the distance, and be lost of the correlation of edges
CHANGES = {
    "contrast and brightness": lambda x, rng: x * rng.uniform(0.2, 0.6) + rng.uniform(0, 0.4),
    "strength of colours": lambda x, rng: x * rng.uniform(0.3, 1, (3, 1, 1)),
    "overexposure": lambda x, rng: np.minimum(x * rng.uniform(1.5, 2.5), 1),
    "tone curve": lambda x, rng: x ** rng.uniform(1.5, 2.5),
    "light from one side": lambda x, rng: x * np.linspace(1, rng.uniform(0.2, 0.5), x.shape[-1]),
}


def photographs():
    """Return the photographs (N, C, H, W), with values from 0 to 1."""
    images = np.stack(load_sample_images().images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, np.float32) / 255


def distance(images, others):
    """Return the root mean square of the difference over the spread of an image, the mean of all colours."""
    squares = np.square(others - images).mean(axis=(2, 3)) / images.var(axis=(2, 3))
    return np.sqrt(squares).mean()


def edges(image):
    """Return the differences of neighbouring pixels, in rows and in columns."""
    return np.concatenate([np.diff(image, axis=axis).ravel() for axis in (1, 2)])


def run(data, rng, epochs, change, norm):
    """Return how far changed copies are from their photographs, both behind a norm, and if edges are kept."""
    images = photographs()
    copies = CHANGES[change](images, rng).astype(np.float32)
    behind = np.split(LAYERS[norm](np.concatenate([images, copies])), 2)
    kept = [
        np.corrcoef(edges(image), edges(copy))[0, 1] for image, copy in zip(images, behind[1], strict=True)
    ]
    return {"distance": distance(*behind), "edges": np.mean(kept)}


def picture():
    """Return a photograph and two copies below each other, without norm and, to the right, behind it."""
    image, rng = photographs()[:1], np.random.default_rng(0)
    weak, colours, *_, light = CHANGES.values()
    images = np.concatenate([image, colours(weak(image, rng), rng), light(image, rng)]).astype(np.float32)
    normed = 0.5 + 0.2 * LAYERS[INSTANCE_NORM](images)  # shows 2.5 standard deviations to either side
    columns = [np.concatenate(each, axis=1) for each in (images, normed)]
    return np.clip(np.concatenate(columns, axis=2), 0, 1).transpose(1, 2, 0)


def table(results):
    """Return the distance behind every norm, and the correlation of edges without and with instance norm."""
    rows = [["change", "distance", "behind batch norm", "behind instance norm", "edges", "edges behind it"]]
    found = zip(results.grid["change"], results["distance"], results["edges"], strict=True)
    for change, distances, kept in found:
        rows.append([change, *map(percent_spread, distances), spread(kept[0], 3), spread(kept[-1], 3)])
    return rows


def figure(results):
    """Return a figure of a photograph and copies of it, and of the distances of all changes."""
    titles = "What instance norm makes of a photograph", "Distance of changed copies from photographs"
    result, (pictures, axes) = plots.panels(*titles, width=6.2, height=5.4)
    shown = picture()
    pictures.imshow(shown)
    height, width, _ = shown.shape
    pictures.set_xticks([width / 4, width * 3 / 4], ["without norm", "behind instance norm"])
    names = ["photograph", "contrast, colours", "light from one side"]
    pictures.set_yticks([height / 6, height / 2, height * 5 / 6], names, rotation=90, va="center")
    pictures.tick_params(length=0)
    changes = results.grid["change"]
    for norm, values in zip(results.grid["norm"], results["distance"].swapaxes(0, 1), strict=True):
        style, size, above = plots.STYLES[norm] | {"ls": ""}, *MARKS[norm]
        axes.plot(100 * values.mean(axis=-1), changes, ms=size, **style)
        axes.annotate(
            norm, (100 * values[0].mean(), 0), (0, above), textcoords="offset points", ha="center",
            color=style["color"],
        )  # fmt: skip
    axes.margins(y=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("distance (% of the spread of the photograph)")
    axes.set_xlim(left=-12)
    return result


def finding(results):
    """Say which changes instance norm removes, and what it takes from the edges."""
    (before, batch, after), edges = (np.moveaxis(results[name], 1, 0) for name in ("distance", "edges"))
    removed, kept = effect(REMOVED * before, after), effect(edges[-1] + LOST, edges[0])
    left = (after / before).mean(axis=-1)
    texts = [f"{change} ({percent(each)})" for change, each in zip(results.grid["change"], left, strict=True)]
    gone = [text for text, each in zip(texts, removed, strict=True) if each > 0]
    rest = [text for text, each in zip(texts, removed, strict=True) if each <= 0]
    return (
        f"{verdict(np.minimum(removed, kept))}: instance norm removes {listed(gone) if gone else 'nothing'}"
        f"{f', and not {listed(rest)}' if rest else ''}; brackets have the part of the distance left; "
        f"batch norm leaves {percent(batch / before)}; edges correlate with those of the photographs by "
        f"{edges[0].mean():.2f} without norm and {edges[-1].mean():.2f} behind instance norm."
    )


CLAIM = Claim(
    name="style",
    statement="Instance norm removes the contrast and brightness of an image and keeps its content.",
    source='Ulyanov, Vedaldi and Lempitsky (2016), "Instance normalization: the missing ingredient for fast '
    'stylization"',
    grid={"change": list(CHANGES), "norm": list(LAYERS)},
    epochs=1,
    run=run,
    table=table,
    figure=figure,
    finding=finding,
)

if __name__ == "__main__":
    main(CLAIM)
