"""Bad calls: a world to make them in, wrong arguments, and what a refusal must be.

A message names the argument, what it was, and what would be right. It comes from a check of the library, not
from some array operation further down, and before anything is written.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import numbabn as nbn

PACKAGE = Path(nbn.__file__).parent
F32 = np.float32
SHAPE = (4, 3)


class DeviceArray:
    """An array on a GPU as far as a refusal looks at it, so that no GPU is needed."""

    shape, dtype, ndim = SHAPE, np.dtype(F32), 2
    __cuda_array_interface__ = {"shape": SHAPE, "typestr": "<f4", "data": (1 << 40, False), "version": 3}  # noqa: RUF012

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a NumPy array")


class ArrayLike:
    """A container of another library, which NumPy could convert."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(SHAPE, F32)


class World:
    """Good arguments, the results of good calls, and layers in the middle of training."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.memory = rng.standard_normal(64).astype(F32)
        self.x = self.memory[0:12].reshape(SHAPE)
        self.dy = self.memory[24:36].reshape(SHAPE)
        self.out = self.memory[44:56].reshape(SHAPE)
        self.gamma, self.beta = rng.standard_normal((2, 3)).astype(F32)
        self.mean, self.var = np.zeros(3), np.ones(3)
        self.out_read_only = np.zeros(SHAPE, F32)
        self.out_read_only.flags.writeable = False
        self.outs = [np.zeros((3, 4), F32), np.zeros(SHAPE), np.zeros((4, 3, 1), F32)]
        _, self.saved = nbn.batch_norm_forward(self.x, self.gamma, self.beta)
        _, self.saved_given = nbn.batch_norm_forward(self.x, self.gamma, mean=self.mean, var=self.var)
        _, self.saved_other = nbn.batch_norm_forward(np.ones((5, 3), F32))
        in_place = self.x.copy()
        _, self.saved_in_place = nbn.batch_norm_forward(in_place, out=in_place)
        self.fresh = nbn.BatchNorm(3)
        self.layer = self.used(nbn.BatchNorm(3))
        self.pooled = self.used(nbn.BatchNorm(3, momentum=None))
        self.evaluating = self.used(nbn.BatchNorm(3)).eval()
        self.evaluating(self.x)
        self.last_axis = nbn.BatchNorm(3, axis=-1)
        self.fourth_axis = nbn.BatchNorm(3, axis=3)
        self.overwritten = nbn.BatchNorm(3)
        self.overwritten(in_place, out=in_place)

    def used(self, layer):
        layer(self.x)
        layer.backward(self.dy)
        return layer

    def state(self, **changes):
        """Return a state of the layer with other values than it has, so that loading any of it shows."""
        return {**{name: value + 1 for name, value in self.layer.state_dict().items()}, **changes}

    def without(self, *names):
        return {name: value for name, value in self.state().items() if name not in names}

    def sharing(self, start, strides=None):
        """Return an array of the right shape in the memory of x, dy and out."""
        return as_strided(self.memory[start:], SHAPE, strides or (12, 4))


def frozen(value):
    """Return all that can be seen of a value, bit by bit, and the identities of its arrays."""
    if isinstance(value, np.ndarray):
        return id(value), value.dtype.str, value.shape, value.strides, value.flags.writeable, value.tobytes()
    if isinstance(value, dict):
        return [(name, frozen(item)) for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    if isinstance(value, nbn.Saved):
        return id(value), [frozen(getattr(value, name, None)) for name in value.__slots__]
    if isinstance(value, nbn.BatchNorm):
        return id(value), frozen(vars(value))
    return repr(value)


def bad(name, call, error, fragments, marks=()):
    """Return a row of a table of bad calls: the fragments of the message are separated by " | "."""
    return pytest.param(call, error, fragments.split(" | "), id=name, marks=marks)


def every(argument, functions, wrong):
    """Return a row for each of the functions, which have names, and each wrong value of this argument."""
    return [
        bad(
            f"{function} {argument} {name}",
            lambda w, call=call, make=make: call(w, make(w)),
            error,
            f"{argument} | {fragments}",
        )
        for function, call in functions.items()
        for name, make, error, fragments in wrong
    ]


def check_refused(call, error, fragments):
    """The library raises this error, its message has all fragments, and the call changes nothing."""
    world = World()
    before = frozen(vars(world))
    with pytest.raises(error) as refusal:
        call(world)
    assert type(refusal.value) is error
    message = str(refusal.value)
    assert not [fragment for fragment in fragments if fragment not in message], message
    assert PACKAGE in Path(refusal.traceback[-1].path).parents, "raised further down than by a check"
    assert frozen(vars(world)) == before


# Wrong arguments: (name, value, error, fragments of the message) --------------------------------------------

# For every function that takes an x.
WRONG_X = [
    ("rank 0", lambda w: np.array(1.0), ValueError, "() | batch axis | channel axis"),
    ("rank 1", lambda w: np.ones(3), ValueError, "(3,) | batch axis | x[None] | x[:, None]"),
    ("list", lambda w: [[1.0, 2.0]], TypeError, "NumPy array | list | numpy.asarray(x"),
    ("number", lambda w: 1.0, TypeError, "NumPy array | float"),
    ("None", lambda w: None, TypeError, "NumPy array | None"),
    ("int", lambda w: np.ones(SHAPE, np.int64), TypeError, "int64 | x.astype(numpy.float32)"),
    ("bool", lambda w: np.ones(SHAPE, bool), TypeError, "bool | x.astype(numpy.float32)"),
    ("complex", lambda w: np.ones(SHAPE, complex), TypeError, "complex128 | x.real | x.imag"),
    ("object", lambda w: np.ones(SHAPE, object), TypeError, "object | x.astype(numpy.float32)"),
    ("void", lambda w: np.ones(SHAPE, "V3"), TypeError, "|V3 | not floating point"),
    ("unnamed bfloat16", lambda w: np.ones(SHAPE, "V2"), TypeError, "|V2 | view(ml_dtypes.bfloat16)"),
    ("str", lambda w: np.full(SHAPE, "a"), TypeError, "<U1 | not floating point"),
    ("masked", lambda w: np.ma.masked_array(w.x, w.x > 0), TypeError, "masked array | x.filled("),
    ("another library", lambda w: ArrayLike(), TypeError, "ArrayLike | numpy.asarray(x)"),
    ("on a GPU", lambda w: DeviceArray(), TypeError, "DeviceArray | GPU | NumPy array"),
]
if np.dtype(np.longdouble) != np.dtype(np.float64):  # they are the same on some platforms
    WRONG_X.append(
        (
            "longdouble",
            lambda w: np.ones(SHAPE, np.longdouble),
            TypeError,
            f"{np.dtype(np.longdouble)} | float32 and float64",
        )
    )

# For every function that takes an out.
WRONG_OUT = [
    ("shape", lambda w: w.outs[0], ValueError, "(3, 4) | (4, 3)"),
    ("rank", lambda w: w.outs[2], ValueError, "(4, 3, 1) | (4, 3)"),
    ("dtype", lambda w: w.outs[1], TypeError, "float64 | float32"),
    ("read-only", lambda w: w.out_read_only, ValueError, "read-only | written"),
    ("list", lambda w: [[0.0] * 3] * 4, TypeError, "NumPy array | list"),
    ("masked", lambda w: np.ma.masked_array(w.out, w.x > 0), TypeError, "masked array"),
    ("on a GPU", lambda w: DeviceArray(), TypeError, "GPU | NumPy array"),
    ("broadcast", lambda w: w.sharing(44, (0, 4)), ValueError, "broadcast | numpy.empty"),
    ("begins in x", lambda w: w.sharing(6), ValueError, "overlaps x | of its own"),
    ("is x upside down", lambda w: w.x[::-1], ValueError, "overlaps x | of its own"),
    ("is every other value of x", lambda w: w.sharing(0, (24, 8)), ValueError, "overlaps x | of its own"),
]

# For every function that takes a dy.
WRONG_DY = [
    ("shape", lambda w: w.dy.reshape(3, 4), ValueError, "(3, 4) | (4, 3) | forward call"),
    ("fewer samples", lambda w: w.dy[:3], ValueError, "(3, 3) | (4, 3) | forward call"),
    ("that would broadcast", lambda w: np.ones(3, F32), ValueError, "(3,) | (4, 3)"),
    ("dtype", lambda w: np.ones(SHAPE), TypeError, "float64 | float32 | dy.astype(numpy.float32)"),
    ("int", lambda w: np.ones(SHAPE, int), TypeError, "int64 | float32 | dy.astype(numpy.float32)"),
    ("list", lambda w: w.dy.tolist(), TypeError, "NumPy array | list | numpy.asarray(dy"),
    ("number", lambda w: 1.0, TypeError, "NumPy array | float"),
    ("None", lambda w: None, TypeError, "NumPy array | None"),
    ("masked", lambda w: np.ma.masked_array(w.dy, w.dy > 0), TypeError, "masked array | dy.filled("),
    ("on a GPU", lambda w: DeviceArray(), TypeError, "GPU | NumPy array"),
]
