"""Memory access of the GPU kernels, as intrinsics, which decide the instructions that are used.

``base`` is the address of an array in device memory, or an offset in bytes within the block's shared memory,
both int64; ``index`` counts elements from there on. ``like`` is a scalar of the element's dtype: float32,
float64 or an integer type. Four elements are read and written by accesses of 16 bytes, at aligned addresses.
"""

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from numbabn.backends.cuda import plan

GLOBAL, SHARED = 1, 3  # address spaces
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _llvm_type(dtype):
    """Return LLVM's type of a scalar."""
    floats = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
    return floats.get(dtype) or ir.IntType(dtype.bitwidth)


def _shared_memory(builder):
    """Return the address of the block's shared memory: one variable for all functions of a kernel."""
    module, name = builder.module, "numbabn_shared_memory"
    if name not in module.globals:
        array = ir.ArrayType(ir.IntType(8), plan.SHARED_BYTES)
        memory = ir.GlobalVariable(module, array, name, SHARED)
        memory.linkage = "linkonce_odr"
        memory.align = 16
        memory.initializer = ir.Constant(array, ir.Undefined)
    return builder.ptrtoint(module.globals[name], _I32)


def _address(builder, base, index, dtype, space=GLOBAL):
    """Return the address of element ``index`` from ``base`` on: 32 bits wide in shared memory."""
    address = builder.add(base, builder.mul(index, ir.Constant(_I64, dtype.bitwidth // 8)))
    if space == SHARED:
        return builder.add(_shared_memory(builder), builder.trunc(address, _I32))
    return address


def _pointer(builder, base, index, dtype, space=GLOBAL, lanes=0):
    """Return LLVM's pointer to element ``index`` from ``base`` on, or to ``lanes`` elements from there on."""
    scalar = _llvm_type(dtype)
    pointee = ir.VectorType(scalar, lanes) if lanes else scalar
    return builder.inttoptr(_address(builder, base, index, dtype, space), pointee.as_pointer(space))


def _unpack(builder, vector, lanes):
    """Return the elements of a vector as an array, which is what LLVM has for a tuple."""
    parts = [builder.extract_element(vector, ir.Constant(_I32, k)) for k in range(lanes)]
    result = ir.Constant(ir.ArrayType(parts[0].type, lanes), ir.Undefined)
    for k, part in enumerate(parts):
        result = builder.insert_value(result, part, k)
    return result


def _loader(space, lanes=0):
    """Return the typing function of an intrinsic that reads one element, or ``lanes`` of them as a tuple."""

    def typed(typingctx, base, index, like):
        def codegen(context, builder, signature, arguments):
            pointer = _pointer(builder, arguments[0], arguments[1], like, space, lanes)
            if not lanes:
                return builder.load(pointer, align=like.bitwidth // 8)
            return _unpack(builder, builder.load(pointer, align=16), lanes)

        return (types.UniTuple(like, lanes) if lanes else like)(types.int64, types.int64, like), codegen

    return typed


def _storer(space):
    """Return the typing function of an intrinsic that writes one element."""

    def typed(typingctx, base, index, value):
        def codegen(context, builder, signature, arguments):
            pointer = _pointer(builder, arguments[0], arguments[1], value, space)
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


def _storer4(space):
    """Return the typing function of an intrinsic that writes four elements at a 16-byte-aligned address."""

    def typed(typingctx, base, index, a, b, c, d):
        def codegen(context, builder, signature, arguments):
            pointer = _pointer(builder, arguments[0], arguments[1], a, space, lanes=4)
            vector = ir.Constant(pointer.type.pointee, ir.Undefined)
            for k in range(4):
                vector = builder.insert_element(vector, arguments[2 + k], ir.Constant(_I32, k))
            builder.store(vector, pointer, align=16)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, a, a, a, a), codegen

    return typed


store4 = intrinsic(_storer4(GLOBAL))
shared_store4 = intrinsic(_storer4(SHARED))


def _assembly(builder, text, result, constraints, arguments):
    """Insert an instruction of PTX, and return its result."""
    function = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(ir.InlineAsm(function, text, constraints, side_effect=True), arguments)


def _copier(lanes):
    """Return the typing function of an intrinsic that begins to copy elements to shared memory.

    The copy is asynchronous. Only copies of 16 bytes can bypass the L1 cache (cg), which they do.
    """

    def typed(typingctx, shared, index, base, position, like):
        nbytes = like.bitwidth // 8 * lanes
        step = min(nbytes, 16)
        mode = "cg" if step == 16 else "ca"

        def codegen(context, builder, signature, arguments):
            target = _address(builder, *arguments[:2], like, SHARED)
            source = _address(builder, *arguments[2:4], like)
            for offset in range(0, nbytes, step):
                to = builder.add(target, ir.Constant(_I32, offset))
                origin = builder.add(source, ir.Constant(_I64, offset))
                text = f"cp.async.{mode}.shared.global [$0], [$1], {step};"
                _assembly(builder, text, ir.VoidType(), "r,l,~{memory}", [to, origin])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, like), codegen

    return typed


copy_async = intrinsic(_copier(1))
copy_async4 = intrinsic(_copier(4))


@intrinsic
def copy_wait(typingctx):
    """Wait until the asynchronous copies that this thread has begun are complete."""

    def codegen(context, builder, signature, arguments):
        _assembly(builder, "cp.async.wait_all;", ir.VoidType(), "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def peek(typingctx, base, index, like):
    """Read what another block may have written: from the L2 cache, not from the multiprocessor's own."""
    suffix, constraint = {
        types.float32: ("f32", "=f"),
        types.float64: ("f64", "=d"),
        types.int32: ("s32", "=r"),
    }[like]

    def codegen(context, builder, signature, arguments):
        address = _address(builder, *arguments[:2], like)
        text = f"ld.volatile.global.{suffix} $0, [$1];"
        return _assembly(builder, text, _llvm_type(like), f"{constraint},l,~{{memory}}", [address])

    return like(types.int64, types.int64, like), codegen


@intrinsic
def atomic_add(typingctx, base, index, value):
    """Add to an int32, and return its value before."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], arguments[1], types.int32)
        return builder.atomic_rmw("add", pointer, arguments[2], "monotonic")

    return types.int32(types.int64, types.int64, types.int32), codegen


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
    """Return a number in like's dtype."""

    def codegen(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], value, like)

    return like(value, like), codegen


def _half_loader(bfloat):
    """Return the typing function of an intrinsic that reads a bfloat16, or a float16, as float32."""

    def typed(typingctx, base, index):
        def codegen(context, builder, signature, arguments):
            bits = builder.load(_pointer(builder, *arguments, types.uint16), align=2)
            if bfloat:
                word = builder.shl(builder.zext(bits, _I32), ir.Constant(_I32, 16))
                return builder.bitcast(word, ir.FloatType())
            return _assembly(builder, "cvt.f32.f16 $0, $1;", ir.FloatType(), "=f,h", [bits])

        return types.float32(types.int64, types.int64), codegen

    return typed


def _half_storer(dtype):
    """Return the typing function of an intrinsic that writes a float32 as "f16" or "bf16", rounded."""

    def typed(typingctx, base, index, value):
        def codegen(context, builder, signature, arguments):
            text = f"cvt.rn.{dtype}.f32 $0, $1;"
            bits = _assembly(builder, text, _I16, "=h,f", [arguments[2]])
            builder.store(bits, _pointer(builder, *arguments[:2], types.uint16), align=2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32), codegen

    return typed


load_float16 = intrinsic(_half_loader(bfloat=False))
load_bfloat16 = intrinsic(_half_loader(bfloat=True))
store_float16 = intrinsic(_half_storer("f16"))
store_bfloat16 = intrinsic(_half_storer("bf16"))
