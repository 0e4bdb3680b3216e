"""What follows a norm in the same pass: activation and residual, forward and backward, of every norm."""

import copy
import itertools
import pickle

import ml_dtypes
import numba
import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_apart, assert_result_of, assert_same_bits, gaps_of, unchanged
from tests.support.epilogues import ACTIVATIONS, SLOPE, Chain, Norm, activated, chain, fused, through
from tests.support.jit import JIT, needs_jit
from tests.support.problems import LAYOUTS
from tests.support.ranks import on_ranks

# Rows, columns of one pixel and of 3x3, values along a row, and of a group: each has kernels of its own. None
# has a number of elements that vectors divide.
NORMS = [
    Norm("batch", (3, 5, 5, 7)), Norm("batch", (37, 7)), Norm("layer", (13, 21), -1),
    Norm("batch", (3, 6, 3, 3)), Norm("group", (3, 4, 5, 7)), Norm("group", (2, 5, 3, 6), -1),
    Norm("instance", (2, 5, 3, 6), -1), Norm("instance", (3, 5, 5, 7)), Norm("group", (5, 10)),
    Norm("rms", (4, 37, 3)),
]  # fmt: skip


def slow_where_compiled(*arguments):
    """Return parameters for runs with -m slow, where their kernels must be compiled, for seconds."""
    return pytest.param(*arguments, marks=pytest.mark.slow if JIT else ())


def compiles_much(test):
    """Mark a test as slow where kernels are compiled."""
    return pytest.mark.slow(test) if JIT else test


# With a residual, kernels have all that those without one have.
WITHOUT, WITH = [(norm, False) for norm in NORMS], [(norm, True) for norm in NORMS]
every_norm = pytest.mark.parametrize(
    ("norm", "residual"),
    [*WITH[:3], *(slow_where_compiled(*each) for each in WITHOUT + WITH[3:])],
    ids=str,
)


def assert_as_chain(actual, expected):
    """All results have the bits of the chain; a sign of 0 may be another, where y is 0 by an activation."""
    assert_same_bits(actual.y + 0, expected.y + 0, "y")
    for name, one, other in zip(
        ("dx", "dgamma", "dbeta"), actual.gradients, expected.gradients, strict=False
    ):
        assert_same_bits(one, other, name)
    if actual.dresidual is not None:
        assert_same_bits(actual.dresidual, expected.dresidual, "dresidual")


@every_norm
def test_is_the_chain_of_its_steps(norm, residual):
    """Results have the bits of the plain norm, an addition and an activation; inputs are not changed."""
    for dtype in (np.float32, np.float64) if not JIT else (np.float32,):
        x, z, dy = norm.arrays(dtype)
        for activation in ("relu",) if JIT else ACTIVATIONS[: 3 + residual]:
            with unchanged(x, z, dy):
                actual = fused(norm, x, z if residual else None, dy, activation)
            assert_as_chain(actual, chain(norm, x, z if residual else None, dy, activation))
            assert_result_of(actual.y, x, "y")
            for result in (actual.y, actual.gradients[0], *[actual.dresidual] * residual):
                assert_apart(result, x, z, dy)


@pytest.mark.slow
@needs_jit
@every_norm
def test_other_activations_and_float64(norm, residual):
    x, z, dy = norm.arrays(np.float64)
    for activation in ACTIVATIONS[: 3 + residual]:
        expected = chain(norm, x, z if residual else None, dy, activation)
        assert_as_chain(fused(norm, x, z if residual else None, dy, activation), expected)


@pytest.mark.parametrize("activation", ["relu", *(slow_where_compiled(name) for name in ACTIVATIONS[1:3])])
@pytest.mark.parametrize("norm", [NORMS[0], slow_where_compiled(NORMS[1])], ids=str)
def test_known_statistics(norm, activation):
    """Inference is the forward call with statistics given; its backward call has no other terms.

    The sums of these gradients are float64, so that dy * slope is not rounded in them, as it is in the chain:
    once to float32, an error of 6e-8 of |dy * xhat|, whose sum is 500 at most here.
    """
    x, z, dy = norm.arrays()
    given = {"mean": np.linspace(-1, 1, norm.shape[1]), "var": np.linspace(1, 3, norm.shape[1])}
    expected = chain(norm, x, z, dy, activation, **given)
    actual = fused(norm, x, z, dy, activation, **given)
    for one, other in zip(actual.gradients[1:], expected.gradients[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=500 * 6e-8)
    assert_as_chain(actual._replace(gradients=actual.gradients[:1]), expected)
    y = nbn.batch_norm_inference(
        x, **given, **norm.parameters(), activation=activation, negative_slope=SLOPE, residual=z
    )
    assert_same_bits(y + 0, expected.y + 0, "y of inference")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("norm", [slow_where_compiled(norm) for norm in NORMS[:2]], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS[:3])
def test_half_precision_is_rounded_once(norm, activation, dtype):
    """With known statistics results are those of float32, rounded: v is not, before the residual is added."""
    x, z, dy = norm.arrays(dtype)
    given = {"mean": np.linspace(-1, 1, norm.shape[1]), "var": np.linspace(1, 3, norm.shape[1])}
    wide = fused(norm, *(array.astype(np.float32) for array in (x, z, dy)), activation, **given)
    actual = fused(norm, x, z, dy, activation, **given)
    assert_same_bits(actual.y, wide.y.astype(dtype), "y")
    assert_same_bits(actual.gradients[0], wide.gradients[0].astype(dtype), "dx")
    assert_same_bits(actual.dresidual, wide.dresidual.astype(dtype), "dresidual")
    for one, other in zip(actual.gradients[1:], wide.gradients[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-9)  # sums in float64, in another order


@compiles_much
def test_integers_take_a_residual_of_the_result():
    x = np.arange(40, dtype=np.uint8).reshape(4, 10)
    z = np.linspace(-9, 9, 40, dtype=np.float32).reshape(4, 10)
    given = {"mean": np.full(10, 15.0), "var": np.full(10, 4.0), "dtype": np.float32}
    plain = nbn.batch_norm_inference(x, **given)
    y = nbn.batch_norm_inference(x, **given, residual=z, activation="relu6")
    assert_same_bits(y + 0, activated(plain + z, "relu6") + 0, "y")


# -inf, -7, -0, 0, 3, 6, 7, inf and NaN, whose activations and derivatives PyTorch 2.13 gives as follows.
SPECIAL = np.array([-np.inf, -7, -0.0, 0, 3, 6, 7, np.inf, np.nan], np.float32)
SPECIAL_Y = {
    "relu": [0, 0, 0, 0, 3, 6, 7, np.inf, np.nan],
    "relu6": [0, 0, 0, 0, 3, 6, 6, 6, np.nan],
    "leaky_relu": [-np.inf, -1.4, 0, 0, 3, 6, 7, np.inf, np.nan],
}
SPECIAL_DERIVATIVE = {
    "relu": [0, 0, 0, 0, 1, 1, 1, 1, 1],
    "relu6": [0, 0, 0, 0, 1, 0, 0, 0, 1],
    "leaky_relu": [SLOPE, SLOPE, SLOPE, SLOPE, 1, 1, 1, 1, SLOPE],
}


@pytest.mark.parametrize("activation", ["relu", *(slow_where_compiled(name) for name in ACTIVATIONS[1:3])])
def test_special_values_are_as_in_pytorch(activation):
    """Of x and of a residual; and a gradient of infinity does not become NaN where the derivative is 0."""
    one = {"mean": np.zeros(9), "var": np.ones(9), "eps": 0.0}
    options = {"activation": activation, "negative_slope": SLOPE}
    rows = np.tile(SPECIAL, (5, 1))
    for x, z in ((rows, np.zeros_like(rows)), (np.zeros_like(rows), rows)):
        y, saved = nbn.batch_norm_forward(x, **one, **options, residual=z)
        np.testing.assert_allclose(y, np.tile(np.float32(SPECIAL_Y[activation]), (5, 1)), rtol=1e-7)
        for dy in (np.float32(1), np.float32(np.inf), np.float32(np.nan)):
            derivative = np.tile(np.float32(SPECIAL_DERIVATIVE[activation]), (5, 1))
            with np.errstate(invalid="ignore"):
                expected = np.where(derivative == 0, 0, derivative * dy)
            _, _, _, dresidual = nbn.batch_norm_backward(np.full_like(x, dy), saved)
            np.testing.assert_array_equal(dresidual, expected)


@pytest.mark.parametrize("norm", NORMS[:3], ids=str)
def test_results_in_place(norm):
    """Y over x or over the residual, dx over dy, or dresidual over dy."""
    x, z, dy = norm.arrays()
    expected = chain(norm, x, z, dy, "relu")
    options = {"activation": "relu", "residual": z}
    for out in ("x", "residual"):
        mine = {"x": x.copy(), "residual": z.copy()}
        y, _ = norm.forward(mine["x"], activation="relu", residual=mine["residual"], out=mine[out])
        assert y is mine[out]
        assert_same_bits(y + 0, expected.y + 0, out)
    for argument, position in (("out", 0), ("dresidual_out", -1)):
        _, saved = norm.forward(x, **options)
        mine = dy.copy()
        results = norm.backward(mine, saved, **{argument: mine})
        assert results[position] is mine
        assert_same_bits(results[0], expected.gradients[0], "dx")
        assert_same_bits(results[-1], expected.dresidual, "dresidual")


def test_the_residual_may_be_x():
    norm = NORMS[0]
    x, _, dy = norm.arrays()
    expected = chain(norm, x, x, dy, "relu")
    assert_as_chain(fused(norm, x, x, dy, "relu"), expected)


@compiles_much
def test_without_an_activation_dresidual_is_dy():
    """In memory of its own; written over dy, dy stays."""
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    _, saved = norm.forward(x, residual=z)
    dresidual = norm.backward(dy, saved)[-1]
    assert_same_bits(dresidual, dy, "dresidual")
    assert_apart(dresidual, dy)
    assert norm.backward(dy, saved, dresidual_out=dy)[-1] is dy
    assert_same_bits(dresidual, dy, "dy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_residual_and_results(layout):
    """Arrays of any strides are read and written, and the memory between their elements stays."""
    norm, rng = NORMS[0], np.random.default_rng(3)
    x, z, dy = norm.arrays()
    z = LAYOUTS[layout](z, rng)
    expected = chain(norm, x, z, dy, "relu")
    with unchanged(z):
        assert_as_chain(fused(norm, x, z, dy, "relu"), expected)
    if layout in ("broadcast", "read_only"):
        return
    dresidual = LAYOUTS[layout](np.zeros(x.shape, np.float32), rng)
    _, saved = norm.forward(x, activation="relu", residual=z)
    gaps = gaps_of(dresidual)
    assert norm.backward(dy, saved, dresidual_out=dresidual)[-1] is dresidual
    assert_same_bits(dresidual.astype(np.float32), expected.dresidual, "dresidual")
    assert gaps_of(dresidual) == gaps


@pytest.mark.slow
@needs_jit
@pytest.mark.parametrize("shape", [(5, 48, 64, 102), (5, 64, 102, 48)], ids=["rows", "columns"])
def test_large_arrays_at_any_address(shape):
    """Vectors begin where the address of y says in the first two, which are written past the caches."""
    norm = Norm("batch", shape, 1 if shape[1] == 48 else -1)
    x, z, dy = norm.arrays()
    expected = chain(norm, x, z, dy, "relu")
    memory = np.empty(x.size + 16, np.float32)
    for offset in (0, 3):
        out = memory[offset : offset + x.size].reshape(shape)
        y, saved = norm.forward(x, activation="relu", residual=z, out=out)
        results = norm.backward(dy, saved)
        assert_same_bits(y + 0, expected.y + 0, "y")
        assert_same_bits(results[0], expected.gradients[0], "dx")
        assert_same_bits(results[-1], expected.dresidual, "dresidual")


@pytest.mark.slow
@needs_jit
def test_same_bits_for_any_number_of_threads():
    """Threads that share a word of sixteen bits do not disturb each other."""
    norm = Norm("batch", (64, 23, 9, 11))  # many short pieces, that begin and end inside of words
    x, z, dy = norm.arrays()
    most = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        expected = fused(norm, x, z, dy, "relu")
    finally:
        numba.set_num_threads(most)
    for _ in range(50):
        assert_as_chain(fused(norm, x, z, dy, "relu"), expected)


@compiles_much
def test_only_what_is_needed():
    """Gradients of the parameters and of the residual do not depend on whether dx is returned."""
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    for residual in (None, z):
        _, saved = norm.forward(x, activation="relu", residual=residual)
        whole, less = norm.backward(dy, saved), norm.backward(dy, saved, need_dx=False)
        assert less[0] is None
        assert len(less) == len(whole) == (3 if residual is None else 4)
        for one, other in zip(less[1:], whole[1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-4)  # other sums, in float64


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 5, 4)], ids=str)
def test_empty_arrays(shape):
    x = np.empty(shape, np.float32)
    y, saved = nbn.batch_norm_forward(x, activation="relu", residual=x)
    dx, _, _, dresidual = nbn.batch_norm_backward(x, saved)
    assert y.shape == dx.shape == dresidual.shape == shape


@every_norm
def test_layers(norm, residual):
    """A layer has the results of the functions, and the gradient of the residual beside its others."""
    x, z, dy = norm.arrays()
    z = z if residual else None
    layer, expected = norm.layer(activation="relu"), chain(norm, x, z, dy, "relu")
    assert layer.dresidual is None
    y = layer(x, residual=z)
    dx = layer.backward(dy)
    actual = Chain(y, (dx, *(layer.grads[name] for name in norm.parameters())), layer.dresidual)
    assert_as_chain(actual, expected)
    assert (layer.dresidual is not None) == residual


def test_a_gradient_of_a_residual_is_not_kept_from_an_earlier_call():
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    layer = norm.layer(activation="relu")
    layer(x, residual=z)
    layer.backward(dy)
    assert layer.dresidual is not None
    layer.activation = None
    layer(x)
    layer.backward(dy)
    assert layer.dresidual is None


def test_a_layer_in_evaluation_mode():
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    bn = norm.layer(activation="relu")
    bn(x, residual=z)
    known = {"mean": bn.running_mean, "var": bn.running_var}
    expected = chain(norm, x, z, dy, "relu", **known)
    assert_same_bits(bn.eval()(x, residual=z) + 0, expected.y + 0, "y")
    assert_same_bits(bn.backward(dy, dresidual_out=z), expected.gradients[0], "dx")
    assert bn.dresidual is z


def test_a_layer_that_moves_forgets_its_gradients():
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    layer = norm.layer(activation="relu")
    layer(x, residual=z)
    layer.backward(dy)
    layer.to("cpu")
    assert layer.dresidual is not None  # it was there already
    copied = copy.deepcopy(layer)
    assert copied.dresidual is None
    with pytest.raises(RuntimeError, match="backward needs a forward call first"):
        copied.backward(dy)


@compiles_much
def test_ranks():
    """Every rank has its part of what one layer gives for the whole batch; one has no samples."""
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    whole = norm.layer(activation="relu")
    y = whole(x, residual=z)
    dx = whole.backward(dy)
    parts = [slice(0, 1), slice(1, 1), slice(1, 3)]

    def run(comm):
        layer, part = norm.layer(activation="relu"), parts[comm.Get_rank()]
        layer.comm = comm
        return layer(x[part], residual=z[part]), layer.backward(dy[part]), layer.dresidual

    results = on_ranks(len(parts), run)
    for part, found in zip(parts, results, strict=True):
        # Sums are merged in another order, in float64, and dx is computed from them in float32.
        for one, other in zip(found, (y, dx, whole.dresidual), strict=True):
            np.testing.assert_allclose(one, other[part], rtol=1e-5, atol=1e-5)


def test_running_statistics_are_those_of_the_norm():
    norm = NORMS[0]
    x, z, _ = norm.arrays()
    plain, other = norm.layer(), norm.layer(activation="relu")
    plain(x)
    other(x, residual=z)
    assert_same_bits(other.running_var, plain.running_var, "running_var")


@compiles_much
def test_options_of_a_layer_can_be_seen_set_and_kept():
    bn = nbn.BatchNorm(3, activation="leaky_relu", negative_slope=0.1)
    assert repr(bn).endswith("activation='leaky_relu', negative_slope=0.1)")
    x = np.float32([[1, 2, 3], [3, 2, 0]])
    bn(x, residual=x)
    bn.backward(x)
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert (other.activation, other.negative_slope, other.dresidual) == ("leaky_relu", 0.1, None)
    bn.activation = "relu"
    assert (bn(x) >= 0).all()
    bn.activation = "tanh"
    with pytest.raises(ValueError, match="activation must be None or one of 'relu', 'relu6', 'leaky_relu'"):
        bn(x)


def test_saved_can_be_pickled():
    norm = NORMS[0]
    x, z, dy = norm.arrays()
    _, saved = norm.forward(np.asfortranarray(x), activation="relu", residual=z)
    expected = norm.backward(dy, saved)
    for one, other in zip(norm.backward(dy, pickle.loads(pickle.dumps(saved))), expected, strict=True):
        assert_same_bits(one, other, "gradient")


X = np.ones((4, 3), np.float32)
NAMED = "activation must be None or one of 'relu', 'relu6', 'leaky_relu', not"
SLOPED = "negative_slope must be a"
REFUSED = [
    ({"activation": "tanh"}, ValueError, NAMED),
    ({"activation": max}, TypeError, NAMED),
    ({"activation": "leaky_relu", "negative_slope": "0.1"}, TypeError, f"{SLOPED} real number"),
    ({"activation": "leaky_relu", "negative_slope": np.nan}, ValueError, f"{SLOPED} finite number"),
    ({"residual": X[:2]}, ValueError, r"residual has shape \(2, 3\), but x has shape \(4, 3\)"),
    ({"residual": X.astype(np.float64)}, TypeError, "residual has dtype float64.*astype"),
    ({"residual": [1.0]}, TypeError, "residual must be a NumPy array, not builtins.list"),
    ({"residual": np.ones(13, np.float32)[1:].reshape(4, 3)}, ValueError, "out overlaps residual in memory"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_calls_change_nothing(options, error, text):
    """They raise an error that says what would be right; out and running statistics stay."""
    out = np.full_like(X, 7)
    if "overlaps" in text:
        memory = options["residual"].base
        out = memory[:-1].reshape(4, 3)
    before = out.copy()
    bn = nbn.BatchNorm(3)
    with pytest.raises(error, match=text):
        nbn.batch_norm_forward(X, out=out, **options)
    assert_same_bits(out, before, "out")
    if "activation" in options:
        with pytest.raises(error, match=text):
            nbn.BatchNorm(3, **options)
    elif "overlaps" not in text:
        with pytest.raises(error, match=text):
            bn(X, residual=options["residual"])
        assert bn.num_batches_tracked == 0


def test_refused_memory_for_the_gradient_of_a_residual():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    _, saved = nbn.batch_norm_forward(x, residual=x, activation="relu")
    dy, mine = np.ones_like(x), np.ones_like(x)
    refusals = [
        ({"dresidual_out": mine, "out": mine}, "dresidual_out overlaps out in memory; pass two arrays"),
        ({"dresidual_out": dy, "out": dy}, "dresidual_out overlaps out in memory; pass two arrays"),
        ({"dresidual_out": x}, "dresidual_out overlaps x in memory; pass dy itself to compute in place"),
        ({"dresidual_out": mine[:2]}, r"dresidual_out has shape \(2, 3\)"),
    ]
    for options, text in refusals:
        with unchanged(x, dy, mine), pytest.raises(ValueError, match=text):
            nbn.batch_norm_backward(dy, saved, **options)
    _, saved = nbn.batch_norm_forward(x)
    with pytest.raises(ValueError, match="dresidual_out is given, but the forward call had no residual"):
        nbn.batch_norm_backward(dy, saved, dresidual_out=mine)


@pytest.mark.slow
@needs_jit
def test_random_problems():
    """Fused calls have the bits of the chain for any lengths, which cut vectors and words anywhere."""
    rng = np.random.default_rng(4)
    names, axes = ("batch", "group", "instance", "layer"), (1, -1)
    for name, axis in itertools.product(names, axes):
        for _ in range(40):
            shape = [int(n) for n in rng.integers(1, 20, 4)]
            shape[0] += 1
            shape[axis] *= 2
            shape[2] += 1
            norm = Norm(name, tuple(shape), axis)
            x, z, dy = norm.arrays()
            assert_as_chain(fused(norm, x, z, dy, "relu"), chain(norm, x, z, dy, "relu"))


def test_through_is_the_derivative():
    """The oracle of gradients agrees with a difference quotient of that of results, away from the kinks."""
    v = np.float64([-2, -0.5, 0.5, 2, 5.9, 6.1, 8])
    for activation in ACTIVATIONS:
        slope = (activated(v + 1e-6, activation) - activated(v - 1e-6, activation)) / 2e-6
        np.testing.assert_allclose(through(np.ones_like(v), v, activation), slope, atol=1e-9)
