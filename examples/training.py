"""How the examples train a network of `minimal_nn` to classify images, and what they keep of it."""

import time
from dataclasses import dataclass, field

import numpy as np
from minimal_nn import SGD, library, softmax_cross_entropy
from tqdm import tqdm

SILENT = tqdm(disable=True)  # where nobody watches


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


def train(net, data, lr, epochs, batch_size, rng, progress=SILENT):
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
    for _ in range(epochs):
        start = time.perf_counter()
        net.train()
        losses = []
        for rows in library(x_train).asarray(batches(len(x_train), batch_size, rng)):
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


def batches(num_images, batch_size, rng):
    """Return the indices of all images in random order, as one row per batch, without an incomplete last."""
    whole = num_images // batch_size * batch_size
    return rng.permutation(num_images)[:whole].reshape(-1, batch_size)
