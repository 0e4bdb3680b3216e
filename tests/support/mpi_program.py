"""All checks of `synchronised` on a real MPI: ``mpiexec -n 4 python -m mpi4py -m tests.support.mpi_program``.

With an argument, rank 0 fails outside of any call of the library, while the others wait for it.
"""

import sys

import numpy as np
from mpi4py import MPI

import numbabn as nbn
from tests.support.synchronised import CHECKS, assert_same_on_all_ranks

comm = MPI.COMM_WORLD


def check_moments():
    """`Moments` are added up by mpi4py itself."""
    x = np.random.default_rng(comm.rank).standard_normal((100, 3)) + 10 * comm.rank
    moments = comm.allreduce(nbn.Moments().update(x))
    whole = np.concatenate(comm.allgather(x))
    assert np.allclose(moments.mean, whole.mean(axis=0), rtol=1e-14)
    assert np.allclose(moments.var(), whole.var(axis=0), rtol=1e-12)
    assert_same_on_all_ranks(comm, moments.mean, "mean")


def main():
    if len(sys.argv) > 1:
        bn = nbn.BatchNorm(3, comm=comm)
        if comm.rank == 0:
            raise ValueError(sys.argv[1])
        bn(np.ones((4, 3)))
        return
    for check in CHECKS:
        check(comm)
    check_moments()
    if comm.rank == 0:
        print(f"{len(CHECKS)} checks on {comm.size} ranks")


if __name__ == "__main__":
    main()
