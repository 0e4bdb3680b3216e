"""Bad calls of the functions: each is refused with a message that helps, and leaves everything as it was."""

import re
from importlib.util import find_spec

import numpy as np
import pytest

import numbabn as nbn
from tests.support.refusals import (
    F32,
    WRONG_DY,
    WRONG_OUT,
    WRONG_X,
    DeviceArray,
    World,
    bad,
    check_refused,
    every,
    frozen,
)

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")


def tensor(*shape, **options):
    import torch

    return torch.ones(*shape, **options)


def forward(x, *arguments, **options):
    return nbn.batch_norm_forward(x, *arguments, **options)


X_ROWS = every(
    "x",
    {
        "forward": lambda w, x: forward(x, w.gamma, w.beta),
        "inference": lambda w, x: nbn.batch_norm_inference(x, w.mean, w.var),
        "moments": lambda w, x: nbn.moments(x),
    },
    WRONG_X,
)

FORWARD_ROWS = [
    bad(
        "x torch",
        lambda w: forward(tensor(4, 3)),
        TypeError,
        "x | torch | pass x.numpy()",
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
    bad("gamma list too long", lambda w: forward(w.x, [1.0] * 4), ValueError, "gamma | (4,) | (3,)"),
    bad("gamma of str", lambda w: forward(w.x, ["a"] * 3), TypeError, "gamma | real numbers | 'a'"),
    bad("gamma of None", lambda w: forward(w.x, [None] * 3), TypeError, "gamma | real numbers | None"),
    bad("gamma of bools", lambda w: forward(w.x, [True] * 3), TypeError, "gamma | real numbers | True"),
    bad("gamma empty", lambda w: forward(w.x, []), ValueError, "gamma | (0,) | (3,)"),
    bad(
        "var list negative",
        lambda w: forward(w.x, mean=[0.0] * 3, var=[1.0, -1.0, 1.0]),
        ValueError,
        "var | negative | var[1]",
    ),
    bad("gamma too long", lambda w: forward(w.x, np.ones(4)), ValueError, "gamma | (4,) | (3,)"),
    bad("gamma of rank 2", lambda w: forward(w.x, np.ones((1, 3))), ValueError, "gamma | (1, 3) | (3,)"),
    bad("gamma number", lambda w: forward(w.x, 2.0), TypeError, "gamma | 2.0 | single number | list"),
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
    *(
        bad(
            f"var {', '.join(map(str, var))}",
            lambda w, var=var: forward(w.x, mean=w.mean, var=np.array(var)),
            ValueError,
            f"var | negative | var[{var.index(-1.0)}] | -1.0",
        )
        for var in ([np.nan, -1.0, 1.0], [1.0, -1.0, np.nan], [-1.0, np.nan, np.nan])
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
        ValueError,
        "gamma | list of lists of different lengths",
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
]

OUT_ROWS = every(
    "out",
    {
        "forward": lambda w, out: forward(w.x, w.gamma, out=out),
        "inference": lambda w, out: nbn.batch_norm_inference(w.x, w.mean, w.var, out=out),
        "backward": lambda w, out: nbn.batch_norm_backward(w.dy, w.saved, out=out),
        "frozen backward": lambda w, out: nbn.batch_norm_backward(w.dy, w.saved_given, out=out),
    },
    WRONG_OUT,
)

DY_ROWS = every(
    "dy",
    {
        "backward": lambda w, dy: nbn.batch_norm_backward(dy, w.saved),
        "frozen backward": lambda w, dy: nbn.batch_norm_backward(dy, w.saved_given),
        "sums only": lambda w, dy: nbn.batch_norm_backward(dy, w.saved, need_dx=False),
    },
    WRONG_DY,
)


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
        "dy | (4, 3) | (5, 3) | forward call",
    ),
    bad(
        "saved in place",
        lambda w: backward(w, w.saved_in_place),
        ValueError,
        "forward call | out=x | its own",
    ),
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
]

TORCH_ADVICE = ["float32", "float16", "bfloat16", "float32, requires_grad", "bfloat16, requires_grad"]


@needs_torch
@pytest.mark.parametrize("kind", TORCH_ADVICE)
def test_advice_for_a_tensor_works(kind):
    """What the message says is run, and gives an array that is taken, or the next thing to do."""
    import torch

    dtype, _, gradient = kind.partition(", ")
    x = torch.ones(4, 3, dtype=getattr(torch, dtype), requires_grad=bool(gradient))
    with pytest.raises(TypeError, match=r"torch\.Tensor on cpu") as refusal:
        forward(x)
    advice = re.search(r"pass (x\S*\.numpy\(\))", str(refusal.value)).group(1)
    array = eval(advice, {"x": x})
    assert array.dtype == (np.float16 if dtype == "float16" else np.float32)
    forward(array * np.arange(4, dtype=np.float32)[:, None])


TABLE = [*X_ROWS, *FORWARD_ROWS, *OUT_ROWS, *DY_ROWS, *BACKWARD_ROWS]


@pytest.mark.parametrize(("call", "error", "fragments"), TABLE)
def test_refused(call, error, fragments):
    check_refused(call, error, fragments)


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


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize(
    "call",
    [
        lambda w: forward(w.x, [1.0, 1.0, 1.0], (0, 0, 0))[0],
        lambda w: nbn.batch_norm_inference(w.x, w.saved.mean.tolist(), tuple(w.saved.var)),
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
    """An unusual argument that is right gives the usual result, in a plain array."""
    world = World()
    world.saved_statistics = world.saved.mean, world.saved.var
    expected, _ = forward(world.x)
    result = call(world)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)
