"""What blocks tell each other, as intrinsics: flags, counters, and the memory of a cluster.

Flags and counters are int32 in device memory; ``base`` is the address of an array of them, ``index`` counts
from there on. What was written before is released by the thread that adds to a counter, and acquired by the
one that finds it: see `synchronization`. Source: PTX ISA, "Memory consistency model".
"""

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.memory import SHARED, address_at, assembly, llvm_type, pointer_to, shared_memory

_I32 = ir.IntType(32)
_SAMPLE_BYTES = 24  # three float64 of a channel, as `clusters` leaves them


def _loading(kind):
    """Return the typing function of an intrinsic that reads by an instruction of PTX."""
    names = {types.float32: ("f32", "=f"), types.float64: ("f64", "=d"), types.int32: ("s32", "=r")}

    def typed(typingctx, base, index, like):
        def codegen(context, builder, signature, arguments):
            suffix, constraint = names[like]
            address = address_at(builder, *arguments[:2], like)
            text = f"ld.{kind}.global.{suffix} $0, [$1];"
            return assembly(builder, text, llvm_type(like), f"{constraint},l,~{{memory}}", [address])

        return like(types.int64, types.int64, like), codegen

    return typed


# Read what another block may have written: from the L2 cache, not from the multiprocessor's own. The second
# also acquires what was released before.
peek = intrinsic(_loading("relaxed.gpu"))
load_acquire = intrinsic(_loading("acquire.gpu"))


@intrinsic
def atomic_add(typingctx, base, index, value):
    """Add to an int32, and return its value before."""

    def codegen(context, builder, signature, arguments):
        pointer = pointer_to(builder, arguments[0], arguments[1], types.int32)
        return builder.atomic_rmw("add", pointer, arguments[2], "monotonic")

    return types.int32(types.int64, types.int64, types.int32), codegen


def _adding(text, result):
    """Return the typing function of an intrinsic that adds to an int32 by an instruction of PTX."""

    def typed(typingctx, base, index, value):
        def codegen(context, builder, signature, arguments):
            address = address_at(builder, *arguments[:2], types.int32)
            given, kind = [address, arguments[2]], _I32 if result == types.int32 else ir.VoidType()
            constraints = "=r,l,r,~{memory}" if result == types.int32 else "l,r,~{memory}"
            found = assembly(builder, text, kind, constraints, given)
            return found if result == types.int32 else context.get_dummy_value()

        return result(types.int64, types.int64, types.int32), codegen

    return typed


# Release what was written before, and return nothing; or return the value before, and acquire and release.
atomic_add_release = intrinsic(_adding("red.release.gpu.global.add.s32 [$0], $1;", types.void))
atomic_add_acq_rel = intrinsic(_adding("atom.acq_rel.gpu.global.add.s32 $0, [$1], $2;", types.int32))


def _cluster_place(builder, index):
    """Return LLVM's pointer to a float64 of the memory that the other blocks of a cluster read."""
    memory = shared_memory(builder, "numbabn_cluster_memory", _SAMPLE_BYTES * plan.CLUSTER_CHANNELS)
    offset = builder.shl(builder.trunc(index, _I32), ir.Constant(_I32, 3))
    place = builder.gep(memory, [ir.Constant(_I32, 0), offset], inbounds=True)
    return builder.bitcast(place, ir.DoubleType().as_pointer(SHARED))


@intrinsic
def cluster_store(typingctx, index, value):
    """Write a float64 where the other blocks of the cluster can read it."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], _cluster_place(builder, arguments[0]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), codegen


@intrinsic
def cluster_load(typingctx, rank, index):
    """Return a float64 that the block of a number within the cluster has written."""

    def codegen(context, builder, signature, arguments):
        here = builder.ptrtoint(_cluster_place(builder, arguments[1]), _I32)
        rank = builder.trunc(arguments[0], _I32)
        text = "mapa.shared::cluster.u32 $0, $1, $2;"
        there = assembly(builder, text, _I32, "=r,r,r", [here, rank], side_effect=False)
        text = "ld.shared::cluster.f64 $0, [$1];"
        return assembly(builder, text, ir.DoubleType(), "=d,r,~{memory}", [there])

    return types.float64(types.int64, types.int64), codegen


def _cluster_barrier(text):
    """Return the typing function of an intrinsic that is one instruction of the barrier of a cluster."""

    def typed(typingctx):
        def codegen(context, builder, signature, arguments):
            assembly(builder, text, ir.VoidType(), "~{memory}", [])
            return context.get_dummy_value()

        return types.void(), codegen

    return typed


# Arrive at the barrier of the cluster, which releases what was written before; and wait there for all threads
# of all blocks, which acquires what they have written.
cluster_arrive = intrinsic(_cluster_barrier("barrier.cluster.arrive.release;"))
cluster_wait = intrinsic(_cluster_barrier("barrier.cluster.wait.acquire;"))
