"""Exact sums of integers of 32 and 64 bits, by digits of 32 bits: no float64 holds the squares."""

import numpy as np
from numba import prange

from numbabn.backends.cpu.jit import Kernel, helper

PARTS = 11  # rows of a chunk's result, see `sums`


@helper
def add_range(k, c, x, w, lo, hi, flip, out):
    """Add the elements lo..hi of x to the sums of channel c in chunk k; those where w is False are left out.

    x has the bits of the integers as unsigned ones. With flip = 2**(bits - 1), the sign bit of signed
    integers, x ^ flip is their value + flip, which is not negative; for unsigned integers flip is 0.
    """
    mask, digit = np.uint64(0xFFFFFFFF), np.uint64(32)
    n = s0 = s1 = q0 = q1 = q2 = q3 = q4 = q5 = np.uint64(0)
    least, most = out[k, 9, c], out[k, 10, c]
    for i in range(lo, hi):
        if w is not None and not w[i]:
            continue
        v = np.uint64(x[i] ^ flip)
        v0, v1 = v & mask, v >> digit
        low, mixed, high = v0 * v0, v0 * v1, v1 * v1
        n += np.uint64(1)
        s0 += v0
        s1 += v1
        q0 += low & mask
        q1 += low >> digit
        q2 += mixed & mask
        q3 += mixed >> digit
        q4 += high & mask
        q5 += high >> digit
        least, most = min(least, v), max(most, v)
    out[k, 0, c] += n
    out[k, 1, c] += s0
    out[k, 2, c] += s1
    out[k, 3, c] += q0
    out[k, 4, c] += q1
    out[k, 5, c] += q2
    out[k, 6, c] += q3
    out[k, 7, c] += q4
    out[k, 8, c] += q5
    out[k, 9, c], out[k, 10, c] = least, most


@Kernel
def sums(x, w, shape, flip, out):
    """Sums of every chunk of x, which is flat (outer, channels, inner): out[chunk, :, channel], of uint64.

    ``shape`` is (outer, channels, inner), and x, w and flip are as in ``add_range``. With v0 and v1, the low
    and the high digit of v = x ^ flip, the parts are: count; sum of v0; sum of v1; sums of the low and of the
    high digit of v0 * v0, of v0 * v1 and of v1 * v1; least and greatest v. No sum overflows, because a chunk
    has fewer than 2**31 elements a channel.
    """
    outer, channels, inner = shape
    chunks = len(out)
    for task in prange(chunks):
        k = np.int64(task)
        for c in range(channels):
            for part in range(PARTS):
                out[k, part, c] = 0
            out[k, 9, c] = 0xFFFFFFFFFFFFFFFF
        for row in range(outer * k // chunks, outer * (k + 1) // chunks):
            for c in range(channels):
                start = (row * channels + c) * inner
                add_range(k, c, x, w, start, start + inner, flip, out)
