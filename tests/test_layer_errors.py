"""Bad calls of the layer: each is refused with a message that helps, and leaves everything as it was."""

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

import numbabn as nbn
from numbabn.norms import _foreign
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

X_ROWS = every(
    "x", {"layer": lambda w, x: w.layer(x), "evaluating layer": lambda w, x: w.evaluating(x)}, WRONG_X
)

OUT_ROWS = every(
    "out",
    {
        "layer": lambda w, out: w.layer(w.x, out=out),
        "evaluating layer": lambda w, out: w.evaluating(w.x, out=out),
        "layer backward": lambda w, out: w.layer.backward(w.dy, out=out),
    },
    WRONG_OUT,
)

DY_ROWS = every("dy", {"layer": lambda w, dy: w.layer.backward(dy)}, WRONG_DY)

BACKWARD_ROWS = [
    bad(
        "layer before forward",
        lambda w: w.fresh.backward(w.dy),
        RuntimeError,
        "backward | forward | y = layer(x)",
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
    bad("pooled, one sample", lambda w: w.pooled(w.x[:1]), ValueError, "x | (1, 3) | one value per channel"),
    bad(
        "dtype unknown",
        lambda w: nbn.BatchNorm(3, dtype="float23"),
        TypeError,
        "dtype | floating point | float23",
    ),
]


SPEAKING_ROWS = [
    bad("num_features", lambda w: nbn.BatchNorm(num_features=3), TypeError, "num_features | num_channels"),
    bad("affine", lambda w: nbn.BatchNorm(3, affine=False), TypeError, "affine | scale and center"),
    bad("epsilon", lambda w: nbn.BatchNorm(3, epsilon=1e-3), TypeError, "epsilon | eps | help(BatchNorm)"),
    bad("use_bias", lambda w: nbn.BatchNorm(3, use_bias=False), TypeError, "use_bias | center"),
    bad("attribute weight", lambda w: w.layer.weight, AttributeError, 'weight | params["gamma"]'),
    bad("attribute gamma", lambda w: w.layer.gamma, AttributeError, 'gamma | params["gamma"]'),
    bad("attribute bias", lambda w: w.layer.bias, AttributeError, 'bias | params["beta"]'),
    bad("attribute moving_mean", lambda w: w.layer.moving_mean, AttributeError, "moving_mean | running_mean"),
    bad("method forward", lambda w: w.layer.forward(w.x), AttributeError, "forward | y = layer(x)"),
    bad("method cuda", lambda w: w.layer.cuda(), AttributeError, 'cuda | to("cuda")'),
    bad(
        "attribute gamma without one",
        lambda w: nbn.BatchNorm(3, scale=False).gamma,
        AttributeError,
        "gamma | made without gamma",
    ),
    bad("decay", lambda w: nbn.BatchNorm(3, decay=0.9), TypeError, "decay | momentum | 1 minus"),
    bad("attribute of nobody", lambda w: w.layer.wibble, AttributeError, "'BatchNorm' | 'wibble'"),
    bad("layer, one sample", lambda w: w.layer(w.x[:1]), ValueError, "x | (1, 3) | one value | bn.eval()"),
    bad(
        "layer, NHWC",
        lambda w: w.layer(np.ones((2, 8, 8, 3), F32)),
        ValueError,
        "x | (2, 8, 8, 3) | 8 channels on axis 1 | num_channels=3 | axis=-1",
    ),
    bad(
        "layer of the last axis, NCHW",
        lambda w: w.last_axis(np.ones((2, 3, 8, 8), F32)),
        ValueError,
        "x | 8 channels on axis -1 | axis=1, where x",
    ),
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
        "population_m2 negative",
        lambda w: load(w, {**w.pooled.state_dict(), "population_m2": np.array([1.0, -1.0, 1.0])}, w.pooled),
        ValueError,
        "state['population_m2'] | negative | -1.0",
    ),
    bad(
        "batches negative",
        lambda w: load(w, w.state(num_batches_tracked=np.array(-1))),
        ValueError,
        "state['num_batches_tracked'] | negative | -1",
    ),
    bad(
        "batches beyond int64",
        lambda w: load(w, w.state(num_batches_tracked=np.array(2**64 - 1, np.uint64))),
        ValueError,
        "state['num_batches_tracked'] | 2**63 - 1 | 18446744073709551615",
    ),
    bad(
        "count beyond int64",
        lambda w: load(
            w, {**w.pooled.state_dict(), "population_count": np.array(2**64 - 7, np.uint64)}, w.pooled
        ),
        ValueError,
        "state['population_count'] | 2**63 - 1 | 18446744073709551609",
    ),
    bad(
        "gamma masked",
        lambda w: load(w, w.state(gamma=np.ma.masked_array(np.ones(3, F32), [False, True, False]))),
        TypeError,
        "state['gamma'] | masked | filled",
    ),
    bad(
        "running_mean beyond float32",
        lambda w: load(w, w.state(running_mean=np.array([0.0, 1e300, 0.0]))),
        ValueError,
        "state['running_mean'] | 1e+300 | float32",
    ),
    bad(
        "no parameters",
        lambda w: load(w, w.without("gamma", "beta", "num_batches_tracked")),
        KeyError,
        "state | missing | gamma | beta",
    ),
    bad(
        "population of another momentum",
        lambda w: load(w, w.state(population_count=np.array(4))),
        KeyError,
        "state | unknown | population_count",
    ),
    bad(
        "running_var too long",
        lambda w: load(w, w.state(running_var=np.ones(4))),
        ValueError,
        "state['running_var'] | (4,) | (3,)",
    ),
    bad("gamma a number", lambda w: load(w, w.state(gamma=1.0)), ValueError, "state['gamma'] | () | (3,)"),
    bad(
        "state beta int",
        lambda w: load(w, w.state(beta=np.ones(3, int))),
        TypeError,
        "state['beta'] | int64 | float32",
    ),
    bad(
        "running_mean complex",
        lambda w: load(w, w.state(running_mean=np.ones(3, complex))),
        TypeError,
        "state['running_mean'] | complex128 | float32",
    ),
    bad(
        "batches a str",
        lambda w: load(w, w.state(num_batches_tracked=np.array("4"))),
        TypeError,
        "state['num_batches_tracked'] | <U1 | int64",
    ),
    bad(
        "batches two",
        lambda w: load(w, w.state(num_batches_tracked=np.array([4, 4]))),
        ValueError,
        "state['num_batches_tracked'] | (2,) | ()",
    ),
]

TABLE = [*X_ROWS, *OUT_ROWS, *DY_ROWS, *BACKWARD_ROWS, *LAYER_ROWS, *SPEAKING_ROWS, *STATE_ROWS]


@pytest.mark.parametrize(("call", "error", "fragments"), TABLE)
def test_refused(call, error, fragments):
    check_refused(call, error, fragments)


def test_names_are_unique():
    names = [row.id for row in TABLE]
    assert len(names) == len(set(names))


def test_a_state_is_loaded_whole_or_not_at_all():
    """One array that cannot be written to is found before any other one was."""
    layer = nbn.BatchNorm(3)
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    layer.params["beta"].flags.writeable = False
    before = frozen(layer.state_dict())
    with pytest.raises(ValueError, match=r"params\['beta'\] is read-only"):
        layer.load_state_dict(state)
    assert [each[1][1:] for each in frozen(layer.state_dict())] == [each[1][1:] for each in before]


def test_refused_within_frozen_stats():
    layer = nbn.BatchNorm(3)
    with pytest.raises(ValueError, match="one value per channel"), layer.frozen_stats():
        layer(np.ones((1, 3), F32))
    layer(np.ones((2, 3), F32))
    assert layer.num_batches_tracked == 1


def test_the_layer_speaks_of_itself():
    """Nothing in a message of the layer is an argument of a function that its user did not call."""
    world = World()
    calls = [lambda: world.layer.backward(world.dy[:3]), lambda: world.layer(world.x[:1])]
    calls += [lambda: world.overwritten.backward(world.dy)]
    for call in calls:
        with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the text is looked at below
            call()
        assert not [word for word in ("saved", "mean=", "batch_norm_") if word in str(refusal.value)]


def test_one_value_without_running_statistics():
    """Evaluation mode would not help."""
    with pytest.raises(ValueError, match=r"one value per channel, whose variance is 0; pass a larger batch$"):
        nbn.BatchNorm(3, track_running_stats=False)(np.ones((1, 3), F32))


def test_foreign_names_are_nothing_else():
    """A layer has none of the attributes whose names are known to be missing, and answers hasattr."""
    layer = nbn.BatchNorm(3)
    assert not hasattr(layer, "weight")
    foreign = {*_foreign._ATTRIBUTES, *_foreign._OTHERS, *_foreign._GAMMA, *_foreign._BETA}
    assert not foreign & set(dir(layer))
    options = inspect.signature(nbn.BatchNorm).parameters
    assert "num_channels" in options
    assert not _foreign._OPTIONS.keys() & options.keys()


@pytest.mark.parametrize("momentum", [0.99, 0.901])
def test_momentum_of_keras(momentum):
    with pytest.warns(UserWarning, match=rf"^momentum={momentum} .* Keras' .* is momentum=0.0") as caught:
        nbn.BatchNorm(3, momentum=momentum)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9, 1, None])
def test_no_warning_of_momentum(momentum):
    assert nbn.BatchNorm(3, momentum=momentum).momentum == momentum
