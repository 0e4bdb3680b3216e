"""A recurrent layer with a norm inside its step, trained with backpropagation through time in NumPy.

A norm here is a function of one time step, ``y, backward = norm(a, gamma, beta)``, and its gradients are
``da, dgamma, dbeta = backward(dy)``. Each step has a ``backward`` of its own, which holds what that step
saved; a layer such as `numbabn.LayerNorm` would keep its last call only.
"""

import numpy as np
from minimal_nn import Layer

import numbabn as nbn


def layer_norm(a, gamma, beta):
    """Normalise the hidden units of every sample to mean 0 and variance 1, as Ba et al. (2016)."""
    y, saved = nbn.layer_norm_forward(a, gamma, beta)
    return y, lambda dy: nbn.layer_norm_backward(dy, saved)


def rms_norm(a, gamma, beta):
    """Divide the hidden units of every sample by their root mean square, as Zhang and Sennrich (2019)."""
    y, saved = nbn.rms_norm_forward(a, gamma)

    def backward(dy):
        return *nbn.rms_norm_backward(dy, saved), dy.sum(axis=0)

    return y + beta, backward


def no_norm(a, gamma, beta):
    """Add beta only; gamma is None."""
    return a + beta, lambda dy: (dy, None, dy.sum(axis=0))


class Recurrent(Layer):
    """Recurrent layer with a norm on the summed inputs of every step; it returns the last state.

    ``a_t = W x_t + U h_{t-1}``, ``h_t = tanh(norm(a_t))`` for t = 1 .. T, with h_0 = 0 and y = h_T

    The shapes are x (N, T, I), W (H, I), U (H, H), a_t and h_t (N, H). All steps share W, U and the gamma and
    beta (H,) of the norm, whose statistics are those of each step: equation 4 in Ba, Kiros and Hinton (2016),
    "Layer normalization". Before training, U is a random rotation, which keeps the length of the state.
    """

    def __init__(self, num_inputs, num_hidden, *, rng, norm=no_norm, dtype=np.float32):
        super().__init__()
        self.norm = norm
        rotation, _ = np.linalg.qr(rng.standard_normal((num_hidden, num_hidden)))
        weight = rng.standard_normal((num_hidden, num_inputs)) / np.sqrt(num_inputs)
        self.params["input"], self.params["state"] = weight.astype(dtype), rotation.astype(dtype)
        self.params["beta"] = np.zeros(num_hidden, dtype)
        if norm is not no_norm:
            self.params["gamma"] = np.ones(num_hidden, dtype)

    def __call__(self, x):
        """Return h_T; keep the states, and the backward function of every step."""
        gamma, beta = self.params.get("gamma"), self.params["beta"]
        h = np.zeros((len(x), len(beta)), x.dtype)
        self.x, self.states, self.backwards = x, [h], []
        for t in range(x.shape[1]):
            a = x[:, t] @ self.params["input"].T + h @ self.params["state"].T
            normed, backward = self.norm(a, gamma, beta)
            h = np.tanh(normed)
            self.states.append(h)
            self.backwards.append(backward)
        return h

    def backward(self, dy):
        """Return dx; fill the gradients, which are sums over all steps (backpropagation through time)."""
        grads = {name: np.zeros_like(p) for name, p in self.params.items()}
        dx, dh = np.empty_like(self.x), dy
        for t in reversed(range(self.x.shape[1])):
            da, dgamma, dbeta = self.backwards[t](dh * (1 - self.states[t + 1] ** 2))
            grads["input"] += da.T @ self.x[:, t]
            grads["state"] += da.T @ self.states[t]
            grads["beta"] += dbeta
            if dgamma is not None:
                grads["gamma"] += dgamma
            dx[:, t] = da @ self.params["input"]
            dh = da @ self.params["state"]
        self.grads = grads
        return dx
