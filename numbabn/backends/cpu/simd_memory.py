"""Vectors of sixteen lanes for Numba kernels: loads, stores, prefetches, and the fence that they need.

``load`` converts to the dtype of its last argument, so one kernel serves float32 and float64 storage and
either accumulator.

Why not leave it to the vectoriser: it cannot make non-temporal stores, which need proven alignment, and it
places no prefetches; together they are a factor of 1.5 on arrays larger than the cache.
"""

import platform

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numbabn.backends.cpu.simd_vectors import LANES, Vector, call, first_lanes, float_type

__all__ = [
    "elements", "fence", "load", "load_like", "load_number", "load_number_part", "load_part", "prefetch",
    "store", "store_part", "stream", "unaligned",
]  # fmt: skip

LINE = 64  # bytes of a cache line, and the alignment of a non-temporal store
_X86 = platform.machine().lower() in ("x86_64", "amd64")
_I32 = ir.IntType(32)


def _storage(dtype):
    """Type of an element in memory: numbers of 16 bits may be integers, or the bits of half a float."""
    return ir.IntType(dtype.bitwidth) if isinstance(dtype, types.Integer) else float_type(dtype)


def _number(builder, value, dtype, like, half):
    """Lanes of storage as floats of like's type."""
    result = ir.VectorType(float_type(like), LANES)
    if isinstance(dtype, types.Integer) and not half:
        return (builder.sitofp if dtype.signed else builder.uitofp)(value, result)
    width = dtype.bitwidth
    if half and dtype.signed:  # the upper half of a float32
        wide = builder.zext(value, ir.VectorType(_I32, LANES))
        bits = builder.shl(wide, ir.Constant(wide.type, [16] * LANES))
        value, width = builder.bitcast(bits, ir.VectorType(ir.FloatType(), LANES)), 32
    elif half:
        value = builder.bitcast(value, ir.VectorType(ir.HalfType(), LANES))
    if width == like.bitwidth:
        return value
    return (builder.fpext if width < like.bitwidth else builder.fptrunc)(value, result)


def _is_half(dtype, half):
    """Whether numbers of 16 bits are floats: unsigned ones float16, and signed ones bfloat16."""
    return dtype in (types.uint16, types.int16) and half != types.none


def _element(context, builder, array_type, array, index):
    """Pointer to array[index]: no bounds, no wrap-around; of an array, or of its ``elements``."""
    if not isinstance(array_type, types.CPointer):
        array = context.make_array(array_type)(context, builder, array).data
    return builder.gep(array, [index])


def _vector_pointer(context, builder, array_type, array, index):
    kind = ir.VectorType(_storage(array_type.dtype), LANES)
    return builder.bitcast(_element(context, builder, array_type, array, index), kind.as_pointer())


def _masked_load(context, builder, array_type, arguments, mask):
    """Lanes of array[index : index + 16] that the mask names, 0 in the others; (array, index) come first."""
    pointer = _vector_pointer(context, builder, array_type, *arguments[:2])
    kind, bits = pointer.type.pointee, array_type.dtype.bitwidth
    letter = "i" if isinstance(array_type.dtype, types.Integer) else "f"
    name = f"llvm.masked.load.v{LANES}{letter}{bits}.p0"
    nothing = ir.Constant(kind, [0 if letter == "i" else 0.0] * LANES)
    return call(builder, name, kind, [pointer, _I32(bits // 8), mask, nothing])


@intrinsic
def elements(typingctx, array):
    """Return the elements of a flat array, to be indexed, loaded and stored as the array; None for None.

    Functions that are called for every short row take these: passing an array counts its references,
    atomically, so that two threads that pass the same one wait for each other. The array must live longer,
    as an argument of a kernel does: what a function makes itself may be freed after its last use.
    """

    def codegen(context, builder, signature, arguments):
        if array == types.none:
            return context.get_dummy_value()
        return context.make_array(array)(context, builder, arguments[0]).data

    return (types.none if array == types.none else types.CPointer(array.dtype))(array), codegen


@intrinsic
def load(typingctx, array, index, like):
    """Return array[index : index + 16] as a vector of like's dtype."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _number(builder, value, array.dtype, like, half=False)

    return Vector(like)(array, types.intp, like), codegen


@intrinsic
def load_like(typingctx, array, index, a):
    """Return array[index : index + 16] as a vector of the dtype of the vector a."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _number(builder, value, array.dtype, a.dtype, half=False)

    return a(array, types.intp, a), codegen


@intrinsic
def load_part(typingctx, array, index, count, otherwise):
    """array[index : index + count] in the first lanes, ``otherwise`` in the others, in its dtype."""

    def codegen(context, builder, signature, arguments):
        mask = first_lanes(builder, arguments[2])
        value = _masked_load(context, builder, array, arguments, mask)
        return builder.select(
            mask, _number(builder, value, array.dtype, otherwise.dtype, half=False), arguments[3]
        )

    return otherwise(array, types.intp, types.intp, otherwise), codegen


@intrinsic
def load_number(typingctx, array, index, half, like):
    """``load`` of any kind of numbers.

    Unless ``half`` is None those of 16 bits are floats: unsigned ones float16, and signed ones bfloat16.
    """

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, half, like), codegen


@intrinsic
def load_number_part(typingctx, array, index, count, half, like):
    """Like ``load_number`` of array[index : index + count] in the first lanes; the others are 0."""

    def codegen(context, builder, signature, arguments):
        mask = first_lanes(builder, arguments[2])
        value = _masked_load(context, builder, array, arguments, mask)
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, types.intp, half, like), codegen


@intrinsic
def store_part(typingctx, array, index, count, value):
    """array[index : index + count] = the first lanes of value."""

    def codegen(context, builder, signature, arguments):
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        align = _I32(array.dtype.bitwidth // 8)
        name = f"llvm.masked.store.v{LANES}f{array.dtype.bitwidth}.p0"
        call(builder, name, ir.VoidType(), [arguments[3], pointer, align, first_lanes(builder, arguments[2])])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


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
            call(builder, "llvm.prefetch.p0", ir.VoidType(), [address, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, count), codegen


@intrinsic
def fence(typingctx):
    """Order streamed stores before whatever another thread does next."""

    def codegen(context, builder, signature, arguments):
        if _X86:
            call(builder, "llvm.x86.sse.sfence", ir.VoidType(), [])
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
