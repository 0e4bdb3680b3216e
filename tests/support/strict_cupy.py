"""Runs an example on NumPy arrays that are as strict as CuPy's: ``python strict_cupy.py SCRIPT ...``.

Its arrays do not mix with NumPy's, and do not turn into them unasked: what CuPy would refuse is refused.
numbabn's layers run on the CPU, and say so if their parameters were left behind there.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

import numbabn as nbn
from numbabn.norms import batch, group, instance


def wrap(value):
    """Return arrays and NumPy's scalars as arrays of this module; a scalar has no axes, as in CuPy."""
    return ndarray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def unwrap(value):
    """Return this module's arrays as NumPy's, and refuse those that are NumPy's already."""
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrap, value))
    return value.values if isinstance(value, ndarray) else value


def wrapped(function):
    """Return a function of NumPy as one of this module."""

    def call(*arguments, **options):
        named = {name: unwrap(value) for name, value in options.items()}
        return wrap(function(*map(unwrap, arguments), **named))

    return call


class ndarray:  # noqa: N801
    """An array as CuPy has it, over one of NumPy."""

    __module__ = "cupy"
    __array_ufunc__ = None
    __hash__ = None

    def __init__(self, values):
        self.values = values

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getattr__(self, name):
        found = getattr(self.values, name)
        return wrapped(found) if callable(found) else wrap(found)

    def __setitem__(self, key, value):
        self.values[unwrap(key)] = unwrap(value)

    def get(self):
        """Return a copy in NumPy, as CuPy does when it is asked."""
        return self.values.copy()

    def __len__(self):
        return len(self.values)

    def __float__(self):
        return float(self.values)

    def __int__(self):
        return int(self.values)


def _add_operators():
    def operator(name):
        return lambda self, *others: wrapped(getattr(self.values, name))(*others)

    def in_place(name):
        def change(self, other):
            getattr(self.values, name)(unwrap(other))
            return self

        return change

    names = ("add", "sub", "mul", "truediv", "matmul")
    for name in (*names, *(f"r{name}" for name in names), "neg", "abs", "eq", "gt", "getitem"):
        setattr(ndarray, f"__{name}__", operator(f"__{name}__"))
    for name in names[:3]:
        setattr(ndarray, f"__i{name}__", in_place(f"__i{name}__"))


class Layer:
    """A layer of numbabn for arrays of this module, once it has been moved to where they are."""

    def __init__(self, *arguments, device="cpu", **options):
        self._layer, self._moved = self.kind(*arguments, **options), device == "cuda"

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def to(self, x):
        assert isinstance(x, ndarray)
        self._moved = True

    def __call__(self, x, residual=None):
        assert self._moved, "the parameters are on the CPU, and x is not"
        return wrapped(self._layer)(x, residual=residual)

    def backward(self, dy):
        return wrapped(self._layer.backward)(dy)

    @property
    def dresidual(self):
        return wrap(self._layer.dresidual)

    @property
    def params(self):
        return {name: wrap(value) for name, value in self._layer.params.items()}

    @property
    def grads(self):
        return {name: wrap(value) for name, value in self._layer.grads.items()}


LAYERS = {
    kind.__name__: type(kind.__name__, (Layer,), {"kind": kind})
    for kind in (batch.BatchNorm, group.GroupNorm, instance.InstanceNorm)
}


def folding(function):
    """Return a function of numbabn that folds a norm as one for arrays and layers of this module."""

    def fold(weight, bias, bn, **options):
        return tuple(map(wrap, function(unwrap(weight), unwrap(bias), bn._layer, **options)))

    return fold


class CuPy(ModuleType):
    """NumPy's functions, but for arrays of this module."""

    ndarray = ndarray
    random = ModuleType("cupy.random")
    lib = SimpleNamespace(
        stride_tricks=SimpleNamespace(sliding_window_view=wrapped(np.lib.stride_tricks.sliding_window_view))
    )

    def asarray(self, values):
        return values if isinstance(values, ndarray) else ndarray(np.array(values))

    def __getattr__(self, name):
        found = getattr(np, name)
        return found if isinstance(found, type) or name == "newaxis" else wrapped(found)


if __name__ == "__main__":
    _add_operators()
    sys.modules["cupy"] = cupy = CuPy("cupy")
    rng = np.random.default_rng(0)
    cupy.random.standard_normal = lambda shape, dtype: wrap(rng.standard_normal(shape, dtype))
    vars(nbn).update(LAYERS)
    nbn.fold_into_conv, nbn.fold_into_dense = folding(nbn.fold_into_conv), folding(nbn.fold_into_dense)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
