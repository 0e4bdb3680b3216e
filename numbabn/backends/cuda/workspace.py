"""Memory in which the blocks of a launch meet: counters that are zero between launches, and partial sums.

There is one for every stream, since launches on one stream follow each other. It grows, and is never given
back; a call that finds it large enough allocates nothing here and can be captured in a CUDA graph.
"""

import threading
from typing import Any, NamedTuple

from numbabn.backends.cuda.gpu import device_zeros
from numbabn.backends.cuda.groups import COUNTERS, SLOT
from numbabn.backends.cuda.plan import Geometry


class Workspace(NamedTuple):
    """Addresses of the counters and of the partial sums, as `groups` describes them."""

    counters: int
    partials: int


_PER_THREAD = 2  # the handle of a default stream that every thread has for itself
_lock = threading.Lock()
_memory: dict[tuple[int, ...], "_Block"] = {}
# Blocks that were too small: a captured graph, or a thread about to launch, may still have their addresses.
# Sizes double, so that all of them together are no larger than the last.
_outgrown: list["_Block"] = []


class _Block(NamedTuple):
    """Memory of one stream, and how much of it there is."""

    counters: int
    slots: int
    counter_memory: Any
    slot_memory: Any


def workspace(array: Any, geometry: Geometry) -> Workspace:
    """Return what a launch for ``array`` on the current stream of its library needs."""
    if geometry.parts == 1:
        return Workspace(0, 0)
    stream = array.stream
    key = (array.device, stream, threading.get_ident() if stream == _PER_THREAD else 0)
    counters = COUNTERS + 2 * geometry.groups
    slots = geometry.groups * geometry.parts * geometry.block
    with _lock:
        block = _memory.get(key)
        if block is None or counters > block.counters or slots > block.slots:
            block = _memory[key] = _grown(array.device, block, counters, slots)
    return Workspace(block.counter_memory.address, block.slot_memory.address)


def _grown(device: int, block: _Block | None, counters: int, slots: int) -> _Block:
    if block is not None:
        _outgrown.append(block)
        counters, slots = max(counters, 2 * block.counters), max(slots, 2 * block.slots)
    return _Block(counters, slots, device_zeros(device, 4 * counters), device_zeros(device, SLOT * slots))


def streams(device: int) -> int:
    """Return on how many streams of a device launches may be going on at once."""
    return sum(key[0] == device for key in _memory)
