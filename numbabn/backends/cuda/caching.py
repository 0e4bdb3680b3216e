"""Compiled kernels on disk, where Numba's cache lies: a process that finds them starts in milliseconds."""

import contextlib
from collections.abc import Callable
from typing import Any

from numba.cuda.core.caching import NullCache
from numba.cuda.dispatcher import CUDACache

from numbabn.backends.stamp import StampedCache


class _PackageCache(StampedCache, CUDACache):  # type: ignore[misc]
    """The files of kernels, by their limit on registers."""

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save a compiled kernel if that is possible."""
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)


def cache_of(function: Callable[..., None], max_registers: int | None) -> Any:
    """Return the cache of a kernel, or where no folder can be written to one that keeps nothing."""
    try:
        return _PackageCache(function, str(max_registers or "all"))
    except RuntimeError:
        return NullCache()
