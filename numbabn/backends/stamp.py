"""Files of compiled kernels that are valid for one version of the package."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


@functools.cache
def package_stamp() -> str:
    """Digest of every source file of the backends.

    Numba stamps a cached function with the file that defines it alone, so after an upgrade that changes a
    helper in another file it would go on serving the old machine code.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class StampedCache:
    """What is put before one of Numba's on-disk caches: files for every version of the package and variant.

    Numba takes no notice of jit options: serial and parallel code of one function would share a file. The
    version is in the name too, because Numba writes the index before the code: of a process killed in
    between, a new index would be left that names old code. And whatever is wrong with the folder, a full disk
    or a file cut short, a kernel can still be compiled.
    """

    def __init__(self, function: Callable[..., Any], variant: str) -> None:
        super().__init__(function)  # type: ignore[call-arg]
        numba: Any = self
        stamp = package_stamp()
        name = f"{numba._impl.filename_base}-{variant}-{stamp[:16]}"
        self._cache_file: Any = type(numba._cache_file)(numba.cache_path, name, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled kernel, or None."""
        numba: Any = super()
        try:
            return numba.load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file raises anything
            with contextlib.suppress(OSError):
                self._cache_file.flush()  # a damaged index would refuse what is compiled now
            return None
