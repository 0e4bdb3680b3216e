"""The sections that measure: every library on every row, and the host's time for a small array."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from time import perf_counter

from numba import cuda

from benchmarks.gpu import peers
from benchmarks.gpu.arrays import Pool
from benchmarks.gpu.results import Row, cases_at, message
from benchmarks.gpu.timing import Clock, device_times, host_times
from benchmarks.libraries import COPY, LAYER_BYTES, NUMBABN, Operations
from benchmarks.measure import Record
from benchmarks.targets import SMALLEST
from tests.cuda.runner import usable
from tests.support.cases import CASES, Case

ROUNDS, SECONDS, FEWEST = 2, 0.02, 10
# In the order in which PyTorch's compiler gets to them: a row takes it some ten seconds.
COMPILED_ROWS = ("32x64x112x112 NCHW", "32x112x112x64 NHWC", "32x256x56x56 NCHW", "65536x256 NC", "32x64 NC")


def at_batch(batch: int) -> Iterator[Row]:
    """Time all libraries but torch.compile on the rows of a batch size."""
    names = [name for name in peers.ENTRIES if name != peers.COMPILED]
    yield from speed(cases_at(batch), names, usable(), Clock(), _l2_bytes())
    yield {"kind": "multiprocessors", "number": int(cuda.get_current_device().MULTIPROCESSOR_COUNT)}


def speed(
    cases: Sequence[Case], names: Sequence[str], found: Sequence[str], clock: Clock, l2_bytes: int
) -> Iterator[Row]:
    """Time entries in turn on every case and operation, with arrays of the libraries that were found.

    An entry that fails is left out from there on.
    """
    yield message(f"two events with nothing in between are {clock.nothing() * 1e3:.1f} us apart")
    pool, able = Pool(cases, l2_bytes), {}
    for name in names:
        entry, takes = peers.ENTRIES[name]
        library = next((other for other in takes if other in found), None)
        if library is None:
            yield message(f"{name} is left out: it needs {' or '.join(takes)}", lacks=name)
        else:
            able[name] = entry, library
    for case in cases:
        inputs: dict[str, list[Operations]] = {}
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for operation, _, (name, (entry, library)) in product(
            peers.OPERATIONS, range(ROUNDS), list(able.items())
        ):
            if name not in able:
                continue
            try:
                if name not in inputs:
                    inputs[name] = [entry(case, data) for data in pool.inputs(case, library)]
                calls = [operations[operation] for operations in inputs[name]]
                times[operation, name] += device_times(calls, clock, SECONDS, FEWEST)
            except Exception as error:
                del able[name]
                inputs.pop(name, None)
                times.pop((operation, name), None)
                text = f"{name} failed on {case.name} and is left out from there on: {error!r:.500}"
                yield message(text, lacks=name)
        for (operation, name), pooled in times.items():
            yield {"kind": "record", **Record.of(operation, case, name, pooled).as_row()}


def latency(found: Sequence[str], clock: Clock, case: Case = SMALLEST, **how: int) -> Iterator[Row]:
    """Time the host for one call of every entry on a small array; numbabn's with every library's arrays."""
    pool = Pool([case], 0)
    for name, (entry, takes) in peers.ENTRIES.items():
        if name in (COPY, peers.COMPILED):
            continue
        ours = name.startswith(NUMBABN)
        for library in [other for other in takes if other in found][: None if ours else 1]:
            try:
                operations = entry(case, next(pool.inputs(case, library)))
                for operation in peers.OPERATIONS:
                    times = host_times(operations[operation], clock, **how)
                    label = f"{name} ({library})" if ours else name
                    yield {"kind": "latency", **Record.of(operation, case, label, times).as_row()}
            except Exception as error:
                yield message(f"{name} with {library} failed on {case.name}: {error!r:.500}", lacks=name)


def compiled(seconds: float) -> Iterator[Row]:
    """Time torch.compile on as many rows as there is time for."""
    found = usable()
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
        yield from speed([case], (peers.COMPILED,), found, clock, _l2_bytes())
        took = max(took, perf_counter() - start)


def _l2_bytes() -> int:
    return int(cuda.get_current_device().L2_CACHE_SIZE)
