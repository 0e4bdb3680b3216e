"""The layers of train_fashion.py: gradients against finite differences, results against formulas."""

from functools import partial

import numpy as np
import pytest
from scipy.signal import correlate

from tests.support.gradients import check_gradients

SEEDS = range(3)
SLOW = pytest.mark.slow  # kernels of their own are compiled
NORMS = ("batch", *(pytest.param(norm, marks=SLOW) for norm in ("group", "layer", "instance")))


@pytest.fixture(params=[1, 1 << 30], ids=["one by one", "together"])
def channels_last(request, example, monkeypatch):
    """The layers, for which images are taken one by one, or all together."""
    module = example("channels_last")
    monkeypatch.setattr(module, "GROUP_BYTES", request.param)
    return module


@pytest.fixture(params=SEEDS)
def rng(request):
    return np.random.default_rng(request.param)


def correlated(x, weight):
    """The convolution in NHWC by SciPy, with zeros around the images."""
    p = len(weight) // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    y = np.empty((*x.shape[:3], weight.shape[-1]))
    for n, o in np.ndindex(len(x), weight.shape[-1]):
        y[n, :, :, o] = correlate(padded[n], weight[..., o], mode="valid", method="direct")[:, :, 0]
    return y


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_convolution(kernel_size, channels_last, rng):
    n, h, w, inputs, outputs = rng.integers(1, 5, size=5)
    layer = channels_last.Conv2d(inputs, outputs, kernel_size, rng=rng, dtype=np.float64)
    x = rng.standard_normal((n, h, w, inputs))
    # Float64, sums of at most 100 products near 1.
    np.testing.assert_allclose(layer(x), correlated(x, layer.params["weight"]), rtol=1e-12, atol=1e-13)
    check_gradients(layer, x, rng)


def test_a_convolution_of_images_gives_no_gradient_of_them(channels_last, rng):
    x = rng.standard_normal((4, 6, 5, 2))
    layers = [
        kind(2, 3, rng=np.random.default_rng(0), dtype=np.float64)
        for kind in (channels_last.Conv2d, channels_last.ImageConv2d)
    ]
    dy = rng.standard_normal((4, 6, 5, 3))
    usual, of_images = ((layer(x), layer.backward(dy)) for layer in layers)
    np.testing.assert_array_equal(of_images[0], usual[0])
    assert of_images[1] is None
    # The same 120 products in another order.
    np.testing.assert_allclose(layers[1].grads["weight"], layers[0].grads["weight"], rtol=1e-12, atol=1e-12)


def test_downsampling(channels_last, rng):
    n, h, w, inputs, outputs = rng.integers(1, 5, size=5)
    layer = channels_last.Downsample(inputs, outputs, rng=rng, dtype=np.float64)
    x = rng.standard_normal((n, 2 * h, 2 * w, inputs))
    squares = x.reshape(n, h, 2, w, 2, inputs)
    expected = np.einsum("nhiwjc,ijco->nhwo", squares, layer.params["weight"])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-13)
    check_gradients(layer, x, rng)


def test_global_average_pool(channels_last, rng):
    x = rng.standard_normal(tuple(rng.integers(1, 6, size=4)))
    layer = channels_last.GlobalAveragePool()
    np.testing.assert_allclose(layer(x), np.einsum("nhwc->nc", x) / x[0, :, :, 0].size, rtol=1e-12)
    check_gradients(layer, x, rng)


def test_bits_do_not_depend_on_the_number_of_threads(example, monkeypatch):
    """The sum of dW over the groups has an order of its own."""
    module = example("channels_last")
    monkeypatch.setattr(module, "GROUP_BYTES", 1)
    found = []
    for threads in (1, 3):
        rng = np.random.default_rng(0)
        with module.ThreadPoolExecutor(threads) as pool:
            monkeypatch.setattr(module, "THREADS", pool)
            layer = module.Conv2d(3, 5, rng=rng)
            layer(rng.standard_normal((40, 7, 7, 3), np.float32))
            dx = layer.backward(rng.standard_normal((40, 7, 7, 5), np.float32))
        found.append((dx, layer.grads["weight"]))
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)


def normalised(x, norm, groups):
    """The values of x (N, H, W, C) minus their mean, by their deviation, as the norm of this name has it."""
    if norm == "batch":
        axes, grouped = (0, 1, 2), x
    else:
        count = {"group": groups, "layer": 1, "instance": x.shape[-1]}[norm]
        axes, grouped = (1, 2, 4), x.reshape(*x.shape[:3], count, -1)
    scale = np.sqrt(grouped.var(axis=axes, keepdims=True) + 1e-5)
    return ((grouped - grouped.mean(axis=axes, keepdims=True)) / scale).reshape(x.shape)


@pytest.fixture(params=NORMS)
def norm(request):
    return request.param


def a_block(example, norm, rng):
    residual = example("residual")
    block = residual.Block(8, residual.NORMS[norm], rng=rng, dtype=np.float64)
    for p in block.params.values():
        if p.ndim == 1:
            p += 0.3 * rng.standard_normal(p.shape)
    return block


def test_a_block(norm, example):
    rng = np.random.default_rng(0)
    block, x = a_block(example, norm, rng), rng.standard_normal((3, 4, 4, 8))
    formula = partial(normalised, norm=norm, groups=example("residual").GROUPS)
    p, y = block.params, x
    for i, added in ((0, 0), (2, x)):
        y = formula(correlated(y, p[f"{i}.weight"])) * p[f"{i + 1}.gamma"] + p[f"{i + 1}.beta"]
        y = np.maximum(y + added, 0)
    # Float64: two sums of 72 products, and a norm that divides by deviations near 1.
    np.testing.assert_allclose(block(x), y, rtol=1e-11, atol=1e-12)


def test_gradients_of_a_block(norm, example):
    rng = np.random.default_rng(1)
    check_gradients(a_block(example, norm, rng), rng.standard_normal((2, 3, 3, 8)), rng)


def test_gradients_of_the_network(norm, example):
    """The loss changes along a random direction of all parameters as their gradients say."""
    rng = np.random.default_rng(2)
    net = example("residual").residual_network(rng, 2, 5, norm, dtype=np.float64)
    loss_of = example("minimal_nn").softmax_cross_entropy
    x, labels = rng.standard_normal((6, 8, 12, 2)), rng.integers(5, size=6)
    _, dlogits = loss_of(net(x), labels)
    net.backward(dlogits)
    assert net.grads.keys() == net.params.keys()
    direction = {name: rng.standard_normal(p.shape) for name, p in net.params.items()}
    expected = sum(np.vdot(net.grads[name], change) for name, change in direction.items())

    def loss_at(distance):
        for name, change in direction.items():
            net.params[name] += distance * change
        loss, _ = loss_of(net(x), labels)
        for name, change in direction.items():
            net.params[name] -= distance * change
        return loss

    step = 1e-7
    slope = (loss_at(step) - loss_at(-step)) / (2 * step)
    # The loss is near 2 with 16 digits, so that its slope has an error of some 1e-9; kinks add theirs.
    assert slope == pytest.approx(expected, rel=1e-5)


def test_every_stage_of_the_network_has_a_block(example):
    """With half the height and width of the stage before, and twice its channels."""
    residual = example("residual")
    net = residual.residual_network(np.random.default_rng(0), 1, 10, "batch", dtype=np.float64)
    y, shapes = np.ones((2, 12, 16, 1)), []
    for layer in net.layers:
        y = layer(y)
        if isinstance(layer, residual.Block):
            shapes.append(y.shape)
    assert shapes == [(2, 12, 16, 16), (2, 6, 8, 32), (2, 3, 4, 64)]
    assert y.shape == (2, 10)


def test_state_of_a_network(example):
    """What one network has learned makes another, drawn from another seed, the same in evaluation mode."""
    make = example("residual").residual_network
    rng = np.random.default_rng(3)
    first, second = (make(np.random.default_rng(seed), 1, 4, "batch") for seed in range(2))
    x = rng.standard_normal((5, 8, 8, 1))  # float64, as in the other tests, for which kernels are compiled
    first(x)
    state = first.state_dict()
    assert not any(np.shares_memory(state[name], p) for name, p in first.params.items())
    second.load_state_dict(state)
    first.eval()
    second.eval()
    np.testing.assert_array_equal(first(x), second(x))


def test_a_state_of_other_shapes_is_refused(example):
    make = example("residual").residual_network
    first, second = (make(np.random.default_rng(0), channels, 4, "batch") for channels in (1, 2))
    with pytest.raises(ValueError, match=r"weight has shape \(3, 3, 1, 16\) in place of \(3, 3, 2, 16\)"):
        second.load_state_dict(first.state_dict())


def test_nesterov_momentum_and_weight_decay(example):
    rng = np.random.default_rng(4)

    class Net:
        params = {"weight": rng.standard_normal((3, 2)), "gamma": rng.standard_normal(3)}  # noqa: RUF012
        grads = {name: rng.standard_normal(p.shape) for name, p in params.items()}  # noqa: RUF012

    start = {name: p.copy() for name, p in Net.params.items()}
    sgd = example("descent").Nesterov(Net, lr=0.1, momentum=0.8, decay=0.01)
    sgd.step()
    sgd.step()
    for name, decay in (("weight", 0.01), ("gamma", 0)):
        p, v = start[name], 0
        for _ in range(2):
            g = Net.grads[name] + decay * p
            v = 0.8 * v + g
            p = p - 0.1 * (g + 0.8 * v)
        np.testing.assert_allclose(Net.params[name], p, rtol=1e-14)


def test_the_learning_rate_rises_and_falls_as_a_cosine(example):
    rates = np.array([example("descent").cosine(step, 110, 10) for step in range(110)])
    np.testing.assert_allclose(rates[:11], np.arange(1, 12) / 11)
    np.testing.assert_allclose(rates[10::25], [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5], rtol=1e-12)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("mirror", [True, False])
def test_augmented_images_are_moved_and_mirrored(mirror, example):
    rng = np.random.default_rng(5)
    images = rng.standard_normal((300, 4, 6, 2), np.float32)
    before = images.copy()
    found = example("augment").augmented(images, rng, shift=1, mirror=mirror)
    np.testing.assert_array_equal(images, before)
    assert found.dtype == images.dtype
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    seen = []
    for n in range(len(images)):
        matches = [
            (down, right, flip)
            for down, right, flip in np.ndindex(3, 3, 2)
            if np.array_equal(
                padded[n, down : down + 4, right : right + 6][:, :: -1 if flip else 1], found[n]
            )
        ]
        assert len(matches) == 1
        seen += matches
    assert len(set(seen)) == (18 if mirror else 9)
