"""Vectors of sixteen lanes for Numba kernels: loads, stores, prefetches, and the fence that they need.

``load`` converts to the dtype of its last argument, ``like``, so one kernel serves float32 and float64
storage and either accumulator. Arrays of float16 and bfloat16 are integers of 16 bits here, see `half`: they
are converted as they are loaded and stored. A ``like`` that is an element of one stands for float32, the
dtype in which they are computed.

Why not leave it to the vectoriser: it cannot make non-temporal stores, which need proven alignment, and it
places no prefetches; together they are a factor of 1.5 on arrays larger than the cache.
"""

import platform

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from numbabn.backends.cpu import simd_half
from numbabn.backends.cpu.simd_vectors import (
    HALF_BITS,
    LANES,
    Vector,
    call,
    computed_type,
    first_lanes,
    float_type,
    lane_numbers,
)

__all__ = [
    "computed", "elements", "fence", "load", "load_input", "load_input_part", "load_like", "load_number",
    "load_number_part", "load_part", "number", "prefetch", "store", "store_part", "stream", "unaligned",
]  # fmt: skip

LINE = 64  # bytes of a cache line, and the alignment of a non-temporal store
_X86 = platform.machine().lower() in ("x86_64", "amd64")
_I16, _I32 = ir.IntType(16), ir.IntType(32)


def _storage(dtype):
    """Type of an element in memory: numbers of 16 bits may be integers, or the bits of half floats."""
    return ir.IntType(dtype.bitwidth) if isinstance(dtype, types.Integer) else float_type(dtype)


def _number(builder, value, dtype, like, half):
    """Lanes of storage as floats of the type that like's dtype is computed in."""
    result = ir.VectorType(float_type(like), value.type.count)
    if isinstance(dtype, types.Integer):
        if not half:
            return (builder.sitofp if dtype.signed else builder.uitofp)(value, result)
        widened = simd_half.bfloat16_to_float if dtype.signed else simd_half.float16_to_float
        value, dtype = widened(builder, value), types.float32
    wanted = computed_type(like).bitwidth
    if dtype.bitwidth == wanted:
        return value
    return (builder.fpext if dtype.bitwidth < wanted else builder.fptrunc)(value, result)


def _is_half(dtype, half):
    """Whether numbers of 16 bits are floats: unsigned ones float16, and signed ones bfloat16."""
    return dtype in HALF_BITS and half != types.none


def _stored(builder, value, dtype):
    """Lanes as they are stored in an array of the dtype: float32 as the bits of half floats, or no change."""
    if dtype not in HALF_BITS:
        return value
    narrowed = simd_half.float_to_bfloat16 if dtype.signed else simd_half.float_to_float16
    return narrowed(builder, value)


def _element(context, builder, array_type, array, index):
    """Pointer to array[index]: no bounds, no wrap-around; of an array, or of its ``elements``."""
    if not isinstance(array_type, types.CPointer):
        array = context.make_array(array_type)(context, builder, array).data
    return builder.gep(array, [index])


def _vector_pointer(context, builder, array_type, array, index):
    kind = ir.VectorType(_storage(array_type.dtype), LANES)
    return builder.bitcast(_element(context, builder, array_type, array, index), kind.as_pointer())


def _load_lanes(context, builder, array_type, arguments):
    """Lanes of array[index : index + 16] as they are stored; (array, index) come first."""
    pointer = _vector_pointer(context, builder, array_type, *arguments[:2])
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _load_first_lanes(context, builder, array_type, arguments):
    """Lanes of array[index : index + count], as they are stored, and 0 in the others; count < 16.

    count may be 0, but for dtypes of 16 bits.
    """
    array, index, count = arguments[:3]
    if array_type.dtype.bitwidth == 16:
        return _load_pairs(builder, _element(context, builder, array_type, array, index), count)
    pointer = _vector_pointer(context, builder, array_type, array, index)
    kind, bits = pointer.type.pointee, array_type.dtype.bitwidth
    letter = "i" if isinstance(array_type.dtype, types.Integer) else "f"
    name = f"llvm.masked.load.v{LANES}{letter}{bits}.p0"
    nothing = ir.Constant(kind, [0 if letter == "i" else 0.0] * LANES)
    return call(builder, name, kind, [pointer, _I32(bits // 8), first_lanes(builder, count), nothing])


# AVX2 has masks for lanes of 32 and 64 bits only. For those of 16 LLVM makes sixteen branches, so that here
# pairs of lanes are masked, and the last lane is loaded or stored by itself: it may be half of a pair.


def _load_pairs(builder, pointer, count):
    words = ir.VectorType(_I32, LANES // 2)
    mask = first_lanes(builder, _half_of(builder, count), LANES // 2)
    name, nothing = f"llvm.masked.load.v{LANES // 2}i32.p0", ir.Constant(words, [0] * (LANES // 2))
    pairs = call(builder, name, words, [builder.bitcast(pointer, words.as_pointer()), _I32(2), mask, nothing])
    lanes = builder.bitcast(pairs, ir.VectorType(_I16, LANES))
    last = builder.sub(count, ir.Constant(count.type, 1))
    undefined = ir.Constant(lanes.type, ir.Undefined)
    first = builder.insert_element(undefined, builder.load(builder.gep(pointer, [last]), align=2), _I32(0))
    everywhere = builder.shuffle_vector(first, undefined, lane_numbers([0] * LANES))
    # Lanes before the last one are in both masks, and keep what was loaded.
    before, up_to_last = first_lanes(builder, last), first_lanes(builder, count)
    at_last = builder.and_(up_to_last, builder.not_(before))
    return builder.select(at_last, everywhere, lanes)


def _store_pairs(builder, pointer, count, lanes):
    words = ir.VectorType(_I32, LANES // 2)
    mask = first_lanes(builder, _half_of(builder, count), LANES // 2)
    pairs, name = builder.bitcast(lanes, words), f"llvm.masked.store.v{LANES // 2}i32.p0"
    call(builder, name, ir.VoidType(), [pairs, builder.bitcast(pointer, words.as_pointer()), _I32(2), mask])
    last = builder.sub(count, ir.Constant(count.type, 1))
    builder.store(builder.extract_element(lanes, last), builder.gep(pointer, [last]), align=2)


def _half_of(builder, count):
    return builder.lshr(count, ir.Constant(count.type, 1))


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
def computed(typingctx, array):
    """Return the dtype in which the elements of an array are computed, as ``array.dtype`` would."""

    def codegen(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.DType(computed_type(array.dtype))(array), codegen


@intrinsic
def number(typingctx, array, index):
    """Return array[index] in the dtype in which it is computed."""

    def codegen(context, builder, signature, arguments):
        pointer = _element(context, builder, array, *arguments)
        lane = ir.VectorType(pointer.type.pointee, 1)
        value = builder.load(builder.bitcast(pointer, lane.as_pointer()), align=array.dtype.bitwidth // 8)
        half = array.dtype in HALF_BITS
        return builder.extract_element(_number(builder, value, array.dtype, array.dtype, half), _I32(0))

    return computed_type(array.dtype)(array, types.intp), codegen


@intrinsic
def load(typingctx, array, index, like):
    """Return array[index : index + 16] as a vector of like's dtype; numbers of 16 bits are half floats."""

    def codegen(context, builder, signature, arguments):
        value = _load_lanes(context, builder, array, arguments)
        return _number(builder, value, array.dtype, like, array.dtype in HALF_BITS)

    return Vector(like)(array, types.intp, like), codegen


@intrinsic
def load_like(typingctx, array, index, a):
    """Return array[index : index + 16] as a vector of the dtype of the vector a; as ``load`` of 16 bits."""

    def codegen(context, builder, signature, arguments):
        value = _load_lanes(context, builder, array, arguments)
        return _number(builder, value, array.dtype, a.dtype, array.dtype in HALF_BITS)

    return a(array, types.intp, a), codegen


@intrinsic
def load_part(typingctx, array, index, count, otherwise):
    """array[index : index + count] in the first lanes, ``otherwise`` in the others, in its dtype."""

    def codegen(context, builder, signature, arguments):
        value = _load_first_lanes(context, builder, array, arguments)
        numbers = _number(builder, value, array.dtype, otherwise.dtype, array.dtype in HALF_BITS)
        return builder.select(first_lanes(builder, arguments[2]), numbers, arguments[3])

    return otherwise(array, types.intp, types.intp, otherwise), codegen


@intrinsic
def load_input(typingctx, array, index, like):
    """Like ``load`` of what may be true integers of 16 bits: they are unless ``like`` is such a number.

    ``like`` is an element of the result, which has 16 bits where what is read has half floats.
    """

    def codegen(context, builder, signature, arguments):
        value = _load_lanes(context, builder, array, arguments)
        return _number(builder, value, array.dtype, like, array.dtype in HALF_BITS and like in HALF_BITS)

    return Vector(like)(array, types.intp, like), codegen


@intrinsic
def load_input_part(typingctx, array, index, count, otherwise, like):
    """Like ``load_part`` of what may be true integers of 16 bits; ``like`` is as in ``load_input``."""

    def codegen(context, builder, signature, arguments):
        value = _load_first_lanes(context, builder, array, arguments)
        half = array.dtype in HALF_BITS and like in HALF_BITS
        numbers = _number(builder, value, array.dtype, otherwise.dtype, half)
        return builder.select(first_lanes(builder, arguments[2]), numbers, arguments[3])

    return otherwise(array, types.intp, types.intp, otherwise, like), codegen


@intrinsic
def load_number(typingctx, array, index, half, like):
    """``load`` of any kind of numbers.

    Unless ``half`` is None those of 16 bits are floats: unsigned ones float16, and signed ones bfloat16.
    """

    def codegen(context, builder, signature, arguments):
        value = _load_lanes(context, builder, array, arguments)
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, half, like), codegen


@intrinsic
def load_number_part(typingctx, array, index, count, half, like):
    """Like ``load_number`` of array[index : index + count] in the first lanes; the others are 0."""

    def codegen(context, builder, signature, arguments):
        value = _load_first_lanes(context, builder, array, arguments)
        return _number(builder, value, array.dtype, like, _is_half(array.dtype, half))

    return Vector(like)(array, types.intp, types.intp, half, like), codegen


@intrinsic
def store_part(typingctx, array, index, count, value):
    """array[index : index + count] = the first lanes of value; 0 < count < 16."""

    def codegen(context, builder, signature, arguments):
        target, index, count, lanes = arguments
        if array.dtype in HALF_BITS:
            pointer = _element(context, builder, array, target, index)
            _store_pairs(builder, pointer, count, _stored(builder, lanes, array.dtype))
            return context.get_dummy_value()
        pointer = _vector_pointer(context, builder, array, target, index)
        align = _I32(array.dtype.bitwidth // 8)
        name = f"llvm.masked.store.v{LANES}f{array.dtype.bitwidth}.p0"
        call(builder, name, ir.VoidType(), [lanes, pointer, align, first_lanes(builder, count)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), codegen


def _boundary(size):
    """Bytes: streamed vectors of elements of this size begin at multiples of it.

    That is a cache line, or half of one where a vector is as large. There, two vectors fill a line, and only
    where a pass begins or ends is a line written by halves.
    """
    return min(LINE, LANES * size)


def _make_store(nontemporal):
    def codegen(context, builder, signature, arguments):
        array = signature.args[0]
        pointer = _vector_pointer(context, builder, array, *arguments[:2])
        size = array.dtype.bitwidth // 8
        value = _stored(builder, arguments[2], array.dtype)
        done = builder.store(value, pointer, align=_boundary(size) if nontemporal else size)
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
    """Like ``store``, past the caches: ``unaligned`` must be 0 at the address; ``fence`` when done."""
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
    """How many elements from array[index] to where streamed vectors may begin; fewer than 16."""

    def codegen(context, builder, signature, arguments):
        word, size = arguments[1].type, array.dtype.bitwidth // 8
        address = builder.ptrtoint(_element(context, builder, array, *arguments), word)
        missing = builder.and_(builder.neg(address), ir.Constant(word, _boundary(size) - 1))
        return builder.udiv(missing, ir.Constant(word, size))

    return types.intp(array, types.intp), codegen
