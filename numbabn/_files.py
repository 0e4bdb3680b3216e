"""State files: NumPy's npz without pickle, whole at every moment."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numbabn._arrays import Array


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> None:
    """Write a file that takes the place of the old one at once, or not at all.

    It is written beside the old one under a name of its own, brought to the disk, and renamed.
    """
    target = Path(path)
    # Not tempfile's: that would be readable by its owner only.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read such a file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
