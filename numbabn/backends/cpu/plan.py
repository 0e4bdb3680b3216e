"""How work is cut up. All that changes bits is decided by the shape alone, and not by the number of threads.

Where every sample has statistics of its own, all that changes bits is decided by the shape of one sample: the
bits of its result do not depend on how many others there are.
"""

import functools
import math

from numbabn.backends.cpu.jit import PARALLEL_BYTES, thread_count
from numbabn.backends.cpu.row_kernels import TASK
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.slab_sums import SEGMENT
from numbabn.backends.verbs import Array, View

# Total bytes of all arrays from which results are written past the caches. Below, a plain store leaves
# the result where the next layer finds it; above, it would be thrown out again, and every line read first.
# With a last cache of 32 MB: 8192x512 forward, 34 MB in all, 0.35 ms plain and 0.39 streamed;
# 32x512x14x14 backward, 38 MB, 0.50 plain and 0.36 streamed.
STREAM_BYTES = 36 << 20
# Inputs of a block of channels: it and the next one, which is prefetched, fit in a 1 MB second-level cache.
# Smaller blocks are shorter pieces of every image: with 512 KB, too, 32x128x28x28 took 1.1 times as long in
# blocks of 160 KB.
BLOCK_BYTES = 400 << 10
# The same of groups that lie one after the other, where blocks of any size are one piece. This one, what is
# written, and the next one fit in 512 KB, where blocks of 400 KB took 1.1 to 1.2 times as long.
ADJACENT_BYTES = 160 << 10
CHUNK_BYTES = 256 << 10  # of a partial sum: enough to be worth its merge
MAX_CHUNKS = 64
MAX_MERGES = 1 << 15  # chunks times channels: the merge is serial
MIN_COLUMNS = 256  # columns of a row, by laying pixels side by side: amortises the loop over rows
CHUNK_ROWS = 64  # of a partial sum of columns: what ends one takes as long as some 20 rows
FUSED_TASKS = 16  # fewer blocks than this cannot keep many cores busy: cut inside the channels instead


def touched(dy: Array | None, x: Array, out: Array) -> int:
    """Bytes read and written by a pass from x, and dy where there is one, to out."""
    return x.nbytes + out.nbytes + (0 if dy is None else dy.nbytes)


def streams(nbytes: int) -> bool:
    """Whether a call that touches so many bytes writes past the caches."""
    return nbytes >= STREAM_BYTES


def small(nbytes: int) -> bool:
    """Whether a call reads so little that waking a second thread takes longer than it saves."""
    return nbytes < PARALLEL_BYTES


def a_thread_each(view: View, sample: int) -> bool:
    """Whether every sample, of which so many bytes are read, is best done by one thread.

    The bits are the same where threads share a sample.
    """
    return small(sample) or view.batch >= thread_count()


def uses_rows(view: View) -> bool:
    """Whether a channel's contiguous pieces are long enough to fill vectors."""
    return view.inner >= LANES


def runs_along(view: View) -> bool:
    """Whether parameters vary along the values of one statistic, which lie side by side.

    In batch norm they never do. Longer pieces of one parameter are rows.
    """
    return view.outer == 1 and view.inner < LANES and (view.members > 1 or view.inner == 1)


def groups_of(view: View) -> View:
    """Return how one sample is read as groups, whose channels lie side by side."""
    return View(1, view.outer, view.groups, 1, view.members * view.inner)


def channels_of(view: View) -> View:
    """Return how one sample is read as channels by themselves."""
    return View(1, view.outer, view.groups * view.members, 1, view.inner)


def block_groups(view: View, itemsize: int, arrays: int) -> int:
    """Groups of a fused task, or 0 where phases over the whole array, or each sample, are better."""
    groups, slab = view.groups, view.values * itemsize * arrays
    most = BLOCK_BYTES if view.outer > 1 else ADJACENT_BYTES
    block = max(1, min(groups, most // slab))
    block -= block % LANES if block > LANES else 0  # blocks that begin at a cache line, whatever inner is
    if not small(slab * groups):
        block = min(block, groups // FUSED_TASKS)
    if not block or view.batch == view.members == 1:
        return block
    # All samples in one launch: their groups must lie one after the other.
    return max(1, min(view.batch * groups // FUSED_TASKS, most // slab)) if view.outer == 1 else 0


def row_chunks(view: View, itemsize: int) -> int:
    """Into how many chunks each channel's slab is cut for partial sums."""
    segments = view.outer * -(-view.inner // SEGMENT)
    slab = view.values * itemsize
    return max(1, min(segments, MAX_CHUNKS // view.groups, slab // CHUNK_BYTES))


def apply_tasks(view: View) -> int:
    """Count the tasks of ``row_kernels.apply``."""
    rows, inner = view.outer * view.groups, view.inner
    return rows * (inner // TASK) if inner >= TASK else -(-rows // (TASK // inner))


def sums(view: View, nbytes: int) -> tuple[int, int]:
    """Return what ``columns`` does, but of sums, whose chunks have enough rows to be worth a merge."""
    copies, chunks = columns(view, nbytes)
    return copies, max(1, min(chunks, view.outer // copies // CHUNK_ROWS))


@functools.lru_cache(1024)
def columns(view: View, nbytes: int) -> tuple[int, int]:
    """Return (copies, chunks): pixels side by side in a row of columns, and chunks of rows.

    copies make a row a multiple of LANES elements, and of MIN_COLUMNS where there are enough pixels.
    """
    pixels, channels, inner = view.outer, view.groups, view.inner
    copies = LANES // math.gcd(channels * inner, LANES)
    while copies * channels * inner < MIN_COLUMNS and pixels >= 64 * copies:
        copies *= 2
    return copies, max(1, min(pixels // copies, nbytes // CHUNK_BYTES, MAX_CHUNKS, MAX_MERGES // channels))
