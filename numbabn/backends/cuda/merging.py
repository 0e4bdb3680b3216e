"""How the sums of the parts of a group become those of the group. Device functions.

A sample is three float64 of one channel: (count, mean, m2), or (0, sum of dy, sum of dy * (x - mean)). Each
block leaves the samples of its part in the workspace. The last block to arrive merges those of all parts, or
every block does, in an order that depends on the number of parts alone, so that the bits do not depend on
which block that is.
"""

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cuda.clusters import load_from_cluster, store_in_cluster
from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import adapted, cuda, device, peek, shared_load, shared_store, store
from numbabn.backends.cuda.synchronization import arrive_in_group, meet_in_group
from numbabn.backends.cuda.tiles import ROW, SCRATCH, channels_of

SAMPLE_BYTES = 24  # three float64

merge_means = device(arithmetic.merge_means)


@device
def merge(sample, more):
    """Return (count, mean, m2) of two samples together, either of which may be empty."""
    count, mean, m2 = sample
    n, more_mean, more_m2 = more
    if n == 0.0:  # also where both are empty, and there is no mean
        return sample
    total, merged, between = merge_means(count, mean, n, more_mean)
    return total, merged, m2 + more_m2 + between


@device
def combine(sample, more, as_moments):
    """Return two samples together: merged ``as_moments``, or added up."""
    if as_moments:
        return merge(sample, more)
    return sample[0] + more[0], sample[1] + more[1], sample[2] + more[2]


@device
def sample_address(workspace, geometry, g, part, c):
    """Return the address of the sample of channel c of group g that a part has left in the workspace."""
    return workspace.partials + ((g * geometry.parts + part) * geometry.span + c) * SAMPLE_BYTES


@adapted(2, Cluster=store_in_cluster)
def store_sample(sample, geometry, workspace, g, part, across):
    """Leave the sample of thread c < across in the workspace, for the blocks that merge."""
    t = np.int64(cuda.threadIdx.x)
    if t < across:
        address = sample_address(workspace, geometry, g, part, t)
        store(address, 0, sample[0])
        store(address, 1, sample[1])
        store(address, 2, sample[2])


@adapted(1, Cluster=load_from_cluster)
def peek_sample(geometry, workspace, g, part, c):
    """Return the sample of channel c of group g that another block has left in the workspace."""
    address, zero = sample_address(workspace, geometry, g, part, c), np.float64(0)
    return peek(address, 0, zero), peek(address, 1, zero), peek(address, 2, zero)


@device
def merge_group(sample, geometry, workspace, g, part, waiting, as_moments):
    """Return (whether this block has the sample of group g, that sample).

    The last block to arrive has it, or all blocks if ``waiting``: these wait for each other.
    """
    if geometry.parts == 1:
        return True, sample
    _, _, across = channels_of(geometry, g)
    store_sample(sample, geometry, workspace, g, part, across)
    if waiting:
        meet_in_group(geometry, workspace, g)
        merges = True
    else:
        merges = arrive_in_group(geometry, workspace, g)
    if merges:
        sample = merge_parts(geometry, workspace, g, across, as_moments)
    return merges, sample


@device
def merge_parts(geometry, workspace, g, across, as_moments):
    """Return the sample of channel c of group g, from those of all parts, in thread c < across.

    Thread p * across + c merges the parts p, p + height, p + 2 * height, ... of channel c, and the results
    of the ``height`` threads of a channel are merged as a tree. See `combine` for ``as_moments``. The tree is
    in shared memory, since every step of it is a division in float64, beside which a barrier is little.
    """
    t = np.int64(cuda.threadIdx.x)
    height = quotient(np.int64(cuda.blockDim.x), across)
    p = quotient(t, across)
    sample = np.float64(0), np.float64(0), np.float64(0)
    if p < height:
        for part in range(p, geometry.parts, height):
            sample = combine(sample, peek_sample(geometry, workspace, g, part, t - p * across), as_moments)
    put_scratch(t, sample)
    while height > 1:
        half = (height + 1) // 2
        cuda.syncthreads()
        if p < height - half:
            sample = combine(sample, get_scratch(t + half * across), as_moments)
            put_scratch(t, sample)
        height = half
    return sample


@device
def put_scratch(t, sample):
    """Leave a sample for another thread of the block, at place t."""
    shared_store(SCRATCH, t, sample[0])
    shared_store(SCRATCH + ROW, t, sample[1])
    shared_store(SCRATCH + 2 * ROW, t, sample[2])


@device
def get_scratch(t):
    """Return the sample that a thread of the block has left at place t."""
    zero = np.float64(0)
    return (
        shared_load(SCRATCH, t, zero),
        shared_load(SCRATCH + ROW, t, zero),
        shared_load(SCRATCH + 2 * ROW, t, zero),
    )
