"""What the examples on handwritten digits share: the data, two networks, and how they are trained.

The digits come with scikit-learn: 8x8 pixels, 10 classes, no download. A network is made with the norm that
its builder is given: a function of the number of channels that returns a layer, such as `numbabn.BatchNorm`,
or None.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from minimal_nn import (
    SGD,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    ReLU,
    Sequential,
    library,
    softmax_cross_entropy,
)
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


@dataclass
class History:
    """Training loss and test accuracy after every epoch, and the seconds spent in training."""

    losses: list = field(default_factory=list)
    accuracies: list = field(default_factory=list)
    seconds: float = 0.0

    def epochs_to(self, accuracy):
        """Return the number of the first epoch that ends at this accuracy, or None."""
        return next((epoch for epoch, a in enumerate(self.accuracies, 1) if a >= accuracy), None)


def accuracy(net, images, labels):
    """Return the part of the images that a network in evaluation mode recognises."""
    return float((net(images).argmax(axis=1) == labels).mean())


def train(net, data, lr, epochs, batch_size, rng, progress):
    """Train a network with momentum 0.9 and return its `History`; the network stays in evaluation mode.

    Parameters
    ----------
    net : layer
        As in `minimal_nn`, with new parameters.
    data : (x_train, x_test, labels_train, labels_test)
    lr, epochs, batch_size
        Of the training images, which are shuffled in every epoch, an incomplete last batch is left out.
    rng : numpy.random.Generator
        Shuffles.
    progress : tqdm
        Is told of every epoch.
    """
    x_train, x_test, labels_train, labels_test = data
    net.to(x_train)
    sgd = SGD(net, lr=lr)
    history = History()
    whole = len(x_train) // batch_size * batch_size
    for _ in range(epochs):
        start = time.perf_counter()
        net.train()
        losses = []
        shuffled = rng.permutation(len(x_train))[:whole].reshape(-1, batch_size)
        for rows in library(x_train).asarray(shuffled):
            logits = net(x_train[rows])
            loss, dlogits = softmax_cross_entropy(logits, labels_train[rows])
            net.backward(dlogits)
            sgd.step()
            losses.append(loss)
        loss = np.mean([float(loss) for loss in losses])  # float() waits for the GPU's results
        history.seconds += time.perf_counter() - start

        net.eval()
        history.losses.append(loss)
        history.accuracies.append(accuracy(net, x_test, labels_test))
        progress.set_postfix(loss=f"{loss:.4f}", test=f"{history.accuracies[-1]:.1%}", refresh=False)
        progress.update()
    return history
