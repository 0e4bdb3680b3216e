"""Gradient descent for deeper networks: Nesterov's momentum, weight decay and a learning rate that falls."""

import math

from minimal_nn import SGD


class Nesterov(SGD):
    """Gradient descent with Nesterov's momentum, and decay of the weights.

    A parameter p with the gradient g of the loss is updated by ``v = momentum * v + g``, then
    ``p = p - lr * (g + momentum * v)``. For a weight, g has ``decay * p`` added; biases and the parameters of
    norms, which have one axis, do not decay.
    """

    def __init__(self, net, *, lr, momentum=0.9, decay=5e-4):
        super().__init__(net, lr=lr, momentum=momentum)
        self.decay = decay

    def step(self):
        """Update every parameter with the gradients of the last backward pass."""
        params, grads = self.net.params, self.net.grads
        for name, v in self.velocity.items():
            p, g = params[name], grads[name]
            if p.ndim > 1:
                g = g + self.decay * p
            v *= self.momentum
            v += g
            p -= self.lr * (g + self.momentum * v)


def cosine(step, steps, warm_up):
    """Return by which part of the largest learning rate a step is made, of the steps 0 to ``steps`` - 1.

    The part grows by the same amount in each of the first ``warm_up`` steps, and then falls from 1 towards 0
    as a cosine does (Loshchilov and Hutter, 2017).
    """
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2
