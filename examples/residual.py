"""A small residual network for images of shape (N, H, W, C), with the norm by its name.

The norms are numbabn's, each with the ReLU that follows it, and at the end of a block with the addition
before: one pass over the array in place of three.
"""

from functools import partial
from itertools import pairwise

import numpy as np
from channels_last import Conv2d, Downsample, GlobalAveragePool, ImageConv2d
from minimal_nn import Dense, Sequential

import numbabn as nbn

WIDTHS = (16, 32, 64)  # channels of the stages; each stage has half the height and width of the one before
REDUCTION = 2 ** (len(WIDTHS) - 1)  # of height and width, which must be multiples of it
GROUPS = 8
FUSED = {"axis": -1, "activation": "relu"}
NORMS = {  # name: a function of the number of channels that returns a layer
    "batch": partial(nbn.BatchNorm, **FUSED),
    "group": partial(nbn.GroupNorm, GROUPS, **FUSED),
    # One group is layer norm as Wu and He (2018) have it, section 3.1, with a gamma and a beta per channel.
    "layer": partial(nbn.GroupNorm, 1, **FUSED),
    "instance": partial(nbn.InstanceNorm, scale=True, center=True, **FUSED),
}


class Block(Sequential):
    """Two convolutions beside a connection that skips them (He et al., 2016).

    ``y = relu(norm(conv(relu(norm(conv(x))))) + x)``
    """

    def __init__(self, channels, norm, *, rng, dtype=np.float32):
        layers = []
        for _ in range(2):
            layers += [Conv2d(channels, channels, rng=rng, dtype=dtype), norm(channels, dtype=dtype)]
        super().__init__(*layers)

    def __call__(self, x):
        """Return y, which has the shape of x; the last norm adds x."""
        *layers, norm = self.layers
        y = x
        for layer in layers:
            y = layer(y)
        return norm(y, residual=x)

    def backward(self, dy):
        """Return the sum of the gradients of both ways."""
        dx = super().backward(dy)
        dx += self.layers[-1].dresidual
        return dx


def residual_network(rng, image_channels, num_classes, norm, dtype=np.float32):
    """Return a network of one block per stage, whose result is the logits (N, num_classes)."""
    norm = NORMS[norm]
    first, last = WIDTHS[0], WIDTHS[-1]
    layers = [
        ImageConv2d(image_channels, first, rng=rng, dtype=dtype),
        norm(first, dtype=dtype),
        Block(first, norm, rng=rng, dtype=dtype),
    ]
    for inputs, outputs in pairwise(WIDTHS):
        layers += [
            Downsample(inputs, outputs, rng=rng, dtype=dtype),
            norm(outputs, dtype=dtype),
            Block(outputs, norm, rng=rng, dtype=dtype),
        ]
    return Sequential(*layers, GlobalAveragePool(), Dense(last, num_classes, rng=rng, dtype=dtype))
