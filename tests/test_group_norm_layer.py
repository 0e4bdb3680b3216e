"""The layers of group and instance norm: results, gradients, options, states, copies, and PyTorch."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_close, assert_same_bits, unchanged
from tests.support.group_problems import GroupProblem
from tests.support.jit import JIT
from tests.support.layers import assert_same_state, snapshot

SHAPES = [((7, 4), 1), ((3, 4, 6), 1), ((3, 4, 5, 6), 1), ((2, 4, 3, 5, 6), 1), ((3, 5, 6, 4), -1),
          ((3, 5, 4, 6), -2)]  # fmt: skip
GROUPS = [2, None]


def layer_of(problem, **options):
    """Return a layer for a problem, and its parameters as far as the layer has them."""
    options = {"axis": problem.axis, "scale": True, "center": True, **options}
    if problem.groups is None:
        layer = nbn.InstanceNorm(problem.channels, **options)
    else:
        layer = nbn.GroupNorm(problem.groups, problem.channels, **options)
    for name, values in layer.params.items():
        values[:] = getattr(problem, name)()
    return layer


def problem_of(shape, axis, groups, **options):
    if groups is None and len(shape) == 2:
        shape = (*shape, 3)
    return GroupProblem(shape, axis, groups=groups, **options)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_layer_is_the_functions(shape, axis, groups, training):
    """In both modes: evaluation mode takes the statistics of x, too."""
    problem = problem_of(shape, axis, groups, eps=1e-3)
    layer = layer_of(problem, eps=1e-3)
    layer.training = training
    expected = problem.results()
    x, dy = problem.x(), problem.dy()
    with unchanged(x, dy, *layer.params.values()):
        assert_same_bits(layer(x), expected.y, "y")
        assert_same_bits(layer.backward(dy), expected.dx, "dx")
    assert layer.params.keys() == layer.grads.keys() == layer.state_dict().keys() == {"gamma", "beta"}
    assert_same_bits(layer.grads["gamma"], expected.dgamma, "dgamma")
    assert_same_bits(layer.grads["beta"], expected.dbeta, "dbeta")
    assert layer.backward(dy, need_dx=False) is None
    np.testing.assert_allclose(layer.grads["gamma"], expected.dgamma, rtol=1e-5, atol=1e-5)
    for place in (problem.out(), problem.out("sliced"), x):
        assert layer(problem.x() if place is not x else x, out=place) is place
        assert_same_bits(place, expected.y, "y")
    with pytest.raises(ValueError, match="out=x"):
        layer.backward(dy)
    layer(problem.x())
    assert layer.backward(dy, out=dy) is dy
    assert_same_bits(dy, expected.dx, "dx in place")


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_without_scale_or_center(center, scale, groups):
    problem = problem_of(
        (5, 4, 3), 1, groups,
        gamma_dtype=np.float32 if scale else None, beta_dtype=np.float32 if center else None,
    )  # fmt: skip
    layer = layer_of(problem, scale=scale, center=center)
    names = ["gamma"] * scale + ["beta"] * center
    assert list(layer.params) == list(layer.grads) == list(layer.state_dict()) == names
    expected = problem.results()
    assert_same_bits(layer(problem.x()), expected.y, "y")
    assert_same_bits(layer.backward(problem.dy()), expected.dx, "dx")
    assert list(layer.grads) == names
    for name, gradient in (("gamma", expected.dgamma), ("beta", expected.dbeta)):
        if name in names:
            assert_same_bits(layer.grads[name], gradient, name)


def test_defaults():
    """The options have the defaults of PyTorch."""
    common = {"axis": 1, "eps": 1e-5, "activation": None, "negative_slope": 0.01}
    common |= {"dtype": np.float32, "device": "cpu"}
    tracking = {"track_running_stats": False, "momentum": 0.1}
    for kind, expected in (
        (nbn.GroupNorm, {"scale": True, "center": True, **common}),
        (nbn.InstanceNorm, {"scale": False, "center": False, **tracking, **common}),
    ):
        parameters = inspect.signature(kind).parameters
        found = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert found == expected
    layer = nbn.GroupNorm(2, 4)
    assert_same_bits(layer.params["gamma"], np.ones(4, np.float32), "gamma")
    assert_same_bits(layer.params["beta"], np.zeros(4, np.float32), "beta")
    assert nbn.InstanceNorm(4).params == nbn.InstanceNorm(4).state_dict() == {}
    assert (layer.num_groups, layer.num_channels, layer.axis, layer.training) == (2, 4, 1, True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("groups", GROUPS)
def test_dtypes(groups, dtype):
    """Parameters and their gradients have the dtype of the layer, results that of x."""
    for x_dtype in (np.float32, np.float64):
        problem = problem_of((5, 4, 3), 1, groups, dtype=x_dtype, gamma_dtype=dtype, beta_dtype=dtype)
        layer = layer_of(problem, dtype=dtype)
        assert_same_bits(layer(problem.x()), problem.results().y, "y")
        assert layer.backward(problem.dy()).dtype == x_dtype
        assert {a.dtype for a in (*layer.params.values(), *layer.grads.values())} == {np.dtype(dtype)}


def test_gradients_are_replaced():
    """A gradient that was taken away is not overwritten by the next call."""
    for groups in GROUPS:
        problem = problem_of((5, 4, 3), 1, groups)
        layer = layer_of(problem)
        assert all((gradient == 0).all() for gradient in layer.grads.values())
        layer(problem.x())
        layer.backward(problem.dy())
        taken = dict(layer.grads)
        with unchanged(*taken.values()):
            layer.backward(2 * problem.dy())
        assert not any(layer.grads[name] is gradient for name, gradient in taken.items())


def test_modes():
    for layer in (nbn.GroupNorm(2, 4), nbn.InstanceNorm(4)):
        assert layer.training
        assert layer.eval() is layer
        assert not layer.training
        assert layer.train() is layer
        assert layer.training
        assert layer.to("cpu") is layer


@pytest.mark.parametrize(("shape", "count"), [((0, 4, 3), 0), ((2, 4, 0), 0), ((0, 4), 0)], ids=str)
def test_empty_batch(shape, count):
    for layer in (nbn.GroupNorm(2, 4), nbn.InstanceNorm(4, scale=True, center=True)):
        x = np.zeros(shape, np.float32)
        assert layer(x).shape == shape
        assert layer.backward(x).shape == shape
        assert not any(gradient.any() for gradient in layer.grads.values())


# States -----------------------------------------------------------------------------------------------------

KINDS = [
    lambda: nbn.GroupNorm(2, 4),
    lambda: nbn.GroupNorm(4, 4, scale=False, dtype=np.float64),
    lambda: nbn.GroupNorm(1, 4, center=False, axis=-1),
    lambda: nbn.InstanceNorm(4),
    lambda: nbn.InstanceNorm(4, scale=True, center=True, dtype=np.float16),
    lambda: nbn.InstanceNorm(4, scale=True, track_running_stats=True, momentum=0.25),
    lambda: nbn.InstanceNorm(4, track_running_stats=True, axis=-1, dtype=np.float64),
]
every_kind = pytest.mark.parametrize("make", KINDS, ids=lambda make: repr(make()))


def used(make):
    """Return a layer with a past."""
    layer = make()
    for i, values in enumerate(layer.params.values()):
        values[:] = np.arange(4) + i + 0.5
    for seed in range(2):
        problem = GroupProblem((3, 4, 5), seed=seed, offset=2.0)
        x = np.moveaxis(problem.x(), 1, layer.axis)
        layer(x)
        layer.backward(np.ones_like(x))
    return layer


def continue_both(layer, twin):
    """One step more gives both layers the same results and state."""
    x = np.moveaxis(GroupProblem((3, 4, 5), seed=9).x(), 1, layer.axis)
    for mode in ("train", "eval"):
        getattr(layer, mode)(), getattr(twin, mode)()
        assert_same_bits(twin(x), layer(x), "y")
        assert_same_bits(twin.backward(x), layer.backward(x), "dx")
        assert_same_state(twin, snapshot(layer))


@every_kind
def test_state_dict(make):
    layer, twin = used(make), make()
    state = layer.state_dict()
    before = snapshot(layer)
    twin.load_state_dict(state)
    twin.grads = {name: value.copy() for name, value in layer.grads.items()}  # gradients are no state
    for value in state.values():
        value[...] = 0  # it is a copy
    assert_same_state(layer, before)
    continue_both(layer, twin)


@every_kind
def test_state_through_a_file(make):
    layer, twin, file = used(make), make(), io.BytesIO()
    np.savez(file, **layer.state_dict())
    file.seek(0)
    with np.load(file) as state:
        twin.load_state_dict(state)
    twin.grads = {name: value.copy() for name, value in layer.grads.items()}
    continue_both(layer, twin)


@every_kind
def test_copies(make):
    """A deep copy, or what comes from a pickle, goes on as the layer does, and has arrays of its own."""
    for protocol in (None, 2, pickle.HIGHEST_PROTOCOL):
        layer = used(make).eval()
        twin = copy.deepcopy(layer) if protocol is None else pickle.loads(pickle.dumps(layer, protocol))
        assert repr(twin) == repr(layer)
        assert twin.training == layer.training
        assert_same_state(twin, snapshot(layer))
        for name, values in layer.params.items():
            assert not np.may_share_memory(values, twin.params[name])
        continue_both(layer, twin)


@every_kind
def test_repr_makes_the_layer_again(make):
    layer = make()
    names = {"GroupNorm": nbn.GroupNorm, "InstanceNorm": nbn.InstanceNorm}
    names |= {name: getattr(np, name) for name in ("float16", "float64")}
    twin = eval(repr(layer), names)
    assert repr(twin) == repr(layer)
    assert_same_state(twin, snapshot(layer))
    assert (twin.axis, twin.eps, twin.dtype) == (layer.axis, layer.eps, layer.dtype)


def test_repr():
    assert repr(nbn.GroupNorm(2, 8)) == "GroupNorm(2, 8, axis=1, eps=1e-05)"
    assert repr(nbn.GroupNorm(2, 8, axis=-1, eps=0.1, center=False, dtype=np.float64)) == (
        "GroupNorm(2, 8, axis=-1, eps=0.1, center=False, dtype=float64)"
    )
    assert repr(nbn.InstanceNorm(8)) == "InstanceNorm(8, axis=1, eps=1e-05, momentum=0.1)"
    assert repr(nbn.InstanceNorm(8, scale=True, track_running_stats=True, momentum=0.5)) == (
        "InstanceNorm(8, axis=1, eps=1e-05, momentum=0.5, scale=True, track_running_stats=True)"
    )


# PyTorch ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import may warn of what is no business of these tests
        return pytest.importorskip("torch")


def assert_like(torch, ours, theirs, seed, problem):
    """One step of both layers in float64 gives the same to the last bits."""
    problem = GroupProblem(problem.shape, groups=problem.groups, dtype=np.float64, seed=seed)
    x, dy = problem.x(), problem.dy()
    tensor = torch.tensor(x, requires_grad=True)
    theirs.zero_grad()
    result = theirs(tensor)
    result.backward(torch.tensor(dy))
    pairs = {"y": (ours(x), result), "dx": (ours.backward(dy), tensor.grad)}
    if ours.grads:
        pairs["dgamma"] = ours.grads["gamma"], theirs.weight.grad
        pairs["dbeta"] = ours.grads["beta"], theirs.bias.grad
    if getattr(ours, "running_mean", None) is not None:
        pairs["running_mean"] = ours.running_mean, theirs.running_mean
        pairs["running_var"] = ours.running_var, theirs.running_var
    for name, (a, b) in pairs.items():
        b = b.detach().numpy()
        # Of groups of a few values, 1 / std enlarges what both round.
        assert_close(a, b, 1e-11 * (1 + np.abs(b).max()), name)


@pytest.mark.skipif(not JIT, reason="what differs without the JIT is tested against the formulas")
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("shape", [(8, 6), (4, 6, 7), (4, 6, 5, 7), (2, 6, 3, 4, 6)], ids=str)
def test_group_norm_like_pytorch(torch, shape, groups):
    problem = GroupProblem(shape, groups=groups)
    theirs = torch.nn.GroupNorm(groups, 6).double()
    ours = layer_of(problem, dtype=np.float64)
    with torch.no_grad():
        theirs.weight[:], theirs.bias[:] = (torch.tensor(ours.params[name]) for name in ("gamma", "beta"))
    assert_like(torch, ours, theirs, 0, problem)


@pytest.mark.skipif(not JIT, reason="what differs without the JIT is tested against the formulas")
@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 6, 5, 7), (2, 6, 3, 4, 6)], ids=str)
def test_instance_norm_like_pytorch(torch, shape, affine, tracking):
    """Steps of training, and then of evaluation."""
    problem = GroupProblem(shape)
    kind = getattr(torch.nn, f"InstanceNorm{len(shape) - 2}d")
    theirs = kind(6, affine=affine, track_running_stats=tracking).double()
    options = {"scale": affine, "center": affine, "track_running_stats": tracking}
    ours = layer_of(problem, dtype=np.float64, **options)
    if affine:
        with torch.no_grad():
            theirs.weight[:], theirs.bias[:] = (torch.tensor(ours.params[n]) for n in ("gamma", "beta"))
    for seed in range(3):
        assert_like(torch, ours, theirs, seed, problem)
    assert_like(torch, ours.eval(), theirs.eval(), 3, problem)
