"""Integers of any size as digits of 32 bits in int64 arrays [digits, ...], the lowest first.

Numbers are added digit by digit, without carrying: a digit may become larger than 32 bits, or negative, until
`carried` brings all of them back into their range.
"""

import numpy as np

from numbabn.backends.verbs import Array

BITS = 32
MASK = (1 << BITS) - 1


def split(values: Array) -> Array:
    """Return int64 values as two digits, of which the higher one has the sign."""
    return np.stack([values & MASK, values >> BITS])


def carried(digits: Array) -> Array:
    """Return the same numbers with all digits in 0 .. 2**32 - 1, but for the highest, which has the sign."""
    digits = digits.copy()
    for i in range(len(digits) - 1):
        digits[i + 1] += digits[i] >> BITS
        digits[i] &= MASK
    return digits


def joined(digits: Array) -> Array:
    """Return the numbers that digits [n, channels] stand for: an array of Python's integers."""
    value = np.zeros(digits.shape[1], object)
    for digit in digits[::-1]:
        value = (value << BITS) + digit.astype(object)
    return value
