"""Bad calls: each is refused with a message that helps, and leaves everything as it was.

A message names the argument, what it was, and what would be right. It comes from a check of the library, not
from some array operation further down, and before anything is written.
"""

import copy
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import numbabn as nbn

PACKAGE = Path(nbn.__file__).parent
F32 = np.float32
SHAPE = (4, 3)


class DeviceArray:
    """What arrays on a GPU look like from here; none is needed to refuse one."""

    shape, dtype, ndim = SHAPE, np.dtype(F32), 2
    __cuda_array_interface__ = {"shape": SHAPE, "typestr": "<f4", "data": (1 << 40, False), "version": 3}  # noqa: RUF012

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a NumPy array")


class ArrayLike:
    """A container of another library, which NumPy could convert."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(SHAPE, F32)


class World:
    """Good arguments, the results of good calls, and a layer in the middle of training."""

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
        return {**self.layer.state_dict(), **changes}

    def without(self, *names):
        return {name: value for name, value in self.layer.state_dict().items() if name not in names}

    def sharing(self, start, strides=None):
        """Return an array of the right shape in the memory of x, dy and out."""
        return as_strided(self.memory[start:], SHAPE, strides or (12, 4))


def frozen(value):
    """All that can be seen of a value, bit by bit, and which arrays they are."""
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
    """One row of the table: a call, the exception, and " | " between what its message must contain."""
    return pytest.param(call, error, fragments.split(" | "), id=name, marks=marks)


needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")


def tensor(*shape, **options):
    import torch

    return torch.ones(*shape, **options)


def forward(x, *arguments, **options):
    return nbn.batch_norm_forward(x, *arguments, **options)


WRONG_X = [
    # name, x, error, fragments; for every function that takes an x
    ("rank 0", lambda w: np.array(1.0), ValueError, "() | batch axis | channel axis"),
    ("rank 1", lambda w: np.ones(3), ValueError, "(3,) | batch axis | x[None] | x[:, None]"),
    ("list", lambda w: [[1.0, 2.0]], TypeError, "NumPy array | list | numpy.asarray(x"),
    ("number", lambda w: 1.0, TypeError, "NumPy array | float"),
    ("None", lambda w: None, TypeError, "NumPy array | None"),
    ("int", lambda w: np.ones(SHAPE, np.int64), TypeError, "int64 | x.astype(numpy.float32)"),
    ("bool", lambda w: np.ones(SHAPE, bool), TypeError, "bool | x.astype(numpy.float32)"),
    ("complex", lambda w: np.ones(SHAPE, complex), TypeError, "complex128 | x.real | x.imag"),
    ("object", lambda w: np.ones(SHAPE, object), TypeError, "object | x.astype(numpy.float32)"),
    ("float16", lambda w: np.ones(SHAPE, np.float16), TypeError, "float16 | x.astype(numpy.float32)"),
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

X_ROWS = [
    bad(f"{function} x {name}", lambda w, call=call, make=make: call(w, make(w)), error, f"x | {fragments}")
    for function, call in {
        "forward": lambda w, x: forward(x, w.gamma, w.beta),
        "inference": lambda w, x: nbn.batch_norm_inference(x, w.mean, w.var),
        "moments": lambda w, x: nbn.moments(x),
        "layer": lambda w, x: w.layer(x),
        "evaluating layer": lambda w, x: w.evaluating(x),
    }.items()
    for name, make, error, fragments in WRONG_X
]

FORWARD_ROWS = [
    bad(
        "x torch",
        lambda w: forward(tensor(4, 3)),
        TypeError,
        "x | torch | numpy.asarray(x",
        marks=needs_torch,
    ),
    bad("axis too large", lambda w: forward(w.x, axis=2), ValueError, "axis | -2 | 1 | rank 2 | not 2"),
    bad("axis too small", lambda w: forward(w.x, axis=-3), ValueError, "axis | -2 | rank 2 | not -3"),
    bad("axis float", lambda w: forward(w.x, axis=1.0), TypeError, "axis | integer | 1.0"),
    bad("axis tuple", lambda w: forward(w.x, axis=(0, 1)), TypeError, "axis | integer | (0, 1)"),
    bad("axis None", lambda w: forward(w.x, axis=None), TypeError, "axis | integer | None"),
    bad("axis of moments", lambda w: nbn.moments(w.x, axis=5), ValueError, "axis | -2 | 1 | not 5"),
    bad("eps negative", lambda w: forward(w.x, eps=-1e-5), ValueError, "eps | >= 0 | 1e-5 | -1e-05"),
    bad("eps NaN", lambda w: forward(w.x, eps=np.nan), ValueError, "eps | finite | nan"),
    bad("eps infinite", lambda w: forward(w.x, eps=np.inf), ValueError, "eps | finite | inf"),
    bad("eps str", lambda w: forward(w.x, eps="1e-5"), TypeError, "eps | real number | '1e-5'"),
    bad("eps bool", lambda w: forward(w.x, eps=True), TypeError, "eps | real number | True"),
    bad("eps complex", lambda w: forward(w.x, eps=1j), TypeError, "eps | real number | 1j"),
    bad("eps None", lambda w: forward(w.x, eps=None), TypeError, "eps | real number | None"),
    bad("eps array", lambda w: forward(w.x, eps=w.mean), TypeError, "eps | real number | array"),
    bad("gamma too long", lambda w: forward(w.x, np.ones(4)), ValueError, "gamma | (4,) | (3,)"),
    bad("gamma of rank 2", lambda w: forward(w.x, np.ones((1, 3))), ValueError, "gamma | (1, 3) | (3,)"),
    bad("gamma number", lambda w: forward(w.x, 2.0), TypeError, "gamma | NumPy array | float"),
    bad("gamma int", lambda w: forward(w.x, np.ones(3, int)), TypeError, "gamma | int64 | floating point"),
    bad("gamma complex", lambda w: forward(w.x, np.ones(3, "c8")), TypeError, "gamma | complex64 | floating"),
    bad("gamma str", lambda w: forward(w.x, "relu"), TypeError, "gamma | NumPy array | str"),
    bad("gamma on a GPU", lambda w: forward(w.x, DeviceArray()), TypeError, "gamma | GPU | NumPy array"),
    bad("beta too short", lambda w: forward(w.x, w.gamma, np.ones(2)), ValueError, "beta | (2,) | (3,)"),
    bad("beta bool", lambda w: forward(w.x, None, w.mean > 0), TypeError, "beta | bool | floating point"),
    bad("beta on a GPU", lambda w: forward(w.x, None, DeviceArray()), TypeError, "beta | GPU | NumPy array"),
    bad("mean alone", lambda w: forward(w.x, mean=w.mean), ValueError, "mean | without var | both"),
    bad("var alone", lambda w: forward(w.x, var=w.var), ValueError, "var | without mean | both"),
    bad(
        "mean too long", lambda w: forward(w.x, mean=np.ones(4), var=w.var), ValueError, "mean | (4,) | (3,)"
    ),
    bad(
        "var int",
        lambda w: forward(w.x, mean=w.mean, var=np.ones(3, int)),
        TypeError,
        "var | int64 | floating",
    ),
    bad(
        "var negative",
        lambda w: forward(w.x, mean=w.mean, var=np.array([1.0, -2.0, 1.0])),
        ValueError,
        "var | negative | var[1] | -2.0",
    ),
    bad(
        "mean on a GPU",
        lambda w: forward(w.x, mean=DeviceArray(), var=w.var),
        TypeError,
        "mean | GPU | NumPy array",
    ),
    bad("one sample", lambda w: forward(w.x[:1]), ValueError, "x | (1, 3) | one value per channel | batch"),
    bad(
        "one pixel",
        lambda w: forward(np.ones((1, 3, 1, 1), F32)),
        ValueError,
        "x | (1, 3, 1, 1) | one value per channel | mean=",
    ),
    bad(
        "no mean",
        lambda w: nbn.batch_norm_inference(w.x, None, w.var),
        TypeError,
        "mean | None | per channel",
    ),
    bad(
        "no var", lambda w: nbn.batch_norm_inference(w.x, w.mean, None), TypeError, "var | None | per channel"
    ),
    bad(
        "inference var negative",
        lambda w: nbn.batch_norm_inference(w.x, w.mean, -w.var),
        ValueError,
        "var | negative | var[0]",
    ),
    bad(
        "inference eps negative",
        lambda w: nbn.batch_norm_inference(w.x, w.mean, w.var, eps=-1),
        ValueError,
        "eps | >= 0 | -1",
    ),
]

WRONG_OUT = [
    # name, out, error, fragments; for every function that takes an out
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

OUT_ROWS = [
    bad(
        f"{function} out {name}",
        lambda w, call=call, make=make: call(w, make(w)),
        error,
        f"out | {fragments}",
    )
    for function, call in {
        "forward": lambda w, out: forward(w.x, w.gamma, out=out),
        "inference": lambda w, out: nbn.batch_norm_inference(w.x, w.mean, w.var, out=out),
        "backward": lambda w, out: nbn.batch_norm_backward(w.dy, w.saved, out=out),
        "frozen backward": lambda w, out: nbn.batch_norm_backward(w.dy, w.saved_given, out=out),
        "layer": lambda w, out: w.layer(w.x, out=out),
        "evaluating layer": lambda w, out: w.evaluating(w.x, out=out),
        "layer backward": lambda w, out: w.layer.backward(w.dy, out=out),
    }.items()
    for name, make, error, fragments in WRONG_OUT
]

WRONG_DY = [
    ("shape", lambda w: w.dy.reshape(3, 4), ValueError, "(3, 4) | (4, 3) | saved"),
    ("fewer samples", lambda w: w.dy[:3], ValueError, "(3, 3) | (4, 3) | saved"),
    ("that would broadcast", lambda w: np.ones(3, F32), ValueError, "(3,) | (4, 3)"),
    ("dtype", lambda w: np.ones(SHAPE), TypeError, "float64 | float32 | dy.astype(numpy.float32)"),
    ("int", lambda w: np.ones(SHAPE, int), TypeError, "int64 | float32 | dy.astype(numpy.float32)"),
    ("list", lambda w: w.dy.tolist(), TypeError, "NumPy array | list | numpy.asarray(dy"),
    ("number", lambda w: 1.0, TypeError, "NumPy array | float"),
    ("None", lambda w: None, TypeError, "NumPy array | None"),
    ("masked", lambda w: np.ma.masked_array(w.dy, w.dy > 0), TypeError, "masked array | dy.filled("),
    ("on a GPU", lambda w: DeviceArray(), TypeError, "GPU | NumPy array"),
]

DY_ROWS = [
    bad(f"{function} dy {name}", lambda w, call=call, make=make: call(w, make(w)), error, f"dy | {fragments}")
    for function, call in {
        "backward": lambda w, dy: nbn.batch_norm_backward(dy, w.saved),
        "frozen backward": lambda w, dy: nbn.batch_norm_backward(dy, w.saved_given),
        "sums only": lambda w, dy: nbn.batch_norm_backward(dy, w.saved, need_dx=False),
        "layer": lambda w, dy: w.layer.backward(dy),
    }.items()
    for name, make, error, fragments in WRONG_DY
]


def backward(w, saved, **options):
    return nbn.batch_norm_backward(w.dy, saved, **options)


BACKWARD_ROWS = [
    bad("saved None", lambda w: backward(w, None), TypeError, "saved | batch_norm_forward | NoneType"),
    bad(
        "saved and y", lambda w: backward(w, (w.x, w.saved)), TypeError, "saved | batch_norm_forward | tuple"
    ),
    bad("saved is x", lambda w: backward(w, w.x), TypeError, "saved | batch_norm_forward | ndarray"),
    bad(
        "saved of another call",
        lambda w: backward(w, w.saved_other),
        ValueError,
        "dy | (4, 3) | (5, 3) | saved",
    ),
    bad("saved in place", lambda w: backward(w, w.saved_in_place), ValueError, "saved | out=x | its own"),
    bad(
        "out for no dx", lambda w: backward(w, w.saved, out=w.out, need_dx=False), ValueError, "out | need_dx"
    ),
    bad(
        "out is the saved x",
        lambda w: backward(w, w.saved, out=w.x),
        ValueError,
        "out | overlaps x | pass dy",
    ),
    bad(
        "out begins in dy", lambda w: backward(w, w.saved, out=w.sharing(28)), ValueError, "out | overlaps dy"
    ),
    bad("out ends in dy", lambda w: backward(w, w.saved, out=w.sharing(16)), ValueError, "out | overlaps dy"),
    bad(
        "out is dy transposed",
        lambda w: backward(w, w.saved, out=w.sharing(24, (4, 16))),
        ValueError,
        "overlaps dy",
    ),
    bad(
        "out is dy, which is x",
        lambda w: nbn.batch_norm_backward(w.x, w.saved, out=w.x),
        ValueError,
        "out | overlaps x",
    ),
    bad(
        "layer before forward",
        lambda w: w.fresh.backward(w.dy),
        RuntimeError,
        "backward | forward | y = bn(x)",
    ),
    bad("copied layer", lambda w: copy.deepcopy(w.layer).backward(w.dy), RuntimeError, "backward | forward"),
    bad(
        "unpickled layer",
        lambda w: pickle.loads(pickle.dumps(w.layer)).backward(w.dy),
        RuntimeError,
        "backward | forward",
    ),
    bad("layer in place", lambda w: w.overwritten.backward(w.dy), ValueError, "out=x | its own"),
    bad(
        "layer out for no dx",
        lambda w: w.layer.backward(w.dy, out=w.out, need_dx=False),
        ValueError,
        "out | need_dx",
    ),
]

LAYER_ROWS = [
    bad("no channels", lambda w: nbn.BatchNorm(0), ValueError, "num_channels | at least 1 | 0"),
    bad("negative channels", lambda w: nbn.BatchNorm(-1), ValueError, "num_channels | at least 1 | -1"),
    bad("channels float", lambda w: nbn.BatchNorm(1.5), TypeError, "num_channels | integer | 1.5"),
    bad("channels str", lambda w: nbn.BatchNorm("3"), TypeError, "num_channels | integer | '3'"),
    bad("channels None", lambda w: nbn.BatchNorm(None), TypeError, "num_channels | integer | None"),
    bad("layer axis float", lambda w: nbn.BatchNorm(3, axis=1.0), TypeError, "axis | integer | 1.0"),
    bad("layer axis tuple", lambda w: nbn.BatchNorm(3, axis=(2, 3)), TypeError, "axis | integer | (2, 3)"),
    bad("layer eps negative", lambda w: nbn.BatchNorm(3, eps=-1.0), ValueError, "eps | >= 0 | -1.0"),
    bad("layer eps NaN", lambda w: nbn.BatchNorm(3, eps=np.nan), ValueError, "eps | finite | nan"),
    bad("layer eps str", lambda w: nbn.BatchNorm(3, eps="small"), TypeError, "eps | real number | 'small'"),
    bad(
        "momentum negative", lambda w: nbn.BatchNorm(3, momentum=-0.1), ValueError, "momentum | 0 to 1 | -0.1"
    ),
    bad(
        "momentum above 1", lambda w: nbn.BatchNorm(3, momentum=1.1), ValueError, "momentum | 0 to 1 | Keras"
    ),
    bad("momentum NaN", lambda w: nbn.BatchNorm(3, momentum=np.nan), ValueError, "momentum | 0 to 1 | nan"),
    bad(
        "momentum str",
        lambda w: nbn.BatchNorm(3, momentum="0.1"),
        TypeError,
        "momentum | real number | '0.1'",
    ),
    bad(
        "momentum bool", lambda w: nbn.BatchNorm(3, momentum=True), TypeError, "momentum | real number | True"
    ),
    bad("dtype int", lambda w: nbn.BatchNorm(3, dtype=np.int32), TypeError, "dtype | floating point | int32"),
    bad(
        "dtype complex", lambda w: nbn.BatchNorm(3, dtype=complex), TypeError, "dtype | floating | complex128"
    ),
    bad("x of 2 channels", lambda w: w.layer(w.x[:, :2]), ValueError, "x | (4, 2) | num_channels=3 | axis 1"),
    bad(
        "evaluating 2 channels", lambda w: w.evaluating(w.x[:, :2]), ValueError, "x | (4, 2) | num_channels=3"
    ),
    bad(
        "NCHW, axis -1",
        lambda w: w.last_axis(np.ones((2, 3, 5, 5), F32)),
        ValueError,
        "x | 5 channels | axis",
    ),
    bad("no such axis", lambda w: w.fourth_axis(w.x), ValueError, "axis | rank 2 | not 3"),
    bad("layer, one sample", lambda w: w.layer(w.x[:1]), ValueError, "x | (1, 3) | one value per channel"),
    bad("pooled, one sample", lambda w: w.pooled(w.x[:1]), ValueError, "x | (1, 3) | one value per channel"),
]


def load(w, state, layer=None):
    (layer or w.layer).load_state_dict(state)


STATE_ROWS = [
    bad("state None", lambda w: load(w, None), TypeError, "state | dictionary | state_dict() | NoneType"),
    bad("state list", lambda w: load(w, list(w.state().items())), TypeError, "state | dictionary | list"),
    bad("state a layer", lambda w: load(w, w.fresh), TypeError, "state | dictionary | BatchNorm"),
    bad("state empty", lambda w: load(w, {}), KeyError, "state | missing | gamma | running_var"),
    bad(
        "no running_var",
        lambda w: load(w, w.without("running_var")),
        KeyError,
        "state | missing | running_var",
    ),
    bad(
        "unknown key",
        lambda w: load(w, w.state(weight=w.gamma)),
        KeyError,
        "state | unknown | weight | gamma",
    ),
    bad("keys of numbers", lambda w: load(w, {1: w.gamma, "x": 2}), KeyError, "state | unknown | 1 | gamma"),
    bad("PyTorch's keys", lambda w: load(w, {"weight": w.gamma}), KeyError, "state | weight | gamma"),
    bad("of momentum=None", lambda w: load(w, w.pooled.state_dict()), KeyError, "unknown | population_count"),
    bad("for momentum=None", lambda w: load(w, w.state(), w.pooled), KeyError, "missing | population_count"),
    bad(
        "of another size", lambda w: load(w, nbn.BatchNorm(4).state_dict()), ValueError, "state | (4,) | (3,)"
    ),
    bad("beta a number", lambda w: load(w, w.state(beta=0.5)), ValueError, "state['beta'] | () | (3,)"),
    bad(
        "state gamma int",
        lambda w: load(w, w.state(gamma=np.ones(3, int))),
        TypeError,
        "state['gamma'] | int64 | float32",
    ),
    bad(
        "running_var complex",
        lambda w: load(w, w.state(running_var=np.ones(3, complex))),
        TypeError,
        "state['running_var'] | complex128 | float32",
    ),
    bad(
        "batches float",
        lambda w: load(w, w.state(num_batches_tracked=np.array(3.0))),
        TypeError,
        "state['num_batches_tracked'] | float64 | int64",
    ),
    bad(
        "batches an array",
        lambda w: load(w, w.state(num_batches_tracked=np.array([3]))),
        ValueError,
        "state['num_batches_tracked'] | (1,) | ()",
    ),
    bad(
        "last of three wrong",
        lambda w: load(
            w, {**w.pooled.state_dict(), "gamma": np.zeros(3, F32), "population_m2": np.ones(2)}, w.pooled
        ),
        ValueError,
        "state['population_m2'] | (2,) | (3,)",
    ),
]

REPORTED_ROWS = [
    bad(
        "x of StringDType",
        lambda w: forward(np.array([["a", "b"]], np.dtypes.StringDType())),
        TypeError,
        "x | StringDType | not floating point",
    ),
    bad(
        "gamma needs gradients",
        lambda w: forward(w.x, tensor(3, requires_grad=True)),
        TypeError,
        "gamma | torch | NumPy array",
        marks=[needs_torch],
    ),
    bad(
        "gamma masked",
        lambda w: forward(w.x, np.ma.masked_array(w.gamma, [True, False, False])),
        TypeError,
        "gamma | masked array | filled(",
    ),
    bad(
        "gamma ragged",
        lambda w: forward(w.x, [[1.0], [1.0, 2.0]]),
        TypeError,
        "gamma | NumPy array | list",
    ),
    bad(
        "eps too large for a float",
        lambda w: forward(w.x, eps=10**400),
        ValueError,
        "eps | finite",
    ),
    bad(
        "out that overlaps itself",
        lambda w: forward(w.x, out=w.sharing(44, (4, 4))),
        ValueError,
        "out | share memory",
    ),
    bad(
        "saved made by hand",
        lambda w: backward(w, nbn.Saved()),
        TypeError,
        "saved | batch_norm_forward",
    ),
    bad(
        "dtype unknown",
        lambda w: nbn.BatchNorm(3, dtype="float23"),
        TypeError,
        "dtype | floating point | float23",
    ),
    bad(
        "state on a GPU",
        lambda w: load(w, w.state(gamma=DeviceArray())),
        TypeError,
        "state['gamma'] | GPU | NumPy array",
    ),
    bad(
        "state ragged",
        lambda w: load(w, w.state(gamma=[[1.0], [1.0, 2.0]])),
        ValueError,
        "state['gamma'] | (3,)",
    ),
    bad(
        "running_var negative",
        lambda w: load(w, w.state(running_var=np.array([1.0, -1.0, 1.0]))),
        ValueError,
        "state['running_var'] | negative",
    ),
    bad(
        "batches negative",
        lambda w: load(w, w.state(num_batches_tracked=np.array(-1))),
        ValueError,
        "state['num_batches_tracked'] | negative | -1",
    ),
]

TABLE = [
    *X_ROWS,
    *FORWARD_ROWS,
    *OUT_ROWS,
    *DY_ROWS,
    *BACKWARD_ROWS,
    *LAYER_ROWS,
    *STATE_ROWS,
    *REPORTED_ROWS,
]


@pytest.mark.parametrize(("call", "error", "fragments"), TABLE)
def test_refused(call, error, fragments):
    world = World()
    before = frozen(vars(world))
    with pytest.raises(error) as refusal:
        call(world)
    assert type(refusal.value) is error
    message = str(refusal.value)
    assert not [fragment for fragment in fragments if fragment not in message], message
    assert PACKAGE in Path(refusal.traceback[-1].path).parents, "raised further down than by a check"
    assert frozen(vars(world)) == before


def test_names_are_unique():
    names = [row.id for row in TABLE]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "call",
    [
        lambda w: forward(w.x, out=w.out),
        lambda w: forward(w.x, out=w.x),
        lambda w: nbn.batch_norm_backward(w.dy, w.saved, out=w.dy),
        lambda w: w.layer(w.x),
        lambda w: w.layer(w.x + 1),
        lambda w: w.evaluating(w.x),
        lambda w: w.layer.backward(w.dy),
        lambda w: w.layer.eval(),
        lambda w: w.layer.load_state_dict(w.fresh.state_dict()),
    ],
)
def test_the_comparison_sees_changes(call):
    world = World()
    before = frozen(vars(world))
    assert frozen(vars(world)) == before
    call(world)
    assert frozen(vars(world)) != before


def test_refused_within_frozen_stats():
    layer = nbn.BatchNorm(3)
    with pytest.raises(ValueError, match="one value per channel"), layer.frozen_stats():
        layer(np.ones((1, 3), F32))
    layer(np.ones((2, 3), F32))
    assert layer.num_batches_tracked == 1


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda w: forward(np.matrix(w.x))[0],
        lambda w: forward(w.x.view(Subclass))[0],
        lambda w: forward(w.x, axis=np.int64(1))[0],
        lambda w: forward(w.x, axis=-1)[0],
        lambda w: forward(w.x, eps=np.float64(1e-5))[0],
        lambda w: nbn.batch_norm_inference(w.x, *w.saved_statistics, eps=np.float64(1e-5)),
        lambda w: forward(w.x, np.ones(3, np.float16), np.zeros(3, np.longdouble))[0],
        lambda w: forward(w.x, out=w.out)[0],
        lambda w: forward(w.x, out=w.x)[0],
        lambda w: nbn.BatchNorm(np.int64(3), eps=np.float64(1e-5), momentum=1)(w.x),
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_accepted(call):
    """Unusual, and right: the result is a plain array, and the same one."""
    world = World()
    world.saved_statistics = world.saved.mean, world.saved.var
    expected, _ = forward(world.x)
    result = call(world)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)
