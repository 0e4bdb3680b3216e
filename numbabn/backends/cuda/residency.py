"""Which launches may have blocks that wait for each other, so that none of them waits for ever.

A block that waits keeps its place on the device. Blocks wait for others of their group, which must therefore
get places: a group may have no more blocks than a share of what the device runs at once, and the launches of
one process that have such blocks need a permit, of which there are half as many as shares. The other half is
for what kernels with fewer blocks on a multiprocessor cannot use: at least two blocks of every kernel fit on
one, so that a block that finds no place finds each of them at least half full.

A permit is a stream's, whose launches follow each other. Another stream gets it when no block of the last
launch waits any more: the kernel then writes the number of that launch to host memory, which is read here
without a call to the driver.

Two launches, in which nobody waits, take the place of one where there is no permit; where a stream has a part
of the device only, or other processes run there at the same time, see `launching.stream_state`; and in CUDA
graphs, which may run at any time.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from numbabn.backends.cuda import gpu
from numbabn.backends.cuda.launcher import Streamed, StreamState
from numbabn.backends.cuda.plan import CONCURRENT_LAUNCHES
from numbabn.backends.cuda.workspaces import owner

_LARGEST = 2**31 - 1  # an int32


class Permit(NamedTuple):
    """What a launch is given: where it writes its number when none of its blocks waits any more."""

    address: int
    launch: int


class _Holder:
    """Who has a permit, and the number of the last launch under it."""

    def __init__(self, words: Any, k: int) -> None:
        self._words, self._k = words, k
        self.stream: tuple[int, int] | None = None
        self.launch = 0

    @property
    def is_free(self) -> bool:
        """Whether another stream may have it."""
        return bool(self._words.values[self._k] == self.launch)

    @property
    def next(self) -> Permit:
        """What the next launch is given."""
        return Permit(self._words.address + self._words.values.itemsize * self._k, self.launch % _LARGEST + 1)


_holders: dict[int, list[_Holder]] = {}  # of every device
_lock = threading.Lock()


def launched(array: Streamed, state: StreamState, launch: Callable[[Permit], None]) -> bool:
    """Call ``launch`` with a permit for the current stream of the array's library; return whether it has one.

    Other threads wait meanwhile: numbers are written in the order in which launches run.
    """
    if state.partial or state.captured:
        return False
    stream = owner(array)
    with _lock:
        holder = _holder(array.device, stream)
        if holder is None:
            return False
        permit = holder.next
        launch(permit)
        holder.stream, holder.launch = stream, permit.launch
        return True


def _holder(device: int, stream: tuple[int, int]) -> _Holder | None:
    """Return the permit of a stream, or one that is free, or None."""
    holders = _holders.get(device)
    if holders is None:
        words = gpu.host_words(device, CONCURRENT_LAUNCHES)
        holders = _holders[device] = [_Holder(words, k) for k in range(CONCURRENT_LAUNCHES)]
    own = (holder for holder in holders if holder.stream == stream)
    return next(own, None) or next((holder for holder in holders if holder.is_free), None)
