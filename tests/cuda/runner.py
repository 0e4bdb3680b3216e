"""Runs the checks of `hardware` and the table of all backends without pytest, and tells how they went."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

from tests.cuda import hardware
from tests.cuda.hardware import LIBRARIES
from tests.support import table
from tests.support.backends import BACKENDS
from tests.support.cases import CASES

WORKERS = 8  # most of the time goes to the reference in NumPy


class Outcome(NamedTuple):
    """How one check went, or all of one kind: what failed, or what is worth reading."""

    name: str
    passed: bool
    detail: str


def usable(libraries=LIBRARIES):
    """Return the libraries that are installed and see a GPU."""
    return [name for name in libraries if hardware.missing(name) is None]


def shared_table(libraries=LIBRARIES, large=True):
    """Check the table of all backends with arrays of every library."""
    return _run(usable(libraries), table.rows(large), "shared table")


def whole_cases(cases=CASES, libraries=LIBRARIES):
    """Compare every case at its full size with float64, for the first library that there is."""
    return _run(usable(libraries)[:1], hardware.whole_cases(cases), "cases of the benchmark")


def repeat(cases=CASES, libraries=LIBRARIES):
    """Compare the bits of many runs, which differ in what else the device does."""
    what = f"cases with the same bits in {hardware.REPEATS} runs"
    return _run(usable(libraries), hardware.repeated_cases(cases), what)


def streams():
    """Check streams and CUDA graphs of each library that has them, one after the other."""
    return _run(usable(hardware.STREAMS), hardware.stream_rows(), "streams and CUDA graphs", workers=1)


def _run(libraries, rows, what, workers=WORKERS):
    """Run checks in threads, each with backends of its own; tell what fails or says something, and sum up."""
    own = threading.local()

    def run(library, row):
        backends = own.__dict__.setdefault("backends", {})
        backend = backends.get(library) or backends.setdefault(library, BACKENDS[library]())
        return row.check(backend, *row.arguments)

    passed = dict.fromkeys(libraries, 0)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [(*job, pool.submit(run, *job)) for job in product(libraries, rows)]
        for library, row, result in waiting:
            outcome = _outcome(f"{library}: {row.name}", result.result)
            passed[library] += outcome.passed
            if outcome.detail:
                yield outcome
    for library, count in passed.items():
        yield Outcome(f"{library}: {what}", count == len(rows), f"{count} of {len(rows)}")


def _outcome(name, result):
    try:
        return Outcome(name, True, result() or "")
    except Exception as error:
        return Outcome(name, False, f"{type(error).__name__}: {error}"[:500])
