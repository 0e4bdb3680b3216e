"""Images that are moved and mirrored by chance, so that a network never sees quite the same image twice."""

import numpy as np
from minimal_nn import library


def augmented(images, rng, *, shift, mirror):
    """Return images (N, H, W, C), each moved by up to ``shift`` pixels both ways, half of them mirrored.

    Pixels that come in over an edge are those of the edge. With ``mirror=False`` none is mirrored: the mirror
    image of a letter or a digit is none. ``rng`` is a generator of NumPy, also for images on a GPU.
    """
    n, h, w, _ = images.shape
    xp = library(images)
    down, right = rng.integers(0, 2 * shift, size=(2, n, 1), endpoint=True)
    y, x = np.arange(h) + down, np.arange(w) + right
    if mirror:
        x = np.where(rng.random((n, 1)) < 0.5, x[:, ::-1], x)
    padded = xp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    y, x = xp.asarray(y), xp.asarray(x)
    return padded[xp.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
