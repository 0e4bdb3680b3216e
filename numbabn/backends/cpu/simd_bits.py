"""Sixteen bits, one for each lane of a vector, in memory that has one bit for each element of an array.

Inside kernels they are an unsigned number of 16 bits, whose lowest bit belongs to the first lane.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numbabn.backends.cpu.simd_vectors import LANES

__all__ = [
    "below",
    "load_bits",
    "pick",
    "positive",
    "positive_or_nan",
    "store_bits",
    "store_bits_part",
]  # fmt: skip

_I16, _I32 = ir.IntType(16), ir.IntType(32)


def _at(context, builder, array_type, array, position, width):
    """Pointer to ``width`` bits, of an array of bytes or its ``elements``, from the byte of a position on."""
    if not isinstance(array_type, types.CPointer):
        array = context.make_array(array_type)(context, builder, array).data
    byte = builder.lshr(position, ir.Constant(position.type, 3))
    return builder.bitcast(builder.gep(array, [byte]), ir.IntType(width).as_pointer())


@intrinsic
def load_bits(typingctx, array, position):
    """Return the sixteen bits from any position on. Four bytes are read from that of the first bit on."""

    def codegen(context, builder, signature, arguments):
        word = builder.load(_at(context, builder, array, *arguments, 32), align=1)
        shift = builder.and_(builder.trunc(arguments[1], _I32), _I32(7))
        return builder.trunc(builder.lshr(word, shift), _I16)

    return types.uint16(array, types.intp), codegen


@intrinsic
def store_bits(typingctx, array, position, bits):
    """Write sixteen bits at a position that is a multiple of 16."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[2], _at(context, builder, array, *arguments[:2], 16), align=2)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint16), codegen


@intrinsic
def store_bits_part(typingctx, array, position, count, bits):
    """Write the first ``count`` < 16 bits at a position, none of them beyond the next multiple of 16.

    Another thread may write the others of these sixteen at the same time.
    """

    def codegen(context, builder, signature, arguments):
        array_value, position, count, bits = arguments
        start = builder.and_(position, ir.Constant(position.type, ~15))
        pointer = _at(context, builder, array, array_value, start, 16)
        shift = builder.trunc(builder.and_(position, ir.Constant(position.type, 15)), _I16)
        ones = builder.sub(builder.shl(_I16(1), builder.trunc(count, _I16)), _I16(1))
        builder.atomic_rmw("and", pointer, builder.not_(builder.shl(ones, shift)), "monotonic")
        builder.atomic_rmw("or", pointer, builder.shl(builder.and_(bits, ones), shift), "monotonic")
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.uint16), codegen


@intrinsic
def positive(typingctx, a):
    """Return which lanes are above 0; none that is NaN."""

    def codegen(context, builder, signature, arguments):
        nothing = ir.Constant(arguments[0].type, [0.0] * LANES)
        return builder.bitcast(builder.fcmp_ordered(">", arguments[0], nothing), _I16)

    return types.uint16(a), codegen


@intrinsic
def positive_or_nan(typingctx, a):
    """Return which lanes are above 0 or NaN."""

    def codegen(context, builder, signature, arguments):
        nothing = ir.Constant(arguments[0].type, [0.0] * LANES)
        return builder.bitcast(builder.fcmp_unordered(">", arguments[0], nothing), _I16)

    return types.uint16(a), codegen


@intrinsic
def below(typingctx, a, b):
    """Return which lanes of a are below those of b, or NaN."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.fcmp_unordered("<", *arguments), _I16)

    return types.uint16(a, b), codegen


@intrinsic
def pick(typingctx, bits, a, b):
    """Return the lanes of a whose bits are set, and the others of b."""

    def codegen(context, builder, signature, arguments):
        mask = builder.bitcast(arguments[0], ir.VectorType(ir.IntType(1), LANES))
        return builder.select(mask, *arguments[1:])

    return a(types.uint16, a, b), codegen
