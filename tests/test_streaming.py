"""Moments against rational arithmetic: every dtype, layout, axis, chunking and merge tree."""

import itertools
import operator
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.statistics import _population
from tests.support.checks import unchanged
from tests.support.exact import (
    DTYPES,
    FLOATS,
    INTEGERS,
    arrays,
    axes_of,
    channels,
    check,
    check_integers,
    check_real,
    values,
)
from tests.support.jit import JIT, needs_jit


def cut_somewhere(x, axis, rng):
    """Return chunks of x along an axis that is not kept, some of them empty; or x alone."""
    free = [a for a in range(x.ndim) if a not in axes_of(axis, x.ndim)]
    if not free:
        return [x]
    along = rng.choice(free)
    places = np.sort(rng.integers(0, x.shape[along] + 1, rng.integers(0, 6)))
    return np.split(x, places, along)


def merge_in_any_order(parts, rng):
    parts = list(parts)
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        merged = parts[i] + parts[j] if rng.random() < 0.5 else parts[i].copy().merge(parts[j])
        parts = [m for k, m in enumerate(parts) if k not in (i, j)] + [merged]
    return parts[0]


@settings(max_examples=100)
@given(arrays())
def test_any_array(problem):
    x, axis = problem
    with unchanged(x):
        m = nbn.Moments(axis).update(x)
    kept = axes_of(axis, x.ndim)
    assert m.shape == m.mean.shape == m.var().shape == m.count.shape == tuple(x.shape[a] for a in kept)
    check(m, x, kept)


@settings(max_examples=100)
@given(arrays(min_dims=2), st.integers(0, 2**16))
def test_any_chunks_and_any_merge_tree(problem, seed):
    x, axis = problem
    rng = np.random.default_rng(seed)
    chunks = cut_somewhere(x, axis, rng)
    rng.shuffle(chunks)
    streamed = reduce(lambda m, chunk: m.update(chunk), chunks, nbn.Moments(axis))
    check(streamed, x, axes_of(axis, x.ndim))
    merged = merge_in_any_order([nbn.Moments(axis).update(chunk) for chunk in chunks], rng)
    check(merged, x, axes_of(axis, x.ndim))


@settings(max_examples=60)
@given(st.lists(st.sampled_from(DTYPES), min_size=2, max_size=5, unique=True), st.integers(0, 2**16))
def test_integers_and_floats_in_one_history(dtypes, seed):
    rng = np.random.default_rng(seed)
    chunks = [values((9, 3), dtype, seed + i) for i, dtype in enumerate(dtypes)]
    rows = [reduce(operator.add, parts) for parts in zip(*(channels(x, [1]) for x in chunks), strict=True)]
    m = merge_in_any_order([nbn.Moments().update(x) for x in chunks], rng)
    (check_integers if all(d.kind in "biu" for d in dtypes) else check_real)(m, rows)


def test_integers_stay_exact_beside_floats():
    """Two parts are kept: a float that comes and goes in a merge takes nothing from an exact sum."""
    big = np.full((3, 1), np.iinfo(np.int64).max)
    big[0] -= 1
    m = nbn.Moments().update(big) + nbn.Moments().update(np.empty((0, 1)))
    assert m._population.exact.sums()[1].tolist() == [3 * np.iinfo(np.int64).max - 1]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_doubled_integers_stay_exact(dtype):
    """2**62 times the extremes of the dtype, by merging: digits carry, and the last bit is right."""
    span = np.iinfo(dtype)
    row = [span.min, span.max, span.max, 1]
    m = nbn.Moments().update(np.array(row, dtype)[:, None])
    for _ in range(60):
        m.merge(m)
    times = 2**60
    total, squares, n = sum(row) * times, sum(v * v for v in row) * times, len(row) * times
    assert m.count.tolist() == [n]
    assert m.mean.tolist() == [total / n]
    assert m.var(1).tolist() == [(n * squares - total * total) / (n * (n - 1))]
    with pytest.raises(OverflowError, match="more than"):
        m.merge(m)
    assert m.count.tolist() == [n]


@pytest.mark.parametrize("later", [1.0, 1])
def test_more_floats_than_can_be_counted(later):
    """More than 2**63 - 1 floats are refused, alone and beside as many integers."""
    m, other = (nbn.Moments().update(np.array([[value]])) for value in (1.0, later))
    for _ in range(62):
        m.merge(m)
        other.merge(other)
    less = m.copy().update(np.array([[later]] * 3))
    assert less.count.tolist() == [2**62 + 3]
    with pytest.raises(OverflowError, match="more than 9223372036854775807 values"):
        m.merge(other)
    assert m.count.tolist() == [2**62]


def test_count_and_range_of_integers_and_floats_need_no_fractions(monkeypatch):
    """A Fraction for each of 150 000 pixels takes a second."""
    m = nbn.Moments().update(np.array([[1, 2]])).update(np.array([[0.5, np.nan], [4.0, 1.0]]))
    monkeypatch.setattr(_population, "Fraction", None)
    assert m.count.tolist() == [3, 3]
    np.testing.assert_array_equal(m.min, [0.5, np.nan])
    np.testing.assert_array_equal(m.max, [4, np.nan])
    m = m.merge(nbn.Moments().update(np.ones((2, 2)), weights=np.array([[0.25], [0]])))
    assert m.count.tolist() == [3.25, 3.25]


def test_one_result_is_an_array_like_all_results():
    m = nbn.Moments(()).update(np.arange(4.0))
    assert {type(v) for v in (m.count, m.mean, m.var(), m.std(), m.min, m.max)} == {np.ndarray}


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_merge_doubling(offset):
    """1.1e12 counted elements: as exact as the thousand they are."""
    x = values((1001, 3), np.dtype(float), offset=offset)
    m = nbn.Moments().update(x)
    for _ in range(30):
        m = m + m
    assert m.count.tolist() == [1001 * 2**30] * 3
    for row, mean, var in zip(channels(x, [1]), m.mean, m.var(), strict=True):
        assert abs(mean - float(row.mean)) <= 1e-14 * max(abs(float(row.mean)), 1)
        assert abs(var - float(row.var(0))) <= 1e-12 * var


@needs_jit  # thousands of merges
@pytest.mark.parametrize("part", [[2.0**-12, -(2.0**-12)], [2.0**-11]], ids=["variance", "mean"])
def test_small_parts_of_a_large_sum_of_squares(part):
    """20,000 times less than half a rounding of the sum of squares: none of them is lost."""
    m = nbn.Moments().update(np.array([[1.0], [-1.0]]))
    for _ in range(31):
        m.merge(m)
    parts = [nbn.Moments().update(sign * np.array(part)[:, None]) for sign in (1, -1)]
    for _ in range(10_000):
        m.merge(parts[0]).merge(parts[1])
    m.merge(parts[0])
    n, s = 2**32 + 20_001 * len(part), sum(map(Fraction, part))
    m2 = 2**32 + 20_001 * sum(Fraction(v) ** 2 for v in part) - s * s / n
    for _ in range(3):
        # The sum is doubled: 106 bits, and an error of some 2**-104 in each merge.
        high, low = m.to_dict()["real_moments"][4:, 0]
        assert abs(Fraction(high) + Fraction(low) - m2) <= m2 / 2**80
        assert abs(m.var()[0] - float(m2 / n)) <= 4e-16
        m.merge(m)
        n, m2 = 2 * n, 2 * m2


def test_integers_beside_floats_far_from_zero():
    """The mean of integers has two parts: rounded to one, it would be 1e-7 off, and the variance 4e-8."""
    rng = np.random.default_rng(0)
    integers = 10**9 + rng.integers(-2, 3, (1001, 2))
    floats = 1e9 + 1 + rng.standard_normal((1001, 2))
    m = nbn.Moments().update(integers).update(floats)
    check_real(m, [a + b for a, b in zip(channels(integers, [1]), channels(floats, [1]), strict=True)])


@pytest.mark.parametrize("order", ["as is", "sorted", "by turns"])
def test_thousands_of_single_rows(order):
    """No drift: at an offset of 1e8 a single rounding of a mean is 1e-8, and of a variance's term 2e-8."""
    x = values((3000 if JIT else 200, 2), np.dtype(float), offset=1e8)
    if order != "as is":
        x.sort(axis=0)
    if order == "by turns":
        x = np.concatenate([x[::2], x[1::2][::-1]])
    m = nbn.Moments.from_chunks(x)
    check_real(m, channels(x, [1]))


def test_heavy_and_light():
    """One value far away, merged with many: the mean must not be as coarse as the difference."""
    x = np.concatenate([[[1e8]], values((500, 1), np.dtype(float), offset=0.0) + 1])
    for parts in (np.split(x, [1]), np.split(x, [1])[::-1]):
        m = nbn.Moments.from_chunks(parts)
        check_real(m, channels(x, [1]))


@pytest.mark.parametrize(("shape", "axis"), [((-1, 1), 1), ((1, -1), 0)], ids=["columns", "rows"])
@pytest.mark.parametrize("seed", range(4))
def test_values_of_all_sizes(shape, axis, seed):
    """The mean is some percent of the range: deviations from its middle would lose two digits."""
    x = np.exp(20 * np.random.default_rng(seed).normal(size=3000 if JIT else 300)).reshape(shape)
    check_real(nbn.Moments(axis).update(x), channels(x, [axis]))


@given(st.sampled_from(FLOATS), st.integers(1, 200), st.floats(-6e4, 6e4, width=16))
def test_constant(dtype, n, value):
    rounded = np.array(value, dtype)
    m = nbn.Moments().update(np.full((n, 3), rounded)).update(np.full((7, 3), rounded))
    assert (m.mean == float(rounded)).all()
    assert (m.var() == 0).all()


def test_huge_and_tiny_values():
    """Range and mean of what squares cannot hold; a variance that overflows is infinite, not NaN."""
    m = nbn.Moments().update(np.array([[1e300, 1e-300], [-1e300, 3e-300], [1e300, 2e-300]]))
    np.testing.assert_allclose(m.mean, [1e300 / 3, 2e-300], rtol=1e-15)
    assert m.var()[0] == np.inf
    assert m.max.tolist() == [1e300, 3e-300]


@pytest.mark.parametrize(
    ("values", "mean", "var"),
    [
        ([9e307, 9e307], 9e307, 0),
        ([1.7e308, 1.7e308, 1.7e308], 1.7e308, 0),
        ([1.5e308, -1.5e308], 0, np.inf),
        ([-1.5e308, 1.5e308, 1.5e308], 5e307, np.inf),
        ([1.5e308, np.inf], np.inf, np.nan),
        ([-np.inf, 9e307, np.inf], np.nan, np.nan),
        ([5e-324, 5e-324], 5e-324, 0),
    ],
)
def test_merged_means_do_not_overflow(values, mean, var):
    m = nbn.Moments.from_chunks(np.array(values)[:, None, None])
    np.testing.assert_allclose(m.mean, [mean], rtol=1e-15)
    np.testing.assert_array_equal(m.var(), [var])


@pytest.mark.parametrize(("shape", "axis"), [((-1, 1), 1), ((1, -1), 0)], ids=["columns", "rows"])
def test_a_variance_that_overflows_is_infinite(shape, axis):
    """Sums of squares overflow where the sum of all values does not."""
    x = np.repeat([0.0, 1e200], 3000 if JIT else 700).reshape(shape)
    m = nbn.Moments(axis).update(x)
    np.testing.assert_allclose(m.mean, [5e199], rtol=1e-15)
    assert m.var().tolist() == [np.inf]


@pytest.mark.parametrize("options", [{}, {"weights": np.ones(1)}, {"where": np.ones(1, bool)}], ids=str)
def test_values_whose_differences_overflow(options):
    """In any order, cut anywhere: the mean is exact up to its last bit, the variance beyond all numbers."""
    for order in set(itertools.permutations([1.7e308, -1.7e308, 1.7e308])):
        for cuts in ([], [1], [2], [1, 2]):
            m = nbn.Moments()
            for chunk in np.split(np.array(order)[:, None], cuts):
                m.update(chunk, **options)
            exact = float(sum(map(Fraction, order)) / 3)
            np.testing.assert_allclose(m.mean, [exact], rtol=2.0**-52)
            assert m.var().tolist() == [np.inf]
            assert (m.min, m.max) == (-1.7e308, 1.7e308)


@pytest.mark.parametrize(("shape", "axis"), [((-1, 2), 1), ((-1, 1), 1), ((1, -1), 0)], ids=str)
@pytest.mark.parametrize("scale", [1e304, 1e306, 1.7e308])
def test_sums_that_overflow(shape, axis, scale):
    """The mean is that of the numbers, whether their sum is one or not; infinity stays in its channel."""
    x = np.random.default_rng(0).choice([scale, -scale], 2000, p=[0.9, 0.1]).reshape(shape)
    m = nbn.Moments(axis).update(x)
    assert np.isfinite(m.mean).all()
    for mean, row in zip(m.mean, channels(x, [axis]), strict=True):
        # Promised is 1e-14 of the size of the data.
        assert abs(Fraction(mean) - row.mean) <= Fraction(scale) / 10**14
    assert (m.var() == np.inf).all()
    x[0, 0] = np.inf
    again = nbn.Moments(axis).update(x)
    assert again.mean[0] == np.inf
    assert (again.mean[1:] == m.mean[1:]).all()


@pytest.mark.parametrize("dtype", ["i1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(2, 3, 523), (2, 3, 700), (3, 5, 5), (37, 3, 1)])
def test_range_without_zero(dtype, shape):
    """Vectors are filled up with zeros where a row ends: they are no values."""
    x = np.random.default_rng(0).integers(5, 99, shape).astype(dtype)
    for y in (x, -x) if dtype != "u2" else (x,):
        m = nbn.Moments(1).update(y)
        assert (m.min == y.min((0, 2))).all()
        assert (m.max == y.max((0, 2))).all()
