"""The estimator: scikit-learn's own checks, formulas in float64, and StandardScaler as oracles."""

import importlib
import pickle
import sys
import warnings
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from numbabn.sklearn import StreamingStandardScaler
from tests.support.checks import assert_apart, assert_close, assert_result_of, assert_same_bits, unchanged
from tests.support.jit import JIT
from tests.support.problems import LAYOUTS, arrange

LEARNED = ("mean_", "var_", "scale_", "n_samples_seen_")
OPTIONS = [{"with_mean": mean, "with_std": std} for mean in (True, False) for std in (True, False)]


@parametrize_with_checks([StreamingStandardScaler()])
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # of scikit-learn's own: a check that is skipped warns
        check(estimator)


def samples(n=60, features=5, dtype=np.float32, nans=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, features)) * rng.uniform(0.1, 9, features) + rng.normal(0, 5, features)
    x[rng.random(x.shape) < nans] = np.nan
    return x.astype(dtype)


def formulas(x, weights=None):
    """(count, mean, variance, scale) of every feature in float64, NaN left out."""
    wide = x.astype(np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    w = np.where(np.isnan(wide), 0, w[:, None])
    wide = np.where(np.isnan(wide), 0, wide)
    count = w.sum(axis=0)
    with np.errstate(invalid="ignore"):  # no values: 0 / 0 is NaN
        mean = (w * wide).sum(axis=0) / count
        var = (w * (wide - mean) ** 2).sum(axis=0) / count
    constant = np.array([len(np.unique(column[~np.isnan(column)])) == 1 for column in x.T])
    return count, mean, np.where(constant, 0, var), np.where(constant, 1, np.sqrt(var))


def learned(scaler):
    """Everything that a refused call must not change."""
    return pickle.dumps(vars(scaler))


# Results ----------------------------------------------------------------------------------------------------


@settings(max_examples=200 if JIT else 30)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(OPTIONS),
    st.booleans(),
    st.integers(0, 99),
)
def test_formulas(n, features, dtype, nans, layout, options, weighted, seed):
    rng = np.random.default_rng(seed)
    x = arrange(samples(n, features, dtype, nans, seed), layout, rng)
    weights = rng.uniform(0.1, 3, n) if weighted else None
    cuts = [0, *sorted(rng.integers(0, n + 1, 2)), n]
    scaler = StreamingStandardScaler(**options)
    with unchanged(x, weights):
        for start, end in pairwise(cuts):
            if start < end:
                part = slice(start, end)
                scaler.partial_fit(x[part], sample_weight=None if weights is None else weights[part])
        y = scaler.transform(x)
        back = scaler.inverse_transform(y)
    count, mean, var, scale = formulas(x, weights)
    if not any(options.values()):  # samples are counted then, as StandardScaler does
        count, *_ = formulas(x)
    np.testing.assert_allclose(np.broadcast_to(scaler.n_samples_seen_, count.shape), count, rtol=1e-14)
    for name, needed, expected in (
        ("mean_", any(options.values()), mean),
        ("var_", options["with_std"], var),
        ("scale_", options["with_std"], scale),
    ):
        found = getattr(scaler, name)
        assert (found is not None) == needed, name
        if needed:  # the oracle's own rounding: some dozens of values of size 30 in float64
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13, err_msg=name)

    center = mean if options["with_mean"] else np.zeros(features)
    scale = scale if options["with_std"] else np.ones(features)
    exact = (x - center) / scale
    # As x: but other byte orders become float64, in memory of its own.
    assert_result_of(y, x if x.dtype.isnative else x.astype(np.float64, order="K"), "transform")
    assert_apart(y, x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    some = ~np.isnan(exact)
    # Roundings of difference, scale and product; the mean is known to 1e-13.
    error = 3 * np.finfo(y.dtype).eps * np.abs(exact) + 1e-13 / scale + np.finfo(y.dtype).tiny
    assert_close(y[some], exact[some], error[some], "transform")
    # The same once more, and one of the sum.
    error = 6 * np.finfo(y.dtype).eps * (np.abs(x) + np.abs(center))
    assert_close(back[some], x[some].astype(np.float64), error[some], "inverse_transform")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.longdouble, np.int16, np.uint8, bool]
)
def test_as_standard_scaler(dtype, options):
    x = np.abs(samples(50, 4, np.float64) * 4).astype(dtype)
    mine, theirs = StreamingStandardScaler(**options).fit(x), StandardScaler(**options).fit(x)
    for name in LEARNED:
        found, expected = getattr(mine, name), getattr(theirs, name)
        if expected is None:
            assert found is None, name
        else:
            # Newer versions of StandardScaler count in float64.
            assert found.dtype == (np.int64 if name == "n_samples_seen_" else expected.dtype), name
            np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
    y, expected = mine.transform(x), theirs.transform(x)
    assert y.dtype == expected.dtype
    # A few roundings there, of values up to the largest.
    eps = 4 * np.finfo(y.dtype).eps
    assert_close(y, expected.astype(np.float64), eps * np.abs(expected).max(), "transform")
    back, expected = mine.inverse_transform(y), theirs.inverse_transform(y)
    assert_close(back, expected.astype(np.float64), eps * np.abs(expected).max(), "inverse_transform")


def test_nan_as_standard_scaler():
    """Also for a feature that has nothing else: its mean and variance are unknown."""
    x = samples(50, 4, np.float64, nans=0.2)
    x[:, 2] = np.nan
    mine, theirs = StreamingStandardScaler().fit(x), StandardScaler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0
        theirs.fit(x)
    for name in LEARNED:
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-12, err_msg=name)
    assert mine.n_samples_seen_.dtype == np.int64
    np.testing.assert_allclose(mine.transform(x), theirs.transform(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("center", [0.0, 0.1, 1e-5, 1.0, 1e8])
@pytest.mark.parametrize("spread", [0.0, 1e-18, 1e-13, 1e-10])
def test_near_constant_features_as_standard_scaler(center, spread):
    x = center + spread * samples(100, 3, np.float64)
    mine, theirs = StreamingStandardScaler().fit(x), StandardScaler().fit(x)
    np.testing.assert_array_equal(mine.scale_ == 1, theirs.scale_ == 1)
    if spread == 0:
        assert (mine.scale_ == 1).all()
        np.testing.assert_array_equal(mine.transform(x), 0)


def test_integers_exactly():
    x = np.random.default_rng(0).integers(2**50, 2**51, (300, 2))
    scaler = StreamingStandardScaler().partial_fit(x[:100]).partial_fit(x[100:])
    for c in range(2):
        column = [int(value) for value in x[:, c]]
        mean = Fraction(sum(column), 300)
        assert scaler.mean_[c] == float(mean)
        assert scaler.var_[c] == float(sum((value - mean) ** 2 for value in column) / 300)


def test_fit_forgets():
    x = samples()
    scaler = StreamingStandardScaler().fit(x + 5).fit(x)
    for name in LEARNED:
        np.testing.assert_array_equal(getattr(scaler, name), getattr(StreamingStandardScaler().fit(x), name))


def test_sample_weight():
    x = samples()
    counts = np.random.default_rng(1).integers(0, 4, len(x))
    repeated = StreamingStandardScaler().fit(np.repeat(x, counts, axis=0))
    weighted = StreamingStandardScaler().fit(x, sample_weight=counts)
    for name in LEARNED:
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-13)
    half = StreamingStandardScaler().fit(x, sample_weight=0.5)
    assert half.n_samples_seen_ == len(x) / 2
    np.testing.assert_allclose(half.var_, StreamingStandardScaler().fit(x).var_, rtol=1e-13)


# Memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_in_place(dtype):
    x = samples(dtype=dtype)
    scaler = StreamingStandardScaler(copy=False).fit(x)
    expected = scaler.transform(x, copy=True)
    memory = x.copy()
    y = scaler.transform(memory)
    assert np.shares_memory(y, memory)
    assert_same_bits(memory, expected, "in place")
    back = scaler.inverse_transform(memory)
    assert np.shares_memory(back, memory)
    np.testing.assert_allclose(memory, x, rtol=1e-5)
    assert_same_bits(StreamingStandardScaler().fit(x).transform(x.copy(), copy=False), expected, "copy=")


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("size", [1e-40, 1e38])
def test_scales_beyond_float32(size, copy):
    """Their inverse is infinite in float32, or has lost digits."""
    x = np.array([[1.0, -1.0], [3.0, 1.0]], np.float32) * np.array([size, 1], np.float32)
    given = x.copy()
    with np.errstate(over="raise"):
        scaler = StreamingStandardScaler(copy=copy).fit(x)
        z = scaler.transform(x)
    assert z.dtype == np.float32
    assert np.shares_memory(z, x) is not copy
    np.testing.assert_array_equal(z, [[-1, -1], [1, 1]])
    # z is within half a rounding, and so are the results, of which the mean is up to twice.
    np.testing.assert_allclose(scaler.inverse_transform(z), given, rtol=4e-7)


@pytest.mark.parametrize("layout", ["read_only", "swapped", "broadcast"])
def test_in_place_where_that_cannot_be(layout):
    x = arrange(samples(), layout, np.random.default_rng(0))
    scaler = StreamingStandardScaler(copy=False).fit(samples())
    with unchanged(x):
        np.testing.assert_array_equal(scaler.transform(x), scaler.transform(x, copy=True))


def test_in_place_where_elements_share_memory():
    """Windows of a signal: to write to one element changes others, so the result is a new array."""
    signal = samples().ravel().copy()
    windows = np.lib.stride_tricks.sliding_window_view(signal, 4, writeable=True)
    scaler = StreamingStandardScaler(copy=False).fit(windows)
    with unchanged(signal):
        y = scaler.transform(windows)
        np.testing.assert_array_equal(y, scaler.transform(windows.copy()))
        scaler.inverse_transform(windows)


def test_samples_seen_without_mean_and_scale():
    """As StandardScaler, which counts samples then, whatever they weigh."""
    x = samples()
    x[0, 0] = np.nan
    options = {"with_mean": False, "with_std": False}
    weights = np.random.default_rng(0).uniform(0.1, 3, len(x))
    ours, theirs = StreamingStandardScaler(**options), StandardScaler(**options)
    for _ in range(2):
        ours.partial_fit(x, sample_weight=weights)
        theirs.partial_fit(x, sample_weight=weights)
        np.testing.assert_array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)
    with pytest.raises(ValueError, match=r"^sample_weight must not be negative"):
        ours.partial_fit(x, sample_weight=-weights)


def test_memory_mapped(tmp_path):
    x = samples()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    scaler = StreamingStandardScaler(copy=False).fit(mapped)
    assert_same_bits(scaler.transform(mapped), scaler.transform(x, copy=True), "transform")


# The estimator ----------------------------------------------------------------------------------------------


def test_feature_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(samples(features=3), columns=["a", "b", "c"])
    scaler = StreamingStandardScaler().set_output(transform="pandas").fit(frame)
    before = frame.copy()
    result = scaler.transform(frame)
    pandas.testing.assert_frame_equal(frame, before)
    assert list(result.columns) == list(scaler.get_feature_names_out()) == ["a", "b", "c"]
    assert (result.dtypes == np.float32).all()
    np.testing.assert_array_equal(scaler.inverse_transform(result).shape, frame.shape)
    with pytest.raises(ValueError, match="feature names"):
        scaler.partial_fit(frame.rename(columns={"c": "d"}))
    with pytest.raises(ValueError, match=r"other was fitted on \['a', 'c', 'b'\].*on \['a', 'b', 'c'\]"):
        scaler.merge(StreamingStandardScaler().fit(frame[["a", "c", "b"]]))
    other = StreamingStandardScaler().merge(scaler)
    assert list(other.feature_names_in_) == ["a", "b", "c"]


def test_pipeline_clone_and_pickle():
    x = samples()
    pipeline = make_pipeline(StreamingStandardScaler(with_mean=False), MinMaxScaler())
    expected = make_pipeline(StandardScaler(with_mean=False), MinMaxScaler()).fit_transform(x)
    np.testing.assert_allclose(pipeline.fit_transform(x), expected, atol=1e-6)
    scaler = pipeline[0]
    assert clone(scaler).get_params() == {"copy": True, "with_mean": False, "with_std": True}
    assert not hasattr(clone(scaler), "mean_")
    copied = pickle.loads(pickle.dumps(scaler))
    assert_same_bits(copied.transform(x), scaler.transform(x), "transform")
    copied.partial_fit(x + 1)  # it goes on
    np.testing.assert_array_equal(copied.mean_, StreamingStandardScaler().fit(x).partial_fit(x + 1).mean_)
    assert scaler.n_samples_seen_ == len(x)


@pytest.mark.parametrize("options", OPTIONS)
def test_merge(options):
    x = samples(nans=0.1)
    whole = StreamingStandardScaler(**options).fit(x)
    parts = [StreamingStandardScaler().fit(part) for part in np.array_split(x, 4)]
    before = [learned(part) for part in parts]
    merged = StreamingStandardScaler(**options)
    for part in parts:
        assert merged.merge(part) is merged
    assert [learned(part) for part in parts] == before
    for name in LEARNED:
        if getattr(whole, name) is None:
            assert getattr(merged, name) is None
        else:
            np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12)
    assert merged.n_features_in_ == 5
    merged.partial_fit(x)
    assert np.max(parts[0].n_samples_seen_) <= 15


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, x: s.partial_fit(x[:, :3]), ValueError, "X has 3 features.* expecting 5"),
        (lambda s, x: s.fit(x[0]), ValueError, "Expected 2D array"),
        (lambda s, x: s.fit(x[:0]), ValueError, "Found array with 0 sample"),
        (lambda s, x: s.fit(x + 1j), ValueError, "Complex data not supported"),
        (lambda s, x: s.fit(np.array([["a"]])), ValueError, "could not convert string"),
        (lambda s, x: s.fit(sparse.csr_array(x)), TypeError, "[Ss]parse data was passed"),
        (lambda s, x: s.fit(np.where(x == x[3, 1], np.inf, x)), ValueError, "infinity.*float32.*feature 1"),
        (lambda s, x: s.partial_fit(np.where(x == x[3, 2], -np.inf, x)), ValueError, "infinity.*feature 2"),
        (lambda s, x: s.fit(x, sample_weight=np.ones(3)), ValueError, r"sample_weight has shape \(3,\).*60"),
        (lambda s, x: s.fit(x, sample_weight=np.ones((60, 1))), ValueError, r"sample_weight has shape"),
        (lambda s, x: s.fit(x, sample_weight=-np.ones(60)), ValueError, "sample_weight must not be negative"),
        (lambda s, x: s.fit(x, sample_weight=np.full(60, np.nan)), ValueError, "sample_weight contains NaN"),
        (lambda s, x: s.fit(x, sample_weight=np.zeros(60)), ValueError, "at least one non-zero"),
        (lambda s, x: s.transform(x[:, :3]), ValueError, "X has 3 features.* expecting 5"),
        (lambda s, x: s.inverse_transform(x[:, :3]), ValueError, "X has 3 features.* expecting 5"),
        (lambda s, x: s.merge(StandardScaler().fit(x)), TypeError, "other must be a Streaming"),
        (lambda s, x: s.merge(StreamingStandardScaler()), NotFittedError, "not fitted"),
        (lambda s, x: s.merge(StreamingStandardScaler().fit(x[:, :3])), ValueError, "other.*3 features.*5"),
        (lambda s, x: s.set_params(with_std=None).partial_fit(x), ValueError, "with_std"),
    ],
)  # fmt: skip
def test_refused(call, error, message):
    x = samples()
    scaler = StreamingStandardScaler().fit(x)
    before = learned(scaler)
    with pytest.raises(error, match=message):
        call(scaler, x)
    scaler.set_params(with_std=True)
    assert learned(scaler) == before


def test_refused_before_the_first_fit():
    scaler = StreamingStandardScaler()
    for call in (scaler.transform, scaler.inverse_transform):
        with pytest.raises(NotFittedError):
            call(samples())
    with pytest.raises(ValueError, match="infinity"):
        scaler.fit(np.array([[np.inf]]))
    assert not hasattr(scaler, "n_features_in_")


def test_infinity_passes_through_transform():
    scaler = StreamingStandardScaler().fit(samples())
    x = samples()
    x[0, 0], x[1, 1] = np.inf, -np.inf
    y = scaler.transform(x)
    np.testing.assert_array_equal(np.isinf(y), np.isinf(x))
    assert y[0, 0] > 0 > y[1, 1]


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "numbabn.sklearn")
    with pytest.raises(ImportError, match=r'pip install "numbabn\[sklearn\]"'):
        importlib.import_module("numbabn.sklearn")
