"""Memory for large results: blocks are kept when their array dies, and used again.

The C library gives blocks of 32 MiB and more back to the system at once, and touching 100 MB of new pages
takes as long as normalising them, or longer: forward of 32x64x112x112 float32 takes 2.8 ms with ``out=``, 3.7
with kept memory, 5.9 to 9.6 with new pages. A kept block is marked free for the system to take (MADV_FREE),
so that it costs nothing where memory is short; where it is not, the next result finds its pages in place.

Of smaller blocks the C library keeps some 64 MB, less than the results of a few layers, which are alive
together until the backward pass: four forward and then four backward passes of 32x128x28x28 take 34 ms in its
memory and 8 in this. So blocks from 4 MiB are kept here, too, but not marked free, which takes 5 us per MB, a
tenth of a pass. Of those that are in no array, the next result gives back what is more than 256 MiB.

Smaller arrays come from ``numpy.empty``.
"""

import contextlib
import functools
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from operator import methodcaller
from typing import Any

import numpy as np

from numbabn._numbers import integer
from numbabn.backends.verbs import Array

SMALLEST_BLOCK = 4 << 20  # an array of more bytes is a block; the search for one takes some microseconds
# Larger blocks are marked free. glibc's largest threshold for memory of its own, DEFAULT_MMAP_THRESHOLD_MAX,
# less a page for its header: an array of 32 MiB itself is beyond it.
LARGEST_RESIDENT = (32 << 20) - mmap.PAGESIZE
RESIDENT_LIMIT = 256 << 20  # bytes of blocks that are not marked free, and in no array
_PAGE = 2 << 20  # a huge page
_SUPPORTED = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")


def empty_like(array: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return an uninitialised array like this one, which is dense; in kept memory if a block has its size.

    With a ``dtype`` that is the result's, else the array's.

    Raises
    ------
    MemoryError
        If there is no memory, even after all kept blocks were given back.
    """
    kept = keeps(array.nbytes if dtype is None else array.size * dtype.itemsize)
    try:
        return _large(array, dtype or array.dtype) if kept else np.empty_like(array, dtype)
    except MemoryError:
        pass
    # After the except clause, because the error's traceback would hold on to some of the blocks.
    _pool.clear()
    return _large(array, dtype or array.dtype) if kept else np.empty_like(array, dtype)


def keeps(nbytes: int) -> bool:
    """Whether the memory of a result of so many bytes is kept."""
    return nbytes > SMALLEST_BLOCK and _SUPPORTED and _pool.limit > 0


def set_pool_limit(nbytes: int) -> None:
    """Set how much memory of large results may be kept for the next ones; 0 keeps none.

    A result of more than 4 MiB is a block of memory of its own. When its array dies, the block is used for
    the next result of the same size, whose pages are then in place: on 100 MB that saves half of the time.
    Beyond the limit, those blocks go first that were used least recently.

    Parameters
    ----------
    nbytes : int
        Bytes in all blocks together, 1 GiB in the beginning. The blocks of arrays that are alive count too,
        but are never taken away from them.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or negative.

    Notes
    -----
    Kept memory of results of 32 MiB or more is marked as free to the system (MADV_FREE, on Linux): it is
    taken back where it is needed, and may still be shown as that of the process. That of smaller results is
    not: of what is in no array, the next result gives back all but 256 MiB. On other systems nothing is kept.

    Examples
    --------
    >>> import numbabn as nbn
    >>> nbn.set_pool_limit(4 << 30)
    >>> nbn.set_pool_limit(1 << 30)
    """
    number = integer(nbytes, "nbytes")
    if number < 0:
        raise ValueError(f"nbytes must be at least 0, not {number}")
    _pool.set_limit(number)


def _large(array: Array, dtype: np.dtype[Any]) -> Array:
    owner = _pool.take(-(-array.size * dtype.itemsize // _PAGE) * _PAGE)
    result = np.asarray(owner.of(array, dtype))
    return result if result.dtype == dtype else result.view(dtype)  # bfloat16 has no name in the interface


class _Owner:
    """The owner of a block: the ``base`` of an array, which dies with the last view of that array."""

    __slots__ = ("__array_interface__", "__weakref__", "_address", "_block")

    def __init__(self, block: mmap.mmap) -> None:
        self._block = block
        self._address = int(np.frombuffer(block, np.uint8).ctypes.data)

    def of(self, like: Array, dtype: np.dtype[Any]) -> "_Owner":
        """Return this object, as the memory of an array of this dtype in the order of one that is dense."""
        self.__array_interface__ = {
            "data": (self._address, False),
            "shape": like.shape,
            "strides": tuple(step // like.itemsize * dtype.itemsize for step in like.strides),
            "typestr": dtype.str,
            "version": 3,
        }
        return self


class _Kept(weakref.ref["_Owner"]):
    """A block that is kept, and whether its owner is alive.

    When the owner of a large block dies, it is marked free for the system to take. All of the callback is C
    code, down to the system call: in a callback of Python code the interpreter looks for signals, and what
    their handlers raise there, such as KeyboardInterrupt, is printed and forgotten.
    """

    __slots__ = ("block", "madvise", "size")

    block: mmap.mmap
    madvise: Any
    size: int

    @classmethod
    def of(cls, owner: _Owner, size: int) -> "_Kept":
        """Return the reference to the owner of a block."""
        frees = size > LARGEST_RESIDENT and _frees()
        kept = cls(owner, methodcaller("madvise", mmap.MADV_FREE) if frees else None)
        kept.block, kept.madvise, kept.size = owner._block, owner._block.madvise, size
        return kept

    def is_resident(self) -> bool:
        """Whether the block is in no array, and is not marked free."""
        return self.size <= LARGEST_RESIDENT and self() is None


class _Pool:
    """Blocks of arrays that are alive or were, the least recently used first, up to a limit in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by number
        self._number = 0
        # A signal handler may make a result in the middle of making one.
        self.lock = threading.RLock()

    def take(self, size: int) -> _Owner:
        """Return the owner of a block of this size: of one that is kept, or of a new one."""
        with self.lock:
            owner = _Owner(self._unused(size) or _new_block(size))
            self._number += 1
            self._kept[self._number] = _Kept.of(owner, size)
            self._evict()
            return owner

    def _unused(self, size: int) -> mmap.mmap | None:
        """Return a block of this size whose owner is dead, and forget it; None if there is none.

        The last one that was used, which is the likeliest to be in the cache: where two took turns, inference
        of 32x512x14x14 took 0.33 ms, and 0.23 with ``out=``.
        """
        for number, kept in reversed(list(self._kept.items())):
            # What was here when the list was made, a signal handler may have taken since.
            if kept.size == size and kept() is None and self._kept.pop(number, None) is not None:
                return kept.block
        return None

    def set_limit(self, nbytes: int) -> None:
        """Keep so many bytes at the most."""
        with self.lock:
            self.limit = nbytes
            self._evict()

    def clear(self) -> None:
        """Give everything back to the system that is in no array."""
        with self.lock:
            self._kept.clear()

    def _evict(self) -> None:
        """Forget blocks beyond the limits; each is given back with its last array, or now."""
        kept = list(self._kept.items())
        self._forget(kept, self.limit)
        self._forget([(number, each) for number, each in kept if each.is_resident()], RESIDENT_LIMIT)

    def _forget(self, kept: list[tuple[int, _Kept]], limit: int) -> None:
        """Forget the first of some blocks, until the others have no more bytes than the limit."""
        excess = sum(each.size for _, each in kept) - limit
        for number, each in kept:
            if excess <= 0:
                break
            self._kept.pop(number, None)
            excess -= each.size


_pool = _Pool(limit=1 << 30)
if hasattr(os, "register_at_fork"):  # else a child of a fork might find the lock held for ever
    os.register_at_fork(
        before=lambda: _pool.lock.acquire(),
        after_in_parent=lambda: _pool.lock.release(),
        after_in_child=lambda: _pool.lock.release(),
    )


def _new_block(size: int) -> mmap.mmap:
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"there is no memory for a result of {size} bytes") from error
    with contextlib.suppress(OSError):  # of a system without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


@functools.cache
def _frees() -> bool:
    """Whether the system takes MADV_FREE, which the headers that Python was compiled with know."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(mmap.MADV_FREE)
    except OSError:
        return False
    return True
