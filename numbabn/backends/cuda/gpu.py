"""What kernels are made of: the module ``cuda``, functions for the device, access to memory, and launches.

Kernels take integers, floats and tuples of them only. An array is passed as its address, an integer: an array
object would cost more host time at a launch than all the rest, and so one kernel serves every library.

In the CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the functions of `memory_simulated` take the place of the
intrinsics of `memory` and `messages`, `simulated` launches in place of `launching`, and kernels are the same.
"""

import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numba import cuda as numba_cuda

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.plan import SIMULATED

if not SIMULATED and getattr(numba_cuda, "implementation", None) != "NVIDIA":
    raise ImportError('device arrays need numba-cuda: python -m pip install "numbabn[cuda]"')
extending: Any = None if SIMULATED else import_module("numba.cuda.extending")


def _module(name: str, simulated: str) -> Any:
    return import_module("numbabn.backends.cuda." + (simulated if SIMULATED else name))


launcher = _module("launching", "simulated")
memory, messages = _module("memory", "memory_simulated"), _module("messages", "memory_simulated")

# The other modules import it from here. Kernels find it by this name.
cuda: Any = launcher.cuda

Kernel, follow, stream_state = launcher.Kernel, launcher.follow, launcher.stream_state
device_zeros, host_words = launcher.device_zeros, launcher.host_words

peek, load_acquire = messages.peek, messages.load_acquire
atomic_add, atomic_add_release = messages.atomic_add, messages.atomic_add_release
atomic_add_acq_rel = messages.atomic_add_acq_rel
cluster_arrive, cluster_wait = messages.cluster_arrive, messages.cluster_wait
cluster_load, cluster_store = messages.cluster_load, messages.cluster_store
convert = memory.convert
samples_of = memory.samples_of
copy_async, copy_vector, copy_wait = memory.copy_async, memory.copy_vector, memory.copy_wait
copy_lanes = memory.copy_lanes
load, load4, store = memory.load, memory.load4, memory.store
shared_load, shared_load4, shared_store = memory.shared_load, memory.shared_load4, memory.shared_store
array_load, array_load4 = memory.array_load, memory.array_load4
array_store, array_store4 = memory.array_store, memory.array_store4
tile_load, tile_load4 = memory.tile_load, memory.tile_load4
tile_store, tile_store4 = memory.tile_store, memory.tile_store4
# math.sqrt raises an error for negative numbers in Python, and numba-cuda does not know np.sqrt.
sqrt = np.sqrt if SIMULATED else math.sqrt

# ptxas fuses multiplications and additions by default. No other fastmath is allowed, since NaN and infinity
# are data.
device: Any = launcher.device if SIMULATED else cuda.jit(device=True)


@device
def thread_number():
    """Return the number of this thread among those of all blocks."""
    return np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)


@device
def any_thread(condition):
    """Return whether the condition holds for any thread of the block: a barrier, which all must reach."""
    return cuda.syncthreads_or(np.int32(1 if condition else 0)) != 0


@device
def load_four(address, i, vector, like):
    """Return four adjacent numbers, read at once if ``vector``, else one by one."""
    if vector:
        return load4(address, i, like)
    a, b = load(address, i, like), load(address, i + 1, like)
    return a, b, load(address, i + 2, like), load(address, i + 3, like)


@device
def array_load_four(address, i, vector, like):
    """Return four adjacent elements of an array as numbers, read at once if ``vector``, else one by one."""
    if vector:
        return array_load4(address, i, like)
    a, b = array_load(address, i, like), array_load(address, i + 1, like)
    return a, b, array_load(address, i + 2, like), array_load(address, i + 3, like)


@device
def exchange(value, distance):
    """Return the value of the thread of the warp whose number differs in the bit ``distance``.

    All threads of the warp must call it.
    """
    return cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)


@device
def warp_sum(value):
    """Return the sum over the threads of the warp: the same bits in all of them."""
    distance = plan.WARP >> 1
    while distance > 0:
        value += exchange(value, distance)
        distance >>= 1
    return value


def adapted(index: int, **others: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for device functions that are others where argument ``index`` is a tuple of a class.

    ``others`` are functions by the names of the classes. Which one it is, is known when a kernel is compiled.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def function(*arguments: Any) -> Any:
            return others.get(type(arguments[index]).__name__, plain)(*arguments)

        def chosen(*kinds: Any) -> Callable[..., Any]:
            kind = kinds[index]
            named = isinstance(kind, cuda.types.BaseNamedTuple)
            return others.get(kind.instance_class.__name__, plain) if named else plain

        if not SIMULATED:
            extending.overload(function, strict=False)(chosen)
        return function

    return decorate
