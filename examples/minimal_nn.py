"""The pieces of a small neural network in NumPy or CuPy: layers, loss and optimiser.

Every layer offers the same four things as ``numbabn.BatchNorm``::

    y = layer(x)              the forward pass, which keeps what the backward pass needs
    dx = layer.backward(dy)   the backward pass, which also fills layer.grads
    layer.params              {name: array}, the parameters, which an optimiser changes in place
    layer.grads               {name: array}, their gradients, from the last backward pass

Besides, ``layer.to(x)`` moves the parameters to where the array x is: NumPy's memory, or CuPy's GPU; and
``layer.state_dict()`` returns copies in NumPy of all that training changes, for ``layer.load_state_dict``.

``dy`` always stands for the derivative of the loss with respect to ``y``, and has the shape of ``y``.
Images are arrays of shape (N, C, H, W): batch, channels, height, width.
"""

import sys

import numpy as np


def library(x):
    """Return the module of an array, NumPy or CuPy; both have the functions that the layers use."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def in_numpy(x):
    """Return a copy of an array in NumPy."""
    return x.copy() if library(x) is np else x.get()


def assign(arrays, values):
    """Change arrays in place to values in NumPy that have the same names; both are dictionaries."""
    for name, array in arrays.items():
        if values[name].shape != array.shape:
            raise ValueError(f"{name} has shape {values[name].shape} in place of {array.shape}")
        array[...] = library(array).asarray(values[name])


def part_of(state, prefix):
    """Return the entries of a dictionary whose names begin with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def he_normal(rng, shape, fan_in, dtype):
    """Draw weights of variance 2 / fan_in, which keep the scale of activations through a ReLU."""
    return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(dtype)


class Layer:
    """Base class of layers; by default a layer has no parameters and is the same in both modes."""

    def __init__(self):
        self.params = {}
        self.grads = {}

    def train(self):
        """Switch to training mode, which here changes nothing."""

    def eval(self):
        """Switch to evaluation mode, which here changes nothing."""

    def to(self, x):
        """Move the parameters to where the array x is."""
        self.params = {name: library(x).asarray(p) for name, p in self.params.items()}

    def state_dict(self):
        """Return copies of the parameters in NumPy."""
        return {name: in_numpy(p) for name, p in self.params.items()}

    def load_state_dict(self, state):
        """Take over the parameters from `state_dict`."""
        assign(self.params, state)


class Dense(Layer):
    """Fully connected layer, where the shapes are x (N, I), W (O, I), b (O,) and y (N, O)."""

    def __init__(self, num_inputs, num_outputs, *, rng, bias=True, dtype=np.float32):
        super().__init__()
        self.params["weight"] = he_normal(rng, (num_outputs, num_inputs), num_inputs, dtype)
        if bias:
            self.params["bias"] = np.zeros(num_outputs, dtype)

    def __call__(self, x):
        """Return ``y = x W^T + b``."""
        self.x = x
        y = x @ self.params["weight"].T
        if "bias" in self.params:
            y += self.params["bias"]
        return y

    def backward(self, dy):
        """Return ``dx = dy W``; fill ``dW = dy^T x`` and ``db = sum_n dy``."""
        self.grads["weight"] = dy.T @ self.x
        if "bias" in self.params:
            self.grads["bias"] = dy.sum(axis=0)
        return dy @ self.params["weight"]


class Conv2d(Layer):
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning).

    ``y[n, o, h, w] = b[o] + sum_cij W[o, c, i, j] * x[n, c, h*stride + i - padding, w*stride + j - padding]``

    The shapes are x (N, C, H, W), W (O, C, K, K), b (O,) and y (N, O, H', W') with
    ``H' = (H + 2*padding - K) // stride + 1``, and W' likewise.

    For every c, i and j, the pixels that ``W[:, c, i, j]`` multiplies are copied into one row of a matrix
    (im2col). The convolution is then one matrix product, and so are the gradients of W and of this matrix.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, *, rng, stride=1, padding=0, bias=True, dtype=np.float32
    ):
        super().__init__()
        self.stride, self.padding = stride, padding
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.params["weight"] = he_normal(rng, shape, in_channels * kernel_size**2, dtype)
        if bias:
            self.params["bias"] = np.zeros(out_channels, dtype)

    def __call__(self, x):
        """Return ``y = W cols + b``, where ``cols`` is the matrix of copied pixels."""
        self.x_shape = x.shape
        weight = self.params["weight"]
        p, s, k = self.padding, self.stride, weight.shape[-1]
        xp = library(x)
        x = xp.pad(x, ((0, 0), (0, 0), (p, p), (p, p))).transpose(1, 0, 2, 3)  # (C, N, H + 2P, W + 2P)
        n, h, w = x.shape[1], (x.shape[2] - k) // s + 1, (x.shape[3] - k) // s + 1
        pixels = [x[:, :, i : i + s * h : s, j : j + s * w : s] for i in range(k) for j in range(k)]
        self.cols = xp.stack(pixels, axis=1).reshape(-1, n * h * w)  # (C*K*K, N*H'*W')
        y = weight.reshape(len(weight), -1) @ self.cols  # (O, N*H'*W')
        if "bias" in self.params:
            y += self.params["bias"][:, None]
        return xp.ascontiguousarray(y.reshape(-1, n, h, w).transpose(1, 0, 2, 3))

    def backward(self, dy):
        """Return dx; fill ``dW = dy cols^T`` and ``db = sum_nhw dy``."""
        weight = self.params["weight"]
        dy_rows = dy.transpose(1, 0, 2, 3).reshape(len(weight), -1)  # (O, N*H'*W')
        self.grads["weight"] = (dy_rows @ self.cols.T).reshape(weight.shape)
        if "bias" in self.params:
            self.grads["bias"] = dy_rows.sum(axis=1)
        return self._scatter(weight.reshape(len(weight), -1).T @ dy_rows, dy.shape)

    def _scatter(self, dcols, dy_shape):
        """Add the columns back to the pixels that they were copied from (the transpose of im2col)."""
        n, c, height, width = self.x_shape
        h, w = dy_shape[2:]
        p, s, k = self.padding, self.stride, self.params["weight"].shape[-1]
        dcols = dcols.reshape(c, k, k, n, h, w)
        xp = library(dcols)
        dx = xp.zeros((c, n, height + 2 * p, width + 2 * p), dcols.dtype)
        for i in range(k):
            for j in range(k):
                dx[:, :, i : i + s * h : s, j : j + s * w : s] += dcols[:, i, j]
        return xp.ascontiguousarray(dx[:, :, p : p + height, p : p + width].transpose(1, 0, 2, 3))


class MaxPool2d(Layer):
    """Max pooling, which takes the largest value of every patch of K x K pixels.

    The shapes are x (N, C, H, W), with H and W multiples of K, and y (N, C, H/K, W/K).
    """

    def __init__(self, kernel_size=2):
        super().__init__()
        self.kernel_size = kernel_size

    def __call__(self, x):
        """Return y; for the backward pass, keep the K*K pixels of every patch on the first axis."""
        k = self.kernel_size
        self.pixels = library(x).stack([x[:, :, i::k, j::k] for i in range(k) for j in range(k)])
        self.y = self.pixels.max(axis=0)
        return self.y

    def backward(self, dy):
        """Return dx: each dy goes to the largest pixel of its patch, in equal shares if several tie."""
        n, c, h, w = dy.shape
        k = self.kernel_size
        largest = self.pixels == self.y
        dpixels = largest * (dy / largest.sum(axis=0, dtype=dy.dtype))
        return dpixels.reshape(k, k, n, c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(n, c, h * k, w * k)


class ReLU(Layer):
    """Rectified linear unit, for x of any shape."""

    def __call__(self, x):
        """Return ``y = max(x, 0)``."""
        self.positive = x > 0
        return library(x).maximum(x, 0)

    def backward(self, dy):
        """Return ``dx = dy`` where x > 0, else 0."""
        return dy * self.positive


class Sigmoid(Layer):
    """Logistic function, for x of any shape."""

    def __call__(self, x):
        """Return ``y = 1 / (1 + exp(-x))``, as ``(1 + tanh(x / 2)) / 2``, which does not overflow."""
        self.y = (1 + library(x).tanh(x / 2)) / 2
        return self.y

    def backward(self, dy):
        """Return ``dx = dy y (1 - y)``."""
        return dy * self.y * (1 - self.y)


class Tanh(Layer):
    """Hyperbolic tangent, for x of any shape."""

    def __call__(self, x):
        """Return ``y = tanh(x)``."""
        self.y = library(x).tanh(x)
        return self.y

    def backward(self, dy):
        """Return ``dx = dy (1 - y^2)``."""
        return dy * (1 - self.y**2)


class Dropout(Layer):
    """Dropout, which in training sets each element to 0 with probability p, and divides the rest by 1 - p."""

    def __init__(self, p, *, rng):
        super().__init__()
        self.p, self.rng, self.training = p, rng, True

    def train(self):
        """Switch to training mode, where elements are dropped."""
        self.training = True

    def eval(self):
        """Switch to evaluation mode, where y is x."""
        self.training = False

    def __call__(self, x):
        """Return y; keep by what each element of x was multiplied."""
        if not self.training:
            return x
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.p
        self.factor = library(x).asarray(kept) * x.dtype.type(1 / (1 - self.p))
        return x * self.factor

    def backward(self, dy):
        """Return dx of the last call in training mode."""
        return dy * self.factor


class Flatten(Layer):
    """Layer that joins all axes but that of the batch."""

    def __call__(self, x):
        """Return x in the shape (N, D)."""
        self.x_shape = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy):
        """Return dy in the shape of x."""
        return dy.reshape(self.x_shape)


class Sequential:
    """A chain of layers, ``y = layers[-1](... layers[0](x))``, which is a layer itself.

    The parameter ``name`` of the layer number ``i`` is called ``"i.name"`` in `params` and `grads`.
    """

    def __init__(self, *layers):
        self.layers = layers

    def __call__(self, x):
        """Apply the layers from the first to the last."""
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy):
        """Apply the chain rule: the layers' backward passes from the last to the first."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    @property
    def params(self):
        """The parameters of all layers, ``{"i.name": array}``."""
        return {f"{i}.{name}": p for i, layer in enumerate(self.layers) for name, p in layer.params.items()}

    @property
    def grads(self):
        """The gradients of all layers, ``{"i.name": array}``."""
        return {f"{i}.{name}": g for i, layer in enumerate(self.layers) for name, g in layer.grads.items()}

    def train(self):
        """Put every layer into training mode: batch norm uses the statistics of the batch."""
        for layer in self.layers:
            layer.train()

    def eval(self):
        """Put every layer into evaluation mode: batch norm uses its running statistics."""
        for layer in self.layers:
            layer.eval()

    def to(self, x):
        """Move the parameters of all layers to where the array x is."""
        for layer in self.layers:
            layer.to(x)

    def state_dict(self):
        """Return copies in NumPy of what training changes in all layers, ``{"i.name": array}``."""
        return {
            f"{i}.{name}": value
            for i, layer in enumerate(self.layers)
            for name, value in layer.state_dict().items()
        }

    def load_state_dict(self, state):
        """Take over from `state_dict` what training changes."""
        for i, layer in enumerate(self.layers):
            layer.load_state_dict(part_of(state, f"{i}."))


class Residual(Sequential):
    """A chain of layers beside a connection that skips it, ``y = x + layers(x)`` (He et al., 2016)."""

    def __call__(self, x):
        """Return y, which has the shape of x."""
        return x + super().__call__(x)

    def backward(self, dy):
        """Return the sum of the gradients of both ways."""
        return dy + super().backward(dy)


def softmax_cross_entropy(logits, labels):
    """Return the loss ``-1/N sum_n log p[n, labels[n]]`` with ``p = softmax(logits)``, and its gradient.

    Parameters
    ----------
    logits : (N, K) array
    labels : (N,) array of integers in 0 .. K-1

    Returns
    -------
    loss : array of one value, of the library of the logits
    dlogits : (N, K) array, ``(p - onehot(labels)) / N``
    """
    xp = library(logits)
    rows = xp.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)  # exp cannot overflow, as no value is above 0
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = xp.exp(log_p)
    dlogits[rows, labels] -= 1
    return -log_p[rows, labels].mean(), dlogits / len(labels)


class SGD:
    """Gradient descent with momentum.

    A parameter p with the gradient g is updated by ``v = momentum * v + g``, then ``p = p - lr * v``.
    """

    def __init__(self, net, *, lr, momentum=0.9):
        self.net, self.lr, self.momentum = net, lr, momentum
        self.velocity = {name: library(p).zeros_like(p) for name, p in net.params.items()}

    def step(self):
        """Update every parameter with the gradients of the last backward pass."""
        params, grads = self.net.params, self.net.grads
        for name, v in self.velocity.items():
            v *= self.momentum
            v += grads[name]
            params[name] -= self.lr * v

    def state_dict(self):
        """Return copies in NumPy of the velocities."""
        return {name: in_numpy(v) for name, v in self.velocity.items()}

    def load_state_dict(self, state):
        """Take over the velocities from `state_dict`."""
        assign(self.velocity, state)
