"""Measure from which size on numbabn's norms are faster in PyTorch: ``python -m benchmarks.torch_sizes``.

Prints, for tensors of several sizes, the time of a forward and a backward call of PyTorch's module over that
of numbabn's, and the same where a ReLU6 follows, which numbabn computes in the same pass. Before every call
the caches are emptied, and then the input is written: a step of a network leaves more in them. numbabn takes
all sizes here; `numbabn.torch` leaves small ones to PyTorch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm

import numbabn.torch
from benchmarks.tables import table
from benchmarks.workers import bind_threads
from numbabn.torch import _worth

ROUNDS, WARM_UP = 15, 3
CACHE_BYTES = 64 << 20  # more than the caches hold
BATCHES = (
    (32, 192, 6, 6),
    (32, 384, 6, 6),
    (32, 192, 12, 12),
    (16, 384, 14, 14),
    (32, 144, 24, 24),
    (16, 144, 56, 56),
    (16, 96, 112, 112),
)
ROWS = ((256, 256), (1024, 256), (2048, 768), (8192, 768), (32768, 768))
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
OF_BATCHES: dict[str, Callable[[int], nn.Module]] = {
    "batch norm": nn.BatchNorm2d,
    "group norm": lambda channels: nn.GroupNorm(32 if channels % 32 == 0 else 16, channels),
    "instance norm": lambda channels: nn.InstanceNorm2d(channels, affine=True),
}
OF_ROWS: dict[str, Callable[[int], nn.Module]] = {"layer norm": nn.LayerNorm, "RMS norm": nn.RMSNorm}


class Caches:
    """Memory whose reading leaves nothing else in the caches."""

    def __init__(self) -> None:
        self._memory = torch.zeros(CACHE_BYTES // 4)

    def empty(self) -> None:
        """Read and write all of it."""
        self._memory.add_(1.0)


def main() -> None:
    bind_threads("benchmarks.torch_sizes")
    _worth.LEAST = dict.fromkeys(_worth.LEAST, (0, 0))
    cases = [
        (name, make, torch.randn(shape).to(memory_format=memory_format), layout)
        for layout, memory_format in FORMATS.items()
        for name, make in OF_BATCHES.items()
        for shape in BATCHES
    ]
    cases += [(name, make, torch.randn(shape), "rows") for name, make in OF_ROWS.items() for shape in ROWS]
    rows = []
    for name, make, x, layout in tqdm(cases, unit="row"):
        shape = "x".join(map(str, x.shape))
        rows.append([name, layout, shape, f"{x.numel():,}", *(f"{ratio:.2f}" for ratio in ratios(make, x))])
    headings = ["norm", "layout", "shape", "elements", "times as fast", "with ReLU6"]
    print(f"On {torch.get_num_threads()} threads:\n")
    print(table(headings, rows, text_columns=3))


def ratios(make: Callable[[int], nn.Module], x: Tensor) -> list[float]:
    """Return how many times as fast numbabn is: the norm alone, and followed by ReLU6."""
    channels = x.shape[1]
    pairs = []
    for follows in (), (nn.ReLU6(inplace=True),):
        plain, converted = (nn.Sequential(make(channels), *follows) for _ in range(2))
        pairs.append((plain, numbabn.torch.convert(converted, fuse=True)))
    times = median_times([module for pair in pairs for module in pair], x)
    return [times[0] / times[1], times[2] / times[3]]


def median_times(modules: list[nn.Module], x: Tensor) -> list[float]:
    """Return the median seconds of a forward and a backward call of every module, which take turns."""
    caches = Caches()
    times: list[list[float]] = [[] for _ in modules]
    for turn in range(WARM_UP + ROUNDS):
        for module, seconds in zip(modules, times, strict=True):
            given, dy = x.clone().requires_grad_(), torch.empty_like(x)
            caches.empty()
            given.data.copy_(x)
            start = perf_counter()
            y = module(given)
            forward = perf_counter() - start
            caches.empty()
            dy.copy_(x)
            start = perf_counter()
            y.backward(dy)
            if turn >= WARM_UP:
                seconds.append(forward + perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    main()
