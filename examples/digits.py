"""What the examples on handwritten digits share: the data, two networks, and the device.

The digits come with scikit-learn: 8x8 pixels, 10 classes, no download. A network is made with the norm that
its builder is given: a function of the number of channels that returns a layer, such as `numbabn.BatchNorm`,
or None.
"""

import numpy as np
from minimal_nn import Conv2d, Dense, Flatten, MaxPool2d, ReLU, Sequential
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numbabn as nbn


def load_data():
    """Return x_train and x_test, which are standardised images (N, 1, 8, 8), and the labels of both.

    The split is always the same. The same people wrote digits of both parts; digits of other people would be
    harder to recognise.
    """
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    x_train, x_test, labels_train, labels_test = train_test_split(
        images, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    count, mean, m2 = nbn.moments(x_train)
    scale, shift = np.float32(np.sqrt(count / m2[0])), np.float32(mean[0])
    return (x_train - shift) * scale, (x_test - shift) * scale, labels_train, labels_test


def mover(device):
    """Return a function that moves arrays to the device, or exit and say what the device needs."""
    if device == "cpu":
        return np.asarray
    try:
        import cupy

        nbn.BatchNorm(1, device="cuda")  # raises an error that says what it needs
    except (ImportError, RuntimeError) as error:
        raise SystemExit(
            f"--device cuda cannot run: {error}\n"
            'It needs an NVIDIA GPU and: python -m pip install "numbabn[cuda]" cupy-cuda13x'
        ) from None
    return cupy.asarray


def mlp(rng, norm=None):
    """Return a network with two hidden layers, 64 - 128 - 128 - 10, with the norm before each ReLU."""
    layers = [Flatten()]
    for inputs, outputs in [(64, 128), (128, 128)]:
        layers.append(Dense(inputs, outputs, bias=norm is None, rng=rng))  # or the norm's beta
        if norm is not None:
            layers.append(norm(outputs))
        layers.append(ReLU())
    return Sequential(*layers, Dense(128, 10, rng=rng))


def cnn(rng, norm=None):
    """Return a convolutional network, with the norm before each ReLU.

    It has two 3x3 convolutions with 16 and 32 channels, each followed by 2x2 max pooling.
    """
    layers = []
    for inputs, outputs in [(1, 16), (16, 32)]:
        layers.append(Conv2d(inputs, outputs, 3, padding=1, bias=norm is None, rng=rng))
        if norm is not None:
            layers.append(norm(outputs))
        layers += [ReLU(), MaxPool2d(2)]
    return Sequential(*layers, Flatten(), Dense(32 * 2 * 2, 10, rng=rng))
