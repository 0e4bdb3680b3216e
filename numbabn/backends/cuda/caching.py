"""Compiled kernels on disk, where Numba's cache lies: a process that finds them starts in milliseconds."""

import contextlib
from collections.abc import Callable
from typing import Any

from numba.cuda.core.caching import IndexDataCacheFile, NullCache
from numba.cuda.dispatcher import CUDACache

from numbabn.backends.stamp import package_stamp


class _PackageCache(CUDACache):  # type: ignore[misc]
    """Numba's on-disk cache, with files of its own for every version of the package and limit on registers.

    Numba takes no notice of jit options: code with and without a limit would share a file. The version is in
    the name too, because Numba writes the index before the code. Whatever is wrong with the folder, a full
    disk or a file cut short, a kernel can still be compiled.
    """

    def __init__(self, function: Callable[..., None], max_registers: int | None) -> None:
        super().__init__(function)
        stamp = package_stamp()
        name = f"{self._impl.filename_base}-{max_registers or 'all'}-{stamp[:16]}"
        self._cache_file = IndexDataCacheFile(self.cache_path, name, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled kernel, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file raises anything
            with contextlib.suppress(OSError):
                self.flush()  # a damaged index would refuse what is compiled now
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save a compiled kernel if that is possible."""
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)


def cache_of(function: Callable[..., None], max_registers: int | None) -> Any:
    """Return the cache of a kernel, or where no folder can be written to one that keeps nothing."""
    try:
        return _PackageCache(function, max_registers)
    except RuntimeError:
        return NullCache()
