"""Memory that stays between launches: the counters and partial sums of their blocks, and scratch memory.

Every stream has a workspace of its own, since launches on one stream follow each other. The counters are zero
between launches. What one launch of a call leaves for the next lies in scratch memory, of which every thread
has its own, because two threads may make their calls on one stream in turn.

All of it grows, and is never given back; a call that finds it large enough allocates nothing here and can be
captured in a CUDA graph. The memory of an array that dies when the call returns would be given to others,
while the graph goes on writing there.
"""

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cuda.arguments import Workspace
from numbabn.backends.cuda.gpu import device_zeros
from numbabn.backends.cuda.merging import SAMPLE_BYTES
from numbabn.backends.cuda.plan import Geometry, SampleGeometry
from numbabn.backends.cuda.synchronization import ARRIVALS
from numbabn.backends.strides import dense_strides
from numbabn.backends.verbs import DeviceMemory

_FLOAT64 = np.dtype(np.float64)

_PER_THREAD = 2  # handle of the default stream that every thread has for itself, cudaStreamPerThread
_COUNTER_BYTES = 4

# Device, stream, and the thread where the stream is one of its own.
_memory: dict[tuple[int, int, int], "_Memory"] = {}
# Scratch memory: device, stream, thread, and what it is for.
_scratch: dict[tuple[int, int, int, str], "_Sized"] = {}
# Memory that was too small: a captured graph, or a thread about to launch, may still have its addresses.
# Sizes double, so that all of it together is no larger than what took its place.
_outgrown: list["_Memory | _Sized"] = []
_lock = threading.Lock()


class _Memory(NamedTuple):
    """The workspace of one stream: how many counters and samples it has room for, and the memory of both."""

    counters: int
    samples: int
    counter_memory: Any
    sample_memory: Any


class _Sized(NamedTuple):
    """Memory, and its bytes."""

    nbytes: int
    memory: Any


class Scratch(NamedTuple):
    """Scratch memory as an array in C order: what kernels and launches ask of one."""

    address: int
    shape: tuple[int, ...]
    dtype: Any
    device: int
    stream: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        itemsize: int = self.dtype.itemsize
        return itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, along every axis."""
        return dense_strides(self.shape, range(len(self.shape)), self.itemsize)


def scratch(array: DeviceMemory, purpose: str, shape: tuple[int, ...], dtype: Any = _FLOAT64) -> Scratch:
    """Return memory without values on the current stream of the library of ``array``.

    The next call for this purpose, by this thread and on this stream, returns the same memory. So does that
    of a thread, or on a stream, which has the number of one that has ended, and which must have no work left.
    """
    device, stream, nbytes = array.device, array.stream, math.prod(shape) * dtype.itemsize
    key = device, stream, threading.get_ident(), purpose
    with _lock:
        found = _scratch.get(key)
        if found is None or nbytes > found.nbytes:
            if found is not None:
                _outgrown.append(found)
                nbytes = max(nbytes, 2 * found.nbytes)
            found = _scratch[key] = _Sized(nbytes, device_zeros(device, nbytes))
    return Scratch(found.memory.address, shape, dtype, device, stream)


def workspace(array: DeviceMemory, geometry: Geometry | SampleGeometry) -> Workspace:
    """Return the workspace of a launch for ``array`` on the current stream of its library."""
    if geometry.parts == 1:
        return Workspace(0, 0)
    stream = array.stream
    key = (array.device, stream, threading.get_ident() if stream == _PER_THREAD else 0)
    counters = ARRIVALS + 2 * geometry.groups
    samples = geometry.groups * geometry.parts * geometry.span
    with _lock:
        memory = _memory.get(key)
        if memory is None or counters > memory.counters or samples > memory.samples:
            memory = _memory[key] = _grown(array.device, memory, counters, samples)
    return Workspace(memory.counter_memory.address, memory.sample_memory.address)


def _grown(device: int, memory: _Memory | None, counters: int, samples: int) -> _Memory:
    """Return new memory for so many counters and samples, and for twice as many as there was room for."""
    if memory is not None:
        _outgrown.append(memory)
        counters, samples = max(counters, 2 * memory.counters), max(samples, 2 * memory.samples)
    return _Memory(
        counters,
        samples,
        device_zeros(device, _COUNTER_BYTES * counters),
        device_zeros(device, SAMPLE_BYTES * samples),
    )


def streams(device: int) -> int:
    """Return on how many streams of a device launches with a workspace may run at once."""
    with _lock:  # another thread may add its stream
        return sum(key[0] == device for key in _memory)
