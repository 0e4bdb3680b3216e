"""The sections that measure: every library on every row, and the host's time for a small array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from time import perf_counter
from typing import Any

from benchmarks.gpu import peers
from benchmarks.gpu.arrays import ArrayLibrary, Pool
from benchmarks.gpu.timing import Clock, device_times, host_times, record
from benchmarks.libraries import COPY, LAYER_BYTES, NUMBABN, Operations
from benchmarks.targets import SMALLEST
from tests.cases import CASES, RESNET50_BATCH, RESNET50_NCHW, RESNET50_NHWC, Case

Row = dict[str, Any]

ROUNDS, SECONDS, FEWEST = 2, 0.02, 10
# In the order in which PyTorch's compiler gets to them: a row takes it some ten seconds.
COMPILED_ROWS = ("32x64x112x112 NCHW", "32x112x112x64 NHWC", "32x256x56x56 NCHW", "65536x256 NC", "32x64 NC")


def cases(batch: int) -> list[Case]:
    """Return the rows of a batch size; those that are no image batches of ResNet-50 come with the smaller."""
    resnet = (*RESNET50_NCHW, *RESNET50_NHWC)
    if batch == RESNET50_BATCH:
        return list(CASES)
    return [case.with_batch(batch) for case in resnet]


def speed(
    rows: list[Case], names: tuple[str, ...], found: dict[str, ArrayLibrary], clock: Any, l2: int
) -> Iterator[Row]:
    """Time the libraries in turn on every row and operation; one that fails is left out from there on."""
    pool, able = Pool(rows, l2), dict.fromkeys(names)
    yield message(f"two events with nothing in between are {clock.nothing() * 1e3:.1f} us apart")
    for case in rows:
        inputs: dict[str, list[Operations]] = {}
        for name in list(able):
            entry, takes = peers.ENTRIES[name]
            library = next((found[other] for other in takes if other in found), None)
            if library is None:
                yield message(f"{name} is left out: it needs {' or '.join(takes)}")
                del able[name]
                continue
            try:
                inputs[name] = [entry(case, data, library) for data in pool.inputs(case, library)]
            except Exception as error:
                del able[name]
                yield _failed(name, case, error)
        for operation in peers.OPERATIONS:
            times: dict[str, list[float]] = {name: [] for name in inputs}
            for name in list(inputs) * ROUNDS:
                if name not in inputs:
                    continue
                calls = [operations[operation] for operations in inputs[name]]
                try:
                    times[name] += device_times(calls, clock, SECONDS, FEWEST)
                except Exception as error:
                    del able[name], inputs[name], times[name]
                    yield _failed(name, case, error)
            for name, pooled in times.items():
                yield {"kind": "record", **asdict(record(operation, case, name, pooled))}


def latency(found: dict[str, ArrayLibrary], clock: Any, case: Case = SMALLEST, **how: int) -> Iterator[Row]:
    """Time the host for one call of every library on a small array."""
    pool = Pool([case], 0)
    for name, (entry, takes) in peers.ENTRIES.items():
        if name in (COPY, peers.COMPILED):
            continue
        ours = name.startswith(NUMBABN)
        for library in [found[other] for other in takes if other in found][: None if ours else 1]:
            try:
                operations = entry(case, next(iter(pool.inputs(case, library))), library)
                for operation in peers.OPERATIONS:
                    times = host_times(operations[operation], clock, **how)
                    label = f"{name} ({library.name})" if ours else name
                    yield {"kind": "latency", **asdict(record(operation, case, label, times))}
            except Exception as error:
                yield message(f"{name} with {library.name} failed on {case.name}: {error!r:.500}")


def compiled(found: dict[str, ArrayLibrary], seconds: float, l2: int) -> Iterator[Row]:
    """Time torch.compile on as many rows as there is time for, on one input each."""
    if "torch" not in found:
        yield message("torch.compile is skipped: PyTorch is not installed, or sees no GPU")
        return
    import torch

    end = perf_counter() + seconds
    rows = [case for name in COMPILED_ROWS for case in CASES if case.name == name]
    rows += [case for case in CASES if case not in rows and case.nbytes > LAYER_BYTES]
    clock, took = Clock(), 0.0
    for k, case in enumerate(rows):
        start = perf_counter()
        if start + took > end:
            yield message(f"torch.compile had time for {k} of {len(rows)} rows")
            return
        torch.compiler.reset()  # a function compiled for too many shapes would silently run eagerly
        yield from speed([case], (peers.COMPILED,), found, clock, l2)
        took = max(took, perf_counter() - start)


def message(text: str) -> Row:
    """Return a row that is read, not counted."""
    return {"kind": "message", "text": text}


def _failed(name: str, case: Case, error: Exception) -> Row:
    return message(f"{name} failed on {case.name} and is left out from there on: {error!r:.500}")


def resident_blocks() -> Iterator[Row]:
    """Return how many blocks of the kernels that read once ran at a time, for the byte model."""
    from numbabn.backends.cuda import kernels

    counts = [
        blocks for kernel in (kernels.forward, kernels.backward) for blocks in kernel._resident.values()
    ]
    if counts:
        yield {"kind": "resident", "blocks": min(counts)}
