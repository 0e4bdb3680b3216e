"""How every CPU kernel is compiled, cached and run: the one place for Numba's options.

Kernels compile on their first call, never at import. Each one is a serial function over a range of tasks,
``kernel(lo, hi, *arguments)``, with a thin ``prange`` driver beside it, ``driver(tasks, *arguments)``.
"""

import contextlib
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numba
from numba import config, njit
from numba.core.caching import FunctionCache

# contract: fused multiply-adds. Not reassoc, which would turn (x - hi) - lo into x - (hi + lo); not "fast",
# which deletes isnan; not arcp, which makes 1 / sqrt(0) a NaN.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

# Below this many bytes of x one thread is faster: entering a parallel region costs 2 to 20 us.
PARALLEL_BYTES = 512 * 1024


@functools.cache
def _package_stamp():
    """Digest of every source file of this package: what a cached kernel is valid for.

    Numba stamps a cached function with the file that defines it alone, so after an upgrade that changes a
    helper in another file it would go on serving the old machine code.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _PackageCache(FunctionCache):
    """Numba's on-disk cache, stamped with the whole package."""

    def __init__(self, function):
        super().__init__(function)
        self._cache_file._source_stamp = _package_stamp()


def _cached(dispatcher):
    if not config.DISABLE_JIT:
        # Where no cache folder can be written to: compile in every process rather than fail the import.
        with contextlib.suppress(RuntimeError):
            dispatcher._cache = _PackageCache(dispatcher.py_func)
    return dispatcher


def helper(function):
    """Compile a function that kernels call."""
    return njit(**_OPTIONS)(function)


def kernel(function):
    """Compile a serial kernel that is called from Python, with an on-disk cache."""
    return _cached(njit(**_OPTIONS)(function))


def driver(function):
    """Compile a parallel driver, with an on-disk cache."""
    return _cached(njit(parallel=True, **_OPTIONS)(function))


_forked_from_openmp = False


def _note_fork():
    """In a forked child: OpenMP workers did not survive the fork, and entering a region kills the child."""
    global _forked_from_openmp
    with contextlib.suppress(ValueError):  # raised where Numba's pool was not running in the parent
        _forked_from_openmp = _forked_from_openmp or numba.threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def use_threads(nbytes: int) -> bool:
    """Whether work of this size is worth a parallel region, and a parallel region is safe here.

    Numba's workqueue layer aborts the process when two threads enter it at once, so it is never entered.
    """
    if nbytes < PARALLEL_BYTES or _forked_from_openmp or config.DISABLE_JIT:
        return False
    # get_num_threads starts the pool, and only a started pool has a layer.
    return numba.get_num_threads() > 1 and numba.threading_layer() in ("omp", "tbb")


def run(kernel: Any, driver: Any, tasks: int, nbytes: int, *arguments: Any) -> None:
    """Run all tasks of a kernel, in parallel where that pays; the bits are the same either way."""
    if tasks > 1 and use_threads(nbytes):
        driver(tasks, *arguments)
    else:
        kernel(0, tasks, *arguments)


def cache_folder() -> str | None:
    """Return the folder of compiled kernels, or None where no folder can be written to."""
    try:
        return None if config.DISABLE_JIT else FunctionCache(run).cache_path
    except RuntimeError:
        return None
