"""Memory that stays between launches: the counters and partial sums of their blocks, and scratch memory.

Every stream has counters and samples of its own, since launches on one stream follow each other. The counters
are zero between launches. What one launch of a call leaves for the next lies in scratch memory, of which
every thread has its own, because two threads may make their calls on one stream in turn.

All of it is cut off from a slab of the device, without a call to the driver, so that a stream that is new can
be captured in a CUDA graph at once. Nothing is ever given back: the memory of an array that dies when a call
returns would be given to others, while the graph goes on writing there. A stream that has the handle of one
that has ended finds the memory of that one, which must have no work left.
"""

import math
import threading
from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cuda import gpu
from numbabn.backends.cuda.arguments import Workspace
from numbabn.backends.cuda.launcher import Streamed
from numbabn.backends.cuda.merging import SAMPLE_BYTES
from numbabn.backends.cuda.plan import Geometry, SampleGeometry
from numbabn.backends.cuda.synchronization import ARRIVALS
from numbabn.backends.strides import dense_strides

_FLOAT64 = np.dtype(np.float64)

_PER_THREAD = 2  # handle of the default stream that every thread has for itself, cudaStreamPerThread
_COUNTER_BYTES = 4
_ALIGNMENT = 256  # bytes: pieces of different streams share no line of a cache
SLAB_BYTES = 2**25  # 32 MiB: what 20 streams need for batches of 128 images, see `_Slab`


class _Piece(NamedTuple):
    """A piece of a slab."""

    nbytes: int
    address: int


class _Slab:
    """Memory of a device, filled with zeros, of which pieces are cut off until it is used up.

    A piece that has become too small is left where it is, since a captured graph, or a thread about to
    launch, may have its address. Pieces double, so that all that were left are no larger than the last one.
    """

    def __init__(self, memory: Any, nbytes: int) -> None:
        self._memory, self._nbytes, self._used = memory, nbytes, 0

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._nbytes - self._used

    def cut(self, nbytes: int) -> _Piece | None:
        """Return a piece, or None if there is no room for it."""
        if nbytes > self.room:
            return None
        begin = self._used
        self._used = min(begin + nbytes + -nbytes % _ALIGNMENT, self._nbytes)
        return _Piece(nbytes, self._memory.address + begin)


# Device, stream, thread where the piece is one thread's, and what it is for.
_pieces: dict[tuple[int, int, int, str], _Piece] = {}
_slabs: dict[int, list[_Slab]] = {}  # of every device
_lock = threading.Lock()


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


def scratch(array: Streamed, purpose: str, shape: tuple[int, ...], dtype: Any = _FLOAT64) -> Scratch:
    """Return memory without values on the current stream of the library of ``array``.

    The next call for this purpose, by this thread and on this stream, returns the same memory. So does that
    of a thread which has the number of one that has ended.
    """
    device, stream, thread = array.device, array.stream, threading.get_ident()
    address = _piece(array, (device, stream, thread, purpose), math.prod(shape) * dtype.itemsize)
    return Scratch(address, shape, dtype, device, stream)


def workspace(array: Streamed, geometry: Geometry | SampleGeometry) -> Workspace:
    """Return the workspace of a launch for ``array`` on the current stream of its library."""
    if geometry.parts == 1:
        return Workspace(0, 0)
    of_stream = (array.device, *owner(array))
    counters = _COUNTER_BYTES * (ARRIVALS + 2 * geometry.groups)
    samples = SAMPLE_BYTES * geometry.groups * geometry.parts * geometry.span
    return Workspace(
        _piece(array, (*of_stream, "counters"), counters), _piece(array, (*of_stream, "samples"), samples)
    )


def owner(array: Streamed) -> tuple[int, int]:
    """Return the current stream of the library of ``array``, and the thread where it is one of its own."""
    stream = array.stream
    return stream, threading.get_ident() if stream == _PER_THREAD else 0


def _piece(array: Streamed, key: tuple[int, int, int, str], nbytes: int) -> int:
    """Return the address of memory for so many bytes; what has been too small is doubled."""
    found = _pieces.get(key)  # without the lock, which would take half of the time
    if found is None or nbytes > found.nbytes:
        with _lock:
            found = _pieces.get(key)
            if found is None or nbytes > found.nbytes:
                found = _pieces[key] = _cut(array, max(nbytes, 2 * found.nbytes if found else 0))
    return found.address


def _cut(array: Streamed, nbytes: int) -> _Piece:
    """Return a new piece, and leave room for as many as any stream has, except during a capture.

    So what was called on one stream can be captured on another.
    """
    slabs = _slabs.setdefault(array.device, [])
    captured = gpu.stream_state(array).captured
    piece = next(filter(None, (slab.cut(nbytes) for slab in slabs)), None)
    if captured and piece is None:
        raise RuntimeError(
            f"a call that is captured in a CUDA graph needs {nbytes} bytes on cuda:{array.device}, which "
            "cannot be allocated during the capture: make the same call once before, on that stream"
        )
    if piece is None:
        slabs.append(_slab(array.device, nbytes))
        piece = slabs[-1].cut(nbytes)
    assert piece is not None
    again = _most_of_a_stream(array.device) + nbytes + _ALIGNMENT
    if not captured and max(slab.room for slab in slabs) < again:
        slabs.append(_slab(array.device, again))
    return piece


def _most_of_a_stream(device: int) -> int:
    """Return how many bytes of pieces the stream has that has most."""
    found: dict[int, int] = {}
    for (number, stream, *_), piece in _pieces.items():
        if number == device:
            found[stream] = found.get(stream, 0) + piece.nbytes + _ALIGNMENT
    return max(found.values(), default=0)


def _slab(device: int, nbytes: int) -> _Slab:
    """Return a slab with room for so many bytes, and some more."""
    size = max(SLAB_BYTES, nbytes)
    return _Slab(gpu.device_zeros(device, size), size)
