"""Memory in which the blocks of a launch meet: counters that are zero between launches, and partial sums.

There is one for every stream, since launches on one stream follow each other. It grows, and is never given
back; a call that finds it large enough allocates nothing here and can be captured in a CUDA graph.
"""

import threading
from typing import Any, NamedTuple

from numbabn._cuda.gpu import device_zeros
from numbabn._cuda.groups import COUNTERS, SLOT
from numbabn._cuda.plan import Geometry


class Workspace(NamedTuple):
    """Addresses of the counters and of the partial sums, as `groups` describes them."""

    counters: int
    partials: int


_lock = threading.Lock()
_memory: dict[tuple[int, int], tuple[int, int, Any, Any]] = {}


def workspace(array: Any, geometry: Geometry) -> Workspace:
    """Return what a launch for ``array`` on the current stream of its library needs."""
    if geometry.parts == 1:
        return Workspace(0, 0)
    counters = COUNTERS + 2 * geometry.groups
    slots = geometry.groups * geometry.parts * geometry.block
    key = array.device, array.stream
    with _lock:
        have = _memory.get(key, (0, 0, None, None))
        if counters > have[0] or slots > have[1]:
            sizes = max(counters, 2 * have[0]), max(slots, 2 * have[1])
            have = _memory[key] = (
                *sizes,
                device_zeros(array.device, 4 * sizes[0]),
                device_zeros(array.device, SLOT * sizes[1]),
            )
    return Workspace(have[2].address, have[3].address)
