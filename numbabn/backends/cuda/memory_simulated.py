"""The functions of `memory` and `messages` for the CUDA simulator: in Python, with addresses of host memory.

All of them call the methods of ``machine``, of which there are few. The `Machine` here is for the launches of
`simulated`, which runs one block after the other. The tests replace it by one that runs all blocks at the
same time and checks every access.
"""

import ctypes
import threading
from typing import Any

import numpy as np

from numbabn.backends.cuda import plan

HALVES = np.uint16, np.int16  # what stands for float16 and bfloat16 in the place of ``like``, see `memory`


class Machine:
    """Memory without any checks, and one shared memory, since one block runs at a time.

    ``kind`` is the type of a NumPy scalar, ``index`` counts elements.
    """

    _types = {  # noqa: RUF012 - it is never written to
        np.float32: ctypes.c_float,
        np.float64: ctypes.c_double,
        np.int32: ctypes.c_int32,
        np.uint8: ctypes.c_uint8,
        np.uint16: ctypes.c_uint16,
    }

    def __init__(self):
        self._lock = threading.Lock()
        self._shared = np.empty(plan.SHARED_BYTES + plan.ALIGNMENT, np.uint8)
        address = self._shared.ctypes.data
        self._base = address + -address % plan.ALIGNMENT

    def load(self, base, index, kind):
        """Read device memory."""
        return kind(self._types[kind].from_address(int(base) + int(index) * kind().itemsize).value)

    def store(self, base, index, value):
        """Write device memory."""
        self._types[type(value)].from_address(int(base) + int(index) * value.itemsize).value = value.item()

    peek = load_acquire = load

    def atomic_add(self, base, index, value):
        """Add to an int32, and return its value before."""
        with self._lock:
            old = self.load(base, index, np.int32)
            self.store(base, index, np.int32(old + value))
        return old

    atomic_add_acq_rel = atomic_add_release = atomic_add

    def shared_load(self, offset, index, kind):
        """Read the block's shared memory."""
        return self.load(self._base + offset, index, kind)

    def shared_store(self, offset, index, value):
        """Write the block's shared memory."""
        self.store(self._base + offset, index, value)

    def copy(self, offset, index, base, position, kind):
        """Begin to copy one element of device memory to shared memory."""
        self.shared_store(offset, index, self.load(base, position, kind))

    def copy_wait(self):
        """Wait until the copies that this thread has begun are complete: they are, at once."""


machine: Any = Machine()


def _aligned(base, index, like, lanes):
    if (int(base) + int(index) * like.itemsize) % min(int(lanes) * like.itemsize, plan.ALIGNMENT):
        raise ValueError(f"misaligned address: element {index} of {int(base):#x}")


def _number(like):
    """Return the type that kernels compute in for elements of like's dtype."""
    return np.float32 if type(like) in HALVES else type(like)


def _widened(value, like):
    """Return an element of an array or a tile as a number; of a half type it is given by its bits."""
    if type(like) not in HALVES:
        return value
    if type(like) is np.int16:
        return np.uint32(int(value) << 16).view(np.float32)
    return np.float32(value.view(np.float16))


def _narrowed(value, like):
    """Return a number as an element, rounded to nearest even."""
    if type(like) not in HALVES:
        return value
    if type(like) is np.int16:
        word = int(value.view(np.uint32))
        return np.uint16(0x7FFF if np.isnan(value) else (word + 0x7FFF + (word >> 16 & 1)) >> 16)
    with np.errstate(all="ignore"):
        return value.astype(np.float16).view(np.uint16)


def _stored(like):
    """Return the type of an array's elements as they are stored: the bits of half types."""
    return np.uint16 if type(like) in HALVES else type(like)


def load(base, index, like):
    """Return number ``index`` of the memory at ``base``."""
    return machine.load(base, index, _number(like))


def load4(base, index, like):
    """Return four numbers from ``index`` on; their address must be 16-byte aligned, as on a GPU."""
    kind = _number(like)
    _aligned(base, index, kind(), 4)
    return tuple([machine.load(base, index + k, kind) for k in range(4)])


def array_load(base, index, like):
    """Return element ``index`` of the array at ``base``, as a number."""
    return _widened(machine.load(base, index, _stored(like)), like)


def array_load4(base, index, like):
    """Return four elements from ``index`` on, as numbers; their address must be aligned."""
    _aligned(base, index, like, 4)
    return tuple([array_load(base, index + k, like) for k in range(4)])


def store(base, index, value):
    """Write one element of the value's dtype."""
    machine.store(base, index, value)


def array_store(base, index, value, like):
    """Write a number as one element of like's dtype."""
    machine.store(base, index, _narrowed(value, like))


def array_store4(base, index, a, b, c, d, like):
    """Write four numbers as elements from ``index`` on; their address must be aligned."""
    _aligned(base, index, like, 4)
    for k, value in enumerate((a, b, c, d)):
        array_store(base, index + k, value, like)


def peek(base, index, like):
    """Return an element that another block may have written."""
    return machine.peek(base, index, type(like))


def atomic_add(base, index, value):
    """Add to an int32, and return its value before."""
    return machine.atomic_add(base, index, value)


def atomic_add_acq_rel(base, index, value):
    """Like `atomic_add`, and acquire what others have released, and release what was written before."""
    return machine.atomic_add_acq_rel(base, index, value)


def atomic_add_release(base, index, value):
    """Add to an int32, and release what was written before."""
    machine.atomic_add_release(base, index, value)


def load_acquire(base, index, like):
    """Return an element that another block may have written, and acquire what it has released."""
    return machine.load_acquire(base, index, type(like))


def cluster_store(index, value):
    """Write a float64 where the other blocks of the cluster can read it."""
    machine.cluster_store(int(index), value)


def cluster_load(rank, index):
    """Return a float64 that the block of a number within the cluster has written."""
    return machine.cluster_load(int(rank), int(index))


def cluster_arrive():
    """Arrive at the barrier of the cluster, and release what was written before."""
    machine.cluster_arrive()


def cluster_wait():
    """Wait until all threads of the cluster have arrived, and acquire what they have written."""
    machine.cluster_wait()


def shared_load(offset, index, like):
    """Return number ``index`` of the shared memory at ``offset``."""
    return machine.shared_load(offset, index, _number(like))


def shared_load4(offset, index, like):
    """Return four numbers from ``index`` on; their offset must be 16-byte aligned."""
    kind = _number(like)
    _aligned(offset, index, kind(), 4)
    return tuple([machine.shared_load(offset, index + k, kind) for k in range(4)])


def tile_load(offset, index, like):
    """Return element ``index`` of the tile at ``offset``, as a number."""
    return _widened(machine.shared_load(offset, index, _stored(like)), like)


def tile_load4(offset, index, like):
    """Return four elements from ``index`` on, as numbers; their offset must be aligned."""
    _aligned(offset, index, like, 4)
    return tuple([tile_load(offset, index + k, like) for k in range(4)])


def shared_store(offset, index, value):
    """Write one element to shared memory."""
    machine.shared_store(offset, index, value)


def tile_store(offset, index, value, like):
    """Write a number as one element of like's dtype to the tile at ``offset``."""
    machine.shared_store(offset, index, _narrowed(value, like))


def tile_store4(offset, index, a, b, c, d, like):
    """Write four numbers as elements from ``index`` on; their offset must be aligned."""
    _aligned(offset, index, like, 4)
    for k, value in enumerate((a, b, c, d)):
        tile_store(offset, index + k, value, like)


def copy_async(shared, index, base, position, like):
    """Begin to copy one element to shared memory."""
    machine.copy(shared, index, base, position, _stored(like))


def copy_vector(shared, index, base, position, lanes, like):
    """Begin to copy as many elements to shared memory as `copy_lanes` has returned."""
    _aligned(shared, index, like, lanes)
    _aligned(base, position, like, lanes)
    for k in range(lanes):
        machine.copy(shared, index + k, base, position + k, _stored(like))


def copy_lanes(vector, like):
    """Return how many elements are copied at once where not each by itself."""
    return max(vector, plan.VECTOR) if type(like) in HALVES else plan.VECTOR


def copy_wait():
    """Wait until the copies that this thread has begun are complete."""
    machine.copy_wait()


def convert(value, like):
    """Return a number in like's dtype, or in float32 where that is float16 or bfloat16."""
    with np.errstate(all="ignore"):
        return _number(like)(value)


def samples_of(geometry):
    """Return (batch, sample_groups, members) of a geometry, or 1, 0, 1 where it has none."""
    return tuple(
        [getattr(geometry, *named) for named in (("batch", 1), ("sample_groups", 0), ("members", 1))]
    )
