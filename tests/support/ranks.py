"""Ranks without MPI: threads that talk as mpi4py's communicators do, in one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TIMEOUT = 60  # seconds; a rank that waits longer waits for a message that never comes


class Shared:
    """The messages of all ranks, and the barrier at which they wait for each other."""

    def __init__(self, size):
        self.messages = [None] * size
        self.barrier = threading.Barrier(size)


class Comm:
    """The communicator of one rank, with just those methods of mpi4py's that numbabn uses."""

    def __init__(self, shared, rank):
        self._shared = shared
        self._rank = rank

    def Get_rank(self):  # noqa: N802 - names of MPI
        return self._rank

    def Get_size(self):  # noqa: N802
        return len(self._shared.messages)

    def Allgather(self, send, receive):  # noqa: N802
        assert send.dtype == receive.dtype
        self._shared.messages[self._rank] = send.copy()
        self._shared.barrier.wait(TIMEOUT)
        receive.reshape(-1)[:] = np.concatenate([m.reshape(-1) for m in self._shared.messages])
        self._shared.barrier.wait(TIMEOUT)


class Counting:
    """A communicator that counts the messages that this rank sends through another one."""

    def __init__(self, comm):
        self._comm = comm
        self.Get_rank = comm.Get_rank
        self.Get_size = comm.Get_size
        self.messages = 0

    def Allgather(self, send, receive):  # noqa: N802
        self.messages += 1
        self._comm.Allgather(send, receive)


def on_ranks(size, function, *arguments):
    """Call ``function(comm, *arguments)`` on so many ranks; return their results in order."""
    shared = Shared(size)

    def one(rank):
        try:
            return function(Comm(shared, rank), *arguments)
        except BaseException:
            shared.barrier.abort()  # the others fail at once, too
            raise

    with ThreadPoolExecutor(size) as pool:
        calls = [pool.submit(one, rank) for rank in range(size)]
    errors = [call.exception() for call in calls if call.exception() is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if errors:
        raise errors[0]
    return [call.result() for call in calls]
