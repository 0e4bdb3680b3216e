"""Conversions between float32 and the bits of float16 and bfloat16, in vectors of any number of lanes.

``builder`` is that of a kernel's code, and lanes of bits are integers of 16 bits. Results are rounded to the
nearest, and to even where two are equally near; what is too large becomes infinity, and NaN stays NaN.
"""

import platform

from llvmlite import binding, ir
from numba import config

_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _converts_float16():
    """Whether the code that Numba makes may use instructions that convert float16.

    Without them LLVM would call a function for it, which Numba does not link: the process crashes. Numba
    takes the features of the machine, unless it is told others.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    if config.CPU_FEATURES is not None:
        named = [feature for feature in config.CPU_FEATURES.split(",") if feature[1:] == "f16c"]
        return named[-1:] == ["+f16c"]
    return bool(binding.get_host_cpu_features().get("f16c"))


CONVERTS_FLOAT16 = _converts_float16()


def float16_to_float(builder, bits):
    """Return lanes of float16 as float32, which is exact."""
    if CONVERTS_FLOAT16:
        lanes = bits.type.count
        return builder.fpext(
            builder.bitcast(bits, ir.VectorType(ir.HalfType(), lanes)), ir.VectorType(_FLOAT, lanes)
        )
    wide = _integers(builder.zext, bits)
    sign = builder.shl(builder.and_(wide, _all(wide, 0x8000)), _all(wide, 16))
    # Exponent and fraction where float32 has them; the exponent's bias is 15 here, and 127 there.
    moved = builder.shl(builder.and_(wide, _all(wide, 0x7FFF)), _all(wide, 13))
    normal = builder.add(moved, _all(wide, (127 - 15) << 23))
    # Infinity and NaN have the greatest exponent, which float32 has 128 - 16 steps further up.
    large = builder.icmp_unsigned(">=", moved, _all(wide, 0x7C00 << 13))
    normal = builder.select(large, builder.add(normal, _all(wide, (128 - 16) << 23)), normal)
    # Numbers below the normal ones have no leading 1: they get one, which is subtracted as a float.
    small = builder.icmp_unsigned("<", moved, _all(wide, 0x0400 << 13))
    one = _all(wide, 113 << 23)
    difference = builder.fsub(_floats(builder, builder.add(moved, one)), _floats(builder, one))
    result = builder.select(small, builder.bitcast(difference, wide.type), normal)
    return _floats(builder, builder.or_(result, sign))


def float_to_float16(builder, value):
    """Return lanes of float32 as float16."""
    if CONVERTS_FLOAT16:
        lanes = value.type.count
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, ir.VectorType(_I16, lanes))
    bits = builder.bitcast(value, ir.VectorType(_I32, value.type.count))
    size = builder.and_(bits, _all(bits, 0x7FFFFFFF))
    sign = builder.lshr(builder.and_(bits, _all(bits, 0x80000000)), _all(bits, 16))
    odd = builder.and_(builder.lshr(size, _all(bits, 13)), _all(bits, 1))
    rebiased = builder.add(size, _all(bits, (((15 - 127) << 23) + 0xFFF) & 0xFFFFFFFF))
    result = builder.lshr(builder.add(rebiased, odd), _all(bits, 13))
    # From 2**16 on infinity; what is rounded up to it below has become infinity already.
    huge = builder.icmp_unsigned(">=", size, _all(bits, (127 + 16) << 23))
    nan = builder.icmp_unsigned(">", size, _all(bits, 255 << 23))
    result = builder.select(huge, builder.select(nan, _all(bits, 0x7E00), _all(bits, 0x7C00)), result)
    # Below the normal numbers the addition of 0.5 rounds: the last bit of the sum is the last of float16.
    small = builder.icmp_unsigned("<", size, _all(bits, 113 << 23))
    half = _all(bits, 126 << 23)
    added = builder.fadd(_floats(builder, size), _floats(builder, half))
    shifted = builder.sub(builder.bitcast(added, bits.type), half)
    return _integers(builder.trunc, builder.or_(builder.select(small, shifted, result), sign))


def bfloat16_to_float(builder, bits):
    """Return lanes of bfloat16 as float32, of which they are the upper half."""
    wide = _integers(builder.zext, bits)
    return _floats(builder, builder.shl(wide, _all(wide, 16)))


def float_to_bfloat16(builder, value):
    """Return lanes of float32 as bfloat16; a NaN, which arithmetic has made quiet, loses its lower half."""
    bits = builder.bitcast(value, ir.VectorType(_I32, value.type.count))
    odd = builder.and_(builder.lshr(bits, _all(bits, 16)), _all(bits, 1))
    # The sum might carry a NaN's fraction into its exponent and sign.
    nan = builder.fcmp_unordered("uno", value, value)
    rounding = builder.select(nan, _all(bits, 0), builder.add(odd, _all(bits, 0x7FFF)))
    return _integers(builder.trunc, builder.lshr(builder.add(bits, rounding), _all(bits, 16)))


def _all(like, number):
    """Return a constant with the number in every lane, of the type of a vector of integers."""
    return ir.Constant(like.type, [number] * like.type.count)


def _floats(builder, bits):
    return builder.bitcast(bits, ir.VectorType(_FLOAT, bits.type.count))


def _integers(convert, lanes):
    """Return integers of 16 bits in 32 bits, or the lower half of those of 32 bits."""
    other = _I32 if lanes.type.element.width == 16 else _I16
    return convert(lanes, ir.VectorType(other, lanes.type.count))
