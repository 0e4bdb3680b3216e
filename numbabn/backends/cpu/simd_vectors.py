"""Vectors of sixteen lanes for Numba kernels: the type, and the arithmetic that decides the speed.

A vector exists only inside a kernel. LLVM splits sixteen lanes into what the machine has: one zmm register of
float32, two of float64, two ymm, four NEON. See `simd_memory` for loads and stores.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES", "add", "blend", "cast", "convert", "div", "drop_nan", "fma", "highest", "lowest", "maximum",
    "minimum", "mul", "select", "splat", "splat_like", "sub", "total", "widen", "zeros", "zeros_like",
]  # fmt: skip

LANES = 16
HALF_BITS = (types.uint16, types.int16)  # what kernels take arrays of float16 and bfloat16 as
_I32 = ir.IntType(32)


def computed_type(dtype):
    """Return the dtype in which numbers are computed: float32 for the bits of half floats."""
    return types.float32 if dtype in HALF_BITS else dtype


class Vector(types.Type):
    """Sixteen floats of one dtype."""

    def __init__(self, dtype):
        self.dtype = computed_type(dtype)
        super().__init__(name=f"Vector({self.dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(float_type(vector.dtype), LANES))


def float_type(dtype):
    """LLVM's type of the numbers of a dtype once they are computed with."""
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}[computed_type(dtype)]


def lane_numbers(indices):
    return ir.Constant(ir.VectorType(_I32, len(indices)), list(indices))


def call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def first_lanes(builder, count, lanes=LANES):
    """Lanes 0 .. count-1, of a count below 2**31: compared in 32 bits, which are half the vectors of 64."""
    count = builder.trunc(count, _I32)
    lane = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
    undefined = ir.Constant(lane.type, ir.Undefined)
    first = builder.insert_element(undefined, count, _I32(0))
    return builder.icmp_signed("<", lane, builder.shuffle_vector(first, undefined, lane_numbers([0] * lanes)))


@intrinsic
def convert(typingctx, value, like):
    """Return the scalar in like's dtype."""
    result = computed_type(like)

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], value, result)

    return result(value, like), codegen


@intrinsic
def widen(typingctx, a):
    """Return the vector in float64."""

    def codegen(context, builder, signature, arguments):
        if a.dtype == types.float64:
            return arguments[0]
        return builder.fpext(arguments[0], ir.VectorType(ir.DoubleType(), LANES))

    return Vector(types.float64)(a), codegen


@intrinsic
def cast(typingctx, a, like):
    """Return the vector in like's dtype, which has as many bits or more."""

    def codegen(context, builder, signature, arguments):
        if a.dtype == like:
            return arguments[0]
        return builder.fpext(arguments[0], ir.VectorType(float_type(like), LANES))

    return Vector(like)(a, like), codegen


@intrinsic
def splat(typingctx, scalar):
    """Return a vector with the scalar in every lane."""

    def codegen(context, builder, signature, arguments):
        undefined = ir.Constant(ir.VectorType(arguments[0].type, LANES), ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], _I32(0))
        return builder.shuffle_vector(first, undefined, lane_numbers([0] * LANES))

    return Vector(scalar)(scalar), codegen


@intrinsic
def zeros(typingctx, like):
    """Return a vector of zeros of like's dtype."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(ir.VectorType(float_type(like), LANES), [0.0] * LANES)

    return Vector(like)(like), codegen


@intrinsic
def splat_like(typingctx, scalar, a):
    """Return the scalar in every lane of a vector of the dtype of a."""

    def codegen(context, builder, signature, arguments):
        value = context.cast(builder, arguments[0], scalar, a.dtype)
        undefined = ir.Constant(arguments[1].type, ir.Undefined)
        first = builder.insert_element(undefined, value, _I32(0))
        return builder.shuffle_vector(first, undefined, lane_numbers([0] * LANES))

    return a(scalar, a), codegen


@intrinsic
def zeros_like(typingctx, a):
    """Return a vector of zeros of the dtype of a."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(arguments[0].type, [0.0] * LANES)

    return a(a), codegen


@intrinsic
def add(typingctx, a, b):
    """Return a + b."""

    def codegen(context, builder, signature, arguments):
        return builder.fadd(*arguments)

    return a(a, b), codegen


@intrinsic
def sub(typingctx, a, b):
    """Return a - b."""

    def codegen(context, builder, signature, arguments):
        return builder.fsub(*arguments)

    return a(a, b), codegen


@intrinsic
def div(typingctx, a, b):
    """Return a / b."""

    def codegen(context, builder, signature, arguments):
        return builder.fdiv(*arguments)

    return a(a, b), codegen


@intrinsic
def mul(typingctx, a, b):
    """Return a * b."""

    def codegen(context, builder, signature, arguments):
        return builder.fmul(*arguments)

    return a(a, b), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        name = f"llvm.fma.v{LANES}f{a.dtype.bitwidth}"
        return call(builder, name, arguments[0].type, arguments)

    return a(a, b, c), codegen


@intrinsic
def blend(typingctx, a, b, count):
    """Return the first ``count`` lanes of a and the others of b."""

    def codegen(context, builder, signature, arguments):
        return builder.select(first_lanes(builder, arguments[2]), *arguments[:2])

    return a(a, b, types.intp), codegen


@intrinsic
def minimum(typingctx, a, b):
    """Lesser of a and b; b where a is NaN."""

    def codegen(context, builder, signature, arguments):
        return _lesser(builder, *arguments)

    return a(a, b), codegen


@intrinsic
def maximum(typingctx, a, b):
    """Greater of a and b; b where a is NaN."""

    def codegen(context, builder, signature, arguments):
        return _greater(builder, *arguments)

    return a(a, b), codegen


@intrinsic
def select(typingctx, weight, a, b):
    """Return a where the weight is above 0, else b."""

    def codegen(context, builder, signature, arguments):
        nothing = ir.Constant(arguments[0].type, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered(">", arguments[0], nothing), *arguments[1:])

    return a(weight, a, b), codegen


@intrinsic
def drop_nan(typingctx, weight, a):
    """Return the weight, or 0 where a is NaN."""

    def codegen(context, builder, signature, arguments):
        nothing = ir.Constant(arguments[0].type, [0.0] * LANES)
        number = builder.fcmp_ordered("ord", arguments[1], arguments[1])
        return builder.select(number, arguments[0], nothing)

    return weight(weight, a), codegen


def _reduction(combine):
    """Code that combines halves until one lane is left."""

    def codegen(context, builder, signature, arguments):
        value, width = arguments[0], LANES
        while width > 1:
            width //= 2
            low, high = lane_numbers(range(width)), lane_numbers(range(width, 2 * width))
            undefined = ir.Constant(value.type, ir.Undefined)
            value = combine(
                builder,
                builder.shuffle_vector(value, undefined, low),
                builder.shuffle_vector(value, undefined, high),
            )
        return builder.extract_element(value, _I32(0))

    return codegen


def _lesser(builder, a, b):
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _greater(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def total(typingctx, a):
    """Sum of the lanes: halves are added until one lane is left."""
    return a.dtype(a), _reduction(lambda builder, low, high: builder.fadd(low, high))


@intrinsic
def lowest(typingctx, a):
    """Least of the lanes, which are not NaN."""
    return a.dtype(a), _reduction(_lesser)


@intrinsic
def highest(typingctx, a):
    """Greatest of the lanes, which are not NaN."""
    return a.dtype(a), _reduction(_greater)
