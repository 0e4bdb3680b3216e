"""Everything that is numba-cuda's own but `memory` and `messages`: compiling, streams, launching.

Kernels take integers, floats and tuples of them only. An array is passed as its address, an integer: an array
object would cost more host time at a launch than all the rest, and so one kernel serves every library.

In the CUDA simulator (NUMBA_ENABLE_CUDASIM=1) the functions of `memory_simulated` take the place of the
intrinsics of `memory` and `messages`, those of `simulated` launch, and kernels are the same.
"""

import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numba import cuda as numba_cuda

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.plan import SIMULATED

if not SIMULATED and getattr(numba_cuda, "implementation", None) != "NVIDIA":
    raise ImportError('device arrays need numba-cuda: python -m pip install "numbabn[cuda]"')
core: Any = None if SIMULATED else import_module("cuda.core")
driver: Any = None if SIMULATED else import_module("cuda.bindings.driver")
extending: Any = None if SIMULATED else import_module("numba.cuda.extending")
caching: Any = None if SIMULATED else import_module("numbabn.backends.cuda.caching")
simulated: Any = import_module("numbabn.backends.cuda.simulated") if SIMULATED else None
memory: Any = import_module(
    "numbabn.backends.cuda.memory_simulated" if SIMULATED else "numbabn.backends.cuda.memory"
)
messages: Any = memory if SIMULATED else import_module("numbabn.backends.cuda.messages")

# The other modules import it from here. Kernels find it by this name.
cuda: Any = simulated.cuda if SIMULATED else numba_cuda

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
device: Any = simulated.device if SIMULATED else cuda.jit(device=True)


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


class _Compiled(NamedTuple):
    """A kernel for a device: what cuda.core launches, and how many blocks of it run there at once."""

    kernel: Any
    resident: int


def with_fewest_registers(compiled: Callable[[int | None], Any]) -> Any:
    """Return a kernel as compiled with the limit of registers that lets most blocks run, but without spills.

    ``compiled`` compiles it with a limit, or with None; `plan.REGISTER_LIMITS` are tried where it needs more.
    Given a limit, ptxas uses up all registers below it, and may spill in kernels that need fewer without one:
    `kernels.backward` takes 56 registers for sm_100 without a limit, and spills with one of 64.
    """
    plain = compiled(None)
    for limit in plan.REGISTER_LIMITS:
        if plain.regs_per_thread <= limit:
            break
        limited = compiled(limit)
        if limited.local_mem_per_thread == 0:
            return limited
    return plain


class Kernel:
    """A kernel, compiled on its first launch for each device and each dtype among its arguments."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._dispatchers: dict[int | None, Any] = {}
        self._compiled: dict[Any, _Compiled] = {}
        self._clusters: dict[Any, bool] = {}

    def dispatcher(self, max_registers: int | None = None) -> Any:
        """Return Numba's dispatcher of the kernel with a limit of registers."""
        found = self._dispatchers.get(max_registers)
        if found is None:
            found = self._dispatchers[max_registers] = cuda.jit(self.function, max_registers=max_registers)
            found._cache = caching.cache_of(self.function, max_registers)
        return found

    def launch(self, array: Any, blocks: int, *arguments: Any, cluster: int = 1) -> None:
        """Run ``blocks`` blocks on the device of ``array`` and on the current stream of its library.

        The launch is cuda.core's: that of Numba takes 30 us for thirty numbers, of each of which it makes an
        object of ctypes. Every ``cluster`` blocks are a cluster.
        """
        if SIMULATED:
            simulated.launch(self.function, blocks, arguments, cluster)
            return
        device, kernel = array.device, self._compile(array.device, arguments).kernel
        with _current(device):
            core.launch(_stream(device, array.stream), _config(blocks, cluster), kernel, *_flat(arguments))

    def runs_clusters(self, array: Any, cluster: int, *arguments: Any) -> bool:
        """Return whether clusters of so many blocks can run on the current stream of the array's library.

        On a part of a device, as a stream of a green context has it, there may be no room for them.
        """
        if SIMULATED:
            return cluster <= plan.CLUSTER_SIMULATED
        device = array.device
        if cluster > plan.CLUSTER or _capability(device) < plan.CLUSTER_CAPABILITY:
            return False
        kernel, state = self._compile(device, arguments).kernel, stream_state(array)
        key = device, _key(arguments), cluster
        known = None if state.partial else self._clusters.get(key)
        if known is None:
            with _current(device):
                stream, config = _stream(device, array.stream), _config(cluster, cluster)
                known = kernel.occupancy.max_active_clusters(config, stream=stream) > 0
            if not state.partial:
                self._clusters[key] = known
        return known

    def resident(self, array: Any, *arguments: Any) -> int:
        """Return how many blocks run at once on the device of ``array``."""
        return plan.RESIDENT_SIMULATED if SIMULATED else self._compile(array.device, arguments).resident

    def _compile(self, number: int, arguments: tuple[Any, ...]) -> _Compiled:
        key = number, _key(arguments)
        compiled = self._compiled.get(key)
        if compiled is None:
            capability = _capability(number)
            if capability < plan.CAPABILITY:
                raise RuntimeError(
                    f"cuda:{number} has compute capability {capability[0]}.{capability[1]}; "
                    "numbabn needs 8.0 (Ampere, 2020) or newer"
                )
            types = signature(arguments)
            with cuda.gpus[number]:
                made = with_fewest_registers(lambda limit: self.dispatcher(limit).compile(types))
                compiled = self._compiled[key] = _Compiled(
                    made._codelibrary.get_cufunc().kernel, int(made.max_cooperative_grid_blocks(plan.THREADS))
                )
        return compiled


def _key(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what of a kernel's arguments its machine code depends on, in less time than their types take.

    The types within a tuple are the same at every launch of a kernel for a dtype, that of the argument
    ``like``; only its length may differ.
    """
    return tuple([len(a) if isinstance(a, tuple) else type(a) for a in arguments])


def _flat(arguments: tuple[Any, ...]) -> list[Any]:
    """Return the numbers of all arguments: what a kernel takes for a tuple are its elements, in order."""
    flat: list[Any] = []
    for a in arguments:
        if isinstance(a, tuple):
            flat += a
        else:
            flat.append(a)
    return flat


# Numba's own simulator has no ``cuda.types``.
_TYPES = (
    {}
    if SIMULATED
    else {
        int: cuda.types.int64,
        float: cuda.types.float64,
        np.float32: cuda.types.float32,
        np.float64: cuda.types.float64,
        np.uint16: cuda.types.uint16,
        np.int16: cuda.types.int16,
    }
)


def signature(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return Numba's types of a kernel's arguments."""
    return tuple(_tuple_type(a) if isinstance(a, tuple) else _TYPES[type(a)] for a in arguments)


def _tuple_type(value: tuple[Any, ...]) -> Any:
    named = type(value) if hasattr(value, "_fields") else None
    return cuda.types.BaseTuple.from_types(signature(value), named)


@functools.cache
def _capability(number: int) -> tuple[int, int]:
    major, minor = cuda.gpus[number].compute_capability
    return int(major), int(minor)


@functools.lru_cache(256)
def _config(blocks: int, cluster: int = 1) -> Any:
    """Return cuda.core's object for a grid of blocks, which it counts in clusters where there are any."""
    if cluster == 1:
        return core.LaunchConfig(grid=blocks, block=plan.THREADS)
    return core.LaunchConfig(grid=blocks // cluster, cluster=cluster, block=plan.THREADS)


@functools.lru_cache(64)
def _stream(number: int, handle: int) -> Any:
    """Return cuda.core's object for a stream of another library on a device, which takes 4 us to make.

    Of any other object, such as Numba's stream, cuda.core warns at every launch.
    """
    return core.Stream.from_handle(handle)


@functools.cache
def _context(number: int) -> int:
    """Return the handle of the context that all libraries share on a device."""
    return int(cuda.gpus[number].get_primary_context().handle)


def _current(number: int) -> Any:
    """Return what makes a device the current one: nothing where it is, since pushing a context takes time."""
    context = _context(number)
    _, current = driver.cuCtxGetCurrent()
    return nullcontext() if int(current) == context else cuda.gpus[number]


def follow(array: Any, other: Any) -> None:
    """Let what is launched for ``array`` from now on wait for what was launched for ``other``.

    The two are of different libraries on one device, each with a current stream of its own. The host does not
    wait. Where the streams are the same nothing is to be done.
    """
    mine, others = array.stream, other.stream
    if mine != others and not SIMULATED:
        with _current(array.device):
            _stream(array.device, mine).wait(_stream(other.device, others))


class StreamState(NamedTuple):
    """Whether a stream is captured in a CUDA graph now, and whether it has a part of its device only."""

    captured: bool
    partial: bool


def stream_state(array: Any) -> StreamState:
    """Return the state of the current stream of the library of ``array``; what is unknown is taken as true.

    It is asked each time: a handle may be that of another stream by now.
    """
    if SIMULATED:
        return StreamState(False, False)
    with _current(array.device):
        error, status = driver.cuStreamIsCapturing(array.stream)
        captured = error != driver.CUresult.CUDA_SUCCESS or int(status) != 0
        try:
            error, context = driver.cuStreamGetGreenCtx(array.stream)
        except RuntimeError:  # a driver that is older than the function
            return StreamState(captured, True)
    return StreamState(captured, error != driver.CUresult.CUDA_SUCCESS or int(context) != 0)


class Memory:
    """Memory on a device, which is freed with this object."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.address: int = array.ctypes.data if SIMULATED else array.__cuda_array_interface__["data"][0]


class HostWords:
    """Numbers of type int32 in the host's memory, zero at first, which kernels of a device can write."""

    def __init__(self, array: Any) -> None:
        array[:] = 0
        self.values: Any = array.view(np.ndarray)
        self._memory = Memory(array)
        self.address = self._memory.address


def host_words(number: int, count: int) -> HostWords:
    """Return so many numbers for a device."""
    if SIMULATED:
        return HostWords(np.empty(count, np.int32))
    with cuda.gpus[number]:
        return HostWords(cuda.mapped_array(count, np.int32))


def device_zeros(number: int, nbytes: int) -> Memory:
    """Wait for the device, and return memory filled with zeros there, which every stream can use at once."""
    zeros = np.zeros(nbytes, np.uint8)
    if SIMULATED:
        return Memory(zeros)
    with cuda.gpus[number]:
        memory = cuda.to_device(zeros)
        cuda.synchronize()
    return Memory(memory)
