"""The verbs of streaming statistics on flat, contiguous NumPy arrays: exact sums, and moments with a range.

As in the other verbs, shape is (outer, channels, inner) and nothing is checked. ``weight`` has one value for
every element of x: bool, or float64 of which none is negative; what has no weight is not there at all.
"""

from typing import NamedTuple

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu.plan import Shape


class Moments(NamedTuple):
    """Moments of chunks of an array, to be merged in order: float64 arrays [chunks, channels]."""

    weight: Array
    mean: Array
    mean_low: Array  # what the mean has rounded
    m2: Array
    low: Array
    high: Array


def moments(x: Array, shape: Shape, weight: Array | None, omit: bool) -> Moments:
    """Moments of numbers of any dtype; with ``omit``, NaN is not there at all."""
    values = x.reshape(shape).astype(np.float64)
    w = np.ones(shape) if weight is None else weight.reshape(shape).astype(np.float64)
    if omit:
        w = np.where(np.isnan(values), 0, w)
    there = w > 0
    with np.errstate(all="ignore"):
        n = w.sum((0, 2))
        shift = np.where(there, values, 0).max((0, 2))
        d = np.where(there, values - shift[:, None], 0)
        s = (w * d).sum((0, 2))
        lo = s / np.where(n > 0, n, 1)
        m2 = (w * np.where(there, d - lo[:, None], 0) ** 2).sum((0, 2))
    mean = shift + lo
    low = np.where(there, values, np.inf).min((0, 2))
    high = np.where(there, values, -np.inf).max((0, 2))
    return Moments(*(a[None] for a in (n, mean, lo - (mean - shift), m2, low, high)))


def integers(x: Array, shape: Shape, weight: Array | None) -> tuple[Array, Array, Array, Array, Array]:
    """(count, digits of the sum, digits of the sum of squares, least, greatest); ``weight`` is bool."""
    values = x.reshape(shape)
    there = np.ones(shape, bool) if weight is None else weight.reshape(shape)
    total, squares = np.zeros((4, shape[1]), np.int64), np.zeros((6, shape[1]), np.int64)
    low, high = np.full(shape[1], np.inf), np.full(shape[1], -np.inf)
    for c in range(shape[1]):
        these = values[:, c][there[:, c]].astype(object)
        if these.size:
            low[c], high[c] = these.min(), these.max()
        for digits, s in ((total, int(these.sum())), (squares, int((these * these).sum()))):
            for i in range(len(digits)):
                digits[i, c] = s & 0xFFFFFFFF if i + 1 < len(digits) else s
                s >>= 32
    return there.sum((0, 2)), total, squares, low, high
