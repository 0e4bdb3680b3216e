"""Half floats through vectors of the kernels: ``python -m tests.support.half_program`` compares with NumPy.

It prints what differs for float16, in a process of its own: how that is converted is decided at the import.
"""

import json

import numpy as np

from numbabn.backends.cpu.jit import small_kernel
from numbabn.backends.cpu.simd import LANES, load, load_part, store, store_part, zeros
from numbabn.backends.cpu.simd_half import CONVERTS_FLOAT16


@small_kernel
def narrow(x, y):
    """Store float32 as half floats, or half floats as float32, in whole vectors."""
    for i in range(0, len(x), LANES):
        store(y, i, load(x, i, np.float32(0)))


@small_kernel
def part(x, count, y):
    """Copy fewer than 16 elements."""
    store_part(y, 0, count, load_part(x, 0, count, zeros(np.float32(0))))


def all_bits(dtype):
    """Return every number of 16 bits, and the array of integers that kernels take it as."""
    values = np.arange(1 << 16, dtype=np.uint16)
    return values.view(dtype), values if dtype == np.float16 else values.view(np.int16)


def floats(dtype):
    """Return float32 at and beside every number of the dtype, and halfway to the next one, in all sizes."""
    with np.errstate(all="ignore"):
        exact = all_bits(dtype)[0].astype(np.float32)
    bits = exact.view(np.uint32)
    ulp = np.uint32(1 << 13 if dtype == np.float16 else 1 << 16)
    beside = [bits + np.uint32(step) for step in (0, 1, -1 % 2**32, ulp // 2, ulp // 2 - 1, ulp // 2 + 1)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, np.uint32)
    # Below the normal numbers of float16 halfway is elsewhere.
    halfway = (np.arange(4096) * 2.0**-25).astype(np.float32).view(np.uint32)
    x = np.concatenate([*beside, random, halfway, halfway | np.uint32(1 << 31)]).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), x)


def differences(dtype):
    """Return how many conversions of each kind differ from NumPy's in a bit, but for the bits of a NaN."""
    found = {}
    exact, bits = all_bits(dtype)
    y = np.empty(len(exact), np.float32)
    narrow(bits, y)
    with np.errstate(all="ignore"):
        expected = exact.astype(np.float32)
    found["widened"] = different(y, expected)
    x = floats(dtype)
    y = np.empty(len(x), bits.dtype)
    narrow(x, y)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype)
    found["narrowed"] = different(y.view(dtype), expected)
    wrong = 0
    for count in range(1, LANES):
        for start in range(3):
            y = np.full(40, -7, np.int16).view(bits.dtype)
            part(bits[0x3C00 + start :][:count], count, y[start:])
            here = np.arange(40) - start
            kept = np.where((here >= 0) & (here < count), 0x3C00 + start + here, -7)
            wrong += (y.view(np.int16) != kept).sum()
    found["parts"] = int(wrong)
    return found


def different(found, expected):
    same = (found == expected) & (np.signbit(found) == np.signbit(expected))
    return int((~(same | (np.isnan(found) & np.isnan(expected)))).sum())


def main():
    """Print whether instructions convert float16, and the differences."""
    print(json.dumps([CONVERTS_FLOAT16, differences(np.float16)]))


if __name__ == "__main__":
    main()
