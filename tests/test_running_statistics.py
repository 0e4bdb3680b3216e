"""Running statistics of a layer: moving averages, and the exact statistics of everything it has seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_close, assert_same_bits, unchanged
from tests.support.layers import batches

FLOATS = (np.float16, np.float32, np.float64)


def unbiased(x, axis=1):
    count, mean, m2 = reference.moments(x, axis)
    return count, mean, m2 / (count - 1)


def test_momentum_of_nothing_and_everything():
    """A momentum of 0 keeps the statistics to the last bit, and 1 replaces them by those of the batch."""
    keep, replace = nbn.BatchNorm(3, momentum=0), nbn.BatchNorm(3, momentum=1)
    for x in batches([4, 9]):
        keep(x), replace(x)
    assert (keep.running_mean == 0).all()
    assert (keep.running_var == 1).all()
    assert keep.num_batches_tracked == 2
    _, saved = nbn.batch_norm_forward(x)
    assert_same_bits(replace.running_mean, saved.mean.astype(np.float32), "running_mean")
    assert np.allclose(replace.running_var, saved.var * saved.count / (saved.count - 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_averages_are_rounded_once(dtype):
    """The weights of old and new are float64, whatever the dtype of the layer is."""
    bn = nbn.BatchNorm(50, momentum=0.1, dtype=dtype)
    mean, var = np.zeros(50, dtype), np.ones(50, dtype)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal((7, 50)) + 3
        bn(x)
        _, saved = nbn.batch_norm_forward(x)
        mean = (mean * np.float64(1 - 0.1) + saved.mean * 0.1).astype(dtype)
        var = (var * np.float64(1 - 0.1) + saved.var * (0.1 * (7 / 6))).astype(dtype)
        assert_same_bits(bn.running_mean, mean, "running_mean")
        assert_same_bits(bn.running_var, var, "running_var")


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from(FLOATS), st.integers(0, 99))
def test_population_statistics(sizes, dtype, seed):
    """momentum=None gives the statistics of the concatenation, whatever the sizes of the batches."""
    bn = nbn.BatchNorm(3, momentum=None, dtype=dtype)
    seen = batches(sizes, dtype=np.float64, seed=seed)
    for x in seen:
        bn(x)
    count, mean, var = unbiased(np.concatenate(seen))
    error = max(1e-12, np.finfo(dtype).eps)
    assert_close(bn.running_mean, mean, error * (np.abs(mean) + 1), "running_mean")
    assert_close(bn.running_var, var, error * var, "running_var")
    state = bn.state_dict()
    assert state["population_count"] == count
    assert_close(state["population_mean"], mean, 1e-12 * (np.abs(mean) + 1), "population_mean")
    assert_close(state["population_m2"], var * (count - 1), 1e-12 * var * (count - 1), "population_m2")
    assert bn.num_batches_tracked == len(sizes)


def test_population_statistics_of_float32():
    """momentum=None is right to 1e-6 for float32 batches, whose own statistics carry float32 sums."""
    bn = nbn.BatchNorm(3, momentum=None)
    seen = batches([64, 1, 30, 200, 7])
    for x in seen:
        bn(x)
    _, mean, var = unbiased(np.concatenate(seen))
    assert np.abs(bn.running_mean / mean - 1).max() <= 1e-6
    assert np.abs(bn.running_var / var - 1).max() <= 1e-6


def test_population_is_not_a_mean_of_batches():
    """The variance of drifting batches is that of all their values, not the mean of their variances."""
    bn = nbn.BatchNorm(1, momentum=None, dtype=np.float64)
    seen = [np.random.default_rng(i).standard_normal((50, 1)) + 10.0 * i for i in range(4)]
    for x in seen:
        bn(x)
    assert np.allclose(bn.running_var, np.var(np.concatenate(seen), ddof=1), rtol=1e-12)
    assert bn.running_var[0] > 100  # the spread within a batch, which PyTorch's momentum=None gives, is 1


def test_running_statistics_are_not_changed_in_place():
    """Whoever holds the arrays, as a thread in evaluation mode or a logger, sees them unchanged."""
    bn = nbn.BatchNorm(3)
    mean, var = bn.running_mean, bn.running_var
    with unchanged(mean, var):
        bn(batches([4])[0])
    assert (bn.running_mean != mean).any()


def test_poisoned_channel():
    """NaN in one channel spoils the running statistics of that channel only."""
    bn, twin = nbn.BatchNorm(3), nbn.BatchNorm(3)
    x, y = batches([4, 4])
    twin(x), twin(y)
    x[1, 1, 0, 0] = np.nan
    bn(x), bn(y)
    for name in ("running_mean", "running_var"):
        found, expected = getattr(bn, name), getattr(twin, name)
        assert np.isnan(found[1])
        assert_same_bits(found[[0, 2]], expected[[0, 2]], name)
