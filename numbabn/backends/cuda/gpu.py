"""Everything that is numba-cuda's own besides `memory`: the module itself, compiling, streams, launching.

Kernels take integers, floats and tuples of integers only. A pointer is an integer: an array object costs more
host time at a launch than all the rest, and one kernel serves the arrays of every library.

In the CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the functions of `memory_simulated` take the place of the
intrinsics of `memory`; a kernel cannot tell.
"""

import functools
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numba import cuda as cuda  # for the other modules, too

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.plan import SIMULATED

if not SIMULATED and getattr(cuda, "implementation", None) != "NVIDIA":
    raise ImportError('device arrays need numba-cuda: python -m pip install "numbabn[cuda]"')
core: Any = None if SIMULATED else import_module("cuda.core")
memory: Any = import_module(
    "numbabn.backends.cuda.memory_simulated" if SIMULATED else "numbabn.backends.cuda.memory"
)

atomic_add, convert, peek = memory.atomic_add, memory.convert, memory.peek
copy_async, copy_async4, copy_wait = memory.copy_async, memory.copy_async4, memory.copy_wait
load, load4, store, store4 = memory.load, memory.load4, memory.store, memory.store4
shared_load, shared_load4, shared_store = memory.shared_load, memory.shared_load4, memory.shared_store
load_float16, store_float16 = memory.load_float16, memory.store_float16
load_bfloat16, store_bfloat16 = memory.load_bfloat16, memory.store_bfloat16
sqrt = np.sqrt if SIMULATED else math.sqrt  # the latter raises in Python, the former is unknown to numba-cuda

# contract is the default of ptxas; nothing else may be changed: NaN and infinity are data.
device = cuda.jit(device=True)


@device
def thread_number():
    """Return the number of this thread among those of all blocks."""
    return np.int64(cuda.blockIdx.x) * np.int64(cuda.blockDim.x) + np.int64(cuda.threadIdx.x)


@device
def any_thread(condition):
    """Whether the condition holds for any thread of the block; all must ask, and none goes on before."""
    return cuda.syncthreads_or(np.int32(1 if condition else 0)) != 0


@device
def load_parameter(parameter, index, default):
    """Return a value of a parameter in float64; ``parameter`` is (pointer, kind), see `plan`."""
    pointer, kind = parameter
    value = np.float64(default)
    if kind == plan.FLOAT32:
        value = np.float64(load(pointer, index, np.float32(0)))
    elif kind == plan.FLOAT64:
        value = load(pointer, index, np.float64(0))
    elif kind == plan.FLOAT16:
        value = np.float64(load_float16(pointer, index))
    elif kind == plan.BFLOAT16:
        value = np.float64(load_bfloat16(pointer, index))
    return value


@device
def store_parameter(parameter, index, value):
    """Write a float64 to an array of any kind, or nowhere if that is NONE."""
    pointer, kind = parameter
    if kind == plan.FLOAT32:
        store(pointer, index, np.float32(value))
    elif kind == plan.FLOAT64:
        store(pointer, index, np.float64(value))
    elif kind == plan.FLOAT16:
        store_float16(pointer, index, np.float32(value))
    elif kind == plan.BFLOAT16:
        store_bfloat16(pointer, index, np.float32(value))


class Kernel:
    """A kernel, compiled on its first launch for each device and each dtype among its arguments.

    A limit on registers helps only where ptxas takes too many of its own accord: given one, it uses up all
    of it, and spills in kernels that need less.
    """

    def __init__(self, function: Callable[..., None], max_registers: int | None = None) -> None:
        self.dispatcher = cuda.jit(function, **({} if SIMULATED else {"max_registers": max_registers}))
        self._compiled: dict[Any, Any] = {}
        self._resident: dict[Any, int] = {}

    def launch(self, array: Any, blocks: int, *arguments: Any) -> None:
        """Run ``blocks`` blocks on the device of ``array`` and on the current stream of its library.

        Numba's own way from here takes 30 us for thirty numbers, which it makes objects of ctypes; cuda.core
        takes them as they are.
        """
        if SIMULATED:
            self.dispatcher[blocks, plan.THREADS](*arguments)
            return
        with cuda.gpus[array.device]:
            function = self._compile(array.device, arguments)._codelibrary.get_cufunc().kernel
            core.launch(_stream(array.stream), _config(blocks), function, *_flat(arguments))

    def resident(self, array: Any, *arguments: Any) -> int:
        """Return how many blocks run at once on the device of ``array``."""
        if SIMULATED:
            return plan.RESIDENT_SIMULATED
        key = array.device, _key(arguments)
        blocks = self._resident.get(key)
        if blocks is None:
            with cuda.gpus[array.device]:
                compiled = self._compile(array.device, arguments)
                blocks = self._resident[key] = int(compiled.max_cooperative_grid_blocks(plan.THREADS))
        return blocks

    def _compile(self, number: int, arguments: tuple[Any, ...]) -> Any:
        key = number, _key(arguments)
        compiled = self._compiled.get(key)
        if compiled is None:
            capability = cuda.gpus[number].compute_capability
            if tuple(capability) < plan.CAPABILITY:
                raise RuntimeError(
                    f"cuda:{number} has compute capability {capability[0]}.{capability[1]}; "
                    "numbabn needs 8.0 (Ampere, 2020) or newer"
                )
            compiled = self._compiled[key] = self.dispatcher.compile(signature(arguments))
        return compiled


def _key(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What of the arguments the machine code depends on; faster than their types."""
    return tuple([len(a) if isinstance(a, tuple) else type(a) for a in arguments])


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    """Numbers of all arguments: what a kernel takes for a tuple are its elements."""
    flat: list[Any] = []
    for a in arguments:
        if isinstance(a, tuple):
            flat += a
        else:
            flat.append(a)
    return flat


# The simulator of Numba itself, which will do for tests, has no ``cuda.types``.
_TYPES = (
    {}
    if SIMULATED
    else {
        int: cuda.types.int64,
        float: cuda.types.float64,
        np.float32: cuda.types.float32,
        np.float64: cuda.types.float64,
    }
)


def signature(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Types of a kernel's arguments."""
    return tuple(_tuple_type(a) if isinstance(a, tuple) else _TYPES[type(a)] for a in arguments)


def _tuple_type(value: tuple[int, ...]) -> Any:
    if hasattr(value, "_fields"):
        return cuda.types.NamedUniTuple(cuda.types.int64, len(value), type(value))
    return cuda.types.UniTuple(cuda.types.int64, len(value))


@functools.lru_cache(256)
def _config(blocks: int) -> Any:
    return core.LaunchConfig(grid=blocks, block=plan.THREADS)


@functools.lru_cache(64)
def _stream(handle: int) -> Any:
    """Numba's name for a stream of another library."""
    return cuda.external_stream(handle)


class Memory:
    """Memory on a device, for as long as this object lives."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.address: int = array.ctypes.data if SIMULATED else array.__cuda_array_interface__["data"][0]


def device_zeros(number: int, nbytes: int) -> Memory:
    """Return zeroed memory on a device, ready for every stream. Waits for the device."""
    zeros = np.zeros(nbytes, np.uint8)
    if SIMULATED:
        return Memory(zeros)
    with cuda.gpus[number]:
        memory = cuda.to_device(zeros)
        cuda.synchronize()
    return Memory(memory)
