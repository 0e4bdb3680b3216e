"""Errors of states of other frameworks, and the advice of ``load_state_dict``."""

import re

import numpy as np
import pytest

import numbabn as nbn
from numbabn import states
from tests.support.layers import assert_same_state, snapshot
from tests.support.states import BATCH, BETA, CASES, GAMMA, MEAN, PLAIN, VAR, assert_same_states, within

TORCH, KERAS, FLAX = (dict(BATCH)[name] for name in ("torch", "keras", "flax"))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def bad(name, layer, arguments, error, *words):
    return pytest.param(layer, arguments, error, words, id=name)


REFUSED = [
    bad("no layer", lambda: "bn", (TORCH,), TypeError, "layer must be", "BatchNorm(64)", "str"),
    bad("no mapping", lambda: nbn.BatchNorm(3), ([1],), TypeError, "mapping must be", "list"),
    bad("convention", lambda: nbn.BatchNorm(3), (TORCH, "jax"), ValueError, "'torch', 'keras'", "'jax'"),
    bad("convention type", lambda: nbn.BatchNorm(3), (TORCH, None), ValueError, "convention", "None"),
    bad("prefix", lambda: nbn.BatchNorm(3), (TORCH, "torch", 1), TypeError, "prefix must be a str", "1"),
    bad(
        "missing",
        lambda: nbn.BatchNorm(3),
        (without(TORCH, "running_var"),),
        KeyError,
        "missing names ['running_var']",
        "['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']",
    ),
    bad(
        "unknown", lambda: nbn.BatchNorm(3), ({**TORCH, "extra": MEAN},), KeyError, "unknown names ['extra']"
    ),
    bad(
        "many unknown",
        lambda: nbn.BatchNorm(3),
        ({**TORCH, **{f"x{i}": MEAN for i in range(20)}},),
        KeyError,
        "and 12 more",
    ),
    bad(
        "unknown below",
        lambda: nbn.BatchNorm(3),
        ({"a.bn": 0, **{f"a.{name}": value for name, value in TORCH.items()}}, "torch", "a"),
        KeyError,
        "unknown names ['a.bn']",
    ),
    bad("not affine", lambda: nbn.BatchNorm(3), (without(TORCH, "weight"),), KeyError, "with scale=False"),
    bad("affine", lambda: nbn.BatchNorm(3, **PLAIN), (TORCH,), KeyError, "with scale=True, center=True"),
    bad(
        "statistics",
        lambda: nbn.BatchNorm(3, track_running_stats=False),
        (KERAS, "keras"),
        KeyError,
        "unknown names ['moving_mean', 'moving_variance']",
        "with track_running_stats=True",
    ),
    bad(
        "RMS norm has no center",
        lambda: nbn.RMSNorm(3),
        ({"weight": GAMMA, "bias": BETA},),
        KeyError,
        "['bias']",
    ),
    bad(
        "another convention",
        lambda: nbn.BatchNorm(3),
        (KERAS,),
        KeyError,
        'numbabn.states.from_state(layer, mapping, convention="keras")',
    ),
    bad(
        "another prefix",
        lambda: nbn.BatchNorm(3),
        (within(FLAX, "flax", "norm"), "flax"),
        KeyError,
        'from_state(layer, mapping, convention="flax", prefix="block/norm")',
    ),
    bad(
        "samples seen",
        lambda: nbn.BatchNorm(3, **PLAIN),
        ({"mean_": MEAN, "var_": VAR, "n_samples_seen_": 3}, "sklearn"),
        KeyError,
        "unknown names ['n_samples_seen_']",
        "with momentum=None",
    ),
    bad(
        "samples seen of each feature",
        lambda: nbn.BatchNorm(3, momentum=None, **PLAIN),
        ({"mean_": MEAN, "var_": VAR, "n_samples_seen_": np.array([3, 3, 2])}, "sklearn"),
        ValueError,
        "mapping['n_samples_seen_'] has shape (3,)",
    ),
    bad(
        "weights of samples",
        lambda: nbn.BatchNorm(3, momentum=None, **PLAIN),
        ({"mean_": MEAN, "var_": VAR, "n_samples_seen_": 2.5}, "sklearn"),
        TypeError,
        "mapping['n_samples_seen_'] has dtype float64",
    ),
    bad(
        "no parameters in the convention",
        lambda: nbn.BatchNorm(3),
        ({"mean_": MEAN, "var_": VAR}, "sklearn"),
        ValueError,
        "'sklearn' has no beta and no gamma",
        "center=False, scale=False",
    ),
    bad(
        "exact statistics",
        lambda: nbn.BatchNorm(3, momentum=None),
        (TORCH,),
        ValueError,
        "'torch' does not have",
        "a number as momentum",
    ),
    bad("shape", lambda: nbn.BatchNorm(4), (TORCH,), ValueError, "mapping['weight'] has shape (3,)", "(4,)"),
    bad(
        "shape under a prefix",
        lambda: nbn.BatchNorm(4),
        (within(FLAX, "flax", "norm"), "flax", "block/norm"),
        ValueError,
        "mapping['params/block/norm/scale'] has shape (3,)",
    ),
    bad(
        "dtype",
        lambda: nbn.BatchNorm(3),
        ({**TORCH, "running_mean": np.arange(3)},),
        TypeError,
        "mapping['running_mean'] has dtype int64",
    ),
    bad(
        "negative",
        lambda: nbn.BatchNorm(3),
        ({**TORCH, "running_var": -VAR},),
        ValueError,
        "mapping['running_var'] must not be negative",
    ),
    bad(
        "range",
        lambda: nbn.BatchNorm(3, dtype=np.float16),
        ({**TORCH, "running_var": VAR * 1e6},),
        ValueError,
        "mapping['running_var']",
        "beyond the range",
    ),
]


@pytest.mark.parametrize(("make", "arguments", "error", "words"), REFUSED)
def test_refused_states_change_nothing(make, arguments, error, words):
    layer = make()
    before = None if isinstance(layer, str) else snapshot(layer)
    with pytest.raises(error) as caught:
        states.from_state(layer, *arguments)
    for word in words:
        assert word in caught.value.args[0]
    if before:
        assert_same_state(layer, before)


@pytest.mark.parametrize(
    "call", [lambda *a, **o: states.from_state(*a, **o), lambda bn, _, *a, **o: states.to_state(bn, *a, **o)]
)
@pytest.mark.parametrize(
    ("arguments", "count", "error", "words"),
    [
        ((TORCH,), 4, ValueError, "count is 4, but the variances of convention 'torch' are unbiased"),
        ((KERAS, "keras"), 1, ValueError, "count must be at least 2"),
        ((KERAS, "keras"), 2.5, TypeError, "count must be an integer, not 2.5"),
    ],
)
def test_refused_counts(call, arguments, count, error, words):
    bn = nbn.BatchNorm(3)
    before = snapshot(bn)
    with pytest.raises(error, match=re.escape(words)):
        call(bn, *arguments, count=count)
    assert_same_state(bn, before)


def test_a_variance_beyond_the_range_once_it_is_unbiased():
    bn = nbn.BatchNorm(3, dtype=np.float16)
    before = snapshot(bn)
    with pytest.raises(
        ValueError, match=r"mapping\['moving_variance'\] has the value 80000.0, which is beyond"
    ):
        states.from_state(bn, {**KERAS, "moving_variance": np.full(3, 4e4)}, "keras", count=2)
    assert_same_state(bn, before)


def test_read_only_parameters():
    bn = nbn.BatchNorm(3)
    bn.params["gamma"].flags.writeable = False
    before = snapshot(bn)
    with pytest.raises(ValueError, match="read-only"):
        states.from_state(bn, TORCH)
    assert_same_state(bn, before)


# Advice of load_state_dict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "convention", "state"), CASES)
def test_load_state_dict_names_the_call(make, convention, state):
    """It is the call that loads the state: run as it is written."""
    for mapping in (state, within(state, convention, "norm")):
        layer = make()
        if mapping.keys() <= layer.state_dict().keys():
            continue  # numbabn's own names
        with pytest.raises(KeyError) as caught:
            layer.load_state_dict(mapping)
        advice = re.search(r"call (numbabn\.states\.from_state\(.*\))$", caught.value.args[0])
        eval(advice[1], {"numbabn": nbn, "layer": layer, "mapping": mapping})
        assert_same_states(states.to_state(layer, convention), state)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": GAMMA, "bias": BETA},  # of a layer without statistics
        {"a.weight": GAMMA},
        {"anything": 0},
    ],
    ids=str,
)
def test_load_state_dict_without_a_convention_that_fits(state):
    with pytest.raises(KeyError, match=re.escape('from_state(layer, mapping, convention="...")')):
        nbn.BatchNorm(3).load_state_dict(state)


def test_shapes_tell_a_norm_from_a_dense_layer():
    model = {"fc.weight": np.ones((4, 3)), "fc.bias": np.ones(4), "ln.weight": GAMMA, "ln.bias": BETA}
    with pytest.raises(KeyError, match='prefix="ln"'):
        nbn.LayerNorm(3).load_state_dict(model)


def test_no_advice_where_every_key_is_known():
    bn = nbn.BatchNorm(3)
    state = bn.state_dict()
    del state["running_var"]
    with pytest.raises(KeyError) as caught:
        bn.load_state_dict(state)
    assert "from_state" not in caught.value.args[0]


def test_no_options_for_a_state_of_something_else():
    with pytest.raises(KeyError) as caught:
        states.from_state(nbn.BatchNorm(3), {"kernel": MEAN})
    assert "make the layer" not in caught.value.args[0]


@pytest.mark.parametrize("name", ["extra", "weight"])
def test_no_advice_where_no_key_is_missing(name):
    bn = nbn.BatchNorm(3)
    with pytest.raises(KeyError) as caught:
        bn.load_state_dict({**bn.state_dict(), name: GAMMA})
    assert "from_state" not in caught.value.args[0]
