"""What the ranks of a synchronised layer tell each other: one message of every rank in each direction.

All ranks get the messages of all ranks and merge them in the order of the ranks, in arithmetic without fused
operations, so that all have the same bits, also on machines that differ. MPI does not promise this of an
``Allreduce``.
"""

import contextlib
from types import TracebackType
from typing import Any, Self

import numpy as np

from numbabn.arrays import type_name
from numbabn.arrays.library import HOST, Place
from numbabn.backends.arithmetic import merge_means
from numbabn.backends.verbs import Array

INSTALL = 'pip install "numbabn[mpi]"'

_NEEDED = ("Get_rank", "Get_size", "Allgather")  # of a communicator

# First number of a message. 0 is none of them: a buffer that was not filled is no message.
FORWARD, BACKWARD, FAILED = 1.0, 2.0, 3.0
_NAMES = {FORWARD: "a forward call", BACKWARD: "a backward call", FAILED: "an error"}


class Ranks:
    """The ranks of a layer. Copies of a layer share it; a pickle leaves it out, and has None in its place."""

    __slots__ = ("agreed", "comm")

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.agreed = False  # whether all ranks are known to have as many channels as this one

    def message(self, kind: float, channels: int) -> "Message":
        """Return the message of one call, to be sent within its ``with`` block."""
        return Message(self, kind, channels)

    def agree(self, channels: int) -> None:
        """Raise a RuntimeError on all ranks unless they have the same number of channels.

        That is asked once, in a message of its own: messages of calls differ in size where it differs, which
        MPI answers with "message truncated", or not at all.
        """
        if self.agreed:
            return
        everywhere = np.zeros(self.comm.Get_size(), np.int64)
        self.comm.Allgather(np.array([channels]), everywhere)
        if (everywhere != channels).any():
            counts = ", ".join(f"{count} on rank {rank}" for rank, count in enumerate(everywhere.tolist()))
            raise RuntimeError(
                f"a synchronised layer has different numbers of channels: {counts}; "
                "make it with the same num_channels on all ranks"
            )
        self.agreed = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()


def ranks(comm: Any, place: Place) -> Ranks | None:
    """Return the ranks of a communicator, or None for None.

    Raises
    ------
    TypeError
        If it is no communicator, or the layer is on a GPU.
    """
    if comm is None:
        return None
    if isinstance(comm, type) or not all(callable(getattr(comm, name, None)) for name in _NEEDED):
        raise TypeError(
            f"comm must be an MPI communicator such as mpi4py.MPI.COMM_WORLD, not {type_name(comm)}; "
            f"mpi4py and an MPI come with {INSTALL}"
        )
    if place != HOST:
        raise TypeError(f"comm is given, but the layer is on {place}; synchronised layers are on the CPU")
    return Ranks(comm)


class Message:
    """One call's message: sent within the block, or, if the block raises before, one that says so.

    So every rank that enters the block sends exactly one message, and none waits for one that raised there.
    All messages of a layer but the first, which `Ranks.agree` sends, are of one size, so that calls that do
    not belong together can be told from each other: (kind, count, 2 * channels values) in float64.
    """

    __slots__ = ("_channels", "_comm", "_kind", "_ranks", "_sent")

    def __init__(self, ranks: Ranks, kind: float, channels: int) -> None:
        self._ranks = ranks
        self._comm = ranks.comm
        self._kind = kind
        self._channels = channels
        self._sent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._sent:
            # Where the ranks disagree on the channels, each has its own error by now, and this one goes on.
            with contextlib.suppress(RuntimeError):
                self._gather(FAILED, 0, np.zeros((2, self._channels)))

    def statistics(self, count: int, moments: Array) -> tuple[int, Array]:
        """Send (mean, m2) of this rank's batch; return the count and (mean, biased variance) of all.

        Raises
        ------
        ValueError
            If a channel has one value on all ranks together.
        RuntimeError
            If another rank raised an error, or is in another call.
        """
        counts, values = self._exchange(count, moments)
        parts = [(n, *part) for n, part in zip(counts, values, strict=True) if n]
        if not parts:
            return 0, np.full((2, self._channels), np.nan)
        n, mean, m2 = parts[0]
        for more, more_mean, more_m2 in parts[1:]:
            n, mean, between = merge_means(n, mean, more, more_mean)
            m2 = m2 + more_m2 + between
        if n == 1:
            raise ValueError(
                f"x has one value per channel on all {len(counts)} ranks together, whose variance is 0; "
                "pass larger batches, or use evaluation mode"
            )
        return n, np.stack([mean, m2 / n])

    def sums(self, sums: Array) -> Array:
        """Send sums[2, channels] of this rank; return those of all, added up.

        Raises
        ------
        RuntimeError
            If another rank raised an error, or is in another call.
        """
        _, values = self._exchange(0, sums)
        total: Array = values[0].copy()
        for more in values[1:]:
            total += more
        return total

    def _exchange(self, count: int, values: Array) -> tuple[list[int], Array]:
        """Return counts[ranks] and values[ranks, 2, channels], once all ranks have sent what belongs here."""
        messages = self._gather(self._kind, count, values)
        kinds = messages[:, 0]
        failed = np.flatnonzero(kinds == FAILED)
        if failed.size:
            raise RuntimeError(
                f"rank {_listed(failed)} raised an error in {_NAMES[self._kind]} of a synchronised layer, "
                f"which says what is wrong there; nothing has changed on this rank"
            )
        other = np.flatnonzero(kinds != self._kind)
        if other.size:
            there = _NAMES.get(kinds[other[0]], "no call of this layer")
            raise RuntimeError(
                f"rank {self._comm.Get_rank()} is in {_NAMES[self._kind]} of a synchronised layer, but rank "
                f"{_listed(other)} in {there}; all ranks must make the same calls in the same order"
            )
        return messages[:, 1].astype(np.int64).tolist(), messages[:, 2:].reshape(-1, 2, self._channels)

    def _gather(self, kind: float, count: int, values: Array) -> Array:
        """Send one message; return those of all ranks."""
        self._sent = True
        self._ranks.agree(self._channels)
        mine = np.concatenate([[kind, count], values.ravel()])
        messages = np.zeros((self._comm.Get_size(), mine.size))
        self._comm.Allgather(mine, messages)
        return messages


def _listed(ranks: Array) -> str:
    return ", ".join(map(str, ranks))
