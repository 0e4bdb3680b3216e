"""`memory` for the CUDA simulator: the same functions in Python, on addresses of host memory."""

import ctypes
import threading

import numpy as np
from numba import cuda

from numbabn._cuda import plan

_CTYPES = {np.float32: ctypes.c_float, np.float64: ctypes.c_double, np.int32: ctypes.c_int32}
_lock = threading.Lock()
_thread = threading.local()


def load(base, index, like):
    """Return element ``index`` of the memory at ``base``."""
    kind = type(like)
    return kind(_CTYPES[kind].from_address(int(base + index * like.itemsize)).value)


def load4(base, index, like):
    """Four elements from there on; the address must be 16-byte aligned, as on a GPU."""
    if (base + index * like.itemsize) % 16:
        raise ValueError("misaligned address")
    return tuple(load(base, index + k, like) for k in range(4))


def store(base, index, value):
    """Write one element of the value's dtype."""
    _CTYPES[type(value)].from_address(int(base + index * value.itemsize)).value = value


def store4(base, index, a, b, c, d):
    """Write four elements."""
    if (base + index * a.itemsize) % 16:
        raise ValueError("misaligned address")
    for k, value in enumerate((a, b, c, d)):
        store(base, index + k, value)


@cuda.jit(device=True)  # so that the simulator gives it the cuda module of the running kernel
def allocate_shared():
    """Return the block's shared memory."""
    return cuda.shared.array(plan.SHARED_BYTES + 16, np.uint8)


def shared_base():
    """Address of the block's shared memory, aligned as on a GPU."""
    if not hasattr(_thread, "base"):
        address = allocate_shared().ctypes.data
        _thread.base = address + -address % 16
    return _thread.base


def shared_load(offset, index, like):
    """Return element ``index`` of the shared memory at ``offset``."""
    return load(shared_base() + offset, index, like)


def shared_load4(offset, index, like):
    """Four elements from there on."""
    return load4(shared_base() + offset, index, like)


def shared_store(offset, index, value):
    """Write one element to shared memory."""
    store(shared_base() + offset, index, value)


peek = load


def copy_async(shared, index, base, position, like):
    """Copy one element to shared memory."""
    shared_store(shared, index, load(base, position, like))


def copy_async4(shared, index, base, position, like):
    """Copy four elements to shared memory."""
    store4(shared_base() + shared, index, *load4(base, position, like))


def copy_wait():
    """Wait for this thread's asynchronous copies: they are not, here."""


def atomic_add(base, index, value):
    """Add to an int32 and return what was there."""
    with _lock:
        old = load(base, index, np.int32(0))
        store(base, index, np.int32(old + value))
    return old


def convert(value, like):
    """Return the number in like's dtype."""
    with np.errstate(all="ignore"):
        return type(like)(value)


def load_float16(base, index):
    """Read a float16 as float32."""
    return np.float32(np.uint16(ctypes.c_uint16.from_address(int(base + 2 * index)).value).view(np.float16))


def load_bfloat16(base, index):
    """Read a bfloat16 as float32."""
    return np.uint32(ctypes.c_uint16.from_address(int(base + 2 * index)).value << 16).view(np.float32)


def store_float16(base, index, value):
    """Write a float32 as float16."""
    with np.errstate(over="ignore"):
        bits = value.astype(np.float16).view(np.uint16)
    ctypes.c_uint16.from_address(int(base + 2 * index)).value = int(bits)


def store_bfloat16(base, index, value):
    """Write a float32 as bfloat16, rounded to nearest even."""
    word = int(value.view(np.uint32))
    bits = 0x7FFF if np.isnan(value) else (word + 0x7FFF + (word >> 16 & 1)) >> 16
    ctypes.c_uint16.from_address(int(base + 2 * index)).value = bits
