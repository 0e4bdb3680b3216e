"""What can be measured of a network while it trains: the inputs of its layers, and its loss surface.

Nothing changes in the network: its copies are measured, and random layers draw the same in all of them.
"""

from copy import deepcopy

import numpy as np
from minimal_nn import Dense, softmax_cross_entropy


def layer_inputs(net, images):
    """Return what every dense layer but the first reads."""
    inputs = []
    for layer in deepcopy(net).layers:
        if isinstance(layer, Dense):
            inputs.append(images)
        images = layer(images)
    return inputs[1:]


def shift(before, after):
    """Return how far the distributions of units move, relative to the spread of their layer.

    ``before`` and ``after`` have an array (N, C) for every layer; the result is the mean of the layers. The
    distance is Wasserstein's of order 2, the root mean square by which the sorted values of units move.
    """
    moves = [np.sort(b, axis=0) - np.sort(a, axis=0) for a, b in zip(before, after, strict=True)]
    spreads = [np.sqrt(each.var(axis=0).mean()) for each in before]
    return np.mean([np.sqrt(np.square(m).mean()) / s for m, s in zip(moves, spreads, strict=True)])


def along_gradient(net, images, labels, lengths):
    """Return how much the gradient changes along a step, relative to its length, and the range of the loss.

    These are the gradient predictiveness and the variation of the loss of Santurkar et al. (2018), figure 4,
    for steps against the gradient of these lengths, in units of the gradient.
    """
    loss, here = _slope(deepcopy(net), images, labels)
    losses, changes = [loss], []
    for length in lengths:
        moved = deepcopy(net)
        for name, p in moved.params.items():
            p -= length * here[name]
        loss, there = _slope(moved, images, labels)
        losses.append(loss)
        changes.append(_norm(there[name] - here[name] for name in here))
    return max(changes) / _norm(here.values()), np.ptp(losses)


def _slope(net, images, labels):
    """Return the loss and its gradients."""
    loss, dlogits = softmax_cross_entropy(net(images), labels)
    net.backward(dlogits)
    return loss, net.grads


def _norm(arrays):
    """Return the Euclidean norm of all values."""
    return np.sqrt(sum(np.vdot(each, each) for each in arrays))
