"""Confusion matrix: how many images of each class were taken for each class, as numbers and as a figure."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

DARK = 0.6  # of the colours, from here on: numbers on them are white
WIDE = 4  # letters, that names may have beside each other


def confusion_matrix(labels, predicted, num_classes):
    """Return the matrix (true class, predicted class) of the numbers of images."""
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def accuracy(matrix):
    """Return the part of the images that was taken for what it is."""
    return np.trace(matrix) / matrix.sum()


def sentence(matrix, names):
    """Return which mistake was the most frequent."""
    mistakes = matrix - np.diag(np.diag(matrix))
    true, predicted = np.unravel_index(mistakes.argmax(), mistakes.shape)
    count = mistakes[true, predicted]
    if count == 0:
        return "No image was taken for one of another class."
    return (
        f"The most frequent mistake: of {matrix[true].sum()} images of class {names[true]}, "
        f"{count} were taken for {names[predicted]}."
    )


def figure(matrix, names, title):
    """Return a figure of a confusion matrix, whose colours are shares of each true class.

    The scale of the colours is a square root, so that rare mistakes are seen beside what is right. Empty
    cells have no number.
    """
    size = len(names)
    result = Figure(figsize=(2.6 + 0.55 * size, 2.2 + 0.5 * size), layout="constrained")
    axes = result.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    axes.imshow(shares, cmap="Blues", norm=norm)
    for (true, predicted), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if norm(shares[true, predicted]) > DARK else "black"
            axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize="small")
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(size), names, **(slanted if max(map(len, names)) > WIDE else {}))
    axes.set_yticks(range(size), names)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.set_xticks(np.arange(1, size) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, size) - 0.5, minor=True)
    axes.grid(which="minor", color="white")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return result
