"""State files: NumPy's npz without pickle, whole at every moment."""

import contextlib
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write a file that takes the place of the old one at once, or not at all.

    It is written beside the old one under a name of its own, brought to the disk, and renamed.
    """
    target = Path(path)
    # Not tempfile's: that would be readable by its owner only.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def load(file: BinaryIO) -> dict[str, Any]:
    """Read such a file; many kinds of errors say that it is something else."""
    # Not np.load: of what is no npz it says that it may be a pickle, and reads a single array.
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    # The directory has no checksum: with one wrong length an entry swallows those after it.
    file.seek(-12, os.SEEK_END)
    if len(arrays) != int.from_bytes(file.read(2), "little"):
        raise ValueError("its directory is damaged")
    return arrays


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
