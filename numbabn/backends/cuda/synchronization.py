"""How the blocks of one group of channels wait for each other. Device functions.

They use the counters of the workspace, which are int32 and zero between launches: the next ticket, the number
of blocks that need no counter any more, for every group the number of its blocks that have arrived, and for
every group a flag that is 1 when its results can be read.

Blocks take tickets, and tickets go to the groups in order. A block waits only for blocks of its own group,
and those of them that have not begun have the next tickets: in whatever order the hardware starts blocks,
there is only one group of a launch whose blocks wait for some that have not begun. `residency` says why these
begin.

What a block has written is released by one thread, after a barrier, and acquired by one thread, before a
barrier: both reach all threads of their blocks. A full fence (membar.gl) in place of each would also put all
of them in one order, which nobody needs.

A group that is one block's alone needs none of this, and gets no workspace. Nor does one whose blocks are a
cluster: `clusters` has what takes the place of these functions then.
"""

import numpy as np

from numbabn.backends.cuda.clusters import (
    end_in_cluster,
    false_in_cluster,
    leave_cluster,
    meet_in_cluster,
    no_results_in_cluster,
    part_in_cluster,
    true_in_cluster,
)
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import (
    adapted,
    any_thread,
    atomic_add,
    atomic_add_acq_rel,
    atomic_add_release,
    cuda,
    device,
    load_acquire,
    peek,
    shared_load,
    shared_store,
    store,
)
from numbabn.backends.cuda.tiles import SCRATCH

# Indices of the counters: the next ticket, the blocks that are done, the arrivals of group 0. The arrivals of
# the other groups follow, then the flags of all groups.
TICKETS, DONE, ARRIVALS = 0, 1, 2


@adapted(1, Cluster=part_in_cluster)
def take_part(geometry, workspace):
    """Return (group, part) for this block; blocks get the parts in the order in which they begin."""
    k = take_ticket(workspace.counters) if geometry.parts > 1 else np.int64(cuda.blockIdx.x)
    g = quotient(k, geometry.parts)
    return g, k - g * geometry.parts


@device
def take_ticket(counters):
    """Return the number of blocks that have begun before this one."""
    if cuda.threadIdx.x == 0:
        shared_store(SCRATCH, 0, atomic_add(counters, TICKETS, np.int32(1)))
    cuda.syncthreads()
    ticket = np.int64(shared_load(SCRATCH, 0, np.int32(0)))
    cuda.syncthreads()
    return ticket


@device
def arrive(counters, counter, expected):
    """Add 1 to a counter, and return whether this block is the last of those that are expected.

    The last block can read what all others wrote before they arrived.
    """
    cuda.syncthreads()
    last = False
    if cuda.threadIdx.x == 0:
        last = atomic_add_acq_rel(counters, counter, np.int32(1)) == expected - 1
    return any_thread(last)


@adapted(1, Cluster=false_in_cluster)
def arrive_in_group(geometry, workspace, g):
    """Return whether this block is the last of group g to arrive."""
    return arrive(workspace.counters, ARRIVALS + g, geometry.parts)


@adapted(1, Cluster=true_in_cluster)
def all_merge(geometry, workspace):
    """Return whether all blocks of a group merge the samples of its parts, or the last one to arrive.

    All merge those of one channel, so that they know the results at once. Of many channels every block would
    read the samples of all parts.
    """
    return geometry.span == 1


@adapted(1, Cluster=meet_in_cluster)
def meet_in_group(geometry, workspace, g):
    """Arrive, and wait until all blocks of group g have: each can read what all wrote before."""
    release(workspace.counters, ARRIVALS + g)
    wait(workspace.counters, ARRIVALS + g, geometry.parts)


@adapted(1, Cluster=no_results_in_cluster)
def wait_for_results(geometry, workspace, g, written):
    """Return when the results of group g can be read by this block, which has ``written`` them, or not."""
    flag = ARRIVALS + geometry.groups + g
    if written:
        release(workspace.counters, flag)
    else:
        wait(workspace.counters, flag, 1)


@device
def release(counters, counter):
    """Add 1 to a counter; blocks that find it can read what this block wrote before."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        atomic_add_release(counters, counter, np.int32(1))


@device
def wait(counters, counter, expected):
    """Wait until a counter has the number that is expected.

    The waiting loads are relaxed: one that acquires throws away what is in the L1 cache.
    """
    if cuda.threadIdx.x == 0:
        while peek(counters, counter, np.int32(0)) != expected:
            cuda.nanosleep(np.uint32(32))
        load_acquire(counters, counter, np.int32(0))
    cuda.syncthreads()


@device
def reset_arrivals(geometry, workspace, g, last):
    """Set the arrivals of group g to zero for the next launch: done by the last block to arrive."""
    if last and geometry.parts > 1 and cuda.threadIdx.x == 0:
        store(workspace.counters, ARRIVALS + g, np.int32(0))


@adapted(1, Cluster=leave_cluster)
def leave(geometry, workspace):
    """Say that this block waits for nobody any more; return, in thread 0, whether all others have said so.

    That is before the block writes its results, which hides the time that the answer takes. Other threads may
    still read samples, but no counter.
    """
    last = False
    if geometry.parts > 1 and cuda.threadIdx.x == 0:
        blocks = np.int64(cuda.gridDim.x)
        last = atomic_add_acq_rel(workspace.counters, DONE, np.int32(1)) == blocks - 1
    return last


@adapted(1, Cluster=end_in_cluster)
def reset(geometry, workspace, last):
    """Set all counters to zero for the next launch, and give back the permit to wait.

    That is done by the block that has a thread with ``last``.
    """
    if geometry.parts > 1 and any_thread(last):
        if last:
            store(workspace.permit, 0, np.int32(workspace.launch))
        count = ARRIVALS + 2 * geometry.groups
        for i in range(np.int64(cuda.threadIdx.x), count, np.int64(cuda.blockDim.x)):
            store(workspace.counters, i, np.int32(0))
