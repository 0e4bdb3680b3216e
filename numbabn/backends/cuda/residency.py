"""Which launches may have blocks that wait for each other, so that none of them waits for ever.

A block that waits keeps its place on the device. Blocks wait for others of their group, which must therefore
have places, too, whatever else runs: a group may have no more blocks than a share of what the device runs at
once, and there are as many permits as shares, one for each launch that may run at the same time.

A permit is a stream's, whose launches follow each other. Another stream gets it when no block of the last
launch waits any more: the kernel then writes the number of that launch to host memory, which is read here
without a call to the driver. The permit of a stream that a CUDA graph has captured stays that stream's, since
the graph may run at any time. A stream that gets none, and one on a part of the device only, a green context,
has two launches in place of one, in which nobody waits.

Not on hardware yet: written from the documentation of CUDA, and tested with streams of the simulator.
"""

import threading
from typing import Any, NamedTuple

from numbabn.backends.cuda import gpu
from numbabn.backends.cuda.plan import CONCURRENT_LAUNCHES
from numbabn.backends.cuda.workspaces import owner
from numbabn.backends.verbs import DeviceMemory

_LARGEST = 2**31 - 1  # an int32


class Permit(NamedTuple):
    """What a launch is given: where it writes its number when none of its blocks waits any more."""

    address: int
    launch: int


class _Holder:
    """Who has a permit: the stream, the number of its last launch, and whether that was captured."""

    def __init__(self, words: Any, k: int) -> None:
        self._words, self._k = words, k
        self.stream: tuple[int, int] | None = None
        self.launch = 0
        self.captured = False

    @property
    def is_free(self) -> bool:
        """Whether another stream may have it."""
        return not self.captured and bool(self._words.values[self._k] == self.launch)

    def next(self, stream: tuple[int, int], captured: bool) -> Permit:
        """Return a permit for the next launch, on this stream."""
        self.stream, self.captured = stream, self.captured or captured
        self.launch = self.launch % _LARGEST + 1
        return Permit(self._words.address + self._words.values.itemsize * self._k, self.launch)


_holders: dict[int, list[_Holder]] = {}  # of every device
_lock = threading.Lock()


def permit(array: DeviceMemory) -> Permit | None:
    """Return a permit for a launch on the current stream of the library of ``array``, or None."""
    state = gpu.stream_state(array)
    if state.partial:
        return None
    stream = owner(array)
    with _lock:
        holders = _holders.get(array.device)
        if holders is None:
            words = gpu.host_words(array.device, CONCURRENT_LAUNCHES)
            holders = [_Holder(words, k) for k in range(CONCURRENT_LAUNCHES)]
            _holders[array.device] = holders
        free = [holder for holder in holders if holder.stream == stream] or [
            holder for holder in holders if holder.is_free
        ]
        return free[0].next(stream, state.captured) if free else None
