"""One operation of batch normalisation on arrays of 4 KB to 4 GB, in the libraries of the scaling benchmark.

As `benchmarks.libraries`, but an entry has the one operation of its case, and the arrays of this operation
alone: two for a forward pass, three for backward. With the largest arrays more would not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks import libraries
from benchmarks.libraries import BACKWARD, COPY, NUMBABN, OUT, Operations, touched
from tests.support.cases import Case

LARGEST_OF_NUMPY = 300_000_000  # bytes: of larger arrays NumPy takes seconds, and memory for six of them
REPEATED = 1_000_003


@dataclass(frozen=True)
class ScalingCase(Case):
    """One operation on one array with a number of threads."""

    operation: str
    threads: int

    @property
    def name(self) -> str:
        """Return one label, such as ``backward 5x64x56x56 NCHW threads=2``."""
        return f"{self.operation} {super().name} threads={self.threads}"

    @property
    def held(self) -> int:
        """Return the bytes of the arrays that the operation reads and writes, each of them once."""
        return (3 if self.operation == BACKWARD else 2) * self.nbytes


@dataclass(frozen=True)
class Data:
    """The inputs of one case, which are made anew one after the other.

    So a library that copies them to its own memory never has two copies of all.
    """

    case: ScalingCase

    @classmethod
    def of(cls, case: ScalingCase) -> Data:
        """Return the inputs of a case."""
        return cls(case)

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield x, dy, gamma, beta, mean and var; dy has no elements where only backward would read it."""
        case, rng = self.case, np.random.default_rng(0)
        fill = partial(rng.standard_normal, dtype=np.float32)
        shapes = case.shape, case.shape if case.operation == BACKWARD else (0,) * len(case.shape)
        for shape in shapes:
            yield np.resize(fill(min(case.size, REPEATED)), shape)
        for _ in range(3):
            yield fill(case.channels)
        yield rng.uniform(0.5, 2, case.channels).astype(np.float32)


def _only(case: ScalingCase, operations: Operations) -> Operations:
    return {case.operation: operations[case.operation]}


def numbabn(case: ScalingCase, data: Data) -> Operations:
    return _only(case, libraries.numbabn(case, libraries.Data(*data.arrays())))


def numbabn_out(case: ScalingCase, data: Data) -> Operations:
    out = touched(case.shape)  # for dx as for y: y is not read again
    return _only(case, libraries.numbabn(case, libraries.Data(*data.arrays()), out, out))


def numpy(case: ScalingCase, data: Data) -> Operations:
    if case.nbytes > LARGEST_OF_NUMPY:
        return {}
    return _only(case, libraries.numpy(case, libraries.Data(*data.arrays())))


def pytorch(case: ScalingCase, data: Data) -> Operations:
    import torch

    torch.set_grad_enabled(False)
    own = (libraries.tensor(array, case.layout) for array in data.arrays())
    return _only(case, libraries.torch_operations(*own))


def copy(case: ScalingCase, data: Data) -> Operations:
    from benchmarks.floor import adder, copier

    x, dy, *_ = data.arrays()
    out = touched(case.shape)
    return {case.operation: adder(x, dy, out) if case.operation == BACKWARD else copier(x, out)}


STRONG_LIBRARIES = (OUT, "PyTorch", COPY)  # those that are measured with fewer threads, too
LIBRARIES: Mapping[str, Callable[[ScalingCase, Data], Operations]] = {
    NUMBABN: numbabn,
    OUT: numbabn_out,
    "NumPy": numpy,
    "PyTorch": pytorch,
    COPY: copy,
}
