"""Memory for large results: blocks are kept when their array dies, and used again.

The C library gives blocks over 32 MiB back to the system at once, and touching 100 MB of new pages takes
as long as normalising them or longer: forward of 32x64x112x112 float32 takes 2.8 ms with ``out=``, 3.7 with
kept memory, 5.9 to 9.6 with new pages. A kept block is marked free for the system to take (MADV_FREE), so
that it costs nothing where memory is short; where it is not, the next result finds its pages in place.

Smaller arrays come from ``numpy.empty``: the C library keeps their memory itself.
"""

import contextlib
import mmap
import weakref

import numpy as np

from numbabn.backends.verbs import Array

SMALLEST_BLOCK = 32 << 20  # glibc's largest threshold for memory of its own, DEFAULT_MMAP_THRESHOLD_MAX
MOST_KEPT = 1 << 30  # bytes in all
_PAGE = 2 << 20  # a huge page
_SUPPORTED = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

_kept: dict[int, list[mmap.mmap]] = {}


def empty_like(array: Array) -> Array:
    """Return an uninitialised array like this one, which is dense; in kept memory if a block has its size."""
    if array.nbytes <= SMALLEST_BLOCK or not _SUPPORTED:
        return np.empty_like(array)
    size = -(-array.nbytes // _PAGE) * _PAGE
    block = _take(size)
    memory = np.frombuffer(block, np.uint8)
    # Every view of the result refers to this array, so it dies with the last of them.
    weakref.finalize(memory, _keep, size, block).atexit = False
    return np.ndarray(array.shape, array.dtype, memory, strides=array.strides)


def _take(size: int) -> mmap.mmap:
    try:
        return _kept.get(size, []).pop()
    except IndexError:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # of a system without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
        return block


def _keep(size: int, block: mmap.mmap) -> None:
    """Keep a block for the next result, or the system, to take; else it is unmapped with this reference."""
    if size + sum(kept * len(blocks) for kept, blocks in list(_kept.items())) > MOST_KEPT:
        return
    with contextlib.suppress(OSError):  # of a system that would not take it
        block.madvise(mmap.MADV_FREE)
        _kept.setdefault(size, []).append(block)
