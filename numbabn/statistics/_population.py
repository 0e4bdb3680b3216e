"""The population of all values seen: exact sums of the integers, and moments of everything else.

There are two parts, because integers can be added up without any error and real numbers cannot. A population
may have both: they are put together only for a result, so that an exact sum stays exact through any number of
merges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Self

import numpy as np

from numbabn.backends.cpu.streaming import doubled
from numbabn.backends.cpu.streaming.digits import carried, joined
from numbabn.backends.cpu.streaming.statistics import scaled_weights
from numbabn.backends.verbs import Array

# Digits of 32 bits for 2**63 values below 2**64: their sum is below 2**127, and that of squares below 2**191.
SUM_DIGITS, SQUARE_DIGITS = 4, 6
MOST = np.iinfo(np.int64).max
_SUMS = [1, 4, 5]  # rows of moments that are to be multiplied by 2**exponent, besides the weight in row 0


@dataclass(frozen=True, slots=True)
class Exact:
    """Count, sum and sum of squares of integers: digits of 32 bits, the lowest first, the highest signed."""

    count: Array  # int64 [channels]
    total: Array  # int64 [4, channels]
    squares: Array  # int64 [6, channels]

    @classmethod
    def nothing(cls, channels: int) -> Self:
        """Return the sums of no values."""
        return cls(*(np.zeros((*n, channels), np.int64) for n in ((), (SUM_DIGITS,), (SQUARE_DIGITS,))))

    def merge(self, other: Self) -> Self:
        """Return the sums of both."""
        if (self.count > MOST - other.count).any():
            raise _too_many()
        return type(self)(
            self.count + other.count,
            carried(self.total + other.total),
            carried(self.squares + other.squares),
        )

    def add(self, number: Array, total: Array, squares: Array, place: Any) -> None:
        """Add sums of any number of digits to those of the channels ``place``; after the last, `carry`."""
        self.count[place] += number
        self.total[: len(total), place] += total
        self.squares[: len(squares), place] += squares

    def carry(self) -> None:
        """Bring all digits back into their range."""
        self.total[...] = carried(self.total)
        self.squares[...] = carried(self.squares)

    def sums(self) -> tuple[Array, Array, Array]:
        """Return (count, sum, sum of squares) of the channels as Python's integers."""
        return self.count.astype(object), joined(self.total), joined(self.squares)

    def real(self) -> "Real":
        """Return the same as moments, each number rounded to an unevaluated sum of two float64."""
        n, total, squares = self.sums()
        real = Real.nothing(len(n))
        for c in np.flatnonzero(self.count):
            real.moments[0:2, c] = _two_floats(Fraction(n[c]))
            real.moments[2:4, c] = _two_floats(Fraction(total[c], n[c]))
            real.moments[4:6, c] = _two_floats(Fraction(n[c] * squares[c] - total[c] ** 2, n[c]))
        return real

    def mean(self) -> Array:
        """Return the mean, rounded once."""
        n, total, _ = self.sums()
        return _ratio(total, n)

    def var(self, ddof: float) -> Array:
        """Return m2 / (count - ddof), rounded once."""
        n, total, squares = self.sums()
        less = Fraction(ddof)
        rest = n * less.denominator - less.numerator
        return _ratio((n * squares - total * total) * less.denominator, n * np.where(rest > 0, rest, 0))


@dataclass(frozen=True, slots=True)
class Real:
    """Weight, mean and sum of squared deviations, each an unevaluated sum of two float64.

    Weight and sum of squares are to be multiplied by 2**exponent. It is 0 but where all weights of a channel
    were very small or very large, so that their products with squares would leave the range of float64.
    """

    moments: Array  # float64 [6, channels]: weight, mean and m2, each followed by what it has rounded
    exponent: Array  # int64 [channels]

    @classmethod
    def nothing(cls, channels: int) -> Self:
        """Return the moments of no values."""
        return cls(np.zeros((6, channels)), np.zeros(channels, np.int64))

    @np.errstate(all="ignore")  # NumPy would warn of NaN and infinity where the kernel runs as plain Python
    def merge(self, other: Self) -> Self:
        """Return the moments of both."""
        exponent = _common(self.moments[0], self.exponent, other.moments[0], other.exponent)
        moments, others = self.moments.copy(), other.moments.copy()
        _scale(moments, _SUMS, self.exponent - exponent)
        _scale(others, _SUMS, other.exponent - exponent)
        doubled.merge(others, moments)
        return type(self)(moments, exponent)

    def absorb(self, chunks: Array, exponent: Array, place: Any) -> None:
        """Merge chunks, in order, into the moments of the channels ``place``; see `streaming.statistics`."""
        moments = np.ascontiguousarray(self.moments[:, place])  # no copy if these are all channels
        before = self.exponent[place]
        common = _common(moments[0], before, chunks[:, 0].sum(axis=0), exponent)
        _scale(moments, _SUMS, before - common)
        _scale(chunks.swapaxes(0, 1), [3], exponent - common)
        doubled.absorb(chunks, moments)
        self.exponent[place] = common
        if not isinstance(place, slice):
            self.moments[:, place] = moments

    def count(self) -> Array:
        """Return the weight as an unevaluated sum of two float64, [2, channels]."""
        with np.errstate(all="ignore"):  # a sum of weights may be beyond all numbers
            return np.ldexp(self.moments[:2], self.exponent)


@dataclass(frozen=True, slots=True)
class Population:
    """Everything that `Moments` remembers of its channels, which are flat here."""

    exact: Exact | None
    real: Real | None
    low: Array  # least value, float64 [channels]: infinity where there is none, NaN where a value is NaN
    high: Array  # greatest value, likewise: -infinity where there is none
    weighted: bool  # whether weights were ever given, so that the count is a sum of float64

    @classmethod
    def nothing(cls, channels: int) -> Self:
        """Return the population of no values."""
        return cls(None, None, np.full(channels, np.inf), np.full(channels, -np.inf), False)

    def merge(self, other: Self) -> Self:
        """Return the population of both."""
        merged = type(self)(
            _either(self.exact, other.exact),
            _either(self.real, other.real),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.weighted or other.weighted,
        )
        merged.count()  # raises where a channel counts too many
        return merged

    def count(self) -> Array:
        """Return the number of values per channel, int64, or the sum of their weights, float64."""
        exact = np.zeros(len(self.low), np.int64) if self.exact is None else self.exact.count
        if self.real is None:
            return exact.copy()
        high, low = self.real.count()
        if self.weighted:
            return np.asarray(exact + (high + low))
        fits = high < 2.0**63
        whole = np.where(fits, high, 0).astype(np.int64) + low.astype(np.int64)
        if not fits.all() or (exact > MOST - whole).any():
            raise _too_many()
        return np.asarray(exact + whole)

    def mean(self) -> Array:
        """Return the mean per channel; NaN where there are no values."""
        if self.real is None and self.exact is not None:
            return self.exact.mean()
        together = self._together().moments
        mean: Array = np.where(together[0] > 0, together[2] + together[3], np.nan)
        return mean

    def var(self, ddof: float) -> Array:
        """Return the variance per channel; NaN where count <= ddof."""
        if self.real is None and self.exact is not None:
            return self.exact.var(ddof)
        real = self._together()
        together = real.moments
        var = np.full(len(self.low), np.nan)
        with np.errstate(over="ignore", under="ignore"):  # beside very small or very large weights
            rest = together[0] - np.ldexp(ddof, -real.exponent) + together[1]
            np.divide(together[4] + together[5], rest, out=var, where=rest > 0)
        return var

    def arrays(self) -> dict[str, Array]:
        """Return copies of all arrays by the names that they have in a state, see `_state`."""
        parts = {"exact": self.exact, "real": self.real}
        return {
            "weighted": np.array(self.weighted),
            "min": self.low.copy(),
            "max": self.high.copy(),
            **{
                f"{name}_{field.name}": getattr(part, field.name).copy()
                for name, part in parts.items()
                if part is not None
                for field in fields(part)
            },
        }

    @classmethod
    def from_arrays(cls, values: Mapping[str, Array]) -> Self:
        """Return the population that has these arrays, named as by `arrays`; they are not copied."""
        exact = (
            Exact(*(values[f"exact_{field.name}"] for field in fields(Exact)))
            if "exact_count" in values
            else None
        )
        real = (
            Real(*(values[f"real_{field.name}"] for field in fields(Real)))
            if "real_moments" in values
            else None
        )
        return cls(exact, real, values["min"], values["max"], bool(values["weighted"]))

    def _together(self) -> Real:
        """Return the moments of both parts together."""
        if self.exact is None:
            return self.real or Real.nothing(len(self.low))
        real = self.exact.real()
        return self.real.merge(real) if self.real else real


def _too_many() -> OverflowError:
    return OverflowError(f"a channel would count more than {MOST} values")


def _either(mine: Any, other: Any) -> Any:
    """Return two exact or two real parts merged; None is a part without values."""
    if mine is None or other is None:
        return other if mine is None else mine
    return mine.merge(other)


def _common(weight: Array, exponent: Array, more: Array, other: Array) -> Array:
    """Return the exponents for a merge: the larger ones, or those of the side that alone has any weight."""
    larger = np.maximum(exponent, other)
    return np.where(more > 0, np.where(weight > 0, larger, other), exponent)


def _scale(moments: Array, rows: list[int], exponent: Array) -> None:
    """Multiply the weight, which is in row 0, and some other rows by 2**exponent, of shape [channels]."""
    if exponent.any():
        moments[0] = scaled_weights(moments[0], exponent)
        moments[rows] = np.ldexp(moments[rows], exponent)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Return the float64 nearest to a quotient of Python's integers; NaN where the denominator is 0."""
    ratio = np.full(len(numerator), np.nan)
    some = denominator != 0
    ratio[some] = numerator[some] / denominator[some]
    return ratio


def _two_floats(value: Fraction) -> tuple[float, float]:
    """Return the float64 nearest to a number, and the float64 nearest to the difference that is left."""
    high = value.numerator / value.denominator
    return high, float(value - Fraction(high))
