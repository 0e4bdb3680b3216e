"""The functions of `memory` for the CUDA simulator: in Python, and with addresses of host memory.

All of them call the methods of ``machine``, of which there are few. The `Machine` here is for the launches of
`simulated`, which runs one block after the other. The tests replace it by one that runs all blocks at the
same time and checks every access.
"""

import ctypes
import threading
from typing import Any

import numpy as np

from numbabn.backends.cuda import plan


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
        return kind(self._types[kind].from_address(int(base + index * kind().itemsize)).value)

    def store(self, base, index, value):
        """Write device memory."""
        self._types[type(value)].from_address(int(base + index * value.itemsize)).value = value.item()

    peek = load

    def atomic_add(self, base, index, value):
        """Add to an int32, and return its value before."""
        with self._lock:
            old = self.load(base, index, np.int32)
            self.store(base, index, np.int32(old + value))
        return old

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


def _aligned(base, index, like):
    if (base + index * like.itemsize) % plan.ALIGNMENT:
        raise ValueError(f"misaligned address: element {index} of {int(base):#x}")


def load(base, index, like):
    """Return element ``index`` of the memory at ``base``."""
    return machine.load(base, index, type(like))


def load4(base, index, like):
    """Return four elements from ``index`` on; their address must be 16-byte aligned, as on a GPU."""
    _aligned(base, index, like)
    kind = type(like)
    return tuple([machine.load(base, index + k, kind) for k in range(4)])


def store(base, index, value):
    """Write one element of the value's dtype."""
    machine.store(base, index, value)


def store4(base, index, a, b, c, d):
    """Write four elements from ``index`` on; their address must be 16-byte aligned."""
    _aligned(base, index, a)
    for k, value in enumerate((a, b, c, d)):
        machine.store(base, index + k, value)


def peek(base, index, like):
    """Return an element that another block may have written."""
    return machine.peek(base, index, type(like))


def atomic_add(base, index, value):
    """Add to an int32, and return its value before."""
    return machine.atomic_add(base, index, value)


def shared_load(offset, index, like):
    """Return element ``index`` of the shared memory at ``offset``."""
    return machine.shared_load(offset, index, type(like))


def shared_load4(offset, index, like):
    """Return four elements from ``index`` on; their offset must be 16-byte aligned."""
    _aligned(offset, index, like)
    kind = type(like)
    return tuple([machine.shared_load(offset, index + k, kind) for k in range(4)])


def shared_store(offset, index, value):
    """Write one element to shared memory."""
    machine.shared_store(offset, index, value)


def shared_store4(offset, index, a, b, c, d):
    """Write four elements to shared memory from ``index`` on; their offset must be 16-byte aligned."""
    _aligned(offset, index, a)
    for k, value in enumerate((a, b, c, d)):
        machine.shared_store(offset, index + k, value)


def copy_async(shared, index, base, position, like):
    """Begin to copy one element to shared memory."""
    machine.copy(shared, index, base, position, type(like))


def copy_async4(shared, index, base, position, like):
    """Begin to copy four elements to shared memory."""
    _aligned(shared, index, like)
    _aligned(base, position, like)
    for k in range(4):
        machine.copy(shared, index + k, base, position + k, type(like))


def copy_wait():
    """Wait until the copies that this thread has begun are complete."""
    machine.copy_wait()


def convert(value, like):
    """Return a number in like's dtype."""
    with np.errstate(all="ignore"):
        return type(like)(value)


def samples_of(geometry):
    """Return (batch, sample_groups, members) of a geometry, or 1, 0, 1 where it has none."""
    return tuple(
        [getattr(geometry, *named) for named in (("batch", 1), ("sample_groups", 0), ("members", 1))]
    )


def load_float16(base, index):
    """Read a float16 as float32."""
    return np.float32(machine.load(base, index, np.uint16).view(np.float16))


def load_bfloat16(base, index):
    """Read a bfloat16 as float32."""
    return np.uint32(int(machine.load(base, index, np.uint16)) << 16).view(np.float32)


def store_float16(base, index, value):
    """Write a float32 as float16."""
    with np.errstate(over="ignore"):
        machine.store(base, index, value.astype(np.float16).view(np.uint16))


def store_bfloat16(base, index, value):
    """Write a float32 as bfloat16, rounded to nearest even."""
    word = int(value.view(np.uint32))
    bits = 0x7FFF if np.isnan(value) else (word + 0x7FFF + (word >> 16 & 1)) >> 16
    machine.store(base, index, np.uint16(bits))
