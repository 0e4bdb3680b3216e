"""NaN, infinity, weights and masks: which values Moments counts, and how often."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.backends.cpu.streaming import statistics
from tests.support.checks import assert_same_bits
from tests.support.exact import (
    DTYPES,
    FLOATS,
    Row,
    arrays,
    axes_of,
    channels,
    check_integers,
    check_real,
    values,
)
from tests.support.problems import arrange

# NaN and infinity -------------------------------------------------------------------------------------------


def with_nans(x, seed=0):
    x = np.array(x)
    x[np.random.default_rng(seed).random(x.shape) < 0.3] = np.nan
    return x


@settings(max_examples=50)
@given(arrays(dtypes=FLOATS))
def test_omit(problem):
    x, axis = problem
    order = with_nans(x) if x.size else x
    m = nbn.Moments(axis, nan_policy="omit").update(arrange(order, "contiguous", None))
    kept = axes_of(axis, x.ndim)
    there = channels(~np.isnan(order), kept)
    rows = channels(np.nan_to_num(order.astype(float)), kept)
    check_real(m, [Row(row.values, row.scale, w.values) for row, w in zip(rows, there, strict=True)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(50, 3), (3, 600), (40, 300)])
def test_nan_and_infinity_stay_in_their_channel(dtype, shape):
    x = values(shape, dtype)
    bad = np.array(x)
    bad[1, 0] = np.nan
    bad[1, 1] = np.inf
    bad[0, 2], bad[1, 2] = np.inf, -np.inf
    for later in (None, values(shape, dtype, seed=1)):
        good, m = nbn.Moments().update(x), nbn.Moments().update(bad)
        if later is not None:
            good, m = good.update(later), nbn.Moments().update(later).merge(m)
        assert (m.count == good.count).all()
        assert np.isnan(m.mean[[0, 2]]).all()
        assert m.mean[1] == np.inf
        assert np.isnan(m.var()[:3]).all()
        assert np.isnan(m.min[0])
        assert np.isnan(m.max[0])
        assert (m.min[2], m.max[1], m.max[2]) == (-np.inf, np.inf, np.inf)
        np.testing.assert_allclose(m.mean[3:], good.mean[3:], rtol=1e-14)
        np.testing.assert_allclose(m.var()[3:], good.var()[3:], rtol=1e-12)


def test_weights_of_bfloat16():
    x = np.array([[1.0, 2.0], [3.0, 6.0]])
    m = nbn.Moments().update(x, np.array([[1], [3]], ml_dtypes.bfloat16))
    assert (m.mean.tolist(), m.count.tolist()) == ([2.5, 5], [4, 4])


def test_nan_in_bfloat16_that_is_read_only():
    """Its memory is read through another array, which must be of the same dtype."""
    x = np.array([[1, np.nan], [3, 2]], ml_dtypes.bfloat16)
    x.flags.writeable = False
    m = nbn.Moments().update(x)
    np.testing.assert_array_equal([m.mean, m.min, m.max], [[2, np.nan], [1, np.nan], [3, np.nan]])


@pytest.mark.parametrize("beside", ["weights", "where"])
def test_nan_with_weights(beside):
    """A NaN that counts spoils the range of its channel, too; one that does not count spoils nothing."""
    x = np.array([[np.nan, np.nan, 1.0], [2.0, 3.0, 5.0], [4.0, 7.0, np.nan]])
    taken = np.array([[1, 0, 1], [1, 1, 1], [1, 1, 0]])
    m = nbn.Moments().update(x, **{beside: taken.astype(bool if beside == "where" else float)})
    assert m.count.tolist() == [3, 2, 2]
    np.testing.assert_array_equal(m.min, [np.nan, 3, 1])
    np.testing.assert_array_equal(m.max, [np.nan, 7, 5])
    np.testing.assert_array_equal(m.mean, [np.nan, 5, 3])
    np.testing.assert_array_equal(m.var(), [np.nan, 4, 4])


@pytest.mark.parametrize("beside", ["weights", "where"])
def test_raise_names_the_first_nan_that_counts(beside):
    x = np.ones((4, 5, 3))
    taken = np.ones(x.shape, bool)
    x[0, 1, 2] = x[1, 2, 0] = x[1, 2, 1] = x[2, 0, 0] = np.nan
    taken[0, 1, 2] = taken[1, 2, 0] = False
    m = nbn.Moments(nan_policy="raise")
    with pytest.raises(ValueError, match=r"NaN in channel 1, the first at chunk\[1, 2, 1\]"):
        m.update(x, **{beside: taken if beside == "where" else taken.astype(float)})
    m.update(x[:1], **{beside: taken[:1] if beside == "where" else taken[:1].astype(float)})


@pytest.mark.parametrize(
    ("axis", "channel", "place"),
    [(-1, "1", r"\[1, 2, 1\]"), ((0, 2), r"\(1, 1\)", r"\[1, 2, 1\]"), ((), r"\(\)", r"\[1, 2, 1\]")],
)
def test_raise_names_the_place_and_changes_nothing(axis, channel, place):
    x = values((4, 5, 3), np.dtype(np.float32))
    m = nbn.Moments(axis, nan_policy="raise").update(x)
    before = m.to_dict()
    x[1, 2, 1] = x[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"NaN in channel {channel}, the first at chunk{place}"):
        m.update(x)
    for name, value in m.to_dict().items():
        assert_same_bits(value, before[name], name)
    m.update(x, where=~np.isnan(x))
    m.update(x, weights=(~np.isnan(x)).astype(float))
    x[1, 2, 1], x[3, 0, 0], x[2, 0, 0] = 0, np.inf, -np.inf  # whose mean is NaN, but there is none in x
    m.update(x)


# Weights and where ------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=100)
@given(arrays(), st.integers(0, 2**16), st.booleans(), st.booleans())
def test_weights_and_where(problem, seed, weighted, masked):
    x, axis = problem
    rng = np.random.default_rng(seed)
    shape = [n if rng.random() < 0.7 else 1 for n in x.shape][rng.integers(0, x.ndim) :]
    weights = rng.integers(0, 5, shape) / 4 if weighted else None
    where = rng.random([n if rng.random() < 0.7 else 1 for n in x.shape]) < 0.7 if masked else None
    m = nbn.Moments(axis).update(x, weights, where)
    kept = axes_of(axis, x.ndim)
    full = np.broadcast_to(np.ones(1) if weights is None else weights * 4, x.shape).astype(int)
    full = full * np.broadcast_to(np.ones(1, bool) if where is None else where, x.shape)
    exactly = weights is None and x.dtype.kind in "biu"
    numbers = x if exactly else x.astype(float)  # weighted integers of 64 bits are rounded to float64 first
    unit = Fraction(1) if weights is None else Fraction(1, 4)
    pairs = zip(channels(numbers, kept), channels(full, kept), strict=True)
    rows = [Row(row.values, row.scale, w.values, unit) for row, w in pairs]
    assert m.count.dtype == (np.int64 if weights is None else np.float64)
    (check_integers if exactly else check_real)(m, rows)


@settings(max_examples=50)
@given(arrays(dtypes=FLOATS), st.integers(0, 2**16), st.booleans(), st.booleans())
def test_omit_with_weights(problem, seed, weighted, masked):
    """A NaN is left out, whatever its weight is; everything else counts as often as its weight says."""
    x, axis = problem
    rng = np.random.default_rng(seed)
    x = with_nans(x, seed) if x.size else np.array(x)
    weights = rng.integers(0, 5, x.shape) / 4 if weighted else None
    where = rng.random(x.shape) < 0.7 if masked else None
    m = nbn.Moments(axis, nan_policy="omit").update(x, weights, where)
    times = np.full(x.shape, 4) if weights is None else (weights * 4).astype(int)
    times = times * (~np.isnan(x) if where is None else where & ~np.isnan(x))
    kept = axes_of(axis, x.ndim)
    pairs = zip(channels(np.nan_to_num(x.astype(float)), kept), channels(times, kept), strict=True)
    check_real(m, [Row(row.values, row.scale, w.values, Fraction(1, 4)) for row, w in pairs])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (1, 600)])
def test_a_chunk_of_which_nothing_is_taken_has_no_range(dtype, shape):
    m = nbn.Moments(()).update(np.ones(shape, dtype), where=False)
    assert np.isnan([m.min, m.max]).all()
    for value in (1e10, -1e10):
        twin = m.copy().update(np.full((1, 1), value))
        assert (twin.count, twin.min, twin.max) == (1, value, value)


def test_where_true_is_no_mask(monkeypatch):
    """The kernels read the array itself, and no copy of it beside a mask."""
    x = values((200, 3), np.dtype(np.float32))
    seen, moments = [], statistics.moments
    monkeypatch.setattr(statistics, "moments", lambda *given: seen.append(given) or moments(*given))
    assert nbn.Moments().update(x, where=True).count.tolist() == [200] * 3
    ((flat, _, weight, _),) = seen
    assert np.shares_memory(flat, x)
    assert weight is None
    assert nbn.Moments().update(x, where=False).count.tolist() == [0, 0, 0]


@pytest.mark.parametrize("weights", [[[0.5], [2]], ([0.5], [2.0]), [[0.5, 0.5], [2, 2.0]]])
def test_weights_in_lists(weights):
    x = np.array([[1.0, 5.0], [2.0, -3.0]])
    expected = nbn.Moments().update(x, np.array(weights, np.float64))
    listed = nbn.Moments().update(x, weights)
    for name, value in expected.to_dict().items():
        assert_same_bits(listed.to_dict()[name], value, name)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 2.0, 3.0], ValueError, r"^weights has shape \(3,\), which does not broadcast"),
        ([[1.0], [1.0, 2.0]], ValueError, "^weights is a list of lists of different lengths"),
        ([["a"], ["b"]], TypeError, "^weights must hold real numbers only"),
        ([[True], [False]], TypeError, "^weights must hold real numbers only"),
        ([[1.0], [-1.0]], ValueError, "^weights must be finite and >= 0"),
    ],
)
def test_weights_in_bad_lists(weights, error, message):
    moments = nbn.Moments()
    with pytest.raises(error, match=message):
        moments.update(np.ones((2, 2)), weights)
    assert moments.shape is None


def test_weights_are_repeated_elements():
    x = values((40, 3), np.dtype(np.float32))
    times = np.random.default_rng(1).integers(0, 6, (40, 1))
    weighted = nbn.Moments().update(x, weights=times)
    repeated = nbn.Moments().update(np.repeat(x, times[:, 0], axis=0))
    assert (weighted.count == repeated.count).all()
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-15)
    np.testing.assert_allclose(weighted.var(1), repeated.var(1), rtol=1e-14)
    assert (weighted.min == repeated.min).all()


def weighted_rows(x, weights, unit):
    """Return the exact statistics of each channel, whose values count an integer times the unit."""
    return [
        Row(row.values, row.scale, times, Fraction(unit))
        for row, times in zip(channels(x, [1]), weights.T.tolist(), strict=True)
    ]


UNITS = (5e-324, 2.0**-1060, 1e-310, 1e-200, 2.0**-65, 2.0**70, 1e200, 1e300)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_weights_of_any_size(unit, offset):
    """Whatever all weights are multiplied by, mean and variance are the same."""
    x = values((60, 3), np.dtype(float), offset=offset)
    times = np.random.default_rng(1).integers(0, 6, x.shape)
    m = nbn.Moments().update(x, weights=times * unit)
    check_real(m, weighted_rows(x, times, unit))
    parts = nbn.Moments()
    for cut in (slice(0, 1), slice(1, 20), slice(20, 60)):
        parts.update(x[cut], weights=times[cut] * unit)
    check_real(parts, weighted_rows(x, times, unit))
    check_real(nbn.Moments.from_dict(parts.to_dict()), weighted_rows(x, times, unit))


@pytest.mark.parametrize("first", UNITS)
@pytest.mark.parametrize("second", [5e-324, 1.0, 1e300])
def test_weights_of_different_sizes(first, second):
    """Each channel has its own: what is light in one chunk and heavy in the next counts as it should."""
    x = values((40, 3), np.dtype(float), offset=0.0)
    times = np.random.default_rng(1).integers(0, 6, x.shape)
    times[:20, 0] = times[20:, 1] = 0
    units = np.repeat([first, second], 20)[:, None]
    m = nbn.Moments().update(x[:20], weights=times[:20] * first)
    other = nbn.Moments().update(x[20:], weights=times[20:] * second)
    once = nbn.Moments().update(x, weights=times * units)
    least = min(Fraction(first), Fraction(second))
    ratios = [int(Fraction(unit) / least) for unit in (first, second)]
    counts = times.astype(object) * np.repeat(np.array(ratios, object), 20)[:, None]
    for found in (m + other, other + m, once):
        check_real(found, weighted_rows(x, counts, least))


@pytest.mark.parametrize("weight", [5e-324, 1.7e308])
def test_mean_and_variance_of_weights_at_the_ends_of_their_range(weight):
    """The sum of weights may be beyond all numbers; no floating-point error is raised."""
    x = np.array([[1.0], [2], [4], [8]])
    with np.errstate(all="raise"):
        m = nbn.Moments().update(x, weights=np.full((4, 1), weight))
        m = m + nbn.Moments.from_dict(m.to_dict())
        assert m.count == (np.inf if weight > 1 else 8 * weight)
        np.testing.assert_allclose(m.mean, np.mean(x), rtol=1e-15)  # a few roundings
        np.testing.assert_allclose(m.var(), np.var(x), rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_count_whatever_their_weight(bad):
    """Also where it is so small beside others that it would be 0 on their scale."""
    x, weights = np.array([[bad], [1.0], [3.0]]), np.array([[5e-324], [1e300], [1e300]])
    parts = [nbn.Moments().update(x[cut], weights=weights[cut]) for cut in (slice(1), slice(1, 3))]
    for m in (nbn.Moments().update(x, weights=weights), parts[0] + parts[1], parts[1] + parts[0]):
        np.testing.assert_array_equal([m.mean, m.max], [[bad], [bad]])
        assert np.isnan(m.var()).all()


def test_tiny_weights_beside_integers():
    x = np.array([[1, 5], [2, 7], [4, 1]])
    m = nbn.Moments().update(x, weights=np.array([[5e-324], [1e-323], [5e-324]]))
    np.testing.assert_allclose(m.mean, [2.25, 5], rtol=1e-15)
    np.testing.assert_allclose(m.var(), [19 / 16, 6], rtol=1e-15)
    assert np.isnan(m.var(1)).all()
    m.update(x)  # counts so much more that the weights do not matter
    np.testing.assert_allclose(m.mean, [7 / 3, 13 / 3], rtol=1e-15)
    np.testing.assert_allclose(m.var(), x.var(0), rtol=1e-15)


def test_what_has_no_weight_is_not_there():
    x = np.array([[np.nan, 1.0, np.inf], [2.0, np.nan, -np.inf]])
    there = np.array([[False, True, False], [True, False, False]])
    for m in (
        nbn.Moments().update(x, where=there),
        nbn.Moments().update(x, weights=there.astype(np.float32)),
        nbn.Moments(nan_policy="raise").update(x, weights=np.ones(1), where=there),
    ):
        assert m.count.tolist() == [1, 1, 0]
        np.testing.assert_array_equal(m.mean, [2, 1, np.nan])
        np.testing.assert_array_equal(m.var(), [0, 0, np.nan])
        np.testing.assert_array_equal(m.max, [2, 1, np.nan])
