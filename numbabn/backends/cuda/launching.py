"""Launches on a GPU: kernels that are compiled when they are needed, streams, and memory that stays.

`simulated` has the same names for the CUDA simulator; `gpu` chooses between the two.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import numpy as np
from numba import cuda as numba_cuda

from numbabn.backends.cuda import caching, plan
from numbabn.backends.cuda.launcher import AnyKernel, HostWords, Memory, StreamState

cuda: Any = numba_cuda
core: Any = import_module("cuda.core")
driver: Any = import_module("cuda.bindings.driver")
# What is L1 cache or shared memory is to be shared memory: a wish, without which fewer blocks may run.
_CARVEOUT: Any = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT


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


class Kernel(AnyKernel):
    """A kernel, compiled on its first launch for each device and each dtype among its arguments."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._dispatchers: dict[int | None, Any] = {}
        self._compiled: dict[Any, Any] = {}  # what cuda.core launches
        self._clusters: dict[Any, bool] = {}
        self._called: set[Any] = set()

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
        number, kernel = array.device, self._compile(array.device, arguments)
        with _current(number):
            core.launch(_stream(number, array.stream), _config(blocks, cluster), kernel, *_flat(arguments))

    def may_wait(self, array: Any, blocks: int, *arguments: Any) -> bool:
        """Return whether groups may have so many blocks that wait for each other: see `residency`.

        Not at the first call for a device and dtype: the kernels of the two launches that are made then must
        be there when a call is captured in a CUDA graph, which makes them, too, and during which no kernel
        can be loaded.
        """
        number = array.device
        key = number, _key(arguments)
        if key not in self._called:
            self._compile(number, arguments)
            self._called.add(key)
            return False
        return blocks <= _multiprocessors(number)

    def runs_clusters(self, array: Any, state: StreamState, cluster: int, *arguments: Any) -> bool:
        """Return whether clusters of so many blocks can run on the current stream of the array's library.

        On a part of a device, as a stream of a green context has it, there may be no room for them.
        """
        number = array.device
        if cluster > plan.CLUSTER or _capability(number) < plan.CLUSTER_CAPABILITY:
            return False
        key = number, _key(arguments), cluster
        known = None if state.partial else self._clusters.get(key)
        if known is None:
            occupancy = self._compile(number, arguments).occupancy
            with _current(number):
                stream, config = _stream(number, array.stream), _config(cluster, cluster)
                try:
                    known = occupancy.max_active_clusters(config, stream=stream) > 0
                except Exception:  # cuda.core's own, where the driver refuses the size
                    known = False
            if not state.partial:
                self._clusters[key] = known
        return known

    def _compile(self, number: int, arguments: tuple[Any, ...]) -> Any:
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
                kernel = made._codelibrary.get_cufunc().kernel
                driver.cuKernelSetAttribute(_CARVEOUT, 100, kernel.handle, number)
                compiled = self._compiled[key] = kernel
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


_TYPES = {
    int: cuda.types.int64,
    float: cuda.types.float64,
    np.float32: cuda.types.float32,
    np.float64: cuda.types.float64,
    np.uint16: cuda.types.uint16,
    np.int16: cuda.types.int16,
}


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


@functools.cache
def _multiprocessors(number: int) -> int:
    return int(cuda.gpus[number].MULTIPROCESSOR_COUNT)


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


def _current(number: int) -> Any:
    """Return what makes a device the current one: nothing where one of its contexts is current.

    That may be a green context, to which the default streams belong then. Pushing one takes time, too.
    """
    error, current = driver.cuCtxGetDevice()
    found = error == driver.CUresult.CUDA_SUCCESS and int(current) == number
    return nullcontext() if found else cuda.gpus[number]


@functools.cache
def _is_shared(number: int) -> bool:
    """Return whether kernels of several processes run on a device at the same time, by the service MPS.

    A driver that does not know the question does not tell.
    """
    kind = getattr(driver.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_MPS_ENABLED", None)
    if kind is None:
        return False
    error, enabled = driver.cuDeviceGetAttribute(kind, number)
    return error == driver.CUresult.CUDA_SUCCESS and bool(enabled)


def follow(array: Any, other: Any) -> None:
    """Let what is launched for ``array`` from now on wait for what was launched for ``other``.

    The two are of different libraries on one device, each with a current stream of its own. The host does not
    wait. Where the streams are the same nothing is to be done.
    """
    mine, others = array.stream, other.stream
    if mine != others:
        with _current(array.device):
            _stream(array.device, mine).wait(_stream(other.device, others))


def stream_state(array: Any) -> StreamState:
    """Return the state of the current stream of the library of ``array``; what is unknown is taken as true.

    It is asked each time: a handle may be that of another stream by now.
    """
    with _current(array.device):
        error, status = driver.cuStreamIsCapturing(array.stream)
        captured = error != driver.CUresult.CUDA_SUCCESS or int(status) != 0
        try:
            error, context = driver.cuStreamGetGreenCtx(array.stream)
        except RuntimeError:  # a driver that is older than the function
            return StreamState(captured, True)
        green = error != driver.CUresult.CUDA_SUCCESS or int(context) != 0
        return StreamState(captured, green or _is_shared(array.device))


def host_words(number: int, count: int) -> HostWords:
    """Return so many numbers for a device."""
    with cuda.gpus[number]:
        array = cuda.mapped_array(count, np.int32)
    return HostWords(array, _address(array))


def device_zeros(number: int, nbytes: int) -> Memory:
    """Wait for the device, and return memory filled with zeros there, which every stream can use at once."""
    with cuda.gpus[number]:
        memory = cuda.to_device(np.zeros(nbytes, np.uint8))
        cuda.synchronize()
    return Memory(memory, _address(memory))


def _address(array: Any) -> int:
    address: int = array.__cuda_array_interface__["data"][0]
    return address
