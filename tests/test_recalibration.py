"""Recalibration: the population of every layer's input by float64 formulas, and nothing else changed."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support.checks import assert_close
from tests.support.jit import JIT

CHANNELS, EPS = 3, 1e-5
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
FEATURES = np.array([[0.5, -2.0, 1.0], [1.5, 0.3, -1.0], [0.1, 1.0, 2.0]])


def batches(sizes, dtype=np.float64, seed=0):
    """Batches that drift, (N, C, 2): each has a mean and a spread of its own."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n, CHANNELS, 2)) * (1 + i) + 10 * i - 3).astype(dtype)
        for i, n in enumerate(sizes)
    ]


class Net:
    """Norm, product and rectification, as often as there are layers."""

    def __init__(self, depth=3, **options):
        self.layers = [nbn.BatchNorm(CHANNELS, **options) for _ in range(depth)]
        for i, layer in enumerate(self.layers):
            layer.params["beta"][:] = 0.1 * i - 0.2
            layer(batches([5], layer.dtype, seed=i)[0])  # statistics of something else

    def __call__(self, x):
        for layer in self.layers:
            x = features(layer(x))
        return x


def features(x):
    return np.maximum(np.einsum("dc,ncl->ndl", FEATURES.astype(x.dtype), x), 0.1 * x)


def population(parts):
    """(count, mean, unbiased variance) of every channel of everything, in two passes."""
    x = np.concatenate(
        [part.astype(np.float64).transpose(1, 0, 2).reshape(CHANNELS, -1) for part in parts], 1
    )
    mean = x.mean(axis=1)
    return x.shape[1], mean, ((x - mean[:, None]) ** 2).sum(axis=1) / (x.shape[1] - 1)


def normalised(x, layer, mean, biased):
    shape = (1, CHANNELS, 1)
    y = (x - mean.reshape(shape)) / np.sqrt(biased.reshape(shape) + EPS)
    return y * layer.params["gamma"].reshape(shape) + layer.params["beta"].reshape(shape)


def expected(net, data, sequential):
    """[(count, mean, var)] of all layers by the definition."""
    found, parts = [], [part.astype(np.float64) for part in data]
    for layer in net.layers:
        count, mean, var = population(parts)
        found.append((count, mean, var))
        if sequential:  # as at inference, where the unbiased variance is used
            parts = [features(normalised(x, layer, mean, var)) for x in parts]
        else:
            parts = [features(normalised(x, layer, x.mean(axis=(0, 2)), x.var(axis=(0, 2)))) for x in parts]
    return found


def assert_statistics(layer, mean, var, error, name):
    assert_close(layer.running_mean, mean, error * (np.abs(mean) + np.sqrt(var)), f"mean of {name}")
    assert_close(layer.running_var, var, error * var, f"var of {name}")


def everything(layer):
    """All that recalibrate must not change, or must not when it fails."""
    state = {name: value.tobytes() for name, value in layer.state_dict().items()}
    grads = {name: value.tobytes() for name, value in layer.grads.items()}
    return state, grads, layer.training, layer.momentum, layer._frozen, id(layer._saved)


@settings(max_examples=50 if JIT else 15)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0.1, None]),
    st.integers(0, 99),
)
def test_population_of_every_input(sizes, sequential, dtype, momentum, seed):
    net, data = Net(dtype=dtype, momentum=momentum), batches(sizes, dtype, seed)
    nbn.recalibrate(net.layers, net, data, sequential=sequential)
    # Roundings of forward, enlarged by three layers; sums of a batch are float32 where x is.
    error = 1e-4 if dtype == np.float32 else 1e-11
    for i, (layer, (_, mean, var)) in enumerate(
        zip(net.layers, expected(net, data, sequential), strict=True)
    ):
        assert_statistics(layer, mean, var, error, f"layer {i}")
        assert layer.num_batches_tracked == len(sizes)


def test_variance_of_everything():
    """Not a mean of variances: the batches differ in their means."""
    data = batches([4, 4, 4, 2])
    bn = nbn.BatchNorm(CHANNELS, dtype=np.float64)
    nbn.recalibrate([bn], bn, data)
    _, mean, var = population(data)
    assert_statistics(bn, mean, var, 1e-13, "the layer")
    assert (bn.running_var > 5 * np.mean([x.var(axis=(0, 2), ddof=1) for x in data], axis=0)).all()


def test_modes_agree_on_one_batch():
    """But for the bias of the variance that the layers before normalise with."""
    one, other = Net(dtype=np.float64), Net(dtype=np.float64)
    data = batches([2000])
    nbn.recalibrate(one.layers, one, data)
    nbn.recalibrate(other.layers, other, data, sequential=True)
    for a, b in zip(one.layers, other.layers, strict=True):
        np.testing.assert_allclose(a.running_mean, b.running_mean, rtol=1e-3)
        np.testing.assert_allclose(a.running_var, b.running_var, rtol=1e-3)


@pytest.mark.parametrize("sequential", [False, True])
def test_layers_that_an_addition_and_a_relu_follow(sequential):
    """The statistics are those of what comes into a layer, and all that follows one comes into the next."""
    net, data = Net(2, activation="relu", dtype=np.float64), batches([6, 4, 5])
    one, other = net.layers
    nbn.recalibrate(net.layers, lambda x: other(one(x, residual=x), residual=x), data, sequential=sequential)
    _, mean, var = population(data)
    assert_statistics(one, mean, var, 1e-11, "the first layer")
    inputs = []
    for x in data:
        known = (mean, var) if sequential else (x.mean(axis=(0, 2)), x.var(axis=(0, 2)))
        inputs.append(np.maximum(normalised(x, one, *known) + x, 0.0))
    _, mean, var = population(inputs)
    assert_statistics(other, mean, var, 1e-11, "the second layer")


def test_sequential_does_not_depend_on_the_batches():
    whole = batches([16])[0]
    results = []
    for count in (1, 3, 8):
        net = Net(dtype=np.float64)
        nbn.recalibrate(net.layers, net, np.array_split(whole, count), sequential=True)
        results.append([(layer.running_mean, layer.running_var) for layer in net.layers])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)
    np.testing.assert_allclose(results[0], results[2], rtol=1e-12)


@pytest.mark.parametrize("sequential", [False, True])
def test_nothing_else_changes(sequential):
    net, data = Net(), batches([3, 5], np.float32)
    net.layers[0].eval()
    net.layers[1].momentum = None
    before = [everything(layer) for layer in net.layers]
    with net.layers[2].frozen_stats():
        nbn.recalibrate(net.layers, net, data, sequential=sequential)
        assert net.layers[2]._frozen == 1
    for layer, (state, *rest) in zip(net.layers, before, strict=True):
        now, *others = everything(layer)
        assert others == rest
        changed = {name for name in state if now[name] != state[name]}
        assert {name for name in changed if not name.startswith("population")} == STATISTICS
        assert (changed != STATISTICS) == (layer.momentum is None)
    assert [layer.training for layer in net.layers] == [False, True, True]


def test_training_goes_on():
    """With momentum=None from the population, else as an average that starts at the new statistics."""
    data, more = batches([3, 5]), batches([4], seed=7)[0]
    pooled, averaged = (nbn.BatchNorm(CHANNELS, momentum=m, dtype=np.float64) for m in (None, 0.25))
    for bn in (pooled, averaged):
        bn(more + 100)
        nbn.recalibrate([bn], bn, data)
        bn(more)
        assert bn.num_batches_tracked == 3
    _, mean, var = population([*data, more])
    assert_statistics(pooled, mean, var, 1e-13, "pooled")
    (_, mean, var), (_, new_mean, new_var) = population(data), population([more])
    assert_statistics(averaged, 0.75 * mean + 0.25 * new_mean, 0.75 * var + 0.25 * new_var, 1e-13, "averaged")
    averaged.momentum = None  # whose population was not in use: it begins now
    assert averaged.state_dict()["population_count"] == 0


def test_a_layer_given_or_called_twice():
    bn, data = nbn.BatchNorm(CHANNELS, dtype=np.float64), batches([3, 5])
    calls = []
    nbn.recalibrate([bn, bn], lambda x: (calls.append(1), bn(x), bn(-x)), data, sequential=True)
    assert len(calls) == 2
    _, mean, var = population([*data, *(-x for x in data)])
    assert_statistics(bn, mean, var, 1e-13, "the layer")


def test_generators():
    net, data = Net(dtype=np.float64), batches([3, 5])
    nbn.recalibrate((layer for layer in net.layers), net, (x for x in data))
    for layer, (_, mean, var) in zip(net.layers, expected(net, data, False), strict=True):
        assert_statistics(layer, mean, var, 1e-11, "the layer")


@pytest.mark.parametrize("sequential", [False, True])
def test_bar(sequential, capsys):
    net = Net()
    nbn.recalibrate(net.layers, net, batches([3, 5], np.float32), progress=True, sequential=sequential)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "batch" in shown
    assert ("recalibrate 3/3" in shown) == sequential


# What is refused, and leaves everything as it was -----------------------------------------------------------


class BrokenError(Exception):
    pass


def fails_at(number):
    """A forward of a net, that raises when it is called for this time."""

    def make(net):
        calls = []

        def forward(x):
            calls.append(1)
            net(x)
            if len(calls) == number:
                raise BrokenError

        return forward

    return make


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_forward_raises(number, sequential):
    net = Net()
    before = [everything(layer) for layer in net.layers]
    with pytest.raises(BrokenError):
        nbn.recalibrate(net.layers, fails_at(number)(net), batches([3, 5], np.float32), sequential=sequential)
    assert [everything(layer) for layer in net.layers] == before


def test_forward_raises_in_the_last_pass():
    net = Net()
    before = [everything(layer) for layer in net.layers]
    with pytest.raises(BrokenError):
        nbn.recalibrate(net.layers, fails_at(6)(net), batches([3, 5], np.float32), sequential=True)
    assert [everything(layer) for layer in net.layers] == before


def switches(net):
    def forward(x):
        for layer in net.layers:
            layer.eval()
        net(x)

    return forward


def trains(net):
    def forward(x):
        for layer in net.layers:
            layer.train()
        net(x)

    return forward


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": lambda net: 3}, TypeError, "layers must be a list of BatchNorm, not int"),
        ({"layers": lambda net: net.layers[0]}, TypeError, "layers must be a list of BatchNorm, not BatchN"),
        ({"layers": lambda net: []}, ValueError, "layers is empty"),
        ({"layers": lambda net: [net.layers[0], net]}, TypeError, "layer 1 is Net; pass"),
        (
            {"layers": lambda net: [nbn.BatchNorm(3, track_running_stats=False)]},
            ValueError,
            "layer 0 has no running statistics",
        ),
        (
            {"layers": lambda net: [*net.layers, nbn.BatchNorm(3)]},
            ValueError,
            "layer 3 saw no data: .*forward does not call it",
        ),
        ({"batches": []}, ValueError, "layer 0 saw no data: batches has none"),
        ({"batches": batches([0, 0], np.float32)}, ValueError, "layer 0 saw no data"),
        ({"batches": 3}, TypeError, "batches must be an iterable of batches, not int"),
        ({"batches": iter([1]), "sequential": True}, TypeError, "batches is a list_iterator.*once"),
        ({"batches": (x for x in ()), "sequential": True}, TypeError, "batches is a generator.*once"),
        ({"batches": [np.ones((1, 3), np.float32)]}, ValueError, "one value per channel"),
        ({"forward": lambda net: net.layers}, TypeError, "forward must be a function of a batch, not list"),
        ({"forward": switches}, ValueError, "forward put layer 0 into evaluation mode"),
        ({"forward": trains, "sequential": True}, ValueError, "forward put layer 1 into training mode"),
    ],
)
def test_refused(change, error, message):
    net = Net()
    before = [everything(layer) for layer in net.layers]
    layers = change.get("layers", lambda net: net.layers)(net)
    forward = change.get("forward", lambda net: net)(net)
    data = change.get("batches", batches([3, 5], np.float32))
    with pytest.raises(error, match=message):
        nbn.recalibrate(layers, forward, data, sequential=change.get("sequential", False))
    assert [everything(layer) for layer in net.layers] == before


def test_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    net = Net()
    before = [everything(layer) for layer in net.layers]
    with pytest.raises(ImportError, match=r'pip install "numbabn\[progress\]"'):
        nbn.recalibrate(net.layers, net, batches([3], np.float32), progress=True)
    assert [everything(layer) for layer in net.layers] == before
