"""Images of integers: normalised as they are read, in one pass, by known statistics or by those seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support.backends import BACKENDS, SIMULATED
from tests.support.checks import assert_same_bits, unchanged
from tests.support.jit import JIT
from tests.support.problems import WRITABLE, arrange
from tests.support.reference import along, roundings
from tests.support.strategies import PATH_NAMES, PATH_PARAMETERS, regime, shapes

# Every integer and every result, but not every pair of them, each of which is compiled by itself.
PAIRS = [(np.uint8, np.float32), (np.int8, np.float32), (np.uint16, np.float32), (np.int16, np.float64)]
RESULTS = [np.float32, np.float64]


def image(shape, dtype, seed=0):
    """Return integers over the whole range of their dtype."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def parameters(channels, scale, seed=1):
    """(mean, var, gamma, beta) for integers of this scale."""
    rng = np.random.default_rng(seed)
    mean, gamma, beta = rng.standard_normal((3, channels))
    return mean * scale, (rng.random(channels) + 0.1) * scale**2, gamma, beta


def formula(x, mean, var, gamma, beta, axis, eps=1e-5):
    """(value, size of the terms that it is the sum of), in float64."""
    mean, std, gamma, beta = (along(v, x.ndim, axis) for v in (mean, np.sqrt(var + eps), gamma, beta))
    xhat = (x.astype(np.float64) - mean) / std
    return xhat * gamma + beta, (abs(x / std) + abs(mean / std)) * abs(gamma) + abs(beta)


def assert_formula(y, x, arguments, axis):
    expected, terms = formula(x, *arguments, axis)
    # The reasons of `reference.ROUNDINGS` hold, with exact statistics; conversion of the integers is exact.
    assert (abs(y - expected) <= roundings(y.dtype) * terms).all()


# Inference --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=150 if JIT else 30)
@given(
    shapes(),
    st.integers(0, 5),
    st.sampled_from(PAIRS),
    st.sampled_from(WRITABLE),
    st.integers(0, 99),
)
def test_formula(shape, axis, pair, layout, seed):
    axis %= len(shape)
    dtype, result = pair
    x = arrange(image(shape, dtype, seed), layout, np.random.default_rng(seed))
    arguments = parameters(shape[axis], np.iinfo(dtype).max / 4)
    with unchanged(x, *arguments):
        y = nbn.batch_norm_inference(x, *arguments, axis=axis, dtype=result)
    assert (y.dtype, y.shape) == (result, x.shape)
    assert_formula(y, x, arguments, axis)
    with unchanged(x):
        floats = nbn.batch_norm_inference(x.astype(result), *arguments, axis=axis)
    assert_same_bits(y, floats, "of integers, and of the same floats")


@pytest.mark.parametrize(("shape", "axis", "name"), PATH_PARAMETERS, ids=PATH_NAMES)
def test_every_path(shape, axis, name):
    x = image(shape, np.uint8)
    arguments = parameters(shape[axis], 64)
    y = np.full(shape, np.nan, np.float32)
    with regime(name), unchanged(x):
        assert nbn.batch_norm_inference(x, *arguments, axis=axis, out=y, dtype=np.float32) is y
    assert_formula(y, x, arguments, axis)


@pytest.mark.parametrize("layout", WRITABLE)
def test_out(layout):
    x = image((4, 3, 5, 7), np.uint8)
    x.flags.writeable = False
    arguments = parameters(3, 100)
    expected = nbn.batch_norm_inference(x, *arguments, dtype=np.float32)
    out = arrange(np.zeros(x.shape, np.float32), layout, np.random.default_rng(0))
    assert nbn.batch_norm_inference(x, *arguments, out=out, dtype="f4") is out
    assert np.array_equal(out, expected)


def test_memory_order_of_x():
    x = image((2, 5, 6, 3), np.uint8).transpose(0, 3, 1, 2)  # NCHW over the memory of NHWC
    y = nbn.batch_norm_inference(x, *parameters(3, 64), dtype=np.float64)
    assert y.strides == tuple(8 * step for step in x.strides)


def test_large():
    """A result of more than 4 MiB is memory that is kept, of the size of the result."""
    x = image((3, 40, 300, 300) if JIT else (3, 2, 30, 30), np.uint8)
    arguments = parameters(x.shape[1], 64)
    for _ in range(2):
        y = nbn.batch_norm_inference(x, *arguments, dtype=np.float32)
        assert_formula(y, x, arguments, 1)


@pytest.mark.parametrize("dtype", RESULTS)
def test_floats_with_their_own_dtype(dtype):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    arguments = parameters(3, 1)
    y = nbn.batch_norm_inference(x, *arguments, dtype=dtype)
    assert_same_bits(y, nbn.batch_norm_inference(x, *arguments), "y")


REFUSED = [
    (np.ones((4, 3), np.uint8), {}, r"^x has dtype uint8, .*pass x.astype\(numpy.float32\)"),
    (np.ones((4, 3), np.uint8), {"dtype": np.float16}, r"^dtype must be numpy.float32 or .*float16"),
    (np.ones((4, 3), np.uint8), {"dtype": int}, "^dtype must be numpy.float32 or numpy.float64, not .*int"),
    (np.ones((4, 3), np.uint8), {"dtype": "float23"}, "^dtype must be .*, not 'float23'"),
    (np.ones((4, 3), np.int32), {"dtype": np.float32}, r"^x has dtype int32, .*x.astype\(numpy.float32\)"),
    (np.ones((4, 3), bool), {"dtype": np.float32}, "^x has dtype bool, which is not floating point"),
    (np.ones((4, 3)), {"dtype": np.float32}, r"^dtype is float32, but x has dtype float64; .*8 and 16 bits"),
    (np.ones((4, 3), np.uint8), {"dtype": np.float32, "out": np.ones((4, 3))}, "^out has dtype float64"),
]


@pytest.mark.parametrize(("x", "options", "message"), REFUSED)
def test_refused_dtypes(x, options, message):
    arrays = [value for value in options.values() if isinstance(value, np.ndarray)]
    with unchanged(x, *arrays), pytest.raises(TypeError, match=message):
        nbn.batch_norm_inference(x, np.zeros(3), np.ones(3), **options)


def test_overlap():
    memory = np.zeros(64, np.float32)
    x = memory.view(np.uint8)[:12].reshape(4, 3)
    with unchanged(memory), pytest.raises(ValueError, match=r"^out overlaps x in memory"):
        nbn.batch_norm_inference(x, np.zeros(3), np.ones(3), out=memory[:12].reshape(4, 3), dtype=np.float32)


@pytest.mark.skipif(not SIMULATED, reason="needs a GPU, or one that is simulated")
def test_on_a_gpu():
    x = BACKENDS["numba"]().put(np.ones((4, 3), np.uint8))
    with pytest.raises(TypeError, match=r"^x has dtype uint8, which is converted on the CPU only"):
        nbn.batch_norm_inference(x, [0.0] * 3, [1.0] * 3, dtype=np.float32)


# Moments.normalize ------------------------------------------------------------------------------------------

KEPT = [-1, 1, 0, (1, 2, 3), (3, 1), (2, 1), (0, 2), (), (0, 1, 2, 3)]
CHUNKS = [
    *PAIRS,
    *((np.int32, result) for result in RESULTS),
    (np.uint64, np.float32),
    (bool, np.float64),
    (np.float16, np.float32),
    *((dtype, result) for dtype in RESULTS for result in RESULTS),
]


def standardised(x, axis):
    """The formula in float64, channels of one value only becoming 0."""
    kept = {a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    rest = tuple(a for a in range(x.ndim) if a not in kept)
    wide = x.astype(np.float64)
    mean = wide.mean(axis=rest, keepdims=True)
    var = ((wide - mean) ** 2).mean(axis=rest, keepdims=True)
    constant = (wide == wide.min(axis=rest, keepdims=True)).all(axis=rest, keepdims=True)
    return np.where(constant, 0, (wide - mean) / np.sqrt(np.where(constant, 1, var)))


@pytest.mark.parametrize(("dtype", "result"), CHUNKS)
@pytest.mark.parametrize("axis", KEPT, ids=str)
def test_moments_normalize(axis, dtype, result):
    rng = np.random.default_rng(0)
    for layout in WRITABLE if JIT else ("contiguous", "sliced"):
        x = arrange((rng.random((3, 4, 5, 2)) * 100).astype(dtype), layout, rng)
        moments = nbn.Moments(axis=axis).update(x)
        with unchanged(x):
            y = moments.normalize(x, dtype=result)
        assert (y.dtype, y.shape) == (result, x.shape)
        # |xhat| is 11 at most; the arithmetic is float32 unless it is float64 from x to y.
        single = np.float32 in (result, dtype)
        np.testing.assert_allclose(y, standardised(x, axis), rtol=0, atol=1e-5 if single else 1e-12)
        out = np.full(x.shape, np.nan, result)
        assert moments.normalize(x, out, result) is out
        assert np.array_equal(out, y)


def test_moments_normalize_defaults():
    x = image((6, 5, 5, 3), np.uint8)
    moments = nbn.Moments().update(x)
    y = moments.normalize(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        y.mean(axis=(0, 1, 2), dtype=np.float64), 0, atol=1e-6
    )  # of float32's roundings
    np.testing.assert_allclose(y.std(axis=(0, 1, 2), dtype=np.float64), 1, atol=1e-6)
    other = moments.normalize(x[:0])
    assert (other.shape, other.dtype) == ((0, 5, 5, 3), np.float32)


def test_moments_normalize_in_place():
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    moments = nbn.Moments().update(x)
    expected = moments.normalize(x)
    assert moments.normalize(x, out=x) is x
    assert np.array_equal(x, expected)


def test_moments_normalize_with_weights():
    """By the statistics that were seen, whatever weights they had."""
    x = np.array([[1.0], [5.0]])
    moments = nbn.Moments().update(x, weights=[[3.0], [1.0]])  # mean 2, variance 3
    np.testing.assert_allclose(moments.normalize(x, dtype=np.float64), [[-(3**-0.5)], [3**0.5]], rtol=1e-15)


@pytest.mark.parametrize("scale", [1e-42, 1e-39, 1e-20, 1e20, 1e38])
def test_moments_normalize_at_the_ends_of_the_range(scale):
    """1 / std may be beyond float32."""
    x = (np.float64(scale) * np.array([[0.0], [2.0], [1.0]])).astype(np.float32)
    moments = nbn.Moments().update(x)
    # x itself is rounded to few digits where it is subnormal.
    np.testing.assert_allclose(moments.normalize(x), standardised(x, -1), atol=1e-6)


def test_moments_normalize_never_warns():
    x = np.array([[1e-60], [-1e-60], [1e150], [-1e150]])
    with np.errstate(all="raise" if JIT else "ignore"):
        y = nbn.Moments().update(x).normalize(x)
    np.testing.assert_allclose(y, standardised(x, -1), atol=1e-6)


def test_moments_normalize_refuses():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"^nothing was seen yet"):
        nbn.Moments().normalize(x)
    moments = nbn.Moments().update(x)
    with pytest.raises(ValueError, match=r"^x has channels of shape \(2,\), .* shape \(3,\)"):
        moments.normalize(x[:, :2])
    with pytest.raises(TypeError, match=r"^dtype must be numpy.float32 or numpy.float64, not None"):
        moments.normalize(x, dtype=None)
    with pytest.raises(TypeError, match=r"^out has dtype float64; it must be that of the result, float32"):
        moments.normalize(x, out=x)
    with pytest.raises(ValueError, match=r"^out has shape"):
        moments.normalize(x, out=np.ones((4, 2), np.float32))
    with pytest.raises(TypeError, match=r"^x must be a NumPy array, not builtins.list"):
        moments.normalize([[1.0, 2.0, 3.0]])
    with pytest.raises(TypeError, match=r"^x has complex dtype"):
        moments.normalize(x.astype(complex))
    assert (x == 1).all()
