"""What a compiled kernel on disk is valid for."""

import functools
import hashlib
from pathlib import Path


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
