"""Integers of any size as digits of 32 bits in int64 arrays [digits, ...], the lowest first.

A digit may be larger for a while, or negative, so that sums need no carry: `carried` brings them back.
"""

import numpy as np

from numbabn.backends.verbs import Array

BITS = 32
MASK = (1 << BITS) - 1


def split(values: Array) -> Array:
    """Return int64 values as two digits."""
    return np.stack([values & MASK, values >> BITS])


def carried(digits: Array) -> Array:
    """Return the same numbers with every digit but the highest in 0 .. 2**32 - 1; that one has the sign."""
    digits = digits.copy()
    for i in range(len(digits) - 1):
        digits[i + 1] += digits[i] >> BITS
        digits[i] &= MASK
    return digits


def joined(digits: Array) -> Array:
    """Return digits [n, channels] as Python's integers."""
    value = np.zeros(digits.shape[1], object)
    for digit in digits[::-1]:
        value = (value << BITS) + digit.astype(object)
    return value
