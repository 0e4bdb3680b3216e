"""The layer: running statistics, modes, gradients, state, copies."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_close, assert_same_bits, unchanged
from tests.support.jit import JIT
from tests.support.problems import LAYOUTS, Problem

FLOATS = (np.float16, np.float32, np.float64)


def batches(sizes, channels=3, dtype=np.float32, seed=0):
    """Batches of several sizes that drift: each has a mean and a spread of its own."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n, channels, 2, 3)) * (1 + 0.3 * i) + 5 * i - 3).astype(dtype)
        for i, n in enumerate(sizes)
    ]


def unbiased(x, axis=1):
    count, mean, m2 = reference.moments(x, axis)
    return count, mean, m2 / (count - 1)


def everything(bn):
    """Return all that a refused call must not change."""
    return {
        **{name: value.copy() for name, value in bn.state_dict().items()},
        **{f"grad {name}": value.copy() for name, value in bn.grads.items()},
        "training": np.array(bn.training),
    }


def assert_same_state(bn, expected):
    found = everything(bn)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_same_bits(value, expected[name], name)


# Running statistics -----------------------------------------------------------------------------------------


def test_momentum_of_nothing_and_everything():
    """0 keeps the statistics to the last bit, 1 replaces them by those of the batch."""
    keep, replace = nbn.BatchNorm(3, momentum=0), nbn.BatchNorm(3, momentum=1)
    for x in batches([4, 9]):
        keep(x), replace(x)
    assert (keep.running_mean == 0).all()
    assert (keep.running_var == 1).all()
    assert keep.num_batches_tracked == 2
    _, saved = nbn.batch_norm_forward(x)
    assert_same_bits(replace.running_mean, saved.mean.astype(np.float32), "running_mean")
    assert np.allclose(replace.running_var, saved.var * saved.count / (saved.count - 1), rtol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(FLOATS), st.integers(0, 99))
def test_population_statistics(sizes, dtype, seed):
    """momentum=None: the statistics of the concatenation, whatever the sizes of the batches."""
    bn = nbn.BatchNorm(3, momentum=None, dtype=dtype)
    seen = batches(sizes, dtype=np.float64, seed=seed)
    for x in seen:
        bn(x)
    count, mean, var = unbiased(np.concatenate(seen))
    error = max(1e-12, np.finfo(dtype).eps)
    assert_close(bn.running_mean, mean, error * (np.abs(mean) + 1), "running_mean")
    assert_close(bn.running_var, var, error * var, "running_var")
    state = bn.state_dict()
    assert state["population_count"] == count
    assert_close(state["population_mean"], mean, 1e-12 * (np.abs(mean) + 1), "population_mean")
    assert_close(state["population_m2"], var * (count - 1), 1e-12 * var * (count - 1), "population_m2")
    assert bn.num_batches_tracked == len(sizes)


def test_population_statistics_of_float32():
    """The same of float32 batches, whose own statistics carry float32 sums: 1e-6."""
    bn = nbn.BatchNorm(3, momentum=None)
    seen = batches([64, 1, 30, 200, 7])
    for x in seen:
        bn(x)
    _, mean, var = unbiased(np.concatenate(seen))
    assert np.abs(bn.running_mean / mean - 1).max() <= 1e-6
    assert np.abs(bn.running_var / var - 1).max() <= 1e-6


def test_population_is_not_a_mean_of_batches():
    """Four drifting batches, where PyTorch's momentum=None gives the spread within a batch alone."""
    bn = nbn.BatchNorm(1, momentum=None, dtype=np.float64)
    seen = [np.random.default_rng(i).standard_normal((50, 1)) + 10.0 * i for i in range(4)]
    for x in seen:
        bn(x)
    assert np.allclose(bn.running_var, np.var(np.concatenate(seen), ddof=1), rtol=1e-12)
    assert bn.running_var[0] > 100


def test_running_statistics_are_not_changed_in_place():
    """Whoever holds them keeps what they were: a thread in evaluation mode, a logger."""
    bn = nbn.BatchNorm(3)
    mean, var = bn.running_mean, bn.running_var
    with unchanged(mean, var):
        bn(batches([4])[0])
    assert (bn.running_mean != mean).any()


# Forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 4), 1), ((3, 4, 6), 1), ((3, 4, 5, 6), 1), ((2, 4, 3, 5, 6), 1), ((3, 5, 6, 4), -1), ((4, 9), 0),
     ((3, 5, 4, 6), -2)],
)  # fmt: skip
def test_forward_and_backward(shape, axis):
    problem = Problem(shape, axis)
    bn = nbn.BatchNorm(4, axis=axis, eps=1e-3)
    bn.params["gamma"][:], bn.params["beta"][:] = problem.gamma(), problem.beta()
    x, dy = problem.x(), problem.dy()
    options = {"axis": axis, "eps": 1e-3}
    y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **options)
    expected = nbn.batch_norm_backward(dy, saved)
    with unchanged(x, dy, *bn.params.values()):
        assert_same_bits(bn(x), y, "y")
        assert_same_bits(bn.backward(dy), expected[0], "dx")
    assert_same_bits(bn.grads["gamma"], expected[1], "dgamma")
    assert_same_bits(bn.grads["beta"], expected[2], "dbeta")

    bn.eval()
    state = everything(bn)
    y = nbn.batch_norm_inference(
        x, bn.running_mean, bn.running_var, problem.gamma(), problem.beta(), **options
    )
    assert_same_bits(bn(x), y, "y in evaluation mode")
    assert_same_state(bn, state)
    statistics = {"mean": bn.running_mean, "var": bn.running_var}
    exact = reference.backward(dy, x, problem.gamma(), **options, **statistics)
    errors = reference.backward_error(dy, x, problem.gamma(), problem.beta(), **options, **statistics)
    results = bn.backward(dy), bn.grads["gamma"], bn.grads["beta"]
    for name, result, value, error in zip(("dx", "dgamma", "dbeta"), results, exact, errors, strict=True):
        assert_close(result, value, error, f"{name} in evaluation mode")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = Problem((5, 3, 4, 6), layout=layout).x()
    bn = nbn.BatchNorm(3)
    assert_same_bits(bn(x), nbn.batch_norm_forward(x, np.ones(3), np.zeros(3))[0], "y")


@pytest.mark.parametrize("training", [True, False])
def test_out(training):
    problem = Problem((5, 3, 4))
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    bn.training = twin.training = training
    y, dx = twin(problem.x()), twin.backward(problem.dy())
    out, gradient = problem.out(), problem.dy()
    assert bn(problem.x(), out=out) is out
    assert_same_bits(out, y, "y")
    assert bn.backward(gradient, out=gradient) is gradient
    assert_same_bits(gradient, dx, "dx")
    x = problem.x()
    assert bn(x, out=x) is x
    assert_same_bits(x, y if training else twin(problem.x()), "y in place")
    with pytest.raises(ValueError, match="out=x"):
        bn.backward(problem.dy())


def test_skipping_dx():
    problem = Problem((5, 3, 4))
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    bn(problem.x()), twin(problem.x())
    twin.backward(problem.dy())
    assert bn.backward(problem.dy(), need_dx=False) is None
    for name in ("gamma", "beta"):
        assert np.allclose(bn.grads[name], twin.grads[name], rtol=1e-6)


def test_gradients_are_replaced():
    """A gradient that was taken away is not overwritten by the next call."""
    problem = Problem((5, 3, 4))
    bn = nbn.BatchNorm(3)
    assert all((bn.grads[name] == 0).all() for name in bn.params)
    bn(problem.x())
    bn.backward(problem.dy())
    taken = dict(bn.grads)
    with unchanged(*taken.values(), *bn.params.values()):
        bn(problem.x())
        bn.backward(2 * problem.dy())
    for name, gradient in taken.items():
        assert bn.grads[name] is not gradient
        assert bn.grads[name].dtype == bn.params[name].dtype
        assert np.allclose(bn.grads[name], 2 * gradient, rtol=1e-5)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_without_scale_or_center(scale, center):
    problem = Problem((5, 3, 4))
    bn = nbn.BatchNorm(3, scale=scale, center=center)
    names = {name for name, present in (("gamma", scale), ("beta", center)) if present}
    assert bn.params.keys() == bn.grads.keys() == names
    assert names == bn.state_dict().keys() & {"gamma", "beta"}
    for name in names:
        bn.params[name][:] = getattr(problem, name)()
    gamma, beta = bn.params.get("gamma"), bn.params.get("beta")
    x, dy = problem.x(), problem.dy()
    assert_close(bn(x), reference.forward(x, gamma, beta), reference.forward_error(x, gamma, beta), "y")
    exact = reference.backward(dy, x, gamma)
    errors = reference.backward_error(dy, x, gamma, beta)
    assert_close(bn.backward(dy), exact[0], errors[0], "dx")
    assert bn.grads.keys() == names
    for name, value, error in zip(("gamma", "beta"), exact[1:], errors[1:], strict=True):
        if name in names:
            assert_close(bn.grads[name], value, error, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("x_dtype", [np.float32, np.float64])
def test_dtypes(dtype, x_dtype):
    """Parameters and statistics have the dtype of the layer, results that of x."""
    problem = Problem((9, 3, 4), dtype=x_dtype, gamma_dtype=dtype, beta_dtype=dtype)
    bn = nbn.BatchNorm(3, dtype=dtype)
    bn.params["gamma"][:], bn.params["beta"][:] = problem.gamma(), problem.beta()
    for mode in (bn.train, bn.eval):
        mode()
        y = bn(problem.x())
        dx = bn.backward(problem.dy())
        assert y.dtype == dx.dtype == x_dtype
        owned = (*bn.params.values(), *bn.grads.values(), bn.running_mean, bn.running_var)
        assert {array.dtype for array in owned} == {np.dtype(dtype)}
    y, _ = nbn.batch_norm_forward(problem.x(), problem.gamma(), problem.beta())
    assert_same_bits(bn.train()(problem.x()), y, "y")


# Modes ------------------------------------------------------------------------------------------------------


def test_modes():
    bn = nbn.BatchNorm(3)
    x, other = batches([4, 6])
    assert bn.training
    assert bn.eval() is bn
    assert not bn.training
    bn(x)
    assert bn.num_batches_tracked == 0
    assert bn.train() is bn
    assert bn.training
    bn(x)
    assert bn.num_batches_tracked == 1
    bn.eval()
    assert_same_bits(bn(other)[:2], bn(other[:2]), "the first two samples")  # whatever else is in the batch


def test_without_tracking():
    """Evaluation mode uses the statistics of the batch too, and backward goes through them."""
    bn = nbn.BatchNorm(3, track_running_stats=False)
    problem = Problem((5, 3, 4))
    assert bn.running_mean is bn.running_var is None
    assert bn.num_batches_tracked == 0
    assert bn.state_dict().keys() == {"gamma", "beta"}
    y, dx = bn(problem.x()), bn.backward(problem.dy())
    bn.eval()
    assert_same_bits(bn(problem.x()), y, "y")
    assert_same_bits(bn.backward(problem.dy()), dx, "dx")
    assert bn.running_mean is None
    with pytest.raises(ValueError, match="one value per channel"):
        bn(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_stats(momentum):
    bn = nbn.BatchNorm(3, momentum=momentum)
    x, other = batches([4, 6])
    bn(x)
    state = everything(bn)
    with bn.frozen_stats() as inside:
        assert inside is bn
        y = bn(other)
        with bn.frozen_stats():
            bn(other)
        bn(other)  # the outer block still counts
        assert_same_state(bn, state)
        assert bn.training
    assert_same_bits(y, nbn.batch_norm_forward(other, np.ones(3), np.zeros(3))[0], "y")
    bn(other)
    assert bn.num_batches_tracked == 2


def test_frozen_stats_ends_with_an_exception():
    bn = nbn.BatchNorm(3)
    x = batches([4])[0]

    def fail():
        with bn.frozen_stats(), bn.frozen_stats():
            bn(x)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert bn.num_batches_tracked == 0
    bn(x)
    assert bn.num_batches_tracked == 1


def test_recomputation():
    """What frozen_stats is for: activations made again for the backward pass, statistics counted once."""
    problem = Problem((5, 3, 4))
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    bn(problem.x()), twin(problem.x())
    with bn.frozen_stats():
        bn(problem.x())
    assert_same_bits(bn.backward(problem.dy()), twin.backward(problem.dy()), "dx")
    assert_same_state(bn, everything(twin))


# Empty and tiny batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_batch(shape, training, momentum):
    bn = nbn.BatchNorm(3, momentum=momentum)
    bn(batches([4])[0])
    bn.training = training
    before = everything(bn)
    x = np.zeros(shape, np.float32)
    y = bn(x)
    assert y.shape == shape
    assert_same_state(bn, before)
    assert bn.backward(x).shape == shape
    assert (bn.grads["gamma"] == 0).all()
    assert (bn.grads["beta"] == 0).all()
    bn.train()
    bn(batches([4])[0])
    assert np.isfinite(bn.running_var).all()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_value_per_channel(momentum):
    """Refused in training, and nothing changed: neither the state, nor out, nor what backward belongs to."""
    problem = Problem((5, 3, 4))
    bn = nbn.BatchNorm(3, momentum=momentum)
    bn(problem.x())
    dx = bn.backward(problem.dy())
    before = everything(bn)
    x, out = np.ones((1, 3), np.float32), np.full((1, 3), 7, np.float32)
    with unchanged(x, out), pytest.raises(ValueError, match="one value per channel"):
        bn(x, out=out)
    assert_same_state(bn, before)
    assert_same_bits(bn.backward(problem.dy()), dx, "dx")
    bn.eval()
    assert bn(x).shape == (1, 3)


def test_poisoned_channel():
    """NaN in one channel spoils the running statistics of that one."""
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    x, y = batches([4, 4])
    twin(x), twin(y)
    x[1, 1, 0, 0] = np.nan
    bn(x), bn(y)
    for name in ("running_mean", "running_var"):
        found, expected = getattr(bn, name), getattr(twin, name)
        assert np.isnan(found[1])
        assert_same_bits(found[[0, 2]], expected[[0, 2]], name)


# State ------------------------------------------------------------------------------------------------------

KINDS = [
    {},
    {"momentum": None},
    {"scale": False},
    {"center": False},
    {"track_running_stats": False},
    {"dtype": np.float16},
    {"dtype": np.float64, "momentum": None, "axis": -1},
]


def used(options):
    """Return a layer with a past."""
    bn = nbn.BatchNorm(3, **options)
    for i, value in enumerate(bn.params.values()):
        value[:] = np.arange(3) + i + 0.5
    for x in batches([4, 7]):
        x = np.moveaxis(x, 1, bn.axis)
        bn(x)
        bn.backward(np.ones_like(x))
    return bn


def continue_both(bn, twin):
    """One step more gives both layers the same results and state."""
    x = np.moveaxis(batches([6], seed=1)[0], 1, bn.axis)
    for mode in ("train", "eval"):
        getattr(bn, mode)(), getattr(twin, mode)()
        assert_same_bits(twin(x), bn(x), "y")
        assert_same_bits(twin.backward(x), bn.backward(x), "dx")
        assert_same_state(twin, everything(bn))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_state_dict(options):
    bn, twin = used(options), nbn.BatchNorm(3, **options)
    state = bn.state_dict()
    keys = ["gamma"] * options.get("scale", True) + ["beta"] * options.get("center", True)
    if options.get("track_running_stats", True):
        keys += ["running_mean", "running_var", "num_batches_tracked"]
    if options.get("momentum", 0.1) is None:
        keys += ["population_count", "population_mean", "population_m2"]
    assert list(state) == keys
    assert twin.load_state_dict(state) is None
    twin.grads = {name: value.copy() for name, value in bn.grads.items()}  # gradients are no state
    continue_both(bn, twin)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_state_is_a_copy(options):
    """Neither the dictionary nor the layer sees what later happens to the other."""
    bn = used(options)
    state = bn.state_dict()
    before = everything(bn)
    for value in state.values():
        value[...] = 0
    assert_same_state(bn, before)
    bn.load_state_dict(state)
    before = everything(bn)
    for value in state.values():
        value[...] = 1
    assert_same_state(bn, before)
    with unchanged(*state.values()):
        bn.train()
        bn(np.moveaxis(batches([5])[0], 1, bn.axis))


def test_state_through_a_file():
    bn, twin = used({"momentum": None}), nbn.BatchNorm(3, momentum=None)
    file = io.BytesIO()
    np.savez(file, **bn.state_dict())
    file.seek(0)
    with np.load(file) as state:
        twin.load_state_dict(state)
    twin.grads = {name: value.copy() for name, value in bn.grads.items()}
    continue_both(bn, twin)


def test_loading_casts_and_keeps_the_arrays():
    """Dtypes stay those of the layer, and arrays of parameters the same ones: an optimiser may hold them."""
    bn, twin = used({"dtype": np.float64}), nbn.BatchNorm(3)
    held = dict(twin.params)
    twin.load_state_dict(bn.state_dict())
    for name, value in held.items():
        assert twin.params[name] is value
        assert_same_bits(value, bn.params[name].astype(np.float32), name)
    assert_same_bits(twin.running_var, bn.running_var.astype(np.float32), "running_var")
    assert twin.num_batches_tracked == bn.num_batches_tracked


BAD_STATES = {
    "missing key": lambda s: {k: v for k, v in s.items() if k != "running_var"},
    "unknown key": lambda s: {**s, "weight": s["gamma"]},
    "no parameters": lambda s: {k: v for k, v in s.items() if "running" in k},
    "wrong shape": lambda s: {**s, "running_var": np.ones(4)},
    "scalar": lambda s: {**s, "gamma": 1.0},
    "integers": lambda s: {**s, "beta": np.ones(3, int)},
    "complex": lambda s: {**s, "running_mean": np.ones(3, complex)},
    "strings": lambda s: {**s, "num_batches_tracked": np.array("4")},
    "float count": lambda s: {**s, "num_batches_tracked": np.array(4.0)},
    "two counts": lambda s: {**s, "num_batches_tracked": np.array([4, 4])},
    "population of other momentum": lambda s: {**s, "population_count": np.array(4)},
    "list": lambda s: list(s.items()),
    "none": lambda s: None,
}


@pytest.mark.parametrize("spoil", BAD_STATES.values(), ids=BAD_STATES.keys())
def test_refused_state_changes_nothing(spoil):
    bn = used({})
    before = everything(bn)
    other = {name: value + 1 for name, value in bn.state_dict().items()}
    with pytest.raises((KeyError, TypeError, ValueError), match=r"state|key"):
        bn.load_state_dict(spoil(other))
    assert_same_state(bn, before)


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("protocol", [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_copies(options, protocol):
    """Deep copies, and pickles of every protocol."""
    bn = used(options)
    bn.eval()
    with bn.frozen_stats():
        twin = copy.deepcopy(bn) if protocol is None else pickle.loads(pickle.dumps(bn, protocol))
    assert repr(twin) == repr(bn)
    assert twin.training == bn.training
    assert_same_state(twin, everything(bn))
    mine = [*bn.params.values(), *bn.grads.values()]
    theirs = [*twin.params.values(), *twin.grads.values()]
    assert not any(np.may_share_memory(a, b) for a in mine for b in theirs)
    with pytest.raises(RuntimeError, match="forward"):
        twin.backward(np.zeros((4, 3), np.float32))  # a batch is no part of a layer
    continue_both(bn, twin)


def test_repr():
    """The options that are not the usual ones, as one would write them."""
    assert repr(nbn.BatchNorm(64)) == "BatchNorm(64, axis=1, eps=1e-05, momentum=0.1)"
    options = {
        "axis": -1, "eps": 0.001, "momentum": None, "scale": False, "center": False,
        "track_running_stats": False, "dtype": np.float64,
    }  # fmt: skip
    text = repr(nbn.BatchNorm(8, **options))
    assert text == (
        "BatchNorm(8, axis=-1, eps=0.001, momentum=None, scale=False, center=False, "
        "track_running_stats=False, dtype=float64)"
    )


def test_defaults():
    """Those of PyTorch."""
    parameters = inspect.signature(nbn.BatchNorm).parameters
    found = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert found == {
        "axis": 1, "eps": 1e-5, "momentum": 0.1, "scale": True, "center": True,
        "track_running_stats": True, "dtype": np.float32, "device": "cpu", "comm": None,
    }  # fmt: skip
    bn = nbn.BatchNorm(3)
    assert (bn.params["gamma"] == 1).all()
    assert (bn.params["beta"] == 0).all()


# PyTorch ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import may warn of what is no business of these tests
        return pytest.importorskip("torch")


@pytest.mark.skipif(not JIT, reason="what differs without the JIT is tested against the reference")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(16, 5), (4, 5, 7), (4, 5, 6, 7), (2, 5, 3, 4, 6)])
def test_like_pytorch(torch, shape, training):
    """Steps of training and evaluation give what PyTorch gives, to the last bits of float64."""
    problem = Problem(shape, dtype=np.float64)
    kind = getattr(torch.nn, f"BatchNorm{max(1, len(shape) - 2)}d")
    theirs = kind(5).double()
    ours = nbn.BatchNorm(5, dtype=np.float64)
    with torch.no_grad():
        theirs.weight[:], theirs.bias[:] = torch.tensor(problem.gamma()), torch.tensor(problem.beta())
    ours.params["gamma"][:], ours.params["beta"][:] = problem.gamma(), problem.beta()
    theirs.train(training)
    ours.training = training
    for seed in range(3):
        batch = Problem(shape, dtype=np.float64, seed=seed)
        x, dy = batch.x(), batch.dy()
        tensor = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        result = theirs(tensor)
        result.backward(torch.tensor(dy))
        pairs = {
            "y": (ours(x), result),
            "dx": (ours.backward(dy), tensor.grad),
            "dgamma": (ours.grads["gamma"], theirs.weight.grad),
            "dbeta": (ours.grads["beta"], theirs.bias.grad),
            "running_mean": (ours.running_mean, theirs.running_mean),
            "running_var": (ours.running_var, theirs.running_var),
        }
        for name, (a, b) in pairs.items():
            b = b.detach().numpy()
            assert_close(a, b, 1e-12 * (1 + np.abs(b).max()), name)
        assert ours.num_batches_tracked == theirs.num_batches_tracked
