"""Several blocks on one group of channels: who does what, and how their sums meet. Device functions.

The workspace begins with int32 counters, all zero between launches: the next ticket, the blocks that are
done, then for every group the blocks that have arrived, then for every group whether its sums are ready.
Partial sums follow, three float64 a channel.

Blocks take tickets, and tickets go to the groups in order. A block waits only for blocks of its own group,
and those that are missing have the next tickets: however the hardware orders blocks, a group of at most as
many blocks as are resident (see `plan.CONCURRENT_LAUNCHES`) is never left waiting.

Partial sums are merged by the last block to arrive, in the order of the parts, whichever block that is.
"""

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cuda.gpu import (
    any_thread,
    atomic_add,
    cuda,
    device,
    peek,
    shared_load,
    shared_store,
    store,
)
from numbabn.backends.cuda.tiles import ROW, SCRATCH, quotient

COUNTERS = 2  # before those of the groups
SLOT = 24  # bytes of three float64

merge_means = device(arithmetic.merge_means)


@device
def take_ticket(workspace):
    """Return a number for this block, in the order in which blocks begin."""
    if cuda.threadIdx.x == 0:
        shared_store(SCRATCH, 0, atomic_add(workspace, 0, np.int32(1)))
    cuda.syncthreads()
    ticket = np.int64(shared_load(SCRATCH, 0, np.int32(0)))
    cuda.syncthreads()
    return ticket


@device
def arrive(workspace, counter, expected):
    """Count this block in; tell whether it was the last. What it wrote before is seen by the last."""
    cuda.syncthreads()
    last = False
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        if atomic_add(workspace, counter, np.int32(1)) == expected - 1:
            last = True
            cuda.threadfence()
    return any_thread(last)


@device
def announce(workspace, flag):
    """Say that what this block wrote is ready."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        cuda.threadfence()
        atomic_add(workspace, flag, np.int32(1))


@device
def await_flag(workspace, flag):
    """Wait until another block has announced."""
    if cuda.threadIdx.x == 0:
        while peek(workspace, flag, np.int32(0)) == 0:
            cuda.nanosleep(np.uint32(32))
        cuda.threadfence()
    cuda.syncthreads()


@device
def leave(workspace, groups):
    """The last block of all zeroes the counters for the next launch."""
    if arrive(workspace, 1, np.int64(cuda.gridDim.x)):
        for i in range(np.int64(cuda.threadIdx.x), COUNTERS + 2 * groups, np.int64(cuda.blockDim.x)):
            store(workspace, i, np.int32(0))


@device
def slot(partials, geometry, g, part, c):
    """Address of the three partial sums of channel c of a group."""
    return partials + ((g * geometry.parts + part) * geometry.block + c) * SLOT


@device
def put_partial(partials, geometry, g, part, across, a, b, c):
    """Leave the partial sums of thread c < across for the last block."""
    t = np.int64(cuda.threadIdx.x)
    if t < across:
        address = slot(partials, geometry, g, part, t)
        store(address, 0, a)
        store(address, 1, b)
        store(address, 2, c)


@device
def get_partial(partials, geometry, g, part, c):
    """Return the partial sums of another block."""
    address, zero = slot(partials, geometry, g, part, c), np.float64(0)
    return peek(address, 0, zero), peek(address, 1, zero), peek(address, 2, zero)


@device
def merge(count, mean, m2, n, other, other_m2):
    """Return (count, mean, m2) of two samples together, either of which may be empty."""
    if n == 0.0:  # also where both are empty, and there is no mean
        return count, mean, m2
    total, merged, between = merge_means(count, mean, n, other)
    return total, merged, m2 + other_m2 + between


@device
def combine(chan, count, a, b, n, other, other_b):
    """Merge as moments if ``chan``, else add."""
    if chan:
        return merge(count, a, b, n, other, other_b)
    return count + n, a + other, b + other_b


@device
def merge_parts(partials, geometry, g, across, chan):
    """Merge the partial sums of a group, as moments if ``chan``; the result is thread c's < across.

    Thread (p, c) merges every ``height``-th part, then a tree over p.
    """
    t = np.int64(cuda.threadIdx.x)
    height = quotient(np.int64(cuda.blockDim.x), across)
    p = quotient(t, across)
    count, a, b = np.float64(0), np.float64(0), np.float64(0)
    if p < height:
        for part in range(p, geometry.parts, height):
            n, other, other_b = get_partial(partials, geometry, g, part, t - p * across)
            count, a, b = combine(chan, count, a, b, n, other, other_b)
        put_scratch(t, count, a, b)
    while height > 1:
        half = (height + 1) // 2
        cuda.syncthreads()
        if p < height - half:
            n, other, other_b = get_scratch(t + half * across)
            count, a, b = combine(chan, count, a, b, n, other, other_b)
            put_scratch(t, count, a, b)
        height = half
    return count, a, b


@device
def put_scratch(t, a, b, c):
    """Leave three float64 for another thread of the block."""
    shared_store(SCRATCH, t, a)
    shared_store(SCRATCH + ROW, t, b)
    shared_store(SCRATCH + 2 * ROW, t, c)


@device
def get_scratch(t):
    """Return three float64 of another thread of the block."""
    zero = np.float64(0)
    return (
        shared_load(SCRATCH, t, zero),
        shared_load(SCRATCH + ROW, t, zero),
        shared_load(SCRATCH + 2 * ROW, t, zero),
    )
