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
    "convert",
    "fence",
    "fma",
    "load",
    "load_part",
    "prefetch",
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


def _element(context, builder, array_type, array, index):
    """Pointer to array[index]: no bounds, no wrap-around."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _vector_pointer(context, builder, array_type, array, index):
    kind = ir.VectorType(_scalar(array_type.dtype), LANES)
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
def total(typingctx, a):
    """Sum of the lanes: halves are added until one lane is left."""

    def codegen(context, builder, signature, arguments):
        value, width = arguments[0], LANES
        while width > 1:
            width //= 2
            low, high = _lanes(range(width)), _lanes(range(width, 2 * width))
            undefined = ir.Constant(value.type, ir.Undefined)
            value = builder.fadd(
                builder.shuffle_vector(value, undefined, low), builder.shuffle_vector(value, undefined, high)
            )
        return builder.extract_element(value, _I32(0))

    return a.dtype(a), codegen


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
