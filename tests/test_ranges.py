"""Values at the ends of the floating-point ranges, and callers who want to hear of floating-point errors."""

import numpy as np
import pytest

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_close, assert_same_bits
from tests.support.jit import needs_jit
from tests.support.problems import Problem

SHAPES = [(40, 8), (17, 3), (300_000, 2), (3, 2, 40), (3, 2, 400_000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [1e155, -1e200, 1.7e308, 1e-310])
def test_constants_of_float64_give_exactly_beta(shape, value):
    y, saved = nbn.batch_norm_forward(np.full(shape, value), None, np.full(shape[1], 0.5))
    assert (y == 0.5).all()
    assert (saved.mean == value).all()
    assert (saved.var == 0).all()


@needs_jit  # without it, kernels are NumPy's arithmetic, which warns
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_at_both_ends_of_its_range(shape):
    x = np.full(shape, 3e38, np.float32)
    x[::2] *= -1
    _, mean, m2 = reference.moments(x, 1)
    _, saved = nbn.batch_norm_forward(x)
    # Deviations of float64, squares of 1e77: a few roundings each.
    np.testing.assert_allclose(saved.mean, mean, rtol=0, atol=3e38 * 1e-13)
    np.testing.assert_allclose(saved.var, m2 / (x.size // shape[1]), rtol=1e-12)
    _, mean, m2 = nbn.moments(x)
    np.testing.assert_allclose(m2, saved.var * (x.size // shape[1]), rtol=1e-12)


@needs_jit
@pytest.mark.parametrize("shape", [(40, 100), (9000, 100), (64, 100, 3, 3), (4, 100, 6, 6)])
def test_channels_whose_squares_leave_the_range_of_float32_change_no_bits_of_others(shape):
    """Channels beside each other are summed in one vector, and some of them once more in float64."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    _, plain = nbn.batch_norm_forward(x)
    sizes = np.ones(100, np.float32)
    sizes[[3, 50, 99]] = 1e-21, 1e25, 0
    x *= sizes.reshape(1, -1, *(1,) * (x.ndim - 2))
    _, saved = nbn.batch_norm_forward(x)
    _, mean, m2 = reference.moments(x, 1)
    var = m2 / (x.size // 100)
    # Sums of a few squares are float32: a few roundings of 6e-8 each.
    np.testing.assert_allclose(saved.var, var, rtol=5e-7)
    np.testing.assert_array_less(np.abs(saved.mean - mean), 3e-7 * np.sqrt(var) + 1e-300)
    same = sizes == 1
    assert_same_bits(saved.mean[same], plain.mean[same], "mean")
    assert_same_bits(saved.var[same], plain.var[same], "var")


@needs_jit
@pytest.mark.parametrize("shape", [(40, 8), (300_001, 2), (3, 2, 40), (1, 2, 1_000_001)])
@pytest.mark.parametrize("size", [1e-160, 1e160])
@pytest.mark.parametrize("given", [False, True])
def test_no_floating_point_error_is_raised(shape, size, given):
    """Sums that underflow or overflow are no business of a caller who wants to hear of his own."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape)) * size
    gamma, beta = np.ones(shape[1]), np.zeros(shape[1])
    statistics = {"mean": gamma * size, "var": gamma * size} if given else {}
    quiet = nbn.batch_norm_forward(x, gamma, beta, **statistics)
    expected = nbn.batch_norm_backward(dy, quiet[1])
    with np.errstate(all="raise"):
        y, saved = nbn.batch_norm_forward(x, gamma, beta, **statistics)
        found = nbn.batch_norm_backward(dy, saved)
        nbn.moments(x)
    assert_same_bits(y, quiet[0], "y")
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b, "a gradient")


@needs_jit
def test_momentum_0_takes_nothing_of_an_infinite_batch():
    bn = nbn.BatchNorm(2, momentum=0.0)
    bn(np.array([[np.inf, 1.0], [np.nan, 2.0]]))
    assert bn.running_mean.tolist() == [0, 0]
    assert bn.running_var.tolist() == [1, 1]
    assert bn.num_batches_tracked == 1


@needs_jit
def test_momentum_1_keeps_nothing_of_nan():
    bn = nbn.BatchNorm(1, momentum=1.0)
    bn(np.array([[np.inf], [np.nan]]))
    assert np.isnan(bn.running_mean).all()
    bn(np.array([[1.0], [3.0]]))
    assert bn.running_mean.tolist() == [2]
    assert bn.running_var.tolist() == [2]


def test_out_may_differ_from_x_in_strides_that_mean_nothing():
    x = np.random.default_rng(0).standard_normal((4, 3, 1))
    out = np.lib.stride_tricks.as_strided(x, strides=(*x.strides[:2], 4000))
    expected = nbn.batch_norm_inference(x, np.ones(3), np.ones(3))
    assert nbn.batch_norm_inference(x, np.ones(3), np.ones(3), out=out) is out
    assert_same_bits(x, expected, "x")


class Subclass(np.ndarray):
    """An array that is not exactly an ndarray."""


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_is_returned_is_out(order, tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 3))
    mapped = np.memmap(tmp_path / "file", np.float64, "w+", shape=(4, 3), order=order)
    for out in (mapped, np.empty((4, 3), order=order).view(Subclass)):
        y, saved = nbn.batch_norm_forward(x, out=out)
        assert y is out
        assert nbn.batch_norm_inference(x, np.ones(3), np.ones(3), out=out) is out
        assert nbn.batch_norm_backward(x, saved, out=out)[0] is out
        bn = nbn.BatchNorm(3)
        assert bn(x, out=out) is out
        assert bn.backward(x, out=out) is out


@needs_jit
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("spread", "gamma"), [(1e-30, 1.0), (1e30, 1.0), (1e-20, 1e-30), (1e20, 1e30), (1.0, 1e30), (1.0, 1e-30)]
)
def test_y_and_dx_are_right_where_gamma_over_std_is_in_range(shape, spread, gamma):
    """The table of all backends has small shapes only; these are for the other kernels of the CPU."""
    problem = Problem(shape, offset=spread, spread=spread, eps=0.0)
    x, dy, gamma = problem.x(), problem.dy(), problem.gamma() * np.float64(gamma)
    y, saved = nbn.batch_norm_forward(x, gamma, eps=0.0)
    dx, *_ = nbn.batch_norm_backward(dy, saved)
    assert_close(y, reference.forward(x, gamma, eps=0.0), reference.forward_error(x, gamma, eps=0.0), "y")
    expected, *_ = reference.backward(dy, x, gamma, eps=0.0)
    error, *_ = reference.backward_error(dy, x, gamma, eps=0.0)
    assert_close(dx, expected, error, "dx")


def signalling(dtype, otherwise):
    """Return eight values, of which number 1 is a signalling NaN: whatever computes with it raises a flag."""
    values = np.full(8, otherwise, dtype)
    word = {2: 0x7D00, 4: 0x7FA00000, 8: 0x7FF4 << 48}[values.itemsize]
    values.view(f"u{values.itemsize}")[1] = word
    return values


def only_channel_1_is_nan(result):
    return np.isnan(result[:, 1]).all() and np.isfinite(np.delete(result, 1, axis=1)).all()


@needs_jit
@pytest.mark.parametrize("floating_point_errors", ["warn", "raise"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 8), (3, 8, 40), (40_000, 8)])
def test_signalling_nan_is_a_nan(shape, dtype, floating_point_errors):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    ones, zeros, nan = np.ones(8, dtype), np.zeros(8, dtype), signalling(dtype, 1.0)
    with np.errstate(all=floating_point_errors):
        for gamma, beta in ((nan, zeros), (ones, nan)):
            y, saved = nbn.batch_norm_forward(x, gamma, beta)
            assert only_channel_1_is_nan(y)
            dx, dgamma, dbeta = nbn.batch_norm_backward(x, saved)
            assert np.isfinite(np.delete(dx, 1, axis=1)).all()
            assert np.isfinite(dgamma).all()
            assert np.isfinite(dbeta).all()
        for mean, var in ((nan, ones), (zeros, nan)):
            assert only_channel_1_is_nan(nbn.batch_norm_inference(x, mean, var))
            y, saved = nbn.batch_norm_forward(x, ones, mean=mean, var=var)
            assert only_channel_1_is_nan(y)
            nbn.batch_norm_backward(x, saved)


@needs_jit
@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
@pytest.mark.parametrize("layer_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_signalling_nan_in_a_layer(momentum, layer_dtype, name):
    x = np.random.default_rng(0).standard_normal((40, 8), np.float32)
    bn = nbn.BatchNorm(8, momentum=momentum, dtype=layer_dtype)
    with np.errstate(all="raise"):
        bn.load_state_dict({**bn.state_dict(), name: signalling(np.float32, 1.0)})
        assert only_channel_1_is_nan(bn.eval()(x))
        bn.backward(x)
        bn.train()(x)
        bn.backward(x)
        bn.load_state_dict(bn.state_dict())


def test_signalling_nan_among_weights_is_refused_as_any_other():
    with np.errstate(all="raise"), pytest.raises(ValueError, match=r"weights\[1\] is nan"):
        nbn.Moments().update(np.ones(8), weights=signalling(np.float32, 1.0))
