"""Layer norm and RMS norm: values, layouts, memory, bits, errors, and the layers."""

import itertools
import pickle
from dataclasses import dataclass

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.backends.cpu import along, jit, plan
from tests.support import samples
from tests.support.checks import (
    NAMES,
    assert_apart,
    assert_close,
    assert_result_of,
    assert_same_bits,
    unchanged,
)
from tests.support.jit import JIT, needs_jit
from tests.support.problems import LAYOUTS, WRITABLE, arrange
from tests.support.strategies import shapes


@dataclass(frozen=True)
class Norm:
    """One of the two norms, called in one way."""

    name: str
    centered: bool

    def forward(self, x, gamma=None, beta=None, *, axis=-1, eps=1e-5, **options):
        if self.centered:
            return nbn.layer_norm_forward(x, gamma, beta, axis=axis, eps=eps, **options)
        return nbn.rms_norm_forward(x, gamma, axis=axis, eps=eps, **options)

    def backward(self, dy, saved, **options):
        if self.centered:
            return nbn.layer_norm_backward(dy, saved, **options)
        return *nbn.rms_norm_backward(dy, saved, **options), None

    def layer(self, shape, **options):
        return (nbn.LayerNorm if self.centered else nbn.RMSNorm)(shape, **options)

    def __str__(self):
        return self.name


NORMS = [Norm("layer norm", True), Norm("RMS norm", False)]
both_norms = pytest.mark.parametrize("norm", NORMS, ids=str)


def problem(shape, axes, dtype=np.float32, seed=0, offset=0.0):
    """(x, dy, gamma, beta) for a norm over these axes."""
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, *shape))
    normalized = [shape[a] for a in sorted(a % len(shape) for a in axes)]
    gamma, beta = rng.standard_normal((2, *normalized))
    return tuple(a.astype(dtype) for a in (x + offset, dy, gamma, beta))


def check(norm, x, dy, gamma, beta, axes, eps=1e-5):
    """Call the functions, and compare everything with the formulas."""
    beta = beta if norm.centered else None
    arguments = axes, eps, norm.centered
    with unchanged(x, dy, gamma, beta):
        y, saved = norm.forward(x, gamma, beta, axis=axes, eps=eps)
        dx, dgamma, dbeta = norm.backward(dy, saved)
    assert_result_of(y, x, "y")
    assert_apart(y, x, gamma, beta)
    error = samples.forward_error(x, gamma, beta, *arguments)
    assert_close(y, samples.forward(x, gamma, beta, *arguments), error, "y")
    expected = samples.backward(dy, x, gamma, *arguments)
    errors = samples.backward_error(dy, x, gamma, *arguments)
    for name, result, value, allowed, like in zip(
        NAMES, (dx, dgamma, dbeta), expected, errors, (x, gamma, beta), strict=True
    ):
        assert (result is None) == (like is None), name
        if like is not None:
            assert result.dtype == like.dtype.newbyteorder("="), name
            assert_close(result, value, allowed, name)
    mean, var = samples.statistics(x, axes, norm.centered)
    count = int(np.prod([x.shape[a] for a in axes]))
    assert saved.count == count
    others = [n for i, n in enumerate(x.shape) if i not in {a % x.ndim for a in axes}]
    assert saved.mean.shape == saved.var.shape == tuple(others)
    np.testing.assert_allclose(saved.var, var.reshape(others), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(saved.mean, mean.reshape(others), rtol=1e-6, atol=1e-6)
    return y, dx, dgamma, dbeta


# Values -----------------------------------------------------------------------------------------------------


@st.composite
def normalised(draw):
    """A shape, and the axes of it that are normalised, the last ones in most cases."""
    shape = draw(shapes())
    if draw(st.integers(0, 3)):
        return shape, tuple(range(-draw(st.integers(1, len(shape))), 0))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    return shape, tuple(draw(st.permutations(sorted(axes))))


@settings(max_examples=200 if JIT else 40)
@given(
    st.sampled_from(NORMS),
    normalised(),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from([0.0, 1.0, -30.0, 1e4]),
    st.integers(0, 99),
)
def test_formulas(norm, where, dtype, layout, dy_layout, offset, seed):
    shape, axes = where
    x, dy, gamma, beta = problem(shape, axes, dtype, seed, offset)
    rng = np.random.default_rng(seed)
    check(norm, arrange(x, layout, rng), arrange(dy, dy_layout, rng), gamma, beta, axes)


# Around the vector of 16, the unrolled 32, segments of 512, and blocks of 4096 values.
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 64, 100, 511, 512, 513, 545, 768, 4095, 4096, 4097, 8209)


@pytest.mark.parametrize("length", LENGTHS if JIT else LENGTHS[:12])
@both_norms
def test_lengths(norm, length):
    for rows, dtype in itertools.product((1, 3, 9), (np.float32, np.float64)):
        check(norm, *problem((rows, length), (-1,), dtype, seed=length), (-1,))


@pytest.mark.parametrize("shape", [(8192, 768), (64, 50257), (300_000, 33)] if JIT else [(40, 33)], ids=str)
@both_norms
def test_large(norm, shape):
    """Arrays that are written past the caches, by several threads."""
    check(norm, *problem(shape, (-1,)), (-1,))


@both_norms
def test_gradients_are_derivatives(norm):
    """The oracle's gradients, by complex step: dx of a loss sum(dy * y)."""
    x, dy, gamma, beta = problem((4, 7), (-1,), np.float64)
    arguments = (-1,), 1e-5, norm.centered
    dx, dgamma, dbeta = samples.backward(dy, x, gamma, *arguments)

    def derivative(which, index):
        step = [a.astype(np.complex128) for a in (x, gamma, beta)]
        step[which][index] += 1e-30j
        return (dy * samples.forward(*step, *arguments)).sum().imag / 1e-30

    for which, gradient in enumerate((dx, dgamma, dbeta)):
        for index in np.ndindex(gradient.shape):
            assert abs(derivative(which, index) - gradient[index]) < 1e-12


@both_norms
def test_accuracy_at_an_offset(norm):
    """Within 1e-6 at any offset up to 1e4, and gradients within 2e-6 of the largest, where sd is 1."""
    x, dy, gamma, beta = problem((64, 768), (-1,), offset=1e4)
    gamma[:], beta[:] = 1, 0
    y, dx, dgamma, _ = check(norm, x, dy, gamma, beta, (-1,))
    arguments = (-1,), 1e-5, norm.centered
    assert abs(y - samples.forward(x, None, None, *arguments)).max() < 1e-6 * max(1, abs(y).max() / 4)
    expected = samples.backward(dy, x, None, *arguments)
    for result, value in zip((dx, dgamma), expected[:2], strict=True):
        assert abs(result - value).max() < 2e-6 * abs(value).max()


@pytest.mark.parametrize("value", [0.0, 1234.567, -1e-20, 3e38])
@pytest.mark.parametrize("length", [5, 64, 5000])
def test_constant_samples(value, length):
    x = np.full((3, length), value, np.float32)
    beta = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    y, saved = nbn.layer_norm_forward(x, np.ones(length), beta)
    assert (y == beta).all()
    assert (saved.var == 0).all()
    dx, _, _ = nbn.layer_norm_backward(np.ones_like(x), saved)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@both_norms
def test_poison(norm, bad):
    """NaN and infinity stay in their sample."""
    for length in (5, 64, 5000 if JIT else 70):
        x, dy, gamma, beta = problem((12, length), (-1,), seed=length)
        beta = beta if norm.centered else None
        clean, saved = norm.forward(x, gamma, beta)
        clean_dx, _, _ = norm.backward(dy, saved)
        x[4, length // 2] = bad
        with np.errstate(invalid="warn" if JIT else "ignore"):  # kernels that are plain Python warn
            y, saved = norm.forward(x, gamma, beta)
            dx, _, _ = norm.backward(dy, saved)
        rest = np.arange(12) != 4
        assert_same_bits(y[rest], clean[rest], "y")
        assert_same_bits(dx[rest], clean_dx[rest], "dx")
        assert np.isnan(y[4]).all() or (not norm.centered and np.isnan(y[4]).any())
        assert np.isnan(dx[4]).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 4)], ids=str)
@both_norms
def test_empty(norm, shape):
    x, dy, gamma, beta = problem(shape, (-1,))
    y, saved = norm.forward(x, gamma, beta if norm.centered else None)
    dx, dgamma, dbeta = norm.backward(dy, saved)
    assert y.shape == dx.shape == shape
    assert dgamma.shape == gamma.shape
    assert not dgamma.any()
    assert dbeta is None or not dbeta.any()
    assert saved.mean.shape == shape[:-1]


@both_norms
def test_parameters(norm):
    """Gradients have the dtypes of the parameters; lists are taken, and nothing at all."""
    x, dy, gamma, beta = problem((6, 40), (-1,), np.float64)
    for kind in (np.float16, np.float32, np.float64, np.longdouble, ">f4"):
        y, saved = norm.forward(x, gamma.astype(kind), beta.astype(kind) if norm.centered else None)
        _, dgamma, dbeta = norm.backward(dy, saved)
        assert dgamma.dtype == np.dtype(kind).newbyteorder("=")
        assert dbeta is None or dbeta.dtype == dgamma.dtype
    listed, _ = norm.forward(x, gamma.tolist(), beta.tolist() if norm.centered else None)
    expected, _ = norm.forward(x, gamma, beta if norm.centered else None)
    assert_same_bits(listed, expected, "y")
    y, saved = norm.forward(x)
    assert norm.backward(dy, saved)[1:] == (None, None)
    assert_close(y, samples.forward(x, None, None, (-1,), 1e-5, norm.centered), 1e-13, "y")


@needs_jit
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signalling_nan_among_parameters(dtype):
    """It is a NaN in its place, without a warning."""
    gamma = np.array([0x7FA00000, 0x3F800000], np.uint32).view(np.float32)
    x, dy, _, _ = problem((3, 2), (-1,), dtype)
    with np.errstate(all="raise"):
        y, saved = nbn.layer_norm_forward(x, gamma, gamma)
        nbn.layer_norm_backward(dy, saved)
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1]).all()


def test_parameters_beyond_the_dtype_of_x():
    """They become infinity and 0 there, and nobody is warned, whatever numpy.seterr says."""
    x, dy, _, _ = problem((3, 4), (-1,))
    gamma = np.array([1e300, 1e-300, 1.0, np.nan])
    with np.errstate(all="raise" if JIT else "ignore"):
        y, saved = nbn.layer_norm_forward(x, gamma, [0.0] * 4)
        _, dgamma, _ = nbn.layer_norm_backward(dy, saved)
    assert np.isinf(y[:, 0]).all()
    assert (y[:, 1] == 0).all()
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(dgamma).all()


@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=3)), ids=str)
def test_skipped_gradients(needs):
    x, dy, gamma, beta = problem((20, 40), (-1,))
    _, saved = nbn.layer_norm_forward(x, gamma, beta)
    everything = nbn.layer_norm_backward(dy, saved)
    names = "need_dx", "need_dgamma", "need_dbeta"
    some = nbn.layer_norm_backward(dy, saved, **dict(zip(names, needs, strict=True)))
    for name, need, result, expected in zip(NAMES, needs, some, everything, strict=True):
        if need:
            assert_same_bits(result, expected, name)
        else:
            assert result is None, name


def test_rms_eps_is_that_of_the_dtype():
    for dtype in (np.float32, np.float64):
        x, _, gamma, _ = problem((5, 9), (-1,), dtype)
        given, _ = nbn.rms_norm_forward(x, gamma, eps=float(np.finfo(dtype).eps))
        assert_same_bits(nbn.rms_norm_forward(x, gamma)[0], given, "y")
        assert_same_bits(nbn.RMSNorm(9, scale=False)(x), nbn.rms_norm_forward(x)[0], "y of the layer")


# Memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "layout"), list(itertools.product([(-1,), (1,), (0, 2)], WRITABLE)), ids=str
)
@both_norms
def test_out(norm, axes, layout):
    x, dy, gamma, beta = problem((4, 5, 18), axes)
    beta = beta if norm.centered else None
    y, saved = norm.forward(x, gamma, beta, axis=axes)
    dx, _, _ = norm.backward(dy, saved)
    out = arrange(np.zeros_like(x), layout, np.random.default_rng(0))
    assert norm.forward(x, gamma, beta, axis=axes, out=out)[0] is out
    assert_same_bits(np.ascontiguousarray(out), y, "out")
    assert norm.backward(dy, saved, out=out)[0] is out
    assert_same_bits(np.ascontiguousarray(out), np.ascontiguousarray(dx), "out of backward")


@pytest.mark.parametrize("axes", [(-1,), (1,)], ids=str)
@both_norms
def test_in_place(norm, axes):
    x, dy, gamma, beta = problem((4, 5, 18), axes)
    beta = beta if norm.centered else None
    y, saved = norm.forward(x, gamma, beta, axis=axes)
    dx, _, _ = norm.backward(dy, saved)
    assert norm.backward(dy, saved, out=dy)[0] is dy
    assert_same_bits(dy, np.ascontiguousarray(dx), "dx over dy")
    assert norm.forward(x, gamma, beta, axis=axes, out=x)[0] is x
    assert_same_bits(x, y, "y over x")
    _, saved = norm.forward(x, gamma, beta, axis=axes, out=x)
    with pytest.raises(ValueError, match=r"^the forward call wrote y over x \(out=x\)"):
        norm.backward(dy, saved)


@needs_jit
@pytest.mark.parametrize("start", range(0, 18, 3))
def test_streamed_results_at_every_address(start, monkeypatch):
    monkeypatch.setattr(plan, "STREAM_BYTES", 0)
    for length in (16, 64, 40):
        x, dy, gamma, beta = problem((30, length), (-1,), seed=length)
        expected, saved = nbn.layer_norm_forward(x, gamma, beta)
        expected_dx, _, _ = nbn.layer_norm_backward(dy, saved)
        memory = np.full(x.size + 40, 7, np.float32)
        out = memory[start : start + x.size].reshape(x.shape)
        nbn.layer_norm_forward(x, gamma, beta, out=out)
        assert_same_bits(out, expected, "y")
        nbn.layer_norm_backward(dy, saved, out=out)
        assert_same_bits(out, expected_dx, "dx")
        assert (memory[:start] == 7).all()
        assert (memory[start + x.size :] == 7).all()


def test_saved_can_be_pickled():
    x, dy, gamma, beta = problem((4, 3, 6), (1,))
    for array in (x, x.transpose(2, 1, 0)):
        _, saved = nbn.layer_norm_forward(array, gamma, beta, axis=1)
        gradient = dy.reshape(array.shape)
        expected = nbn.layer_norm_backward(gradient, saved)
        restored = pickle.loads(pickle.dumps(saved))
        for name, a, b in zip(NAMES, nbn.layer_norm_backward(gradient, restored), expected, strict=True):
            assert_same_bits(a, b, name)
        assert repr(saved) == f"Saved(layer_norm, statistics={array.shape[::2]}, count=3, training=True)"


# Bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((37, 5), (-1,)), ((37, 100), (-1,)), ((9, 700), (-1,)), ((5, 8, 6), (1,)), ((7, 4, 33), (-1, -2))],
)
@both_norms
def test_batch_invariance(norm, shape, axes):
    """A sample's y and dx have the same bits alone, in any batch, and at any place in it."""
    x, dy, gamma, beta = problem(shape, axes, offset=3.0)
    beta = beta if norm.centered else None
    y, saved = norm.forward(x, gamma, beta, axis=axes)
    dx, _, _ = norm.backward(dy, saved)
    order = np.random.default_rng(0).permutation(shape[0])
    for chosen in ([0], [shape[0] - 1], [2, 1], order, np.repeat(order, 40)):
        part, saved = norm.forward(x[chosen], gamma, beta, axis=axes)
        assert_same_bits(part, y[chosen], "y")
        part, _, _ = norm.backward(dy[chosen], saved)
        assert_same_bits(part, dx[chosen], "dx")


@needs_jit
@both_norms
def test_same_bits_for_any_number_of_threads(norm, monkeypatch):
    monkeypatch.setattr(jit, "PARALLEL_BYTES", 0)
    x, dy, gamma, beta = problem((3000, 40), (-1,))
    results = []
    before = numba.get_num_threads()
    try:
        for threads in range(1, before + 1):
            numba.set_num_threads(threads)
            y, saved = norm.forward(x, gamma, beta if norm.centered else None)
            results.append((y, *(g for g in norm.backward(dy, saved) if g is not None)))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_same_bits(a, b, "a result")


def test_sums_over_samples_are_exact_enough():
    """dgamma and dbeta over many samples, which are added up in parts: float64 between the parts."""
    rows = 200_000 if JIT else 500
    dy = np.ones((rows, 2), np.float32)
    _, saved = nbn.layer_norm_forward(
        np.tile(np.float32([-1, 1]), (rows, 1)), np.ones(2), np.zeros(2), eps=0.0
    )
    _, dgamma, dbeta = nbn.layer_norm_backward(dy, saved)
    assert dbeta.tolist() == [rows, rows]
    assert dgamma.tolist() == [-rows, rows]
    assert rows > along.MOST_ROWS


# Errors -----------------------------------------------------------------------------------------------------

X = np.ones((4, 3), np.float32)
REFUSED = [
    ({"x": np.ones((4, 3), int)}, TypeError, "^x has dtype int64, which is not floating point"),
    # Batch norm alone reads small integers: no advice to call it instead.
    ({"x": np.ones((4, 3), np.int8)}, TypeError, r"^x has dtype int8, .*; pass x.astype\(numpy.float32\)$"),
    ({"x": [[1.0]]}, TypeError, "^x must be a NumPy array, not builtins.list"),
    ({"x": np.array(1.0)}, ValueError, r"^x must have an axis to be normalised, but has shape \(\)"),
    ({"x": np.float32(1)}, TypeError, "^x must be a NumPy array"),
    ({"axis": 2}, ValueError, "^axis must be from -2 to 1 for an array of rank 2, not 2"),
    ({"axis": (0, -2)}, ValueError, r"^axis must name one axis or more, each of them once, not \(0, -2\)"),
    ({"axis": ()}, ValueError, r"^axis must name one axis or more, each of them once, not \(\)"),
    ({"axis": 1.0}, TypeError, "^axis must be an integer, not 1.0"),
    ({"eps": -1.0}, ValueError, "^eps must be a finite number >= 0"),
    ({"gamma": np.ones(4)}, ValueError, r"^gamma has shape \(4,\); it must be that of the axes .*, \(3,\)"),
    ({"gamma": np.ones(3, int)}, TypeError, "^gamma has dtype int64; it must be floating point"),
    ({"gamma": 2.0}, TypeError, "^gamma is 2.0"),
    ({"out": np.ones((4, 4), np.float32)}, ValueError, r"^out has shape \(4, 4\)"),
    ({"out": np.ones((4, 3))}, TypeError, "^out has dtype float64"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED)
@both_norms
def test_refused(norm, wrong, error, message):
    arguments = {"x": X, **wrong}
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray)]
    with unchanged(*arrays), pytest.raises(error, match=message):
        norm.forward(arguments.pop("x"), arguments.pop("gamma", None), None, **arguments)


def test_saved_of_another_norm():
    """Its gradients are others, and would be silently wrong."""
    dy = np.ones_like(X)
    saved = {
        "batch": nbn.batch_norm_forward(X)[1],
        "layer": nbn.layer_norm_forward(X)[1],
        "rms": nbn.rms_norm_forward(X)[1],
    }
    backward = {
        "batch": nbn.batch_norm_backward, "layer": nbn.layer_norm_backward, "rms": nbn.rms_norm_backward,
    }  # fmt: skip
    for (one, function), (other, remembered) in itertools.product(backward.items(), saved.items()):
        if one == other:
            function(dy, remembered)
        else:
            with pytest.raises(
                ValueError, match=rf"^saved is from {other}_norm_forward; pass it to {other}_norm_backward"
            ):
                function(dy, remembered)


@both_norms
def test_refused_backward(norm):
    _, saved = norm.forward(X)
    with pytest.raises(
        ValueError, match=r"^dy has shape \(3, 3\), but x of the forward call had \(4, 3\)|x of"
    ):
        norm.backward(X[:3], saved)
    with pytest.raises(TypeError, match=r"^dy has dtype float64, but x had float32"):
        norm.backward(np.ones((4, 3)), saved)
    with pytest.raises(TypeError, match=r"^saved must come from a forward call"):
        norm.backward(X, X)


# Layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "x_shape"), [(6, None, (4, 6)), ((5, 6), None, (4, 5, 6)), (5, 1, (4, 5, 6))]
)
@both_norms
def test_layer_is_the_functions(norm, shape, axis, x_shape):
    layer = norm.layer(shape, axis=axis)
    axes = layer.axis
    x, dy, gamma, beta = problem(x_shape, axes)
    layer.params["gamma"][...] = gamma
    if norm.centered:
        layer.params["beta"][...] = beta
    eps = 1e-5 if norm.centered else float(np.finfo(np.float32).eps)
    y, saved = norm.forward(x, gamma, beta if norm.centered else None, axis=axes, eps=eps)
    dx, dgamma, dbeta = norm.backward(dy, saved)
    assert_same_bits(layer(x), y, "y")
    assert_same_bits(layer.backward(dy), dx, "dx")
    assert_same_bits(layer.grads["gamma"], dgamma, "dgamma")
    assert layer.grads.keys() == layer.params.keys() == layer.state_dict().keys()
    if norm.centered:
        assert_same_bits(layer.grads["beta"], dbeta, "dbeta")
    assert_same_bits(layer.eval()(x), y, "y in evaluation mode")
    twin = norm.layer(shape, axis=axis)
    twin.load_state_dict(layer.state_dict())
    assert_same_bits(twin(x), y, "y of a loaded layer")
    restored = pickle.loads(pickle.dumps(layer))
    assert_same_bits(restored(x), y, "y of an unpickled layer")
    assert repr(restored) == repr(layer)


def test_layer_repr():
    assert repr(nbn.LayerNorm(6)) == "LayerNorm(6, eps=1e-05)"
    assert repr(nbn.LayerNorm((5, 6), axis=(1, 2), scale=False, center=False)) == (
        "LayerNorm((5, 6), axis=(1, 2), eps=1e-05, scale=False, center=False)"
    )
    assert repr(nbn.RMSNorm(6, dtype=np.float64)) == "RMSNorm(6, eps=None, dtype=float64)"


LAYER_REFUSED = [
    (
        lambda: nbn.LayerNorm(0),
        ValueError,
        "^normalized_shape must have one length or more, all at least 1, not 0",
    ),
    (lambda: nbn.LayerNorm(()), ValueError, "^normalized_shape must have one length or more"),
    (lambda: nbn.LayerNorm(2.0), TypeError, "^normalized_shape must be an integer, not 2.0"),
    (lambda: nbn.LayerNorm((2, 3), axis=1), ValueError, "^axis is 1, but normalized_shape has 2 lengths"),
    (lambda: nbn.LayerNorm(3, eps=-1.0), ValueError, "^eps must be a finite number"),
    (lambda: nbn.RMSNorm(3, eps=np.nan), ValueError, "^eps must be a finite number"),
    (lambda: nbn.LayerNorm(3, elementwise_affine=False), TypeError, "elementwise_affine.* scale and center"),
    (
        lambda: nbn.LayerNorm((2, 3), axis=(2, 1)),
        ValueError,
        r"^axis must name .* in ascending order, not \(2, 1\)",
    ),
    (lambda: nbn.LayerNorm((2, 3), axis=(-1, 1)), ValueError, "^axis must name .* in ascending order"),
    (lambda: nbn.LayerNorm(num_features=3), TypeError, "num_features.* normalized_shape"),
    (lambda: nbn.RMSNorm(3, elementwise_affine=False), TypeError, "here it is scale: see"),
    (lambda: nbn.RMSNorm(3, bias=False), TypeError, "unexpected keyword argument 'bias'"),
    (lambda: nbn.RMSNorm(3).bias, AttributeError, "made without beta"),
    (lambda: nbn.LayerNorm(3).moving_mean, AttributeError, "'moving_mean'$"),
    (lambda: nbn.LayerNorm(3).weight, AttributeError, r'params\["gamma"\]'),
    (lambda: nbn.LayerNorm(4)(X), ValueError, r"^x has shape \(4, 3\), \(3,\) on the axes \(-1,\), .*\(4,\)"),
    (lambda: nbn.LayerNorm(3).backward(X), RuntimeError, "^backward needs a forward call first"),
    (lambda: nbn.LayerNorm(3).load_state_dict({}), KeyError, "missing keys"),
]


@pytest.mark.parametrize(("call", "error", "message"), LAYER_REFUSED)
def test_layer_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
