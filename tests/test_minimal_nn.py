"""The network pieces of the examples: gradients against finite differences, results against formulas."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

import numbabn as nbn
from tests.support.gradients import check_gradients, numeric_gradient

PATH = Path(__file__).parents[1] / "examples" / "minimal_nn.py"
SPEC = importlib.util.spec_from_file_location("minimal_nn", PATH)
nn = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(nn)

SEEDS = range(5)


def spread_values(rng, shape):
    """Distinct values, at least 0.05 apart and away from 0: no kink within a finite difference."""
    return (rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape) // 2 + 0.5) * 0.05


@pytest.fixture(params=SEEDS)
def rng(request):
    return np.random.default_rng(request.param)


@pytest.mark.parametrize("bias", [True, False])
def test_dense(rng, bias):
    n, inputs, outputs = rng.integers(1, 7, size=3)
    layer = nn.Dense(inputs, outputs, bias=bias, rng=rng, dtype=np.float64)
    x = rng.standard_normal((n, inputs))
    for p in layer.params.values():
        p[...] = rng.standard_normal(p.shape)

    expected = np.einsum("ni,oi->no", x, layer.params["weight"]) + layer.params.get("bias", 0)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)
    check_gradients(layer, x, rng)


def random_convolution(rng, bias):
    stride, padding, kernel_size = rng.integers(1, 4), rng.integers(0, 3), rng.integers(1, 4)
    n, c, o = rng.integers(1, 4, size=3)
    layer = nn.Conv2d(c, o, kernel_size, stride=stride, padding=padding, bias=bias, rng=rng, dtype=np.float64)
    return layer, rng.standard_normal((n, c, *rng.integers(kernel_size, 8, size=2)))


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d(rng, bias):
    layer, x = random_convolution(rng, bias)
    for p in layer.params.values():
        p[...] = rng.standard_normal(p.shape)

    y = layer(x)
    padded = np.pad(x, [(0, 0), (0, 0), (layer.padding, layer.padding), (layer.padding, layer.padding)])
    for n, o in np.ndindex(y.shape[:2]):
        full = correlate(padded[n], layer.params["weight"][o], mode="valid", method="direct")[0]
        expected = full[:: layer.stride, :: layer.stride] + layer.params.get("bias", np.zeros(o + 1))[o]
        np.testing.assert_allclose(y[n, o], expected, rtol=1e-12, atol=1e-13)
    check_gradients(layer, x, rng)


def test_max_pool(rng):
    k = int(rng.integers(1, 4))
    n, c, h, w = rng.integers(1, 4, size=4)
    layer = nn.MaxPool2d(k)
    x = spread_values(rng, (n, c, h * k, w * k))

    y = layer(x)
    for i, j in np.ndindex(h, w):
        patch = x[:, :, i * k : (i + 1) * k, j * k : (j + 1) * k]
        np.testing.assert_array_equal(y[:, :, i, j], patch.max(axis=(2, 3)))
    check_gradients(layer, x, rng)


def test_max_pool_shares_the_gradient_between_equal_pixels():
    layer = nn.MaxPool2d(2)
    layer(np.array([[[[3.0, 1.0], [3.0, 2.0]]]]))
    np.testing.assert_array_equal(layer.backward(np.ones((1, 1, 1, 1))), [[[[0.5, 0.0], [0.5, 0.0]]]])


def test_relu(rng):
    x = spread_values(rng, tuple(rng.integers(1, 6, size=3)))
    layer = nn.ReLU()
    np.testing.assert_array_equal(layer(x), np.where(x > 0, x, 0))
    check_gradients(layer, x, rng)


@pytest.mark.parametrize(
    ("layer", "function"), [(nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))), (nn.Tanh(), np.tanh)]
)
def test_sigmoid_and_tanh(rng, layer, function):
    x = 3 * rng.standard_normal(tuple(rng.integers(1, 6, size=3)))
    np.testing.assert_allclose(layer(x), function(x), rtol=1e-14, atol=1e-15)
    check_gradients(layer, x, rng)


def test_sigmoid_of_huge_numbers():
    np.testing.assert_array_equal(nn.Sigmoid()(np.array([-1e4, 1e4])), [0, 1])


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer = nn.Dropout(0.3, rng=np.random.default_rng(0))
    x = np.ones((100, 1000), np.float32)
    y = layer(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    # The share of 100,000 elements has a standard deviation of sqrt(0.3 * 0.7 / 1e5) = 0.00145.
    assert (y == 0).mean() == pytest.approx(0.3, abs=5 * 0.00145)
    np.testing.assert_array_equal(layer.backward(2 * x), 2 * y)
    layer.eval()
    assert layer(x) is x
    layer.train()
    assert (layer(x) != y).any(), "other elements are dropped in every call"


def test_residual(rng):
    x = spread_values(rng, (4, 5))
    layer = nn.Residual(nn.Dense(5, 5, rng=rng, dtype=np.float64), nn.Tanh())
    np.testing.assert_allclose(layer(x), x + np.tanh(x @ layer.params["0.weight"].T), rtol=1e-12)
    check_gradients(layer, x, rng)


def test_flatten(rng):
    n, c, h, w = rng.integers(1, 5, size=4)
    x = rng.standard_normal((n, c, h, w))
    layer = nn.Flatten()
    assert layer(x).shape == (n, c * h * w)
    check_gradients(layer, x, rng)


def test_softmax_cross_entropy(rng):
    n, k = rng.integers(1, 8), rng.integers(2, 12)
    logits = 3 * rng.standard_normal((n, k))
    labels = rng.integers(k, size=n)

    loss, dlogits = nn.softmax_cross_entropy(logits, labels)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.mean(np.log(p[np.arange(n), labels])), rel=1e-12)
    expected = numeric_gradient(lambda: nn.softmax_cross_entropy(logits, labels)[0], logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-8)


def test_softmax_cross_entropy_of_huge_logits():
    loss, dlogits = nn.softmax_cross_entropy(np.array([[1e4, 0.0]]), np.array([1]))
    assert loss == pytest.approx(1e4)
    np.testing.assert_array_equal(dlogits, [[1.0, -1.0]])


def small_cnn(rng, dtype):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False, rng=rng, dtype=dtype),
        nbn.BatchNorm(3, dtype=dtype),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dense(12, 4, bias=False, rng=rng, dtype=dtype),
        nbn.BatchNorm(4, dtype=dtype),
    )


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_sequential_with_batch_norm(rng, mode):
    net = small_cnn(rng, np.float64)
    x = rng.standard_normal((5, 2, 4, 4))
    for _ in range(10):
        net(x)
    getattr(net, mode)()
    check_gradients(net, x, rng)


def test_sequential_applies_its_layers_in_order(rng):
    net = small_cnn(rng, np.float64)
    x = y = rng.standard_normal((5, 2, 4, 4))
    for layer in net.layers:
        y = layer(y)
    np.testing.assert_array_equal(net(x), y)
    assert list(net.params) == ["0.weight", "1.gamma", "1.beta", "5.weight", "6.gamma", "6.beta"]
    assert net.params["1.gamma"] is net.layers[1].params["gamma"]


def test_sequential_switches_batch_norm_between_training_and_evaluation(rng):
    inner = nn.Sequential(nbn.BatchNorm(3))
    net = nn.Sequential(inner, nn.ReLU())
    net.eval()
    assert not inner.layers[0].training
    net.train()
    assert inner.layers[0].training


def test_float32_stays_float32(rng):
    net = small_cnn(rng, np.float32)
    x = rng.standard_normal((5, 2, 4, 4)).astype(np.float32)
    logits = net(x)
    _, dlogits = nn.softmax_cross_entropy(logits, np.array([0, 1, 2, 3, 0]))
    dx = net.backward(dlogits)
    assert {a.dtype for a in (logits, dlogits, dx, *net.params.values(), *net.grads.values())} == {x.dtype}


def test_he_normal():
    weight = nn.he_normal(np.random.default_rng(0), (200, 500), 50, np.float32)
    assert weight.dtype == np.float32
    assert weight.var() == pytest.approx(2 / 50, rel=0.02)
    assert abs(weight.mean()) < 0.002


def test_sgd_follows_its_formula(rng):
    layer = nn.Dense(3, 2, rng=rng, dtype=np.float64)
    sgd = nn.SGD(layer, lr=0.1, momentum=0.9)
    expected = {name: p.copy() for name, p in layer.params.items()}
    velocity = dict.fromkeys(expected, 0.0)
    original = dict(layer.params)
    for _ in range(4):
        for name, p in layer.params.items():
            g = rng.standard_normal(p.shape)
            layer.grads[name] = g
            velocity[name] = 0.9 * velocity[name] + g
            expected[name] = expected[name] - 0.1 * velocity[name]
        sgd.step()
    for name, p in layer.params.items():
        assert p is original[name]
        np.testing.assert_allclose(p, expected[name], rtol=1e-12)


def test_training_lowers_the_loss():
    rng = np.random.default_rng(0)
    net = small_cnn(rng, np.float32)
    x = rng.standard_normal((16, 2, 4, 4)).astype(np.float32)
    labels = rng.integers(4, size=16)
    sgd = nn.SGD(net, lr=0.1)
    losses = []
    for _ in range(30):
        loss, dlogits = nn.softmax_cross_entropy(net(x), labels)
        net.backward(dlogits)
        sgd.step()
        losses.append(loss)
    assert losses[-1] < 0.1 * losses[0]
