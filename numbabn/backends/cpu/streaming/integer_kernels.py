"""Exact sums of integers of 32 and 64 bits, by digits of 32 bits: no float64 holds the squares.

x is read as rows of columns, one for every channel and place in it. Each column is summed by itself, so that
LLVM has loops over columns to make vectors of; then the columns of a channel are added up.
"""

import numpy as np
from numba import prange

from numbabn.backends.cpu.jit import Kernel, helper
from numbabn.backends.cpu.simd import elements

PARTS = 11  # rows of a chunk's result, see `sums`
BLOCK = 504  # columns of a block
# A constant, else LLVM makes no vectors. Short blocks spend their time between rows: int32 of 50000x256 takes
# 2 to 3 ms, and 6 in blocks of 128 columns. Of 512 columns, the sums of one part are 4 KB from those of the
# next, and the processor takes a load of one for a load of what it has just stored to the other: 5 ms.
NOTHING = np.uint64(0xFFFFFFFFFFFFFFFF)  # the least of no values


@helper
def add_columns(x, w, rows, flip, block):
    """Add rows of a block of columns to the sums of ``block``; elements where w is False are left out.

    ``rows`` is (element where the first row begins, their number, elements from one to the next, columns). x
    has the bits of the integers as unsigned ones. With flip = 2**(bits - 1), the sign bit of signed integers,
    x ^ flip is their value + flip, which is not negative; for unsigned integers flip is 0. Where x has 32
    bits, v1 is 0, and LLVM drops what is added for it.
    """
    first, count, stride, width = rows
    sums = elements(block)
    mask, digit = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(first, first + count * stride, stride):
        for j in range(width):
            v, one = np.uint64(x[i + j] ^ flip), np.uint64(1)
            least = v
            if w is not None:
                one = np.uint64(w[i + j])
                v *= one
                least = v | (one - np.uint64(1))
            v0, v1 = v & mask, v >> digit
            low, mixed, high = v0 * v0, v0 * v1, v1 * v1
            sums[j] += one
            sums[BLOCK + j] += v0
            sums[2 * BLOCK + j] += v1
            sums[3 * BLOCK + j] += low & mask
            sums[4 * BLOCK + j] += low >> digit
            sums[5 * BLOCK + j] += mixed & mask
            sums[6 * BLOCK + j] += mixed >> digit
            sums[7 * BLOCK + j] += high & mask
            sums[8 * BLOCK + j] += high >> digit
            sums[9 * BLOCK + j] = min(sums[9 * BLOCK + j], least)
            sums[10 * BLOCK + j] = max(sums[10 * BLOCK + j], v)


@helper
def start(sums):
    """Set the sums of all parts [parts, n] to those of no values."""
    for part in range(PARTS):
        for j in range(sums.shape[1]):
            sums[part, j] = np.uint64(0)
    for j in range(sums.shape[1]):
        sums[9, j] = NOTHING


@helper
def add_to_channels(block, first, width, inner, sums):
    """Add the sums of ``width`` columns, from column ``first`` on, to those of their channels."""
    for j in range(width):
        c = (first + j) // inner
        for part in range(PARTS - 2):
            sums[part, c] += block[part, j]
        sums[9, c] = min(sums[9, c], block[9, j])
        sums[10, c] = max(sums[10, c], block[10, j])


@Kernel
def sums(x, w, shape, flip, out):
    """Sums of every chunk of x, which is flat (outer, channels, inner): out[chunk, :, channel], of uint64.

    ``shape`` is (outer, channels, inner), and x, w and flip are as in ``add_columns``. With v0 and v1, the
    low and the high digit of v = x ^ flip, the parts are: count; sum of v0; sum of v1; sums of the low and of
    the high digit of v0 * v0, of v0 * v1 and of v1 * v1; least and greatest v. No sum overflows, because a
    chunk has fewer than 2**31 elements a channel.
    """
    outer, channels, inner = shape
    chunks, columns = len(out), channels * inner
    for task in prange(chunks):
        k = np.int64(task)
        lo, hi = outer * k // chunks, outer * (k + 1) // chunks
        block = np.empty((PARTS, BLOCK), np.uint64)
        start(out[k])
        for first in range(0, columns, BLOCK):
            width = min(BLOCK, columns - first)
            start(block)
            rows = lo * columns + first, hi - lo, columns, width
            add_columns(elements(x), elements(w), rows, flip, block.reshape(-1))
            add_to_channels(block, first, width, inner, out[k])
