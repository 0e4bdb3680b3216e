"""Memory access of the GPU kernels, as intrinsics, which decide the instructions that are used.

``base`` is the address of an array in device memory, or an offset in bytes within the block's shared memory,
both int64; ``index`` counts elements from there on. ``like`` is a scalar of the element's dtype: float32,
float64 or an integer type. Four elements are read and written by accesses of 16 bytes, at aligned addresses.

Numba has no bfloat16 that links without a GPU. In the place of ``like`` a uint16 stands for float16, and an
int16 for bfloat16. Kernels compute in float32 then: what they keep for themselves, their numbers, is float32,
which `convert`, `load`, `shared_load` and their like return. The elements of arrays and of tiles are read and
written by `array_load`, `tile_load`, `array_store` and their like, which widen and round; four of them are an
access of 8 bytes. Copies to shared memory are of elements as they are stored.
"""

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from numbabn.backends.cuda import plan

GLOBAL, SHARED = 1, 3  # address spaces
HALVES = {types.uint16: "f16", types.int16: "bf16"}  # what stands for them, and their names in PTX
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def llvm_type(dtype):
    """Return LLVM's type of a scalar."""
    floats = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
    return floats.get(dtype) or ir.IntType(dtype.bitwidth)


def _number(like):
    """Return the type that kernels compute in for elements of like's dtype."""
    return types.float32 if like in HALVES else like


def shared_memory(builder, name="numbabn_shared_memory", nbytes=plan.SHARED_BYTES):
    """Return the block's shared memory: one variable for all functions of a kernel."""
    module = builder.module
    if name not in module.globals:
        array = ir.ArrayType(ir.IntType(8), nbytes)
        memory = ir.GlobalVariable(module, array, name, SHARED)
        memory.linkage = "linkonce_odr"
        memory.align = 16
        memory.initializer = ir.Constant(array, ir.Undefined)
    return module.globals[name]


def address_at(builder, base, index, dtype, space=GLOBAL):
    """Return the address of element ``index`` from ``base`` on: 32 bits wide in shared memory."""
    address = builder.add(base, builder.mul(index, ir.Constant(_I64, dtype.bitwidth // 8)))
    if space == SHARED:
        return builder.ptrtoint(_shared_pointer(builder, address), _I32)
    return address


def _shared_pointer(builder, offset):
    """Return LLVM's pointer to a byte of shared memory.

    Arithmetic of integers in place of this takes an instruction more at every access.
    """
    place = [ir.Constant(_I32, 0), builder.trunc(offset, _I32)]
    return builder.gep(shared_memory(builder), place, inbounds=True)


def pointer_to(builder, base, index, dtype, space=GLOBAL, lanes=0):
    """Return LLVM's pointer to element ``index`` from ``base`` on, or to ``lanes`` elements from there on."""
    scalar = llvm_type(dtype)
    pointee = ir.VectorType(scalar, lanes) if lanes else scalar
    if space == SHARED:
        offset = builder.add(base, builder.mul(index, ir.Constant(_I64, dtype.bitwidth // 8)))
        return builder.bitcast(_shared_pointer(builder, offset), pointee.as_pointer(space))
    return builder.inttoptr(address_at(builder, base, index, dtype, space), pointee.as_pointer(space))


def _unpack(builder, vector, lanes):
    """Return the elements of a vector as an array, which is what LLVM has for a tuple."""
    parts = [builder.extract_element(vector, ir.Constant(_I32, k)) for k in range(lanes)]
    result = ir.Constant(ir.ArrayType(parts[0].type, lanes), ir.Undefined)
    for k, part in enumerate(parts):
        result = builder.insert_value(result, part, k)
    return result


def _packed(builder, parts, kind):
    """Return LLVM's vector of the parts."""
    vector = ir.Constant(ir.VectorType(kind, len(parts)), ir.Undefined)
    for k, part in enumerate(parts):
        vector = builder.insert_element(vector, part, ir.Constant(_I32, k))
    return vector


def _loader(space, lanes=0):
    """Return the typing function of an intrinsic that reads one number, or ``lanes`` of them as a tuple."""

    def typed(typingctx, base, index, like):
        number = _number(like)

        def codegen(context, builder, signature, arguments):
            pointer = pointer_to(builder, arguments[0], arguments[1], number, space, lanes)
            if not lanes:
                return builder.load(pointer, align=number.bitwidth // 8)
            return _unpack(builder, builder.load(pointer, align=16), lanes)

        return (types.UniTuple(number, lanes) if lanes else number)(types.int64, types.int64, like), codegen

    return typed


def _storer(space):
    """Return the typing function of an intrinsic that writes one element of the value's dtype."""

    def typed(typingctx, base, index, value):
        def codegen(context, builder, signature, arguments):
            pointer = pointer_to(builder, arguments[0], arguments[1], value, space)
            builder.store(arguments[2], pointer, align=value.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, value), codegen

    return typed


load = intrinsic(_loader(GLOBAL))
load4 = intrinsic(_loader(GLOBAL, lanes=4))
shared_load = intrinsic(_loader(SHARED))
shared_load4 = intrinsic(_loader(SHARED, lanes=4))
store = intrinsic(_storer(GLOBAL))
shared_store = intrinsic(_storer(SHARED))


def assembly(builder, text, result, constraints, arguments, side_effect=True):
    """Insert an instruction of PTX, and return its result."""
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=side_effect), arguments)


def _widened(builder, bits, like):
    """Return the bits of a float16 or bfloat16 as float32."""
    if like == types.int16:
        word = builder.shl(builder.zext(bits, _I32), ir.Constant(_I32, 16))
        return builder.bitcast(word, ir.FloatType())
    return assembly(builder, "cvt.f32.f16 $0, $1;", ir.FloatType(), "=f,h", [bits], side_effect=False)


def _widened_pair(builder, word, like):
    """Return the two float16 or bfloat16 of a word as float32, that of the lower bits first."""
    if like == types.int16:
        low = builder.shl(word, ir.Constant(_I32, 16))
        high = builder.and_(word, ir.Constant(_I32, 0xFFFF0000))
        return [builder.bitcast(half, ir.FloatType()) for half in (low, high)]
    low, high = builder.trunc(word, _I16), builder.trunc(builder.lshr(word, ir.Constant(_I32, 16)), _I16)
    return [_widened(builder, half, like) for half in (low, high)]


def _array_loader(space, lanes=0):
    """Return the typing function of an intrinsic that reads one element, or four as a tuple, as numbers."""

    def typed(typingctx, base, index, like):
        if like not in HALVES:
            return _loader(space, lanes)(typingctx, base, index, like)

        def codegen(context, builder, signature, arguments):
            address = address_at(builder, arguments[0], arguments[1], like, space)
            if not lanes:
                bits = builder.load(builder.inttoptr(address, _I16.as_pointer(space)), align=2)
                return _widened(builder, bits, like)
            words = builder.inttoptr(address, ir.VectorType(_I32, 2).as_pointer(space))
            words = builder.load(words, align=8)
            pairs = [builder.extract_element(words, ir.Constant(_I32, k)) for k in range(2)]
            parts = [part for word in pairs for part in _widened_pair(builder, word, like)]
            return _unpack(builder, _packed(builder, parts, ir.FloatType()), lanes)

        result = types.UniTuple(types.float32, lanes) if lanes else types.float32
        return result(types.int64, types.int64, like), codegen

    return typed


array_load = intrinsic(_array_loader(GLOBAL))
array_load4 = intrinsic(_array_loader(GLOBAL, lanes=4))
tile_load = intrinsic(_array_loader(SHARED))
tile_load4 = intrinsic(_array_loader(SHARED, lanes=4))


def _array_storer(space):
    """Return the typing function of an intrinsic that writes a number as one element of like's dtype."""

    def typed(typingctx, base, index, value, like):
        def codegen(context, builder, signature, arguments):
            base, index, bits, _ = arguments
            if like in HALVES:
                text = f"cvt.rn.{HALVES[like]}.f32 $0, $1;"
                bits = assembly(builder, text, _I16, "=h,f", [bits], side_effect=False)
            builder.store(bits, pointer_to(builder, base, index, like, space), align=like.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, _number(like), like), codegen

    return typed


def _array_storer4(space):
    """Return the typing function of an intrinsic that writes four numbers as elements from ``index`` on.

    They are rounded to nearest even, and their address is aligned.
    """

    def typed(typingctx, base, index, a, b, c, d, like):
        def codegen(context, builder, signature, arguments):
            base, index, *parts, _ = arguments
            kind, pointer = llvm_type(like), pointer_to(builder, base, index, like, space, lanes=4)
            if like in HALVES:
                # The first operand of the instruction goes to the upper bits.
                text, kind = f"cvt.rn.{HALVES[like]}x2.f32 $0, $2, $1;", _I32
                pointer = builder.bitcast(pointer, ir.VectorType(kind, 2).as_pointer(space))
                pairs = parts[:2], parts[2:]
                parts = [assembly(builder, text, kind, "=r,f,f", pair, side_effect=False) for pair in pairs]
            builder.store(_packed(builder, parts, kind), pointer, align=min(like.bitwidth // 2, 16))
            return context.get_dummy_value()

        number = _number(like)
        return types.void(types.int64, types.int64, number, number, number, number, like), codegen

    return typed


array_store = intrinsic(_array_storer(GLOBAL))
array_store4 = intrinsic(_array_storer4(GLOBAL))
tile_store = intrinsic(_array_storer(SHARED))
tile_store4 = intrinsic(_array_storer4(SHARED))


def _copy(builder, arguments, like, nbytes):
    """Begin to copy bytes to shared memory: asynchronously, but for two bytes, which are too few for that.

    Only copies of 16 bytes can bypass the L1 cache (cg), which they do.
    """
    target = address_at(builder, *arguments[:2], like, SHARED)
    source = address_at(builder, *arguments[2:4], like)
    if nbytes < 4:
        bits = builder.load(builder.inttoptr(source, _I16.as_pointer(GLOBAL)), align=2)
        builder.store(bits, builder.inttoptr(target, _I16.as_pointer(SHARED)), align=2)
        return
    step = min(nbytes, 16)
    mode = "cg" if step == 16 else "ca"
    for offset in range(0, nbytes, step):
        to = builder.add(target, ir.Constant(_I32, offset))
        origin = builder.add(source, ir.Constant(_I64, offset))
        text = f"cp.async.{mode}.shared.global [$0], [$1], {step};"
        assembly(builder, text, ir.VoidType(), "r,l,~{memory}", [to, origin])


@intrinsic
def copy_async(typingctx, shared, index, base, position, like):
    """Begin to copy one element to shared memory."""

    def codegen(context, builder, signature, arguments):
        _copy(builder, arguments, like, like.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, like), codegen


@intrinsic
def copy_vector(typingctx, shared, index, base, position, lanes, like):
    """Begin to copy to shared memory as many elements as `copy_lanes` has returned."""

    def codegen(context, builder, signature, arguments):
        if like in HALVES:
            most = builder.icmp_signed("==", arguments[4], ir.Constant(_I64, 8))
            with builder.if_else(most) as (then, otherwise):
                with then:
                    _copy(builder, arguments, like, 16)
                with otherwise:
                    _copy(builder, arguments, like, 8)
        else:
            _copy(builder, arguments, like, like.bitwidth // 8 * plan.VECTOR)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64, like), codegen


@intrinsic
def copy_lanes(typingctx, vector, like):
    """Return how many elements are copied at once where not each by itself: of half types 4 or 8.

    It is a constant for the other types, for which the compiler then leaves out what they do not need.
    """

    def codegen(context, builder, signature, arguments):
        four = ir.Constant(_I64, plan.VECTOR)
        if like not in HALVES:
            return four
        return builder.select(builder.icmp_signed(">", arguments[0], four), arguments[0], four)

    return types.int64(types.int64, like), codegen


@intrinsic
def copy_wait(typingctx):
    """Wait until the asynchronous copies that this thread has begun are complete."""

    def codegen(context, builder, signature, arguments):
        assembly(builder, "cp.async.wait_all;", ir.VoidType(), "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def samples_of(typingctx, geometry):
    """Return (batch, sample_groups, members) of a geometry, or the constants 1, 0, 1 where it has none.

    The compiler then leaves out the code for other values.
    """
    names = "batch", "sample_groups", "members"

    def codegen(context, builder, signature, arguments):
        result = ir.Constant(ir.ArrayType(_I64, 3), [1, 0, 1])
        if names[0] in geometry.fields:
            for k, name in enumerate(names):
                value = builder.extract_value(arguments[0], geometry.fields.index(name))
                result = builder.insert_value(result, value, k)
        return result

    return types.UniTuple(types.int64, 3)(geometry), codegen


@intrinsic
def convert(typingctx, value, like):
    """Return a number in like's dtype, or in float32 where that is float16 or bfloat16."""
    number = _number(like)

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], value, number)

    return number(value, like), codegen
