"""The networks of the claims, for images of any size, with a norm by its name."""

from functools import partial
from itertools import pairwise

import numpy as np
from minimal_nn import Conv2d, Dense, Flatten, Layer, MaxPool2d, ReLU, Sequential

import numbabn as nbn

NO_NORM, BATCH_NORM = "no norm", "batch norm"
GROUPS = 4
NORMS = {  # name: a function of the number of channels that returns a layer
    NO_NORM: None,
    BATCH_NORM: nbn.BatchNorm,
    "group norm": partial(nbn.GroupNorm, GROUPS),
    # One group is layer norm as Wu and He (2018) have it, section 3.1, with a gamma and a beta per channel.
    # nbn.LayerNorm has them per pixel, as Ba et al. (2016) have them per unit of a dense layer.
    "layer norm": partial(nbn.GroupNorm, 1),
    "instance norm": partial(nbn.InstanceNorm, scale=True, center=True),
}
CLASSES = 10
AXES = (0, 2, 3)  # of the statistics of a channel


class NumPyBatchNorm(Layer):
    """Batch norm of training for x (N, C, H, W), by its formulas, with few temporary arrays."""

    def __init__(self, channels):
        super().__init__()
        self.eps = np.float32(1e-5)
        self.params = {"gamma": np.ones((channels, 1, 1), np.float32)}
        self.params["beta"] = np.zeros_like(self.params["gamma"])

    def __call__(self, x):
        """Return ``y = xhat gamma + beta`` with ``xhat = (x - mean) / sqrt(var + eps)``."""
        self.xhat = x - x.mean(axis=AXES, keepdims=True)
        var = np.square(self.xhat).mean(axis=AXES, keepdims=True)
        self.invstd = 1 / np.sqrt(var + self.eps)
        self.xhat *= self.invstd
        y = self.xhat * self.params["gamma"]
        y += self.params["beta"]
        return y

    def backward(self, dy):
        """Return ``dx = gamma (dy - mean(dy) - xhat mean(dy xhat)) / sqrt(var + eps)``."""
        self.grads["gamma"] = np.einsum("nchw,nchw->c", dy, self.xhat)[:, None, None]
        self.grads["beta"] = dy.sum(axis=AXES)[:, None, None]
        dx = self.xhat * (self.grads["gamma"] / -dy[:, 0].size)
        dx += dy
        dx -= self.grads["beta"] / dy[:, 0].size
        dx *= self.params["gamma"] * self.invstd
        return dx


class NoisyBatchNorm(nbn.BatchNorm):
    """Batch norm that in training scales and shifts every unit at random, anew at every call.

    For a ``strength`` of 1, factors are uniform between 0.875 and 1.125, and shifts between -0.25 and 0.25
    standard deviations.
    """

    def __init__(self, units, strength, rng):
        super().__init__(units)
        self.strength, self.rng = strength, rng

    def __call__(self, x):
        """Return y; keep by what every unit was multiplied."""
        y = super().__call__(x)
        if self.training:
            noise = (self.strength * self.rng.uniform(-1, 1, (2, y.shape[1]))).astype(y.dtype)
            self.factor = 1 + noise[0] / 8
            y = y * self.factor + noise[1] / 4
        return y

    def backward(self, dy):
        """Return dx of the last call in training mode."""
        return super().backward(dy * self.factor)


def noisy(net, strength, rng):
    """Return a chain of the layers of a network, with noise after every batch norm."""
    return Sequential(
        *(
            NoisyBatchNorm(layer.num_channels, strength, rng) if isinstance(layer, nbn.BatchNorm) else layer
            for layer in net.layers
        )
    )


def hidden(norm, units, activation=ReLU):
    """Return what follows a dense layer or a convolution: a norm, if any, and an activation."""
    make = NORMS[norm]
    return [activation()] if make is None else [make(units), activation()]


def mlp(rng, images, norm, *, depth=2, units=128, scale=1.0, activation=ReLU):
    """Return a network of ``depth`` hidden dense layers, with the norm before each activation.

    First weights have the variance 2 / inputs (He et al., 2015), times the square of ``scale``. Layers have a
    bias unless a norm follows, whose beta does the same.
    """
    sizes = [images[0].size, *[units] * depth]
    layers = [Flatten()]
    for inputs, outputs in pairwise(sizes):
        dense = Dense(inputs, outputs, bias=norm == NO_NORM, rng=rng)
        dense.params["weight"] *= np.float32(scale)
        layers += [dense, *hidden(norm, outputs, activation)]
    return Sequential(*layers, Dense(units, CLASSES, rng=rng))


def cnn(rng, images, norm, *, channels=(8, 16)):
    """Return a network of 3x3 convolutions, each followed by the norm, ReLU and 2x2 max pooling."""
    layers, inputs, side = [], 1, images.shape[-1]
    for outputs in channels:
        convolution = Conv2d(inputs, outputs, 3, padding=1, bias=norm == NO_NORM, rng=rng)
        layers += [convolution, *hidden(norm, outputs), MaxPool2d(2)]
        inputs, side = outputs, side // 2
    return Sequential(*layers, Flatten(), Dense(inputs * side**2, CLASSES, rng=rng))


def batch_norms(net):
    """Return the batch normalisation layers of a network, in the order in which data passes through them."""
    return [layer for layer in net.layers if isinstance(layer, nbn.BatchNorm)]
