"""Where the simulator's arrays lie, so that a pointer that leaves its array is found out."""

import bisect
import ctypes
import weakref

import numpy as np
from numpy.lib.array_utils import byte_bounds


class Allocations:
    """The memory of all arrays that are alive; a pointer belongs to the allocation that it points into."""

    def __init__(self):
        self._ends = {}  # start: (end, weak reference to the array)
        self._starts = []

    def add(self, array):
        """Remember the memory of an array for as long as it lives; of a view, that of the whole."""
        while isinstance(array.base, np.ndarray):
            array = array.base
        start, end = byte_bounds(array)
        known = self._ends.get(start)
        if start == end or (known is not None and known[1]() is array):
            return
        reference = weakref.ref(array, lambda reference: self._remove(start, reference))
        if known is None:
            bisect.insort(self._starts, start)
        self._ends[start] = end, reference

    def _remove(self, start, reference):
        if self._ends.get(start, (0, None))[1] is reference:  # the address may be another array's by now
            del self._ends[start]
            del self._starts[bisect.bisect_left(self._starts, start)]

    def view(self, pointer, kind):
        """Return (all elements around a pointer as an array of this type, index of the one there)."""
        itemsize = kind().itemsize
        if pointer % itemsize:
            raise ValueError(f"misaligned address {pointer:#x} of a {kind.__name__}")
        i = bisect.bisect_right(self._starts, pointer) - 1
        start = self._starts[i] if i >= 0 else 0
        end = self._ends[start][0] if i >= 0 else 0
        if not start <= pointer < end:
            raise IndexError(f"no array lies at {pointer:#x}")
        start += (pointer - start) % itemsize
        count = (end - start) // itemsize
        memory = (ctypes.c_uint8 * (count * itemsize)).from_address(start)
        return np.frombuffer(memory, kind), (pointer - start) // itemsize


allocations = Allocations()
