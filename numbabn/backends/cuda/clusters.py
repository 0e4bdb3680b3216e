"""Groups of channels whose blocks are a cluster: from compute capability 9.0 on, and for up to 8 blocks.

The hardware starts the blocks of a cluster together, so that they may wait for each other without tickets and
permits, and they read each other's shared memory. `adapted` puts these functions in the place of those for
the counters of a `arguments.Workspace` where a kernel is given an `arguments.Cluster`. Device functions for
`merging` and `synchronization`.

Source: CUDA C++ Programming Guide, "Thread block clusters" and "Distributed shared memory"; PTX ISA,
barrier.cluster and mapa.
"""

import numpy as np

from numbabn.backends.cuda.division import quotient
from numbabn.backends.cuda.gpu import cluster_arrive, cluster_load, cluster_store, cluster_wait, cuda


def part_in_cluster(geometry, cluster):
    """Return (group, part) of this block: those of a cluster are numbered one after the other."""
    k = np.int64(cuda.blockIdx.x)
    g = quotient(k, geometry.parts)
    return g, k - g * geometry.parts


def store_in_cluster(sample, geometry, cluster, g, part, across):
    """Leave the sample of thread c < across in shared memory that the blocks of the cluster can read."""
    t = np.int64(cuda.threadIdx.x)
    if t < across:
        cluster_store(3 * t, sample[0])
        cluster_store(3 * t + 1, sample[1])
        cluster_store(3 * t + 2, sample[2])


def load_from_cluster(geometry, cluster, g, part, c):
    """Return the sample of channel c that the block of a part has left."""
    return cluster_load(part, 3 * c), cluster_load(part, 3 * c + 1), cluster_load(part, 3 * c + 2)


def meet_in_cluster(geometry, cluster, g):
    """Wait until all blocks of the cluster have left their samples."""
    cluster_arrive()
    cluster_wait()


def true_in_cluster(geometry, cluster):
    """Return that all blocks merge the samples: few, and near."""
    return True


def no_results_in_cluster(geometry, cluster, g, written):
    """Wait for nothing: every block has the results."""


def false_in_cluster(geometry, cluster, g):
    """Return False: no block is the last one that merges for the others."""
    return False


def leave_cluster(geometry, cluster):
    """Say that this block has read what it needs of the shared memory of the others."""
    cluster_arrive()
    return False


def end_in_cluster(geometry, cluster, last):
    """Wait until nobody reads the shared memory of this block any more, before it ends."""
    cluster_wait()
