"""The promises about numbers, in figures: accuracy, constants, and poison that does not spread."""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_same_bits
from tests.support.digests import results_of
from tests.support.jit import JIT, needs_jit
from tests.support.problems import Problem
from tests.support.strategies import SMALL_PATHS, regime

# Interpreted kernels are NumPy scalars, which warn where the compiled ones are silent, as they should be.
quiet = contextlib.nullcontext if JIT else lambda: np.errstate(all="ignore")

# Shapes of several hundred thousand elements, and the same kinds of shapes smaller.
KINDS = {
    "NCHW, blocks of channels": ((8, 32, 32, 32) if JIT else (2, 4, 8, 8), 1),
    "NCHW, few channels": ((4, 3, 260, 260) if JIT else (2, 3, 40, 40), 1),
    "NCHW, small images": ((128, 64, 7, 7) if JIT else (16, 8, 7, 7), 1),
    "NCHW, tiny images": ((512, 64, 3, 3) if JIT else (32, 8, 3, 3), 1),
    "NHWC": ((8, 64, 64, 16) if JIT else (2, 16, 16, 5), -1),
    "NHWC, three channels": ((4, 128, 128, 3) if JIT else (2, 16, 16, 3), -1),
    "NHWC, many channels": ((32, 7, 7, 2048) if JIT else (4, 3, 3, 256), -1),
    "NC, small batch": ((64, 4096) if JIT else (16, 256), 1),
    "NC": ((20_000, 24) if JIT else (400, 24), 1),
    "NC, one channel": ((300_000, 1) if JIT else (4000, 1), 1),
}
kinds = pytest.mark.parametrize(("shape", "axis"), KINDS.values(), ids=KINDS.keys())


# Accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, -10, 100, 1e3, 1e4, 1e6])
@kinds
def test_forward_at_an_offset(shape, axis, offset):
    """Max |y - exact| <= 1e-6 for standard deviation 1 at offsets to 1e4, 2e-6 at 1e6."""
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    y, _ = nbn.batch_norm_forward(x, axis=axis)
    error = np.abs(y - reference.forward(x, axis=axis)).max()
    assert error <= (1e-6 if abs(offset) <= 1e4 else 2e-6)


@pytest.mark.parametrize("offset", [0, 1e4, 1e6])
@kinds
def test_inference_at_an_offset(shape, axis, offset):
    """Inference with float64 statistics has max |y - exact| <= 1e-6 at offsets to 1e4, and 2e-6 at 1e6."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    mean = offset + 0.1 * rng.standard_normal(shape[axis])
    var = rng.uniform(0.8, 1.2, shape[axis])
    y = nbn.batch_norm_inference(x, mean, var, axis=axis)
    error = np.abs(y - reference.forward(x, axis=axis, mean=mean, var=var)).max()
    assert error <= (1e-6 if abs(offset) <= 1e4 else 2e-6)


@pytest.mark.parametrize("first", [16, 64])
@pytest.mark.parametrize("offset", [10, 1e4])
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (4, 4, 32, 32), (8, 4, 28, 28)])
def test_dark_border(shape, offset, first):
    """Values far from the others at the very beginning, as the border of an image, cost little accuracy.

    Sums are taken about a value of the data, and these are bad ones to take: up to 16 standard deviations
    from the mean, so that squares of 256 variances, rounded to float32 some at a time, cancel.
    """
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    x.reshape(shape[0], shape[1], -1)[:, :, :first] = 0
    y, saved = nbn.batch_norm_forward(x)
    count, mean, m2 = reference.moments(x, 1)
    exact = reference.forward(x)
    of_y = np.abs(y - exact).max() / np.abs(exact).max()
    of_var = np.abs(saved.var / (m2 / count) - 1).max()
    of_mean = np.abs((saved.mean - mean) / np.sqrt(saved.var)).max()
    assert max(of_y, of_var, of_mean) <= 4e-6


def relative_to_largest(actual, exact):
    return np.abs(actual - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("offset", [0, 1e4])
@kinds
def test_gradients(shape, axis, offset):
    """dx, dgamma and dbeta to 2e-6 of their largest entry."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    dy = rng.standard_normal(shape, np.float32)
    gamma, beta = (rng.uniform(0.5, 2, shape[axis]).astype(np.float32) for _ in range(2))
    given = {"mean": reference.moments(x, axis)[1], "var": np.ones(shape[axis])}
    for statistics in ({}, given):
        _, saved = nbn.batch_norm_forward(x, gamma, beta, axis=axis, **statistics)
        results = nbn.batch_norm_backward(dy, saved)
        exact = reference.backward(dy, x, gamma, axis=axis, **statistics)
        for name, result, value in zip(("dx", "dgamma", "dbeta"), results, exact, strict=True):
            assert relative_to_largest(result, value) <= 2e-6, name


@pytest.mark.skipif(not JIT, reason="twenty million elements")
@pytest.mark.parametrize("shape", [(10, 1, 1000, 1000), (10_000_000, 2)])
def test_gradients_of_ten_million(shape):
    """Gradients to 2e-6 of their largest entry for 1e7 elements per channel, at an offset of 1e4."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    dy = rng.standard_normal(shape, np.float32) + 0.5 * x + 0.25
    x += 1e4
    gamma = np.array([0.5, 2.0], np.float32)[: shape[1]]
    y, saved = nbn.batch_norm_forward(x, gamma, np.zeros(shape[1]))
    dx, dgamma, dbeta = nbn.batch_norm_backward(dy, saved)
    largest, exact_dgamma, exact_dbeta = [], [], []
    for c in range(shape[1]):  # one channel at a time, for the memory's sake
        part = (slice(None), slice(c, c + 1))
        assert np.abs(y[part] - reference.forward(x[part], gamma[c : c + 1])).max() <= 2e-6
        exact, *sums = reference.backward(dy[part], x[part], gamma[c : c + 1])
        largest.append((np.abs(dx[part] - exact).max(), np.abs(exact).max()))
        exact_dgamma.append(sums[0][0])
        exact_dbeta.append(sums[1][0])
    error, size = np.max(largest, axis=0)
    assert error <= 2e-6 * size
    assert relative_to_largest(dgamma, np.array(exact_dgamma)) <= 2e-6
    assert relative_to_largest(dbeta, np.array(exact_dbeta)) <= 2e-6


@pytest.mark.slow
def test_moments_of_a_hundred_million():
    """Mean and variance of 1e8 float32 elements to 1e-12, however channels and rows divide them."""
    size = 100_000_000 if JIT else 90_000
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    x += 3
    count, mean, m2 = reference.chunked_moments(np.array_split(x, max(1, size // 1_000_000)))
    side = math.isqrt(size // 100)
    for shape, axis in (((1, 1, size), 1), ((25, 4, side, side), 1), ((size // 4, 4), 1)):
        part, means, m2s = nbn.moments(x.reshape(shape), axis=axis)
        # Over all channels, by the definition: all of them must be right for the whole to be.
        assert part * shape[axis] == count
        total = math.fsum(means) / len(means)
        assert abs(total - mean) <= 1e-12 * abs(mean)
        whole = math.fsum(m2s) + part * math.fsum((means - total) ** 2)
        assert abs(whole - m2) <= 1e-12 * m2


@pytest.mark.parametrize("scale", [1e25, 1e-25])
@kinds
def test_squares_out_of_range(shape, axis, scale):
    """Values whose squares float32 cannot hold have right statistics all the same, and a right result."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    with quiet():
        y, saved = nbn.batch_norm_forward(x, axis=axis, eps=0.0)
        moments = nbn.moments(x, axis=axis)
    count, mean, m2 = reference.moments(x, axis)
    error = np.abs(y - reference.forward(x, axis=axis, eps=0.0)).max()
    assert error <= 1e-6
    assert (np.abs(saved.var / (m2 / count) - 1) <= 1e-6).all()
    assert (np.abs(moments[2] / m2 - 1) <= 1e-12).all()
    assert (np.abs(moments[1] - mean) <= 1e-12 * np.sqrt(m2 / count)).all()


@pytest.mark.parametrize("scale", [1e12, 1e-12])
@kinds
def test_gradients_of_any_scale(shape, axis, scale):
    """Gradients to 2e-6 too, where the variance is far from 1 and from eps, and dy just as far."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * scale).astype(np.float32)
    dy = (rng.standard_normal(shape) / scale).astype(np.float32)
    _, saved = nbn.batch_norm_forward(x, np.ones(shape[axis]), axis=axis, eps=0.0)
    dx, dgamma, _ = nbn.batch_norm_backward(dy, saved)
    exact_dx, exact_dgamma, _ = reference.backward(dy, x, axis=axis, eps=0.0)
    assert relative_to_largest(dx, exact_dx) <= 2e-6
    assert relative_to_largest(dgamma, exact_dgamma) <= 2e-6


@pytest.mark.parametrize("shape", [(400_000, 4), (1, 4, 400_000), (4000, 4, 100)])
def test_moments_with_an_outlier(shape):
    """The worst value to sum deviations about: 1e-12 all the same, wherever the outlier stands."""
    if not JIT:
        shape = tuple(n // 20 if n > 1000 else n for n in shape)
    for outlier, sample in itertools.product((1e3, 1e6), (0, shape[0] // 2)):
        x = np.random.default_rng(0).standard_normal(shape)
        x[sample].reshape(4, -1)[:, 0] = outlier
        _, mean, m2 = nbn.moments(x)
        count, exact_mean, exact_m2 = reference.moments(x, 1)
        assert (np.abs(mean - exact_mean) <= 1e-12 * np.sqrt(exact_m2 / count)).all()
        assert (np.abs(m2 / exact_m2 - 1) <= 1e-12).all()


@needs_jit
def test_variance_of_images_with_a_dark_border():
    """The value about which sums are taken follows the mean: the border spoils the first 4096 pixels alone.

    Their variance in float32 is wrong by 8e-9 of the whole. If all of the channel were summed about the
    border, ten standard deviations below the mean, it would be 1.4e-6.
    """
    x = (np.random.default_rng(0).standard_normal((1, 4, 1024, 256)) + 1e4).astype(np.float32)
    x[:, :, 0] = 9990
    count, _, m2 = reference.moments(x, 1)
    _, saved = nbn.batch_norm_forward(x)
    assert (np.abs(saved.var / (m2 / count) - 1) <= 1e-7).all()


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=24),
        elements=st.floats(-(2.0**60), 2.0**60, width=32),
    )
)
def test_finite_values_give_finite_results(x):
    """Whatever the values are, no variance is negative and no root is NaN."""
    with quiet():
        y, saved = nbn.batch_norm_forward(x)
        dx, _, _ = nbn.batch_norm_backward(np.ones_like(x), saved)
    assert (saved.var >= 0).all()
    assert np.isfinite(saved.mean).all()
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


# Constant channels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1234.567, 0.1, -7.0, 0.0, 1e30, 1e-30] if JIT else [1234.567])
@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_constant_channel(shape, axis, value):
    """Exactly beta, with variance exactly 0, on every path; nothing flows through it but dy."""
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype, gamma_dtype=dtype, beta_dtype=dtype)
        x, dy, gamma, beta = problem.x(), problem.dy(), problem.gamma(), problem.beta()
        channels = np.moveaxis(x, axis, 0)
        constant = len(channels) // 2
        channels[constant] = value
        value = channels[constant].flat[0]  # as the dtype has it
        for how in ("as planned", "phases, streaming", "blocks"):
            with regime(how):
                y, saved = nbn.batch_norm_forward(x, gamma, beta, **problem.options)
                _, dgamma, _ = nbn.batch_norm_backward(dy, saved)
                _, mean, m2 = nbn.moments(x, axis=axis)
                inference = nbn.batch_norm_inference(x, saved.mean, saved.var, gamma, beta, **problem.options)
            assert saved.mean[constant] == mean[constant] == value
            assert saved.var[constant] == m2[constant] == 0
            assert (np.moveaxis(y, axis, 0)[constant] == beta[constant]).all()
            assert (np.moveaxis(inference, axis, 0)[constant] == beta[constant]).all()
            assert dgamma[constant] == 0


@kinds
def test_constant_channels_of_large_arrays(shape, axis):
    for dtype in (np.float32, np.float64):
        x = np.full(shape, 1234.567, dtype)
        beta = np.linspace(-1, 1, shape[axis]).astype(dtype)
        y, saved = nbn.batch_norm_forward(x, None, beta, axis=axis)
        assert (saved.var == 0).all()
        assert (np.moveaxis(y, axis, -1) == beta).all()


# Poison -----------------------------------------------------------------------------------------------------


def others(array, axis, poisoned):
    """Return the array without the poisoned channel."""
    return np.delete(array, poisoned, axis if array.ndim > 1 else 0)


SEVERAL_CHANNELS = [
    (shape, axis) for shape, axis in SMALL_PATHS if shape[axis] > 1 and (JIT or math.prod(shape) < 9000)
]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", ["as planned", "phases, streaming", "blocks, streaming"])
@pytest.mark.parametrize(("shape", "axis"), SEVERAL_CHANNELS)
def test_poison_stays_in_its_channel(shape, axis, how, poison):
    """Not a bit of another channel changes, whatever is spoilt: x, dy, gamma or the mean, at either end."""
    problem = Problem(shape, axis)
    clean, clean_dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    channels = shape[axis]
    with regime(how), quiet():
        expected = results_of(problem)
        for poisoned, position in ((0, 0), (channels // 2, -1), (channels - 1, -1)):
            x, dy, gamma, spoilt = clean.copy(), clean_dy.copy(), problem.gamma(), mean.copy()
            np.moveaxis(x, axis, 0)[poisoned].flat[position] = poison
            np.moveaxis(dy, axis, 0)[poisoned].flat[position] = poison
            gamma[poisoned] = spoilt[poisoned] = poison
            y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
            _, clean_saved = nbn.batch_norm_forward(clean, problem.gamma(), problem.beta(), **problem.options)
            _, spoilt_saved = nbn.batch_norm_forward(clean, gamma, problem.beta(), **problem.options)
            arguments = {"axis": axis, "eps": problem.eps}
            gradients = ("dx", "dgamma", "dbeta")
            found = [
                {"y": y, "saved.mean": saved.mean, "saved.var": saved.var},
                dict(zip(("mean", "m2"), nbn.moments(x, axis=axis)[1:], strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(clean_dy, saved), strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(dy, clean_saved), strict=True)),
                dict(zip(gradients, nbn.batch_norm_backward(clean_dy, spoilt_saved), strict=True)),
                {"dgamma alone": nbn.batch_norm_backward(dy, clean_saved, need_dx=False)[1]},
                {
                    "y of inference": nbn.batch_norm_inference(
                        clean, spoilt, var, gamma, problem.beta(), **arguments
                    )
                },
            ]
            for results in found:
                for name, result in results.items():
                    assert_same_bits(
                        others(result, axis, poisoned), others(expected[name], axis, poisoned), name
                    )
            assert np.isnan(np.moveaxis(y, axis, 0)[poisoned]).all()
            assert np.isnan(saved.var[poisoned])
            assert not np.isfinite(saved.mean[poisoned])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@kinds
def test_poison_in_large_arrays(shape, axis, poison):
    if shape[axis] == 1:
        pytest.skip("there is no other channel")
    problem = Problem(shape, axis)
    x = problem.x()
    y, _ = nbn.batch_norm_forward(x, axis=axis)
    np.moveaxis(x, axis, 0)[1].flat[7] = poison
    with quiet():
        again, _ = nbn.batch_norm_forward(x, axis=axis)
    assert_same_bits(others(again, axis, 1), others(y, axis, 1), "y")
    assert np.isnan(np.moveaxis(again, axis, 0)[1]).all()
