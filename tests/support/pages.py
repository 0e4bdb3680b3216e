"""Arrays that end, or begin, at a page which must not be touched: what reads or writes beyond it crashes."""

import ctypes
import mmap

import numpy as np


def between(problem, at_end):
    """Return memory of the shape and dtype of a problem that lies between two such pages, next to one."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = int(np.prod(problem.shape)) * np.dtype(problem.dtype).itemsize
    pages = -(-size // mmap.PAGESIZE) + 2
    memory = np.frombuffer(mmap.mmap(-1, pages * mmap.PAGESIZE), np.uint8)
    last = (pages - 1) * mmap.PAGESIZE
    for start in (0, last):
        assert protect(memory.ctypes.data + start, mmap.PAGESIZE, 0) == 0
    start = last - size if at_end else mmap.PAGESIZE
    return memory[start : start + size].view(problem.dtype).reshape(problem.shape)
