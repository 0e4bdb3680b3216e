"""Bad calls of group and instance norm: each is refused with a message that helps, and changes nothing."""

import copy
import pickle

import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_same_bits, unchanged
from tests.support.group_problems import GroupProblem
from tests.support.layers import assert_same_state, snapshot

X = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
BOTH = {
    "group norm": lambda x=X, gamma=None, beta=None, **o: nbn.group_norm_forward(x, 2, gamma, beta, **o),
    "instance norm": lambda x=X, gamma=None, beta=None, **o: nbn.instance_norm_forward(x, gamma, beta, **o),
}
both = pytest.mark.parametrize("forward", BOTH.values(), ids=BOTH)
read_only = np.zeros_like(X)
read_only.flags.writeable = False

# (arguments, error, the message)
REFUSED = [
    ({"x": X.astype(int)}, TypeError, r"^x has dtype int64, which is not floating point; pass x\.astype\("),
    ({"x": X.astype(">u2")}, TypeError, "^x has dtype >u2, which is not floating point; pass x"),
    ({"x": X.astype(complex)}, TypeError, r"^x has complex dtype complex128; pass x\.real and x\.imag"),
    ({"x": X.tolist()}, TypeError, r"^x must be a NumPy array, not builtins\.list"),
    (
        {"x": np.ones(3)},
        ValueError,
        r"^x must have a batch axis and a channel axis, but has shape \(3,\); for",
    ),
    ({"x": np.array(1.0)}, ValueError, r"^x must have a batch axis and a channel axis, but has shape \(\)"),
    ({"axis": 0}, ValueError, "^axis must be that of the channels, but axis 0 of x is that of the samples"),
    ({"axis": -3}, ValueError, "^axis must be that of the channels, but axis 0 of x is that of the samples"),
    ({"axis": 3}, ValueError, "^axis must be from -3 to 2 for an array of rank 3, not 3"),
    ({"axis": 1.0}, TypeError, r"^axis must be an integer, not 1\.0"),
    ({"axis": True}, TypeError, "^axis must be an integer, not True"),
    ({"axis": (1, 2)}, TypeError, r"^axis must be an integer, not \(1, 2\)"),
    ({"eps": -1.0}, ValueError, r"^eps must be a finite number >= 0, for example 1e-5, not -1\.0"),
    ({"eps": np.nan}, ValueError, "^eps must be a finite number"),
    ({"eps": "small"}, TypeError, "^eps must be a real number, not 'small'"),
    ({"gamma": np.ones(2)}, ValueError, r"^gamma has shape \(2,\), but x has 6 channels: it must be \(6,\)"),
    ({"gamma": np.ones((1, 6))}, ValueError, r"^gamma has shape \(1, 6\), but x has 6 channels"),
    ({"gamma": [1.0] * 5}, ValueError, r"^gamma has shape \(5,\), but x has 6 channels"),
    ({"gamma": 2.0}, TypeError, r"^gamma is 2\.0"),
    ({"beta": np.ones(6, int)}, TypeError, "^beta has dtype int64; it must be floating point, one value"),
    ({"beta": np.ones(4)}, ValueError, r"^beta has shape \(4,\), but x has 6 channels: it must be \(6,\)"),
    ({"out": np.zeros((6, 2, 4), np.float32)}, ValueError, r"^out has shape \(6, 2, 4\); .*\(2, 6, 4\)"),
    ({"out": np.zeros(X.shape)}, TypeError, "^out has dtype float64; it must be that of the result, float32"),
    ({"out": read_only}, ValueError, "^out is read-only; pass an array that can be written to"),
    ({"out": np.broadcast_to(np.float32(0), X.shape)}, ValueError, "^elements of out share memory"),
    ({"out": [0.0]}, TypeError, "^out must be a NumPy array"),
]


@both
@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
def test_refused(forward, wrong, error, message):
    arrays = [a for a in (X, *wrong.values()) if isinstance(a, np.ndarray)]
    with unchanged(*arrays), pytest.raises(error, match=message):
        forward(**wrong)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (0, ValueError, "^num_groups must be at least 1, not 0"),
        (-2, ValueError, "^num_groups must be at least 1, not -2"),
        (4, ValueError, "^num_groups is 4, but x has 6 channels on axis 1, which cannot be cut into so many"),
        (12, ValueError, "^num_groups is 12, but x has 6 channels on axis 1"),
        (True, TypeError, "^num_groups must be an integer, not True"),
        (2.0, TypeError, r"^num_groups must be an integer, not 2\.0"),
        ("2", TypeError, "^num_groups must be an integer, not '2'"),
        ([2], TypeError, r"^num_groups must be an integer, not \[2\]"),
        (None, TypeError, "^num_groups must be an integer, not None"),
    ],
)
def test_refused_number_of_groups(groups, error, message):
    with unchanged(X), pytest.raises(error, match=message):
        nbn.group_norm_forward(X, groups)
    with pytest.raises(error, match=r"^num_(groups|channels)"):
        nbn.GroupNorm(groups, 6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (1, 4, 1, 1)], ids=str)
def test_instances_of_one_value_are_refused(shape):
    """In training; with known statistics, or in evaluation mode of a layer that has them, they are fine."""
    x, out = np.ones(shape, np.float32), np.full(shape, 7, np.float32)
    message = r"^x has shape .*, one value per channel of a sample, whose variance is 0; pass larger maps"
    with unchanged(x, out), pytest.raises(ValueError, match=message):
        nbn.instance_norm_forward(x, out=out)
    layer = nbn.InstanceNorm(4, track_running_stats=True)
    layer(np.arange(8, dtype=np.float32).reshape(1, 4, 2))
    before = snapshot(layer)
    with unchanged(x, out), pytest.raises(ValueError, match=message):
        layer(x, out=out)
    assert_same_state(layer, before)
    assert layer.backward(np.ones((1, 4, 2), np.float32)).shape == (1, 4, 2)  # of the last good call
    assert layer.eval()(x).shape == shape
    assert nbn.instance_norm_forward(x, mean=np.ones(4), var=np.ones(4))[0].shape == shape
    with pytest.raises(ValueError, match=message):
        nbn.InstanceNorm(4).eval()(x)


def test_refused_statistics():
    for known, error, message in (
        ({"mean": np.ones(6)}, ValueError, "^mean is given without var; pass both to use known statistics"),
        ({"var": np.ones(6)}, ValueError, "^var is given without mean"),
        (
            {"mean": np.ones(4), "var": np.ones(6)},
            ValueError,
            r"^mean has shape \(4,\), but x has 6 channels",
        ),
        (
            {"mean": np.ones(6), "var": -np.ones(6)},
            ValueError,
            r"^var must not be negative, but var\[0\] is -1",
        ),
        ({"mean": np.ones((2, 6)), "var": np.ones((2, 6))}, ValueError, r"^mean has shape \(2, 6\)"),
        ({"mean": np.ones(6, int), "var": np.ones(6)}, TypeError, "^mean has dtype int64"),
    ):
        with unchanged(X), pytest.raises(error, match=message):
            nbn.instance_norm_forward(X, **known)


# Backward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, None])
def test_refused_backward(groups):
    problem = GroupProblem(X.shape, groups=groups)
    _, saved = problem.forward(X)
    dy = np.ones_like(X)
    for arguments, options, error, message in (
        ((dy[:1], saved), {}, ValueError, r"^dy has shape \(1, 6, 4\), but x of the forward call had shape"),
        (
            (dy.astype(float), saved),
            {},
            TypeError,
            r"^dy has dtype float64, but x had float32; pass dy\.astype",
        ),
        ((dy.tolist(), saved), {}, TypeError, "^dy must be a NumPy array"),
        ((dy, X), {}, TypeError, "^saved must come from a forward call .*, but is ndarray"),
        ((dy, saved), {"out": np.zeros(X.shape)}, TypeError, "^out has dtype float64"),
        (
            (dy, saved),
            {"out": np.zeros_like(X), "need_dx": False},
            ValueError,
            "^out is given, but need_dx is",
        ),
    ):
        with unchanged(X, dy), pytest.raises(error, match=message):
            problem.backward(*arguments, **options)


def test_saved_of_another_norm():
    """Its gradients are others, and would be silently wrong."""
    saved = {
        "batch": nbn.batch_norm_forward(X)[1],
        "layer": nbn.layer_norm_forward(X)[1],
        "rms": nbn.rms_norm_forward(X)[1],
        "group": nbn.group_norm_forward(X, 6)[1],
        "instance": nbn.instance_norm_forward(X)[1],
        "instance, known": nbn.instance_norm_forward(X, mean=np.ones(6), var=np.ones(6))[1],
    }
    for norm in ("batch", "layer", "rms", "group", "instance"):
        backward = getattr(nbn, f"{norm}_norm_backward")
        for name, remembered in saved.items():
            other = name.split(",")[0]
            if other == norm:
                backward(X, remembered)
                continue
            message = rf"^saved is from {other}_norm_forward; pass it to {other}_norm_backward"
            with pytest.raises(ValueError, match=message):
                backward(X, remembered)


# Layers -----------------------------------------------------------------------------------------------------

LAYERS = [
    (lambda: nbn.GroupNorm(4, 6), ValueError, "^num_channels is 6, which cannot be cut into num_groups=4"),
    (lambda: nbn.GroupNorm(1, 0), ValueError, "^num_channels must be at least 1, not 0"),
    (lambda: nbn.GroupNorm(1, 2.0), TypeError, r"^num_channels must be an integer, not 2\.0"),
    (lambda: nbn.GroupNorm(1), TypeError, "num_channels"),
    (lambda: nbn.GroupNorm(2, 6, eps=-1.0), ValueError, "^eps must be a finite number"),
    (lambda: nbn.GroupNorm(2, 6, axis=1.0), TypeError, "^axis must be an integer"),
    (lambda: nbn.GroupNorm(2, 6, dtype=int), TypeError, "^dtype must be floating point"),
    (lambda: nbn.GroupNorm(2, num_features=6), TypeError, "GroupNorm has no .*; here it is num_channels"),
    (lambda: nbn.GroupNorm(2, 6, affine=False), TypeError, "'affine'; here it is scale and center: see"),
    (lambda: nbn.GroupNorm(2, 6, epsilon=1e-3), TypeError, "'epsilon'; here it is eps: see help"),
    (lambda: nbn.GroupNorm(2, 6, use_bias=False), TypeError, "no option 'use_bias'; here it is center"),
    (lambda: nbn.GroupNorm(2, 6, momentum=0.1), TypeError, "unexpected keyword argument 'momentum'"),
    (lambda: nbn.GroupNorm(2, 6).weight, AttributeError, r'here it is params\["gamma"\]'),
    (lambda: nbn.GroupNorm(2, 6).running_mean, AttributeError, "no attribute 'running_mean'$"),
    (lambda: nbn.GroupNorm(2, 6).backward(X), RuntimeError, "^backward needs a forward call first"),
    (lambda: nbn.GroupNorm(2, 6).load_state_dict({}), KeyError, "missing keys"),
    (lambda: nbn.GroupNorm(2, 4)(X), ValueError, r"^x has shape \(2, 6, 4\), 6 channels .*axis=-1"),
    (lambda: nbn.GroupNorm(2, 4)(X.astype(int)), TypeError, "^x has dtype int64"),
    (lambda: nbn.InstanceNorm(0), ValueError, "^num_channels must be at least 1, not 0"),
    (lambda: nbn.GroupNorm(2, 6, axis=0), ValueError, "^axis must be that of the channels, not 0"),
    (lambda: nbn.InstanceNorm(6, axis=0), ValueError, "^axis must be that of the channels, not 0"),
    (lambda: nbn.GroupNorm(groups=2, num_channels=6), TypeError, "here it is num_groups"),
    (lambda: nbn.InstanceNorm(6, momentum=None), TypeError, "^momentum must be a number .* not None"),
    (lambda: nbn.InstanceNorm(6, momentum=1.5), ValueError, "^momentum is the weight of the new batch"),
    (lambda: nbn.InstanceNorm(6, momentum="slow"), TypeError, "^momentum must be a real number"),
    (lambda: nbn.InstanceNorm(num_features=6), TypeError, "'num_features'; here it is num_channels"),
    (lambda: nbn.InstanceNorm(6, affine=True), TypeError, "no option 'affine'; here it is scale and center"),
    (lambda: nbn.InstanceNorm(6, decay=0.9), TypeError, "here it is momentum, the weight of the new batch"),
    (lambda: nbn.InstanceNorm(6).weight, AttributeError, "this layer was made without gamma"),
    (lambda: nbn.InstanceNorm(6).backward(X), RuntimeError, "^backward needs a forward call first"),
    (lambda: nbn.InstanceNorm(4)(X), ValueError, r"^x has shape \(2, 6, 4\), 6 channels .*axis=-1"),
    (lambda: nbn.InstanceNorm(6, axis=0)(X), ValueError, "^axis must be that of the channels"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), LAYERS)
def test_layer_refused(call, error, message):
    with unchanged(X), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "make", [lambda: nbn.GroupNorm(2, 6), lambda: nbn.InstanceNorm(6, scale=True, track_running_stats=True)]
)
def test_a_refused_call_of_a_layer_changes_nothing(make):
    layer = make()
    layer(X)
    dx = layer.backward(X)
    before = snapshot(layer)
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    for call in (
        lambda: layer(X[:, :4]),
        lambda: layer(X, out=np.zeros(X.shape)),
        lambda: layer(X.astype(int)),
        lambda: layer.backward(X[:1]),
        lambda: layer.backward(X.astype(float)),
        lambda: layer.load_state_dict({**state, "gamma": np.ones(5)}),
        lambda: layer.load_state_dict({**state, "gamma": np.ones(6, int)}),
        lambda: layer.load_state_dict({**state, "more": np.ones(6)}),
    ):
        with unchanged(X), pytest.raises((TypeError, ValueError, KeyError)):
            call()
        assert_same_state(layer, before)
        assert_same_bits(layer.backward(X), dx, "dx")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(RuntimeError, match="forward"):  # a batch is no part of a layer
            other.backward(X)


def test_momentum_of_keras_warns():
    with pytest.warns(UserWarning, match="momentum=0.99 is the weight of the new batch"):
        nbn.InstanceNorm(6, momentum=0.99)


def test_channels_of_a_layer_on_another_axis():
    """That is said, and not that these channels cannot be cut into its groups."""
    with pytest.raises(ValueError, match=r"14 channels on axis 1, .* make the layer with axis=-1"):
        nbn.GroupNorm(32, 64)(np.ones((2, 14, 14, 64), np.float32))


def test_momentum_that_is_taken_away():
    """The statistics of all values would be wrong: each sample has its own."""
    layer = nbn.InstanceNorm(6, track_running_stats=True)
    layer.momentum = None
    with pytest.raises(TypeError, match=r"^momentum must be a number"):
        layer(np.ones((2, 6, 4), np.float32))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(("tracking", "advice"), [(True, True), (False, False)])
def test_advice_for_instances_of_one_value(tracking, advice):
    layer = nbn.InstanceNorm(6, track_running_stats=tracking)
    with pytest.raises(ValueError, match="one value per channel of a sample") as refusal:
        layer(np.ones((2, 6), np.float32))
    assert ("layer.eval()" in str(refusal.value)) is advice
