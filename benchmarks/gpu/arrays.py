"""Inputs on the device, seen by every library: two pools of random numbers, of which an array is a part."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numba import cuda

from benchmarks.libraries import Data
from tests.cases import Case

PERIOD = 1_000_003  # the numbers repeat: drawing a gigabyte of them would take longer than all measurements
ALIGNMENT = 64  # elements
ROTATION = 3  # inputs that are used in turn cover the L2 cache this many times
MOST_SETS = 64


def module(name: str) -> ModuleType | None:
    """Return a library if it is installed and, where it can tell, sees a GPU."""
    try:
        found = importlib.import_module(name)
    except ImportError:
        return None
    return None if name == "torch" and not found.cuda.is_available() else found


class ArrayLibrary:
    """Numba's arrays, and what every library does: all are views of memory that Numba has allocated."""

    name = "numba"

    def view(self, memory: Any, shape: tuple[int, ...]) -> Any:
        """Return a flat Numba array as one of this library, without a copy."""
        return memory.reshape(shape)

    def vector(self, values: np.ndarray) -> Any:
        """Return a copy of one value per channel on the device."""
        return cuda.to_device(values)

    def like(self, array: Any) -> Any:
        """Return a new array."""
        return cuda.device_array(array.shape, array.dtype)

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the device."""
        target.copy_to_device(source)

    def synchronize(self) -> None:
        """Wait for the device."""
        cuda.synchronize()


class CuPyArrays(ArrayLibrary):
    """CuPy's arrays."""

    name = "cupy"

    def __init__(self, cupy: ModuleType):
        self.module = cupy

    def view(self, memory: Any, shape: tuple[int, ...]) -> Any:
        """Return a flat Numba array as one of CuPy's."""
        return self.module.asarray(memory).reshape(shape)

    def vector(self, values: np.ndarray) -> Any:
        """Return a copy of one value per channel on the device."""
        return self.module.asarray(values)

    def like(self, array: Any) -> Any:
        """Return a new array."""
        return self.module.empty_like(array)

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the device."""
        # A memcpy, as PyTorch's copy_ is; cupy.copyto runs a kernel.
        target.data.copy_from_device_async(source.data, source.nbytes, self.module.cuda.Stream.null)


class TorchArrays(ArrayLibrary):
    """PyTorch's tensors."""

    name = "torch"

    def __init__(self, torch: ModuleType):
        self.module = torch

    def view(self, memory: Any, shape: tuple[int, ...]) -> Any:
        """Return a flat Numba array as one of PyTorch's."""
        return self.module.as_tensor(memory, device="cuda").view(shape)

    def vector(self, values: np.ndarray) -> Any:
        """Return a copy of one value per channel on the device."""
        return self.module.from_numpy(values).cuda()

    def like(self, array: Any) -> Any:
        """Return a new array."""
        return self.module.empty_like(array)

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the device."""
        target.copy_(source)


def libraries() -> dict[str, ArrayLibrary]:
    """Return those that are installed, the one that numbabn is timed with first."""
    found: dict[str, ArrayLibrary] = {}
    if cupy := module("cupy"):
        found["cupy"] = CuPyArrays(cupy)
    if torch := module("torch"):
        found["torch"] = TorchArrays(torch)
    return found | {"numba": ArrayLibrary()}


class Pool:
    """Random float32 numbers on the device for x and dy, enough for the rotating inputs of any case."""

    def __init__(self, cases: list[Case], cache_bytes: int):
        self.cache_bytes = cache_bytes
        size = max((self.sets(case) * _aligned(case.size) for case in cases), default=0)
        rng = np.random.default_rng(0)
        draws = [rng.standard_normal(min(size, PERIOD), dtype=np.float32) for _ in range(2)]
        self.x, self.dy = (cuda.to_device(np.resize(draw, size)) for draw in draws)

    def sets(self, case: Case) -> int:
        """Return how many inputs of a case are used in turn, so that none is found in the cache."""
        return min(max(2, math.ceil(ROTATION * self.cache_bytes / case.nbytes)), MOST_SETS)

    def inputs(self, case: Case, library: ArrayLibrary) -> Iterator[Data]:
        """Return the inputs of a case as arrays of a library."""
        rng = np.random.default_rng(1)
        gamma, beta, mean = (rng.standard_normal(case.channels, dtype=np.float32) for _ in range(3))
        var = rng.uniform(0.5, 2, case.channels).astype(np.float32)
        vectors = [library.vector(values) for values in (gamma, beta, mean, var)]
        for k in range(self.sets(case)):
            start = k * _aligned(case.size)
            x, dy = (library.view(pool[start : start + case.size], case.shape) for pool in (self.x, self.dy))
            yield Data(x, dy, *vectors)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
