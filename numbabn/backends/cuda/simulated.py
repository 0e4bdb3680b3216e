"""Launches where CUDA is simulated (NUMBA_ENABLE_CUDASIM=1), and what kernels call ``cuda`` there.

It has the names of `launching`.

Arrays are those of Numba's simulator, but its launches are not used. It exchanges the global ``cuda`` of a
module while a function of that module runs, without a lock in Numba itself, and allocates shared memory when
the first thread asks for it, for several threads that ask at once several times: threads then have wrong
numbers, or memory that is freed while they use it. And it has no threads left to wait for when a launch is
interrupted, although they go on writing to arrays that nobody keeps.

Blocks run one after the other here, so that no block may wait for another: see `plan.RESIDENT_SIMULATED`.
The tests replace `launch` by a simulator that runs all blocks at the same time and checks every access.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba.cuda
import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.launcher import AnyKernel, HostWords, Memory, StreamState


class Index(NamedTuple):
    """A place in a grid or a block, or the size of one."""

    x: int
    y: int = 0
    z: int = 0


class Block:
    """The threads of a launch: all blocks are made of the same ones, one block after the other."""

    def __init__(self, function: Callable[..., None], blocks: int, arguments: tuple[Any, ...]) -> None:
        self._kernel = function, arguments
        self._started = threading.Event()
        self.blocks = blocks
        self.barrier = threading.Barrier(plan.THREADS)
        self.votes = [False] * plan.THREADS
        self.warps = [threading.Barrier(plan.WARP) for _ in range(plan.WARPS)]
        self.offers: list[Any] = [None] * plan.THREADS

    def run(self) -> None:
        """Run all blocks; raise what the first thread that fails has raised."""
        with ThreadPoolExecutor(plan.THREADS) as pool:
            try:
                threads = [pool.submit(self._run_thread, t) for t in range(plan.THREADS)]
                self._started.set()
                for ended in threads:
                    ended.result()
            finally:  # when interrupted, too: the pool waits for all threads before arrays can go
                self.abort()
                self._started.set()

    def _run_thread(self, number: int) -> None:
        function, arguments = self._kernel
        _here.block, _here.thread_index = self, Index(number)
        self._started.wait()  # a pool that is interrupted while it starts a thread does not wait for that one
        if self.barrier.broken:
            return
        try:
            with np.errstate(all="ignore"):
                for k in range(self.blocks):
                    _here.block_index = Index(k)
                    function(*arguments)
                    self.barrier.wait()  # the next block has the same shared memory
        except threading.BrokenBarrierError:  # another thread has failed, or the caller was interrupted
            pass
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Let no thread wait for others any more."""
        for barrier in (self.barrier, *self.warps):
            barrier.abort()


class _Here(threading.local):
    """Which thread of which block runs here."""

    block: Block
    block_index: Index
    thread_index: Index


class Cuda:
    """Numba's module ``cuda``; in a kernel also the place of the thread that asks, and its barriers."""

    blockDim = Index(plan.THREADS, 1, 1)  # noqa: N815 - the names are CUDA's

    @property
    def gridDim(self) -> Index:  # noqa: N802
        return Index(_here.block.blocks, 1, 1)

    @property
    def blockIdx(self) -> Index:  # noqa: N802
        return _here.block_index

    @property
    def threadIdx(self) -> Index:  # noqa: N802
        return _here.thread_index

    def syncthreads(self) -> None:
        """Wait for the block."""
        _here.block.barrier.wait()

    def syncthreads_or(self, vote: Any) -> int:
        """Wait for the block; tell whether any vote is not 0."""
        block = _here.block
        block.votes[_here.thread_index.x] = vote != 0
        block.barrier.wait()
        found = any(block.votes)
        block.barrier.wait()  # nobody votes again before all have counted
        return int(found)

    def shfl_xor_sync(self, mask: int, value: Any, distance: Any) -> Any:
        """Exchange values between the threads of a warp, all of which call it."""
        block, t = _here.block, _here.thread_index.x
        warp = block.warps[t // plan.WARP]
        block.offers[t] = value
        warp.wait()
        found = block.offers[t ^ int(distance)]
        warp.wait()  # nobody offers another value before all have taken theirs
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(numba.cuda, name)


_here = _Here()
_launching = threading.Lock()
cuda = Cuda()


def launch(function: Callable[..., None], blocks: int, arguments: tuple[Any, ...], cluster: int = 1) -> None:
    """Run a kernel; one launch at a time, since all launches have the same shared memory.

    There are no clusters of several blocks here, which would have to run at the same time.
    """
    assert cluster == 1
    scalars = tuple(np.float64(value) if type(value) is float else value for value in arguments)
    with _launching:
        Block(function, blocks, scalars).run()


def device(function: Any) -> Any:
    """Return a device function: as it is, so that it runs with the global ``cuda`` of its module."""
    return function


class Kernel(AnyKernel):
    """A kernel, which is a function of Python here."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def launch(self, array: Any, blocks: int, *arguments: Any, cluster: int = 1) -> None:
        """Run ``blocks`` blocks."""
        launch(self.function, blocks, arguments, cluster)

    def may_wait(self, array: Any, blocks: int, *arguments: Any) -> bool:
        """Return whether a group of so many blocks runs at once."""
        return blocks <= plan.RESIDENT_SIMULATED

    def runs_clusters(self, array: Any, state: StreamState, cluster: int, *arguments: Any) -> bool:
        """Return whether clusters of so many blocks can run."""
        return cluster <= plan.CLUSTER_SIMULATED


def follow(array: Any, other: Any) -> None:
    """Do nothing: a launch has ended when the call that makes it returns."""


def stream_state(array: Any) -> StreamState:
    """Return that of the only stream there is."""
    return StreamState(captured=False, partial=False)


def host_words(number: int, count: int) -> HostWords:
    """Return so many numbers."""
    array = np.empty(count, np.int32)
    return HostWords(array, array.ctypes.data)


def device_zeros(number: int, nbytes: int) -> Memory:
    """Return memory filled with zeros."""
    array = np.zeros(nbytes, np.uint8)
    return Memory(array, array.ctypes.data)
