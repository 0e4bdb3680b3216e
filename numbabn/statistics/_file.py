"""State files: NumPy's npz without pickle, replaced whole, so that a reader never sees half of one."""

import contextlib
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write a file that takes the place of an old one at once, or not at all.

    The new file is written beside the old one under another name, brought to the disk, and renamed.
    """
    target = Path(path)
    # Not a file of tempfile, which only its owner could read.
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
    """Return the arrays of a file that `save` wrote; of any other file some type of error is raised."""
    # Not np.load: it would accept a file of one array, and say of anything else that it may be a pickle.
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    # The directory of a zip file has no checksum, and an entry of a wrong length hides those after it: so the
    # number of entries is compared with the one that is written at the end of the file.
    file.seek(-12, os.SEEK_END)
    if len(arrays) != int.from_bytes(file.read(2), "little"):
        raise ValueError("its directory is damaged")
    return arrays


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new name to the disk; nothing is done on systems where folders cannot be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
