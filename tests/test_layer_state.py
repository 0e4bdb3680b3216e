"""The state of a layer as a dictionary or a file, and copies and pickles of the whole layer."""

import copy
import io
import pickle

import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_same_bits, unchanged
from tests.support.layers import assert_same_state, batches, snapshot

KINDS = [
    {},
    {"momentum": None},
    {"scale": False},
    {"center": False},
    {"track_running_stats": False},
    {"dtype": np.float16},
    {"dtype": np.float64, "momentum": None, "axis": -1},
]


def used(options):
    """Return a layer with a past."""
    bn = nbn.BatchNorm(3, **options)
    for i, value in enumerate(bn.params.values()):
        value[:] = np.arange(3) + i + 0.5
    for x in batches([4, 7]):
        x = np.moveaxis(x, 1, bn.axis)
        bn(x)
        bn.backward(np.ones_like(x))
    return bn


def continue_both(bn, twin):
    """One step more gives both layers the same results and state."""
    x = np.moveaxis(batches([6], seed=1)[0], 1, bn.axis)
    for mode in ("train", "eval"):
        getattr(bn, mode)(), getattr(twin, mode)()
        assert_same_bits(twin(x), bn(x), "y")
        assert_same_bits(twin.backward(x), bn.backward(x), "dx")
        assert_same_state(twin, snapshot(bn))


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_state_dict(options):
    bn, twin = used(options), nbn.BatchNorm(3, **options)
    state = bn.state_dict()
    keys = ["gamma"] * options.get("scale", True) + ["beta"] * options.get("center", True)
    if options.get("track_running_stats", True):
        keys += ["running_mean", "running_var", "num_batches_tracked"]
    if options.get("momentum", 0.1) is None:
        keys += ["population_count", "population_mean", "population_m2"]
    assert list(state) == keys
    assert twin.load_state_dict(state) is None
    twin.grads = {name: value.copy() for name, value in bn.grads.items()}  # gradients are no state
    continue_both(bn, twin)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_state_is_a_copy(options):
    """Neither the dictionary nor the layer sees what later happens to the other."""
    bn = used(options)
    state = bn.state_dict()
    before = snapshot(bn)
    for value in state.values():
        value[...] = 0
    assert_same_state(bn, before)
    bn.load_state_dict(state)
    before = snapshot(bn)
    for value in state.values():
        value[...] = 1
    assert_same_state(bn, before)
    with unchanged(*state.values()):
        bn.train()
        bn(np.moveaxis(batches([5])[0], 1, bn.axis))


def test_state_through_a_file():
    bn, twin = used({"momentum": None}), nbn.BatchNorm(3, momentum=None)
    file = io.BytesIO()
    np.savez(file, **bn.state_dict())
    file.seek(0)
    with np.load(file) as state:
        twin.load_state_dict(state)
    twin.grads = {name: value.copy() for name, value in bn.grads.items()}
    continue_both(bn, twin)


def test_loading_casts_and_keeps_the_arrays():
    """The layer keeps its dtypes, and its arrays of parameters, which an optimiser may hold."""
    bn, twin = used({"dtype": np.float64}), nbn.BatchNorm(3)
    held = dict(twin.params)
    twin.load_state_dict(bn.state_dict())
    for name, value in held.items():
        assert twin.params[name] is value
        assert_same_bits(value, bn.params[name].astype(np.float32), name)
    assert_same_bits(twin.running_var, bn.running_var.astype(np.float32), "running_var")
    assert twin.num_batches_tracked == bn.num_batches_tracked


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("protocol", [None, *range(2, pickle.HIGHEST_PROTOCOL + 1)])
def test_copies(options, protocol):
    """A deep copy, or what comes from a pickle of any protocol, goes on as the layer does."""
    bn = used(options)
    bn.eval()
    with bn.frozen_stats():
        twin = copy.deepcopy(bn) if protocol is None else pickle.loads(pickle.dumps(bn, protocol))
    assert repr(twin) == repr(bn)
    assert twin.training == bn.training
    assert_same_state(twin, snapshot(bn))
    mine = [*bn.params.values(), *bn.grads.values()]
    theirs = [*twin.params.values(), *twin.grads.values()]
    assert not any(np.may_share_memory(a, b) for a in mine for b in theirs)
    with pytest.raises(RuntimeError, match="forward"):
        twin.backward(np.zeros((4, 3), np.float32))  # a batch is no part of a layer
    continue_both(bn, twin)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_counts_stop_at_the_largest_of_int64(momentum):
    most = np.iinfo(np.int64).max
    bn = nbn.BatchNorm(3, momentum=momentum)
    state = bn.state_dict()
    state |= {
        name: np.array(most - 1) for name in ("num_batches_tracked", "population_count") if name in state
    }
    bn.load_state_dict(state)
    for _ in range(3):
        bn(np.ones((4, 3), np.float32))
    saved = bn.state_dict()
    assert saved["num_batches_tracked"] == most
    assert saved.get("population_count", most) == most
    bn.load_state_dict(saved)


def test_infinite_and_nan_values_are_loaded():
    bn = nbn.BatchNorm(3)
    bn.load_state_dict({**bn.state_dict(), "running_mean": np.array([np.inf, -np.inf, np.nan])})
    np.testing.assert_array_equal(bn.running_mean, np.array([np.inf, -np.inf, np.nan], np.float32))
