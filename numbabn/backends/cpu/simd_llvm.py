"""Vectors of sixteen lanes for Numba kernels: the few operations that decide the speed, spelled out.

A vector exists only inside a kernel. ``load`` converts to the dtype of its last argument, so one kernel
serves float32 and float64 storage and either accumulator. LLVM splits sixteen lanes into what the machine
has (one zmm register of float32, two of float64, two ymm, four NEON).

Why not leave it to the vectoriser: it cannot make non-temporal stores (they need proven alignment) and
places no prefetches, together a factor of 1.5 on arrays larger than the cache.
"""

import platform

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES",
    "add",
    "blend",
    "cast",
    "convert",
    "div",
    "drop_nan",
    "fence",
    "fma",
    "highest",
    "load",
    "load_number",
    "load_number_part",
    "load_part",
    "lowest",
    "maximum",
    "minimum",
    "prefetch",
    "select",
    "splat",
    "store",
    "store_part",
    "stream",
    "sub",
    "total",
    "unaligned",
    "widen",
    "zeros",
]

LANES = 16
LINE = 64  # bytes of a cache line, and the alignment of a non-temporal store
_X86 = platform.machine().lower() in ("x86_64", "amd64")
_I32 = ir.IntType(32)


class Vector(types.Type):
    """Sixteen floats of one dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(_scalar(vector.dtype), LANES))


def _scalar(dtype):
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}[dtype]


def _storage(dtype):
    """Type of an element in memory: numbers of 16 bits may be integers or the bits of a float16."""
    return ir.IntType(dtype.bitwidth) if isinstance(dtype, types.Integer) else _scalar(dtype)


def _number(builder, value, dtype, like, half):
    """Lanes of storage as floats of like's type."""
    result = ir.VectorType(_scalar(like), LANES)
    if isinstance(dtype, types.Integer) and not half:
        return (builder.sitofp if dtype.signed else builder.uitofp)(value, result)
    width = dtype.bitwidth
    if half:
        value = builder.bitcast(value, ir.VectorType(ir.HalfType(), LANES))
    if width == like.bitwidth:
        return value
    return (builder.fpext if width < like.bitwidth else builder.fptrunc)(value, result)


def _is_half(dtype, half):
    return dtype == types.uint16 and half != types.none


def _element(context, builder, array_type, array, index):
    """Pointer to array[index]: no bounds, no wrap-around."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _vector_pointer(context, builder, array_type, array, index):
    kind = ir.VectorType(_storage(array_type.dtype), LANES)
    return builder.bitcast(_element(context, builder, array_type, array, index), kind.as_pointer())


def _lanes(indices):
    return ir.Constant(ir.VectorType(_I32, len(indices)), list(indices))


def _call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def load(typingctx, array, index, like):
    """array[index : index + 16] as a vector of like's dtype."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        if like.bitwidth == array.dtype.bitwidth:
            return value
        convert = builder.fpext if like.bitwidth > array.dtype.bitwidth else builder.fptrunc
        return convert(value, ir.VectorType(_scalar(like), LANES))

    return Vector(like)(array, types.intp, like), codegen


def _mask(builder, count):
    """Lanes 0 .. count-1."""
    word = count.type
    lane = ir.Constant(ir.VectorType(word, LANES), list(range(LANES)))
    undefined = ir.Constant(lane.type, ir.Undefined)
    first = builder.insert_element(undefined, count, _I32(0))
    return builder.icmp_signed("<", lane, builder.shuffle_vector(first, undefined, _lanes([0] * LANES)))


@intrinsic
def load_part(typingctx, array, index, count, otherwise):
    """array[index : index + count] in the first lanes, ``otherwise`` in the others, in its dtype."""

    def codegen(context, builder, signature, arguments):
        like = otherwise.dtype
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        kind = pointer.type.pointee
        align = _I32(array.dtype.bitwidth // 8)
        mask = _mask(builder, arguments[2])
        name = f"llvm.masked.load.v{LANES}f{array.dtype.bitwidth}.p0"
        value = _call(builder, name, kind, [pointer, align, mask, ir.Constant(kind, [0.0] * LANES)])
        if like.bitwidth > array.dtype.bitwidth:
            value = builder.fpext(value, ir.VectorType(_scalar(like), LANES))
        return builder.select(mask, value, arguments[3])

    return otherwise(array, types.intp, types.intp, otherwise), codegen


@intrinsic
def load_number(typingctx, array, index, half, like):
    """``load`` of any kind of numbers; those of 16 bits are float16 unless ``half`` is None."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, half, like), codegen


@intrinsic
def load_number_part(typingctx, array, index, count, half, like):
    """Do the same for array[index : index + count] in the first lanes; 0 in the others."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        kind, bits = pointer.type.pointee, array.dtype.bitwidth
        letter = "i" if isinstance(array.dtype, types.Integer) else "f"
        mask = _mask(builder, arguments[2])
        name = f"llvm.masked.load.v{LANES}{letter}{bits}.p0"
        nothing = ir.Constant(kind, [0 if letter == "i" else 0.0] * LANES)
        value = _call(builder, name, kind, [pointer, _I32(bits // 8), mask, nothing])
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, types.intp, half, like), codegen


@intrinsic
def store_part(typingctx, array, index, count, value):
    """array[index : index + count] = the first lanes of value."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        align = _I32(array.dtype.bitwidth // 8)
        name = f"llvm.masked.store.v{LANES}f{array.dtype.bitwidth}.p0"
        _call(builder, name, ir.VoidType(), [arguments[3], pointer, align, _mask(builder, arguments[2])])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


@intrinsic
def convert(typingctx, value, like):
    """Return the scalar in like's dtype."""

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], value, like)

    return like(value, like), codegen


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
        return builder.fpext(arguments[0], ir.VectorType(_scalar(like), LANES))

    return Vector(like)(a, like), codegen


@intrinsic
def splat(typingctx, scalar):
    """Return a vector with the scalar in every lane."""

    def codegen(context, builder, signature, arguments):
        undefined = ir.Constant(ir.VectorType(arguments[0].type, LANES), ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], _I32(0))
        return builder.shuffle_vector(first, undefined, _lanes([0] * LANES))

    return Vector(scalar)(scalar), codegen


@intrinsic
def zeros(typingctx, like):
    """Return a vector of zeros of like's dtype."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(ir.VectorType(_scalar(like), LANES), [0.0] * LANES)

    return Vector(like)(like), codegen


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
def fma(typingctx, a, b, c):
    """Return a * b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        name = f"llvm.fma.v{LANES}f{a.dtype.bitwidth}"
        return _call(builder, name, arguments[0].type, arguments)

    return a(a, b, c), codegen


@intrinsic
def blend(typingctx, a, b, count):
    """Return the first ``count`` lanes of a and the others of b."""

    def codegen(context, builder, signature, arguments):
        return builder.select(_mask(builder, arguments[2]), *arguments[:2])

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
            low, high = _lanes(range(width)), _lanes(range(width, 2 * width))
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


def _make_store(nontemporal):
    def codegen(context, builder, signature, arguments):
        array = signature.args[0]
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        done = builder.store(arguments[2], pointer, align=LINE if nontemporal else array.dtype.bitwidth // 8)
        if nontemporal:
            done.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
        return context.get_dummy_value()

    return codegen


@intrinsic
def store(typingctx, array, index, value):
    """array[index : index + 16] = value."""
    return types.void(array, types.intp, value), _make_store(nontemporal=False)


@intrinsic
def stream(typingctx, array, index, value):
    """Like ``store``, past the caches: the address must be 64-byte aligned; ``fence`` when done."""
    return types.void(array, types.intp, value), _make_store(nontemporal=True)


@intrinsic(prefer_literal=True)
def prefetch(typingctx, array, index, count):
    """Ask for the cache lines of array[index : index + count], count a constant; any address is harmless."""

    def codegen(context, builder, signature, arguments):
        per_line = LINE * 8 // array.dtype.bitwidth
        for offset in range(0, count.literal_value, per_line):
            position = builder.add(arguments[1], ir.Constant(arguments[1].type, offset))
            address = _element(context, builder, array, arguments[0], position)
            address = builder.bitcast(address, ir.IntType(8).as_pointer())
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), [address, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, count), codegen


@intrinsic
def fence(typingctx):
    """Order streamed stores before whatever another thread does next."""

    def codegen(context, builder, signature, arguments):
        if _X86:
            _call(builder, "llvm.x86.sse.sfence", ir.VoidType(), [])
        else:
            builder.fence("release")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def unaligned(typingctx, array, index):
    """How many elements from array[index] to the next cache line."""

    def codegen(context, builder, signature, arguments):
        word = arguments[1].type
        address = builder.ptrtoint(_element(context, builder, array, *arguments), word)
        missing = builder.and_(builder.neg(address), ir.Constant(word, LINE - 1))
        return builder.udiv(missing, ir.Constant(word, array.dtype.bitwidth // 8))

    return types.intp(array, types.intp), codegen
