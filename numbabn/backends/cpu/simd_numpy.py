"""The operations of `simd_vectors`, `simd_memory` and `simd_bits` in NumPy, for ``NUMBA_DISABLE_JIT=1``."""

import numpy as np

from numbabn.backends.cpu import simd_bits, simd_memory, simd_vectors
from numbabn.backends.cpu.half import BFLOAT16_BITS, FLOAT16_BITS
from numbabn.backends.cpu.simd_memory import LINE
from numbabn.backends.cpu.simd_vectors import LANES

__all__ = [*simd_bits.__all__, *simd_memory.__all__, *simd_vectors.__all__]


def elements(array):
    """Return the elements of a flat array: here the array."""
    return array


# Types of numbers that are computed in another one: elements of arrays that have the bits of half floats.
_COMPUTED = {np.uint16: np.float32, np.int16: np.float32}


def _computed_type(like):
    return _COMPUTED.get(type(like), type(like))


def _floats(array):
    """Return bits of float16 or bfloat16 as float32, and any other numbers as they are."""
    if array.dtype == FLOAT16_BITS:
        return array.view(np.float16).astype(np.float32)
    if array.dtype == BFLOAT16_BITS:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _stored(value, dtype):
    """Return numbers as they are stored in an array of the dtype: float32 as the bits of half floats."""
    if dtype == FLOAT16_BITS:
        with np.errstate(all="ignore"):  # what is too large is infinity
            return value.astype(np.float16).view(dtype)
    if dtype == BFLOAT16_BITS:
        lanes = value.view(np.uint32)
        rounded = lanes + np.where(np.isnan(value), np.uint32(0), (lanes >> 16 & 1) + 0x7FFF)
        return (rounded >> 16).astype(np.uint16).view(dtype)
    return value


def computed(array):
    """Return the dtype in which the elements of an array are computed."""
    return _COMPUTED.get(array.dtype.type, array.dtype.type)


def number(array, index):
    """Return array[index] in the dtype in which it is computed."""
    return _floats(array[index : index + 1])[0]


def load(array, index, like):
    """array[index : index + 16] in like's dtype; numbers of 16 bits are half floats."""
    return _floats(array[index : index + LANES]).astype(_computed_type(like))


def load_like(array, index, a):
    """array[index : index + 16] in the dtype of the vector a; numbers of 16 bits are half floats."""
    return _floats(array[index : index + LANES]).astype(a.dtype)


def load_part(array, index, count, otherwise):
    """array[index : index + count] in the first lanes, ``otherwise`` in the others."""
    value = otherwise.copy()
    value[:count] = _floats(array[index : index + count])
    return value


def load_input(array, index, like):
    """Like ``load`` of what may be true integers of 16 bits: they are unless ``like`` is such a number."""
    part = array[index : index + LANES]
    return (_floats(part) if type(like) in _COMPUTED else part).astype(_computed_type(like))


def load_input_part(array, index, count, otherwise, like):
    """Like ``load_part`` of what may be true integers of 16 bits; ``like`` is as in ``load_input``."""
    value = otherwise.copy()
    value[:count] = load_input(array[: index + count], index, like)
    return value


def load_number(array, index, half, like):
    """``load`` of any kind of numbers.

    Unless ``half`` is None those of 16 bits are floats: unsigned ones float16, and signed ones bfloat16.
    """
    part = array[index : index + LANES]
    return (part if half is None else _floats(part)).astype(type(like))


def load_number_part(array, index, count, half, like):
    """Like ``load_number`` of array[index : index + count] in the first lanes; the others are 0."""
    value = np.zeros(LANES, type(like))
    value[:count] = load_number(array[: index + count], index, half, like)
    return value


def store_part(array, index, count, value):
    """array[index : index + count] = the first lanes of value."""
    array[index : index + count] = _stored(value, array.dtype)[:count]


def convert(value, like):
    """Return the scalar in like's dtype."""
    return _computed_type(like)(value)


def widen(a):
    """Return the vector in float64."""
    return a.astype(np.float64)


def cast(a, like):
    """Return the vector in like's dtype."""
    return a.astype(type(like))


def splat(scalar):
    """Return the scalar in every lane."""
    return np.full(LANES, scalar)


def splat_like(scalar, a):
    """Return the scalar in every lane of a vector of the dtype of a."""
    return np.full(LANES, scalar, a.dtype)


def zeros_like(a):
    """Return zeros of the dtype of the vector a."""
    return np.zeros(LANES, a.dtype)


def zeros(like):
    """Return zeros of like's dtype."""
    return np.zeros(LANES, _computed_type(like))


def add(a, b):
    """Return a + b."""
    return a + b


def sub(a, b):
    """Return a - b."""
    return a - b


def mul(a, b):
    """Return a * b."""
    return a * b


def div(a, b):
    """Return a / b."""
    return a / b


def fma(a, b, c):
    """Return a * b + c, rounded twice: NumPy has no fused operation."""
    return a * b + c


def blend(a, b, count):
    """Return the first ``count`` lanes of a and the others of b."""
    return np.concatenate([a[:count], b[count:]])


def minimum(a, b):
    """Lesser of a and b; b where a is NaN."""
    return np.where(a < b, a, b)


def maximum(a, b):
    """Greater of a and b; b where a is NaN."""
    return np.where(a > b, a, b)


def select(weight, a, b):
    """Return a where the weight is above 0, else b."""
    return np.where(weight > 0, a, b)


def drop_nan(weight, a):
    """Return the weight, or 0 where a is NaN."""
    return np.where(np.isnan(a), 0, weight)


def total(a):
    """Sum of the lanes."""
    return a.sum()


def lowest(a):
    """Least of the lanes, which are not NaN."""
    return a.min()


def highest(a):
    """Greatest of the lanes, which are not NaN."""
    return a.max()


def store(array, index, value):
    """array[index : index + 16] = value."""
    array[index : index + LANES] = _stored(value, array.dtype)


stream = store


def prefetch(array, index, count):
    """Do nothing: there is nothing to hide behind."""


def fence():
    """Do nothing: NumPy's stores are ordered."""


def unaligned(array, index):
    """How many elements from array[index] to where streamed vectors may begin; fewer than 16."""
    boundary = min(LINE, LANES * array.itemsize)
    return -(array.ctypes.data + index * array.itemsize) % boundary // array.itemsize


def load_bits(array, position):
    """Return the sixteen bits from any position on."""
    start = position // 8
    bits = np.unpackbits(array[start : start + 4], bitorder="little")
    return bits[position % 8 : position % 8 + LANES].astype(bool)


def store_bits(array, position, bits):
    """Write sixteen bits at a position that is a multiple of 16."""
    array[position // 8 : position // 8 + 2] = np.packbits(bits, bitorder="little")


def store_bits_part(array, position, count, bits):
    """Write the first ``count`` < 16 bits at a position, none of them beyond the next multiple of 16."""
    start = position // LANES * LANES
    whole = load_bits(array, start)
    whole[position - start : position - start + count] = bits[:count]
    store_bits(array, start, whole)


def positive(a):
    """Return which lanes are above 0; none that is NaN."""
    return a > 0


def positive_or_nan(a):
    """Return which lanes are above 0 or NaN."""
    return ~(a <= 0)


def below(a, b):
    """Return which lanes of a are below those of b, or NaN."""
    return ~(a >= b)


def pick(bits, a, b):
    """Return the lanes of a whose bits are set, and the others of b."""
    return np.where(bits, a, b)
