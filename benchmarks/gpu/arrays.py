"""Inputs on the device, seen by every library: two pools of random numbers, of which an array is a part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from numba import cuda

from benchmarks.libraries import Data
from tests.support.cases import Case

ALIGNMENT = 64  # elements
ROTATION = 3  # inputs that are used in turn cover the L2 cache this many times
MOST_SETS = 64


def _cupy(memory: Any, shape: tuple[int, ...]) -> Any:
    import cupy

    return cupy.asarray(memory).reshape(shape)


def _torch(memory: Any, shape: tuple[int, ...]) -> Any:
    import torch

    return torch.as_tensor(memory, device="cuda").view(shape)


def _numba(memory: Any, shape: tuple[int, ...]) -> Any:
    return memory.reshape(shape)


# How each library sees a flat array of Numba's, without a copy.
VIEWS: Mapping[str, Callable[[Any, tuple[int, ...]], Any]] = {"cupy": _cupy, "torch": _torch, "numba": _numba}


class Pool:
    """Random float32 numbers on the device for x and dy, enough for the rotating inputs of any case."""

    def __init__(self, cases: Sequence[Case], cache_bytes: int):
        self.cache_bytes = cache_bytes
        size = max((self.sets(case) * _aligned(case.size) for case in cases), default=0)
        drawn = Data.of(Case((size, 1), "NC"))
        self.x, self.dy = (cuda.to_device(numbers.reshape(-1)) for numbers in (drawn.x, drawn.dy))

    def sets(self, case: Case) -> int:
        """Return how many inputs of a case are used in turn, so that none is found in the cache."""
        return min(max(2, math.ceil(ROTATION * self.cache_bytes / case.nbytes)), MOST_SETS)

    def inputs(self, case: Case, library: str) -> Iterator[Data]:
        """Return the inputs of a case as arrays of a library."""
        view = VIEWS[library]
        drawn = Data.of(Case((1, case.channels), "NC"), seed=1)
        vectors = (drawn.gamma, drawn.beta, drawn.mean, drawn.var)
        moved = [view(cuda.to_device(vector), vector.shape) for vector in vectors]
        for k in range(self.sets(case)):
            start = k * _aligned(case.size)
            x, dy = (view(pool[start : start + case.size], case.shape) for pool in (self.x, self.dy))
            yield Data(x, dy, *moved)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
