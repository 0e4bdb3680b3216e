"""Images of ten classes to learn from: scikit-learn's digits, or data in MNIST's format, as Fashion-MNIST.

Data are always a tuple (x_train, x_test, labels_train, labels_test), with standardised images (N, 1, H, W).
"""

from pathlib import Path

import digits
import numpy as np
from dataset_files import FASHION_MNIST, read_idx
from sklearn.model_selection import train_test_split

import numbabn as nbn

DEFAULT = "digits"
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
INSTALLED = {"fashion-mnist": FASHION_MNIST}
WHERE = (
    "Debian's package dataset-fashion-mnist installs Fashion-MNIST; elsewhere, name a folder with the four "
    "IDX files of https://github.com/zalandoresearch/fashion-mnist. The digits need no files: --data digits"
)


def load(name=DEFAULT, most=None):
    """Return the data of this name or in this folder; exit if there are none.

    Of more than ``most`` images, for training or for testing, only so many are taken: by chance, but always
    the same, and from all classes in proportion.
    """
    if name == DEFAULT:
        return digits.load_data()
    folder = INSTALLED.get(name, Path(name))
    x_train, labels_train = _read_part(folder, "train", most)
    x_test, labels_test = _read_part(folder, "t10k", most)
    count, mean, m2 = nbn.moments(x_train)
    scale, shift = np.float32(np.sqrt(count / m2[0])), np.float32(mean[0])
    return (x_train - shift) * scale, (x_test - shift) * scale, labels_train, labels_test


def of_clothes(name):
    """Return whether data of this name, or in a folder that ends so, are Fashion-MNIST."""
    return Path(name).name in INSTALLED


def class_names(name, labels):
    """Return the names of the classes, whose numbers are the labels, of the data of this name."""
    return CLOTHES if of_clothes(name) else tuple(map(str, range(int(labels.max()) + 1)))


def _read_part(folder, part, most):
    """Return the images and labels for training or for testing."""
    images, labels = (_read(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if most is not None and most < len(images):
        chosen, _ = train_test_split(np.arange(len(images)), train_size=most, stratify=labels, random_state=0)
        images, labels = images[chosen], labels[chosen]
    return np.asarray(images[:, None], np.float32), np.asarray(labels, np.int64)


def _read(folder, name):
    """Return the array of a file, compressed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return read_idx(path)
    raise SystemExit(f"there is no {folder / name}, nor with .gz. {WHERE}")
