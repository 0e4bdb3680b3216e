"""What `launching` and `simulated` have in common: kernels, the state of a stream, and memory that stays."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import numpy as np


class AnyKernel(ABC):
    """A kernel; ``array`` says on which device, and on the current stream of which library."""

    @abstractmethod
    def launch(self, array: Any, blocks: int, *arguments: Any, cluster: int = 1) -> None:
        """Run ``blocks`` blocks, of which every ``cluster`` are a cluster."""

    @abstractmethod
    def may_wait(self, array: Any, blocks: int, *arguments: Any) -> bool:
        """Return whether groups may have so many blocks that wait for each other, with a permit."""

    @abstractmethod
    def runs_clusters(self, array: Any, state: "StreamState", cluster: int, *arguments: Any) -> bool:
        """Return whether clusters of so many blocks can run on the stream, whose state is known."""


class Streamed(Protocol):
    """What has a device, and a stream there: an array, that of its library; or an `OnStream`."""

    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...


class OnStream(NamedTuple):
    """What several steps of a launch ask of an array, which looks its stream up each time."""

    device: int
    stream: int


class StreamState(NamedTuple):
    """Whether a stream is captured in a CUDA graph now, and whether it has but a part of its device."""

    captured: bool
    partial: bool


class Memory:
    """Memory on a device, which is freed with this object."""

    def __init__(self, array: Any, address: int) -> None:
        self._array = array
        self.address = address


class HostWords(Memory):
    """Numbers of type int32 in the host's memory, zero at first, which kernels of a device can write."""

    def __init__(self, array: Any, address: int) -> None:
        super().__init__(array, address)
        array[:] = 0
        self.values: Any = np.ndarray.view(array, np.ndarray)  # the method is another one in Numba's arrays
