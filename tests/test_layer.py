"""The layer: its results and gradients, modes, empty and tiny batches, options, and PyTorch as an oracle."""

import inspect
import warnings

import numpy as np
import pytest

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_close, assert_same_bits, unchanged
from tests.support.jit import JIT
from tests.support.layers import assert_same_state, batches, snapshot
from tests.support.problems import LAYOUTS, Problem

FLOATS = (np.float16, np.float32, np.float64)


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
    state = snapshot(bn)
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
    """Without running statistics evaluation mode uses those of the batch, and backward goes through them."""
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
    state = snapshot(bn)
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
    """With frozen_stats activations can be made again for the backward pass, and their batch counts once."""
    problem = Problem((5, 3, 4))
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    bn(problem.x()), twin(problem.x())
    with bn.frozen_stats():
        bn(problem.x())
    assert_same_bits(bn.backward(problem.dy()), twin.backward(problem.dy()), "dx")
    assert_same_state(bn, snapshot(twin))


# Empty and tiny batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_batch(shape, training, momentum):
    bn = nbn.BatchNorm(3, momentum=momentum)
    bn(batches([4])[0])
    bn.training = training
    before = snapshot(bn)
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
    """One value is refused in training, and changes nothing: the state, out, and what backward belongs to."""
    problem = Problem((5, 3, 4))
    bn = nbn.BatchNorm(3, momentum=momentum)
    bn(problem.x())
    dx = bn.backward(problem.dy())
    before = snapshot(bn)
    x, out = np.ones((1, 3), np.float32), np.full((1, 3), 7, np.float32)
    with unchanged(x, out), pytest.raises(ValueError, match="one value per channel"):
        bn(x, out=out)
    assert_same_state(bn, before)
    assert_same_bits(bn.backward(problem.dy()), dx, "dx")
    bn.eval()
    assert bn(x).shape == (1, 3)


def test_repr():
    """The representation has the options that are not the defaults, as one would write them."""
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
    """The options have the defaults of PyTorch."""
    parameters = inspect.signature(nbn.BatchNorm).parameters
    found = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert found == {
        "axis": 1, "eps": 1e-5, "momentum": 0.1, "scale": True, "center": True,
        "track_running_stats": True, "activation": None, "negative_slope": 0.01,
        "dtype": np.float32, "device": "cpu", "comm": None,
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
