"""Norms with what follows them, and the same as a chain of steps: the plain norm, and NumPy.

The plain norms are tested elsewhere, against formulas. Here fused calls must have the bits of the chain: of
v + z and of the activation, each rounded once, and of the plain backward call with the gradient that the
activation lets through.
"""

from typing import NamedTuple

import numpy as np

import numbabn as nbn

SLOPE = 0.2
ACTIVATIONS = ("relu", "relu6", "leaky_relu", None)


def activated(v, activation):
    """Return the activation of v, as in PyTorch: NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        if activation == "relu":
            return np.where(v < 0, v.dtype.type(0), v)
        if activation == "relu6":
            return np.where(v < 0, v.dtype.type(0), np.where(v > 6, v.dtype.type(6), v))
        if activation == "leaky_relu":
            return np.where(v > 0, v, v * v.dtype.type(SLOPE))
        return v


def through(dy, v, activation):
    """Return the gradient with respect to v, as in PyTorch.

    It is that of 0 at exactly 0 and 6, and where a derivative is 0 there is no NaN from infinity times 0. A
    NaN has the derivative 1, and of "leaky_relu" the slope.
    """
    with np.errstate(invalid="ignore"):
        if activation == "relu":
            return np.where(v <= 0, dy.dtype.type(0), dy)
        if activation == "relu6":
            return np.where((v <= 0) | (v >= 6), dy.dtype.type(0), dy)
        if activation == "leaky_relu":
            return np.where(v > 0, dy, dy * dy.dtype.type(SLOPE))
        return dy


class Norm(NamedTuple):
    """A norm of arrays of one shape: its functions, and what they are given."""

    name: str
    shape: tuple
    axis: int = 1

    @property
    def options(self):
        return {"axis": self.axis} | ({"num_groups": 2} if self.name == "group" else {})

    def parameters(self):
        """Return gamma and beta; every third gamma is 0."""
        rng, count = np.random.default_rng(1), self.shape[self.axis]
        gamma = rng.normal(1, 0.5, count)
        gamma[1::3] = 0
        return {"gamma": gamma} if self.name == "rms" else {"gamma": gamma, "beta": rng.normal(size=count)}

    def arrays(self, dtype=np.float32):
        """Return x, z and dy."""
        rng = np.random.default_rng(2)
        return tuple((rng.normal(size=self.shape) * 3).astype(dtype) for _ in range(3))

    def forward(self, x, **options):
        function = getattr(nbn, f"{self.name}_norm_forward")
        return function(x, **self.parameters(), **self.options, **options)

    def backward(self, dy, saved, **options):
        return getattr(nbn, f"{self.name}_norm_backward")(dy, saved, **options)

    def layer(self, **options):
        """Return a layer for such arrays, with these parameters."""
        count = self.shape[self.axis]
        if self.name in ("layer", "rms"):
            kind = nbn.LayerNorm if self.name == "layer" else nbn.RMSNorm
            layer = kind(count, axis=self.axis, dtype=np.float64, **options)
        elif self.name == "group":
            layer = nbn.GroupNorm(2, count, axis=self.axis, dtype=np.float64, **options)
        else:
            kind = nbn.BatchNorm if self.name == "batch" else nbn.InstanceNorm
            layer = kind(count, axis=self.axis, scale=True, center=True, dtype=np.float64, **options)
        for name, values in self.parameters().items():
            layer.params[name][:] = values
        return layer


class Chain(NamedTuple):
    """What a chain of steps gives."""

    y: np.ndarray
    gradients: tuple
    dresidual: np.ndarray


def chain(norm, x, z, dy, activation, **options):
    """Return the results of the plain norm, an addition where z is not None, and the activation."""
    v, saved = norm.forward(x, **options)
    v = v if z is None else v + z
    dv = through(dy, v, activation)
    return Chain(activated(v, activation), norm.backward(dv, saved), dv)


def fused(norm, x, z, dy, activation, **options):
    """Return the results of the calls that do it all."""
    y, saved = norm.forward(x, activation=activation, negative_slope=SLOPE, residual=z, **options)
    gradients = norm.backward(dy, saved)
    if z is None:
        return Chain(y, gradients, None)
    return Chain(y, gradients[:-1], gradients[-1])
