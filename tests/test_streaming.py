"""Moments against rational arithmetic: every dtype, layout, axis, chunking, merge tree and NaN policy."""

import math
import operator
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.backends.cpu import jit
from numbabn.backends.cpu.streaming import statistics
from numbabn.statistics import _pieces, _population
from tests.checks import assert_same_bits, unchanged
from tests.problems import LAYOUTS, arrange
from tests.strategies import JIT, SIZES

INTEGERS = tuple(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))
FLOATS = tuple(np.dtype(f"f{size}") for size in (2, 4, 8))
DTYPES = (np.dtype(bool), *INTEGERS, *FLOATS)
ELEMENTS = 6000 if JIT else 800


# The oracle -------------------------------------------------------------------------------------------------


def channels(x, kept):
    """Rows of exact numbers, one per channel in the order of the axes kept: integers over one power of 2."""
    rest = [axis for axis in range(x.ndim) if axis not in kept]
    rows = x.transpose([*kept, *rest]).reshape(math.prod(x.shape[axis] for axis in kept), -1).tolist()
    scale = max((v.as_integer_ratio()[1] for row in rows for v in row), default=1)
    return [Row([n * (scale // d) for n, d in map(ratio, row)], scale) for row in rows]


def ratio(value):
    return value.as_integer_ratio()


class Row:
    """Values of a channel, divided by ``scale``, with integer weights that count ``unit`` times."""

    def __init__(self, values, scale=1, weights=None, unit=1):
        weights = [1] * len(values) if weights is None else weights
        pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w]
        n, s = sum(w for _, w in pairs), sum(w * v for v, w in pairs)
        self.count = Fraction(n) * unit
        if n:
            self.mean = Fraction(s, n * scale)
            squares = sum(w * v * v for v, w in pairs)
            self.m2 = Fraction(n * squares - s * s, n * scale * scale) * unit
            self.low, self.high = (Fraction(f(pairs)[0], scale) for f in (min, max))
        self.values, self.scale = values, scale

    def var(self, ddof):
        """None where there are too few values."""
        return self.m2 / (self.count - ddof) if self.count and self.count > ddof else None

    def __add__(self, other):
        scale = max(self.scale, other.scale)
        values = [v * (scale // row.scale) for row in (self, other) for v in row.values]
        return Row(values, scale)


DDOFS = (Fraction(0), Fraction(1), Fraction(1, 2))


def results(m):
    """(count, mean, least, greatest, standard deviation, variances by ddof) of every channel."""
    arrays = (m.count, m.mean, m.min, m.max, m.std(), *(m.var(float(ddof)) for ddof in DDOFS))
    for count, mean, low, high, std, *variances in zip(
        *(a.reshape(-1).tolist() for a in arrays), strict=True
    ):
        yield count, mean, low, high, std, variances


def check_real(m, rows):
    """Within 1e-14 of the size of mean and deviation, and within 1e-12 of the variance: what is promised."""
    for row, (count, mean, low, high, std, variances) in zip(rows, results(m), strict=True):
        assert count == pytest.approx(float(row.count), rel=1e-14)
        if not row.count:
            assert count == 0
            assert np.isnan([mean, low, high, std, *variances]).all()
            continue
        assert (low, high) == (float(row.low), float(row.high))
        true = float(row.var(0))
        assert abs(mean - float(row.mean)) <= 1e-14 * max(abs(float(row.mean)), math.sqrt(true))
        assert abs(std - math.sqrt(true)) <= 1e-12 * math.sqrt(true)
        for ddof, var in zip(DDOFS, variances, strict=True):
            if row.count > ddof:
                assert abs(var - float(row.var(ddof))) <= 1e-12 * var
            else:
                assert np.isnan(var)


def check_integers(m, rows):
    """Every bit: the rational results, rounded once."""
    assert m.count.dtype == np.int64
    for row, (count, mean, low, high, _, variances) in zip(rows, results(m), strict=True):
        assert count == row.count
        if not count:
            assert np.isnan([mean, low, high, *variances]).all()
            continue
        assert (mean, low, high) == (float(row.mean), float(row.low), float(row.high))
        for ddof, var in zip(DDOFS, variances, strict=True):
            assert var == float(row.var(ddof)) if count > ddof else np.isnan(var)


def check(m, x, kept):
    if x.dtype.kind in "biu":
        check_integers(m, channels(x, kept))
    else:
        assert m.count.dtype == np.int64
        check_real(m, channels(x, kept))


# Problems ---------------------------------------------------------------------------------------------------


@st.composite
def arrays(draw, dtypes=DTYPES, min_dims=1):
    """(array of any dtype and memory layout, channel axes as given to Moments)."""
    shape = []
    for _ in range(draw(st.integers(min_dims, 4))):
        left = ELEMENTS // math.prod(shape)
        shape.append(draw(st.sampled_from([n for n in (*SIZES, 700) if n <= left])))
    shape = tuple(draw(st.permutations(shape)))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), unique=True, max_size=len(shape)))
    x = values(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16)))
    x = arrange(x, draw(st.sampled_from(sorted(LAYOUTS))), np.random.default_rng(0))
    signed = tuple(axis - len(shape) * draw(st.integers(0, 1)) for axis in axes)
    return x, signed[0] if len(signed) == 1 and draw(st.booleans()) else signed


def values(shape, dtype, seed=0, offset=None):
    """Integers over their whole range, extremes among them; floats far from 0."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.random(shape) < 0.3
    if dtype.kind in "iu":
        span = np.iinfo(dtype)
        x = rng.integers(span.min, span.max, shape, dtype=dtype, endpoint=True)
        x[rng.random(shape) < 0.1] = span.min
        x[rng.random(shape) < 0.1] = span.max
        return x
    far = {2: 10, 4: 1e4, 8: 1e8}[dtype.itemsize] if offset is None else offset
    return (rng.standard_normal(shape) + far * rng.integers(-1, 2)).astype(dtype)


def axes_of(axis, ndim):
    return [a % ndim for a in (axis if isinstance(axis, tuple) else (axis,))]


def cut_somewhere(x, axis, rng):
    """Chunks of x along an axis that is not kept, some of them empty; or x alone."""
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


# Results ----------------------------------------------------------------------------------------------------


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
    """Alone, and beside integers, of which there are as many."""
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
    m = nbn.Moments().update(np.full((n, 3), value, dtype)).update(np.full((7, 3), value, dtype))
    assert (m.mean == value).all()
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


@pytest.mark.parametrize("dtype", ["i1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(2, 3, 523), (2, 3, 700), (3, 5, 5), (37, 3, 1)])
def test_range_without_zero(dtype, shape):
    """Vectors are filled up with zeros where a row ends: they are no values."""
    x = np.random.default_rng(0).integers(5, 99, shape).astype(dtype)
    for y in (x, -x) if dtype != "u2" else (x,):
        m = nbn.Moments(1).update(y)
        assert (m.min == y.min((0, 2))).all()
        assert (m.max == y.max((0, 2))).all()


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


def test_weights_are_repeated_elements():
    x = values((40, 3), np.dtype(np.float32))
    times = np.random.default_rng(1).integers(0, 6, (40, 1))
    weighted = nbn.Moments().update(x, weights=times)
    repeated = nbn.Moments().update(np.repeat(x, times[:, 0], axis=0))
    assert (weighted.count == repeated.count).all()
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-15)
    np.testing.assert_allclose(weighted.var(1), repeated.var(1), rtol=1e-14)
    assert (weighted.min == repeated.min).all()


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


# How it is computed -----------------------------------------------------------------------------------------

PATHS = (
    ((700, 3), (-1,)), ((5, 3), (-1,)), ((130, 300), (-1,)), ((40, 1201), (-1,)), ((3, 4, 49), (1,)),
    ((2, 3, 700), (1,)), ((3, 2, 5000), (1,)), ((9000,), ()), ((6, 7, 8, 9), (1, 3)), ((6, 7, 8, 9), (3, 1)),
)  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch):
    """Small pieces, chunks and blocks: what only arrays of many megabytes meet."""
    monkeypatch.setattr(_pieces, "VIEW_ELEMENTS", 2000)
    monkeypatch.setattr(_pieces, "COPY_ELEMENTS", 300)
    monkeypatch.setattr(statistics.plan, "CHUNK_BYTES", 500)
    monkeypatch.setattr(statistics, "_BLOCK", 64)
    monkeypatch.setattr(statistics, "_ROW", 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paths(dtype, small_pieces):
    for shape, axis in PATHS if JIT else PATHS[:6:2]:
        x = values(shape, dtype)
        check(nbn.Moments(axis).update(x), x, [a % x.ndim for a in axis])


@pytest.mark.skipif(not JIT, reason="there is one kernel only")
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4"])
def test_same_bits_in_parallel(dtype, small_pieces, monkeypatch):
    """Tasks come from the shape alone, and are merged in order, whoever ran them."""
    for shape, axis in PATHS:
        x = values(shape, np.dtype(dtype))
        alone = nbn.Moments(axis).update(x).to_dict()
        with monkeypatch.context() as patch:
            patch.setattr(jit, "PARALLEL_BYTES", 0)
            for name, value in nbn.Moments(axis).update(x).to_dict().items():
                assert_same_bits(value, alone[name], name)


def test_half_without_conversion_instructions(monkeypatch):
    x = values((90, 5), np.dtype(np.float16))
    m = nbn.Moments().update(x)
    monkeypatch.setattr(statistics, "_HAS_HALF", False)
    assert_same_bits(nbn.Moments().update(x).mean, m.mean, "mean")


@given(
    st.lists(st.integers(0, 5), max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))
    ),
    st.integers(1, 8),
    st.integers(1, 200),
)
def test_cut(problem, itemsize, most):
    """Pieces cover an array just once, and none is larger than it may be."""
    shape, order = problem
    seen = np.zeros(shape, int)
    for index in _pieces.cut(shape, order, itemsize, most):
        seen[index] += 1
        size = math.prod(part.stop - part.start for part in index)
        assert size * itemsize <= max(most, itemsize)
    assert (seen == 1).all()
