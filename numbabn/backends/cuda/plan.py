"""How work is cut up on the GPU: by shape alone, so that the bits depend on neither grid nor device.

An array is read as tiles that fit into a block's shared memory. A group of channels is what one row of a tile
holds: one channel where its contiguous pieces are long, else as many as fill a few memory transactions. Each
group's tiles are dealt to at most ``MAX_PARTS`` blocks, whose partial statistics are merged in order.
"""

import functools
import math
from typing import NamedTuple

from numba import config

from numbabn.backends.verbs import DeviceMemory, View

SIMULATED = bool(config.ENABLE_CUDASIM)

CAPABILITY = (8, 0)  # the least, for asynchronous copies to shared memory and for bfloat16

# In the simulator a thread costs some 50 us; everything is smaller, so that small arrays, too, are cut up.
THREADS = 32 if SIMULATED else 256  # of a block
REGISTERS = 64  # of a thread, where ptxas takes up to 94 of its own accord: 4 blocks on an SM, and no spills
TILE_BYTES = 512 if SIMULATED else 32768  # of a block's shared memory: 5 blocks fit in 227 KB
ROW_BYTES = THREADS * 8  # of a row of coefficients per column, or of a sum per thread
SHARED_BYTES = TILE_BYTES + 4 * ROW_BYTES
MIN_TILE_BYTES = 256 if SIMULATED else 4096  # a smaller tile is not worth a block
SPREAD = 4 if SIMULATED else 512  # blocks a small array is spread over, for 100 to 200 multiprocessors
MAX_PARTS = 4 if SIMULATED else 256  # blocks per group: their sums are merged by one block
LINE = 8 if SIMULATED else 32  # elements of a row of a group of several channels: 128 bytes of float32
VECTOR = 4  # elements of a vector access
ALIGNMENT = 16  # bytes, of a vector access
# Blocks of one launch that wait for each other are at most this fraction of those that are resident, so that
# as many launches at once, on as many streams, cannot keep each other's last blocks from starting.
CONCURRENT_LAUNCHES = 4
RESIDENT_SIMULATED = 64  # blocks

# How a parameter is stored; see gpu.load_parameter.
NONE, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(5)
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}


Parameter = tuple[int, int]  # address, kind


def parameter(array: DeviceMemory | None) -> Parameter:
    """Return what kernels take for an array of any float dtype, or for None."""
    return (0, NONE) if array is None else (array.address, KINDS[array.dtype.name])


class Geometry(NamedTuple):
    """What the kernels need to know of a shape; all counts are of elements, rows, channels or tiles."""

    outer: int
    channels: int
    inner: int
    block: int  # channels of a group
    copies: int  # pixels side by side in a row of a tile, where a group is all channels
    rows: int  # of a tile
    pieces: int  # into which one long row is cut, or 1
    length: int  # of such a piece
    vector: int  # whether 16-byte accesses are aligned, given aligned pointers
    tiles: int  # of a group
    step: int  # tiles of one part, which is one block's
    groups: int
    parts: int  # of a group


@functools.lru_cache(1024)
def geometry(view: View, itemsize: int, arrays: int) -> Geometry:
    """Cut up ``arrays`` arrays with this view that are looked at together."""
    outer, channels, inner = view.outer, view.groups, view.inner
    block, copies = _group(view)
    width = block * copies * inner
    nbytes = outer * channels * inner * itemsize // SPREAD
    room = min(max(nbytes, MIN_TILE_BYTES), TILE_BYTES // arrays) // itemsize
    lines = -(-outer // copies)
    pieces, length, rows = 1, inner, max(1, min(lines, room // width))
    if block == 1 and inner > room:
        length = min(_whole_vectors(-(-inner // -(-inner // room))), room)
        pieces, rows = -(-inner // length), 1
    rows = -(-lines // -(-lines // rows))  # the same for all tiles of a group, or nearly
    tiles = -(-lines // rows) * pieces
    counts = [width] if block > 1 else [length] if rows > 1 or pieces > 1 else []
    if lines > 1:
        counts.append(copies * channels * inner)
    if block < channels:
        counts += [block * inner, channels % block * inner]
    vector = all(n % VECTOR == 0 for n in counts)
    step = -(-tiles // MAX_PARTS)
    return Geometry(
        outer, channels, inner, block, copies, rows, pieces, length, int(vector),
        tiles, step, groups=-(-channels // block), parts=-(-tiles // step),
    )  # fmt: skip


def blocks(threads: int) -> int:
    """Return how many blocks have so many threads."""
    return -(-threads // THREADS)


def _group(view: View) -> tuple[int, int]:
    """(channels of a group, pixels side by side): rows of whole vectors, and not too short ones."""
    outer, channels, inner = view.outer, view.groups, view.inner
    if channels == 1 or inner > THREADS // VECTOR or (inner >= LINE and inner % VECTOR == 0):
        return 1, 1
    block = max(1, LINE // inner)
    block += -block % (VECTOR // math.gcd(inner, VECTOR))
    if block < channels:
        return block, 1
    copies = VECTOR // math.gcd(channels * inner, VECTOR)
    if copies * channels * inner > THREADS:
        copies = 1
    while copies * channels * inner < LINE and outer >= 64 * copies:
        copies *= 2
    return channels, min(copies, outer)


def _whole_vectors(n: int) -> int:
    return n + -n % VECTOR
