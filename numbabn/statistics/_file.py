"""State files: NumPy's npz without pickle, replaced whole, so that a reader never sees half of one."""

import contextlib
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write a file that takes the place of an old one at once, or not at all.

    The new file has no name until all of it is on the disk, where the system knows such files. It gets the
    permissions of the old one, and symbolic links to the old one lead to it.
    """
    target = Path(path).resolve()
    # Short, because the name of the target may be as long as names can be; and not a file of tempfile, which
    # only its owner could read.
    temporary = target.with_name(f".numbabn-{secrets.token_hex(8)}.tmp")
    descriptor, has_name = _open(temporary)
    try:
        with open(descriptor, "w+b") as file:  # noqa: PTH123 - of a descriptor
            np.savez(file, **arrays)
            file.flush()
            if os.chmod in os.supports_fd:
                with contextlib.suppress(OSError):  # there is no old file, or it is somebody else's
                    os.chmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))  # noqa: PTH101
            os.fsync(file.fileno())
            if not has_name:
                # Only with a src_dir_fd, whichever it is, does Python follow this link to the file.
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _open(path: Path) -> tuple[int, bool]:
    """Return the descriptor of a new file in the folder of a path, and whether it already has this name."""
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").exists():
        with contextlib.suppress(OSError):  # of a file system that has no files without a name
            return os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666), False
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True


def load(file: BinaryIO) -> dict[str, Any]:
    """Return the arrays of a file that `save` wrote; of any other file some type of error is raised."""
    # Not np.load: it would accept a file of one array, and say of anything else that it may be a pickle.
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            # `save` compresses nothing; a compressed entry may have any size once it is read.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename} is compressed")
            with archive.open(info) as member:
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
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
