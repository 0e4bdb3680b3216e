"""Statistics in rational arithmetic, arrays to compute them of, and what Moments must make of these."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.support.jit import JIT
from tests.support.problems import LAYOUTS, arrange
from tests.support.strategies import SIZES

INTEGERS = tuple(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8))
FLOATS = tuple(np.dtype(each) for each in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
DTYPES = (np.dtype(bool), *INTEGERS, *FLOATS)
ELEMENTS = 6000 if JIT else 800


# The oracle -------------------------------------------------------------------------------------------------


def channels(x, kept):
    """Return a `Row` per channel, in the order of the axes kept, of integers over one power of 2."""
    if x.dtype.kind == "V":
        x = x.astype(np.float32)  # exactly; bfloat16 numbers have no as_integer_ratio
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
        """Return the exact variance, or None where there are too few values."""
        return self.m2 / (self.count - ddof) if self.count and self.count > ddof else None

    def __add__(self, other):
        scale = max(self.scale, other.scale)
        values = [v * (scale // row.scale) for row in (self, other) for v in row.values]
        return Row(values, scale)


DDOFS = (Fraction(0), Fraction(1), Fraction(1, 2))


def results(m):
    """Yield (count, mean, least, greatest, standard deviation, variances by ddof) of every channel."""
    arrays = (m.count, m.mean, m.min, m.max, m.std(), *(m.var(float(ddof)) for ddof in DDOFS))
    for count, mean, low, high, std, *variances in zip(
        *(a.reshape(-1).tolist() for a in arrays), strict=True
    ):
        yield count, mean, low, high, std, variances


def check_real(m, rows):
    """The mean is within 1e-14 of its size or the deviation, and the variance within 1e-12: as promised."""
    for row, (count, mean, low, high, std, variances) in zip(rows, results(m), strict=True):
        assert count == pytest.approx(float(row.count), rel=1e-14, abs=0)
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
    """Every result is the rational one, rounded once: no bit differs."""
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
    """Draw (array of any dtype and memory layout, channel axes as given to Moments)."""
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
    """Return integers over their whole range, extremes among them, or floats far from 0."""
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
