"""States of PyTorch, Keras, Flax, ONNX and scikit-learn in layers, and back.

The names are written out in tests/support/states.py, and results are by the formula in float64. What the real
frameworks write is in test_states_frameworks.py.
"""

import re

import numpy as np
import pytest

import numbabn as nbn
from numbabn import states
from tests.support.checks import assert_same_bits
from tests.support.layers import assert_same_state, snapshot
from tests.support.processes import python
from tests.support.states import (
    AFFINE,
    BATCH,
    BETA,
    CASES,
    GAMMA,
    MEAN,
    PARAMETERS,
    PLAIN,
    SEPARATORS,
    STATISTICS,
    VALUES,
    VAR,
    assert_same_states,
    within,
)


@pytest.mark.parametrize(("make", "convention", "state"), CASES)
def test_names(make, convention, state):
    """Every value arrives under the layer's own key, and comes back under the framework's."""
    layer = make()
    assert states.from_state(layer, state, convention) is layer
    own = layer.state_dict()
    keys = {"gamma": "gamma", "beta": "beta", "running_mean": "mean", "running_var": "var"}
    for key, value in own.items():
        if key == "num_batches_tracked":
            assert value == (7 if convention == "torch" else 0)
        else:
            assert_same_bits(value, VALUES[keys[key]], key)
    assert_same_states(states.to_state(layer, convention), state)


@pytest.mark.parametrize(("make", "convention", "state"), CASES)
def test_prefix(make, convention, state):
    """One layer of a model is loaded, with a separator behind its prefix or without."""
    separator = SEPARATORS[convention]
    model = within(state, convention, "norm")
    for prefix in (f"block{separator}norm", f"block{separator}norm{separator}"):
        layer = states.from_state(make(), model, convention, prefix=prefix)
        assert_same_states(states.to_state(layer, convention), state)
        written = states.to_state(layer, convention, prefix=prefix)
        twin = states.from_state(make(), written, convention, prefix=prefix)
        assert_same_states(twin.state_dict(), layer.state_dict())
    with pytest.raises(KeyError, match="nor"):  # no prefix of a name's beginning
        states.from_state(make(), model, convention, prefix=f"block{separator}nor")


def test_collections_of_flax_stand_before_the_prefix():
    ln = nbn.LayerNorm(3)
    states.from_state(ln, {"params/a/b/scale": GAMMA, "params/a/b/bias": BETA}, "flax", prefix="a/b")
    assert_same_states(
        states.to_state(ln, "flax", prefix="a/b"), {"params": {"a": {"b": {"scale": GAMMA, "bias": BETA}}}}
    )


@pytest.mark.parametrize(("make", "convention", "state"), CASES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layers_keep_their_dtype(make, convention, state, dtype):
    layer = states.from_state(make(dtype=dtype), state, convention)
    held = dict(layer.params)
    states.from_state(layer, state, convention)
    assert all(layer.params[name] is value for name, value in held.items())
    for key, value in layer.params.items():
        assert_same_bits(value, VALUES[key].astype(dtype), key)


@pytest.mark.parametrize(("convention", "state"), [*BATCH, STATISTICS[-1]])
def test_evaluation(convention, state):
    """The formula, with the framework's variances as they are.

    The tolerance is four roundings to float32 of numbers up to |y|, and of x - mean before the division.
    """
    eps = 1e-3
    options = PLAIN if convention == "sklearn" else AFFINE
    bn = states.from_state(nbn.BatchNorm(3, eps=eps, **options), state, convention).eval()
    x = np.random.default_rng(0).normal(3, 10, (50, 3)).astype(np.float32)
    gamma, beta = (1, 0) if convention == "sklearn" else (GAMMA.astype(float), BETA.astype(float))
    invstd = 1 / np.sqrt(VAR.astype(float) + eps)
    exact = (x.astype(float) - MEAN) * invstd * gamma + beta
    terms = np.abs(x.astype(float) - MEAN) * invstd * np.abs(gamma) + np.abs(beta)
    assert (np.abs(bn(x) - exact) <= 4 * 2.0**-24 * terms).all()


# Variances --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["keras", "flax", "nnx", "onnx"])
def test_biased_variances_with_a_count(convention):
    """With n values they become unbiased: times n / (n - 1), and the other way round."""
    state = dict(BATCH)[convention]
    bn = states.from_state(nbn.BatchNorm(3, dtype=np.float64), state, convention, count=4)
    np.testing.assert_allclose(bn.running_var, VAR.astype(float) * 4 / 3, rtol=1e-15)
    assert_same_bits(bn.running_mean, MEAN.astype(float), "running_mean")
    back = states.from_state(
        nbn.BatchNorm(3, dtype=np.float64), states.to_state(bn, convention, count=4), convention
    )
    np.testing.assert_allclose(back.running_var, VAR.astype(float), rtol=1e-15)


def test_a_count_for_the_variances_of_a_scaler():
    """running_var becomes unbiased; the exact statistics know their own count."""
    state = {"mean_": MEAN, "var_": VAR, "n_samples_seen_": 5}
    bn = nbn.BatchNorm(3, momentum=None, dtype=np.float64, **PLAIN)
    states.from_state(bn, state, "sklearn", count=5)
    np.testing.assert_allclose(bn.running_var, VAR.astype(float) * 5 / 4, rtol=1e-15)
    np.testing.assert_allclose(states.to_state(bn, "sklearn", count=5)["var_"], VAR, rtol=1e-15)


def test_a_count_where_there_are_no_variances():
    ln = states.from_state(nbn.LayerNorm(3), dict(PARAMETERS)["keras"], "keras", count=4)
    assert_same_states(states.to_state(ln, "keras", count=4), dict(PARAMETERS)["keras"])


def test_infinite_and_nan_variances_with_a_count():
    state = {**dict(BATCH)["keras"], "moving_variance": np.array([np.inf, np.nan, 1])}
    bn = states.from_state(nbn.BatchNorm(3), state, "keras", count=2)
    np.testing.assert_array_equal(bn.running_var, np.array([np.inf, np.nan, 2], np.float32))


def test_old_files_have_no_num_batches_tracked():
    state = dict(BATCH)["torch"]
    old = {name: value for name, value in state.items() if name != "num_batches_tracked"}
    bn = nbn.BatchNorm(3)
    bn(np.ones((4, 3), np.float32))
    assert states.from_state(bn, old).num_batches_tracked == 0
    assert_same_states(states.to_state(bn), {**state, "num_batches_tracked": np.array(0)})


# StandardScaler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [25, np.int64(25), 25.0, np.float64(25)], ids=repr)
def test_scaler_goes_on_where_it_was(count):
    """With momentum=None mean, variance and count of all samples are kept, and the next batch is pooled."""
    x = np.random.default_rng(1).normal(5, 2, (40, 3))
    first, rest = x[:25], x[25:]
    state = {"mean_": first.mean(0), "var_": first.var(0), "n_samples_seen_": count}
    bn = nbn.BatchNorm(3, eps=0.0, momentum=None, **PLAIN)
    states.from_state(bn, state, "sklearn")
    written = states.to_state(bn, "sklearn")
    assert list(written) == ["mean_", "var_", "n_samples_seen_"]
    assert written["n_samples_seen_"] == 25
    assert_same_bits(written["mean_"], first.mean(0), "mean_")
    np.testing.assert_allclose(written["var_"], first.var(0), rtol=4e-16)  # times n and divided by it
    assert_same_bits(bn.running_var, first.var(0).astype(np.float32), "running_var")  # left as it is
    bn(rest)
    np.testing.assert_allclose(bn.running_var, x.var(0, ddof=1), rtol=1e-6)  # float32
    written = states.to_state(bn, "sklearn")
    np.testing.assert_allclose(written["mean_"], x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(written["var_"], x.var(0), rtol=1e-14)
    assert written["n_samples_seen_"] == 40


def test_a_layer_that_has_seen_nothing_is_written_for_a_scaler():
    written = states.to_state(nbn.BatchNorm(2, momentum=None, **PLAIN), "sklearn")
    assert written["n_samples_seen_"] == 0
    np.testing.assert_array_equal([written["mean_"], written["var_"]], [[0, 0], [1, 1]])


def test_exact_statistics_are_left_out_elsewhere():
    bn = nbn.BatchNorm(3, momentum=None)
    bn(np.random.default_rng(0).standard_normal((5, 3)))
    written = states.to_state(bn)
    assert list(written) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    twin = states.from_state(nbn.BatchNorm(3), written)
    assert_same_bits(twin.running_var, bn.running_var, "running_var")


# Values -----------------------------------------------------------------------------------------------------


class Variable:
    """What NumPy can read, and no more: a variable of Keras, an array of JAX."""

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return self.value


def test_variables_that_numpy_can_read():
    state = {name: Variable(value) for name, value in dict(BATCH)["keras"].items()}
    assert_same_states(
        states.to_state(states.from_state(nbn.BatchNorm(3), state, "keras"), "keras"), dict(BATCH)["keras"]
    )


def test_several_axes():
    gamma = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    state = {"gamma": gamma, "beta": -gamma}
    ln = states.from_state(nbn.LayerNorm((2, 3)), state, "keras")
    assert_same_bits(ln.params["gamma"], gamma, "gamma")
    with pytest.raises(ValueError, match=re.escape("mapping['gamma'] has shape (2, 3); it must be (6,)")):
        states.from_state(nbn.LayerNorm(6), state, "keras")


def test_a_state_is_a_copy():
    state = {name: value.copy() for name, value in dict(BATCH)["torch"].items()}
    bn = states.from_state(nbn.BatchNorm(3), state)
    written, before = states.to_state(bn), snapshot(bn)
    for value in (*state.values(), *written.values()):
        value[...] = 5
    assert_same_state(bn, before)


def test_import_numbabn_is_enough():
    """The call that an error names is there."""
    run = python("-c", "import numbabn; print(numbabn.states.from_state.__name__)")
    assert run.stdout.strip() == "from_state", run.stderr
