"""Which launches may have blocks that wait for each other, so that none of them waits for ever.

A block that waits keeps its place on the device. Blocks wait for others of their group that have not begun,
see `synchronization`. A group has no more blocks than the device has multiprocessors, and there is one launch
at a time that has such blocks: so one multiprocessor has none that waits, ends whatever it runs, and takes
the next block. That holds for kernels of any size, and whatever else runs.

That launch needs the permit of the device, which is a stream's, whose launches follow each other. Another
stream gets it when no block of the last launch waits any more: the kernel then writes the number of that
launch to host memory, which is read here without a call to the driver.

Two launches, in which nobody waits, take the place of one where there is no permit; where a stream has a part
of the device only, or other processes run there at the same time, see `launching.stream_state`; and in CUDA
graphs, which may run at any time.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from numbabn.backends.cuda import gpu
from numbabn.backends.cuda.launcher import HostWords, Streamed, StreamState
from numbabn.backends.cuda.workspaces import owner

_LARGEST = 2**31 - 1  # an int32


class Permit(NamedTuple):
    """What a launch is given: where it writes its number when none of its blocks waits any more."""

    address: int
    launch: int


class _Holder:
    """Who has the permit of a device, and the number of the last launch under it."""

    def __init__(self, words: HostWords) -> None:
        self._words = words
        self.stream: tuple[int, int] | None = None
        self.launch = 0

    @property
    def is_free(self) -> bool:
        """Whether another stream may have it."""
        return bool(self._words.values[0] == self.launch)

    @property
    def next(self) -> Permit:
        """What the next launch is given."""
        return Permit(self._words.address, self.launch % _LARGEST + 1)


_holders: dict[int, _Holder] = {}  # of every device
_lock = threading.Lock()


def launched(array: Streamed, state: StreamState, launch: Callable[[Permit], None]) -> bool:
    """Call ``launch`` with the permit if the current stream of the array's library gets it; return whether.

    Other threads wait meanwhile: numbers are written in the order in which launches run.
    """
    if state.partial or state.captured:
        return False
    stream = owner(array)
    with _lock:
        holder = _holders.get(array.device)
        if holder is None:
            holder = _holders[array.device] = _Holder(gpu.host_words(array.device, 1))
        if holder.stream != stream and not holder.is_free:
            return False
        permit = holder.next
        launch(permit)
        holder.stream, holder.launch = stream, permit.launch
        return True
