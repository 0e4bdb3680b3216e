"""`distributed.moments` on a real cluster of two processes: undisturbed, and with a worker killed half-way.

``python -m tests.support.dask_program FOLDER`` prints OK, and leaves a note of the kill in the folder.
"""

import functools
import os
import signal
import sys
from fractions import Fraction
from pathlib import Path

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

import numbabn.distributed
from tests.support.checks import assert_same_bits
from tests.support.jit import JIT

BLOCKS = 72
ROWS, CHANNELS = (1 << 15, 64) if JIT else (50, 3)
# Of each worker, which needs 200 MB for Python, Numba and Dask. With the JIT the array has 604 MB.
MEMORY_LIMIT = 450 * 10**6


@functools.cache
def base(dtype):
    """Return the integers that every block is made of."""
    return (np.arange(ROWS * CHANNELS) % 997).reshape(ROWS, CHANNELS).astype(dtype)


def block(folder, block_id=()):
    """Make block i, base * (i + 1) + i, exact in float32; with a folder, die half-way the first time."""
    i = block_id[0]
    note = Path(folder or "", "killed")
    if folder is not None and i == BLOCKS // 2 and not note.exists():
        note.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return base(np.float32) * np.float32(i + 1) + np.float32(i)


def array(folder=None):
    chunks, meta = ((ROWS,) * BLOCKS, CHANNELS), np.empty((0, 0), np.float32)
    return da.map_blocks(block, folder, chunks=chunks, dtype=np.float32, meta=meta)


def exact():
    """Return (mean, variance) of the whole array, computed in rational arithmetic and rounded once."""
    sums = base(np.int64).sum(axis=0), (base(np.int64) ** 2).sum(axis=0)
    mean, var = [], []
    for s, q in zip(*(each.tolist() for each in sums), strict=True):
        total = sum((i + 1) * s + i * ROWS for i in range(BLOCKS))
        squares = sum((i + 1) ** 2 * q + 2 * (i + 1) * i * s + i * i * ROWS for i in range(BLOCKS))
        mean.append(Fraction(total, BLOCKS * ROWS))
        var.append(Fraction(squares, BLOCKS * ROWS) - mean[-1] ** 2)
    return np.array(mean, float), np.array(var, float)


def assert_same(moments, expected):
    for name, value in expected.to_dict().items():
        assert_same_bits(moments.to_dict()[name], value, name)


def main():
    folder = sys.argv[1]
    here = numbabn.distributed.moments(array())  # on threads
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=MEMORY_LIMIT, dashboard_address=None,
            local_directory=folder,
        ) as cluster,
        Client(cluster),
    ):  # fmt: skip
        if JIT:
            assert array().nbytes > MEMORY_LIMIT
        assert_same(numbabn.distributed.moments(array()), here)
        assert_same(numbabn.distributed.moments(array(folder)), here)
    assert Path(folder, "killed").exists()
    mean, var = exact()
    assert (here.count == BLOCKS * ROWS).all()
    np.testing.assert_allclose(here.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(here.var(), var, rtol=1e-12)
    print("OK")


if __name__ == "__main__":
    main()
