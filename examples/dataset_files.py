"""The data that dataset_statistics.py reads: folders of images or of .npy files, single files, samples.

All data are read in chunks. ``edges`` are the numbers of the rows or files at which the chunks begin and end,
and ``arrays(i)`` yields functions that read the arrays of chunk i.
"""

import gzip
import hashlib
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package installs it
IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
IMAGE_CHANNELS = (1, 3, 4)
CHUNK_BYTES = 16 << 20
CHUNK_FILES = 16
IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class BrokenFileError(ValueError):
    """A file of a folder cannot be used; the message names the file and the reason."""


class ArrayData:
    """An array from a file or from scikit-learn, which is processed in chunks along its first axis."""

    unit = "row"

    def __init__(self, name, read, axis=None, path=None):
        self.name, self.read, self.path = name, read, path
        self.array = array = read()
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"it has no rows of values, its shape is {array.shape}")
        self.dtype, self.images = array.dtype, array.ndim > 2
        self.axis = guess_axis(array.shape) if axis is None else axis
        rows = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes))
        self.edges = [*range(0, len(array), rows), len(array)]

    def arrays(self, i):
        """Yield a function that returns the rows from ``edges[i]`` to ``edges[i + 1]``, the last excluded."""
        yield lambda: self.array[self.edges[i] : self.edges[i + 1]]

    def identity(self):
        """Return a text that identifies the data: a description, and for a file its fingerprint."""
        return f"{self}{fingerprint(self.path, [self.path]) if self.path else ''}"

    def __getstate__(self):
        return {**vars(self), "array": None}  # a worker process reads the array itself

    def __setstate__(self, state):
        vars(self).update(state)
        self.array = self.read()

    def __str__(self):
        return f"{self.name}: {self.dtype} {self.array.shape}, {axis_text(self)}"


class Folder:
    """The files of one kind in a folder and all folders in it; a chunk is some of the files."""

    unit = "file"

    def __init__(self, folder, files):
        self.folder, self.files, self.name = folder, files, folder.name
        self.edges = [*range(0, len(files), CHUNK_FILES), len(files)]

    def arrays(self, i):
        """Yield functions that read the files of chunk i; they may raise a BrokenFileError."""
        for path in self.files[self.edges[i] : self.edges[i + 1]]:
            yield partial(self.read, path)

    def read(self, path):
        """Return the array in a file."""
        try:
            return self.read_file(path)
        except MemoryError:
            raise
        except Exception as error:  # what is in a broken file can raise almost any exception
            raise BrokenFileError(f"cannot use {path}: {error}") from error

    def identity(self):
        """Return a text that identifies the data: a description, and the fingerprint of all files."""
        return f"{self}{fingerprint(self.folder, self.files)}"


class ImageFolder(Folder):
    """A folder of images; an array has the RGB pixels of one of them."""

    axis, dtype, images = -1, np.dtype(np.uint8), True

    def __init__(self, folder, files):
        super().__init__(folder, files)
        self.open_image = image_opener()

    def read_file(self, path):
        """Return the RGB pixels of an image file, in the shape (pixels, 3)."""
        with self.open_image(path) as image:
            if image.mode[0] in "IF":  # these have more than 8 bits, and convert() would clip them to 255
                raise ValueError(f"its pixels, of mode {image.mode}, have more than 8 bits; use a .npy file")
            return np.asarray(image.convert("RGB")).reshape(-1, 3)

    def __str__(self):
        return f"{self.name}: {len(self.files)} images"


class NpyFolder(Folder):
    """A folder of .npy files, each with an image, a row or rows of features, or a part of a larger array.

    All have the dtype, the number of axes and the channels of the first one that can be read.
    """

    def __init__(self, folder, files, axis=None):
        super().__init__(folder, files)
        self.first, array = first_readable(files)
        self.axis = guess_axis_of_part(array.shape) if axis is None else axis
        self.dtype, self.images = array.dtype, array.ndim > 2
        self.kind = self.kind_of(array)

    def kind_of(self, array):
        """Return what all arrays must have in common with the first one."""
        return array.dtype, array.ndim, () if self.axis == () else array.shape[self.axis]

    def read_file(self, path):
        """Return the array of a .npy file, memory-mapped."""
        array = read_npy(path)
        if self.kind_of(array) != self.kind:
            dtype, ndim, channels = self.kind
            raise ValueError(
                f"it is {array.dtype} {array.shape} and does not go with {self.first.name}, "
                f"which is {dtype} of {ndim} axes with {channels or 'no'} channels"
            )
        return array

    def __str__(self):
        return f"{self.name}: {len(self.files)} .npy files of {self.dtype}, {axis_text(self)}"


def image_opener():
    """Return Pillow's function that opens an image; exit if Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise SystemExit('images need Pillow: python -m pip install "numbabn[examples]"') from error
    return Image.open


def first_readable(files):
    """Return the first .npy file that can be read, and its array."""
    for path in files:
        try:
            return path, read_npy(path)
        except (EOFError, OSError, ValueError) as error:
            reason = f"{path.name}: {error}"
    raise ValueError(f"none of its {len(files)} .npy files can be read, not even {reason}")


def axis_text(data):
    """Return a description of the axis of channels or features."""
    if data.axis == ():
        return "no channels"
    return f"{'channel' if data.images else 'feature'} axis {data.axis}"


def fingerprint(path, files):
    """Return a text that changes with the files: path, total size, and a digest of names, sizes and times."""
    # The digest covers the sizes of chunks because a state counts chunks.
    size, digest = 0, hashlib.sha256(repr((CHUNK_BYTES, CHUNK_FILES)).encode())
    for file in files:
        stat = file.stat()
        size += stat.st_size
        digest.update(repr((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns)).encode())
    return f" at {path}, {size} bytes, version {digest.hexdigest()[:16]}"


def guess_axis(shape):
    """Return the channel axis that an array of this shape probably has.

    Arrays of shape (N,) and grey images, (N, H, W), have no channels, and the result is an empty tuple.
    Images are taken for (N, C, H, W) if only C is a usual number of channels (1, 3 or 4). The channels of all
    other arrays are on the last axis.
    """
    if len(shape) in (1, 3):
        return ()
    first = len(shape) == 4 and shape[1] in IMAGE_CHANNELS and shape[3] not in IMAGE_CHANNELS
    return 1 if first else -1


def guess_axis_of_part(shape):
    """Return the channel axis that one of many arrays probably has.

    It is like that of `guess_axis`, but an array may be one image, (H, W, C) or (C, H, W), or one row, (C,).
    """
    if len(shape) == 1:
        return -1
    if len(shape) == 3 and shape[-1] in IMAGE_CHANNELS:
        return -1
    if len(shape) == 3 and shape[0] in IMAGE_CHANNELS:
        return 0
    return guess_axis(shape)


def read_idx(path):
    """Return the array of an IDX file, memory-mapped, or read into memory if the file is compressed."""
    packed = path.suffix == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        zero, kind, rank = file.read(2), *file.read(2)
        if zero != b"\0\0" or kind not in IDX_DTYPES:
            raise ValueError("it is neither a folder, nor a .npy, .npz or IDX file")
        shape = tuple(np.frombuffer(file.read(4 * rank), ">u4").tolist())
        if packed:
            return np.frombuffer(file.read(), IDX_DTYPES[kind]).reshape(shape)
        return np.memmap(path, IDX_DTYPES[kind], "r", file.tell(), shape)


def read_npy(path):
    """Return the array of a .npy file, memory-mapped."""
    return np.load(path, mmap_mode="r")


def read_npz(path):
    """Return the first array of a .npz file."""
    with np.load(path) as arrays:
        return arrays[arrays.files[0]]


def read_digits():
    """Return the images of scikit-learn's handwritten digits, in the shape (N, H, W)."""
    from sklearn.datasets import load_digits

    return load_digits().images


def read_sample_images():
    """Return scikit-learn's two sample photographs, in the shape (N, H, W, C)."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


BUILT_IN = {"digits": read_digits, "sample-images": read_sample_images}
INSTALLED = {
    "fashion-mnist": FASHION_MNIST / "train-images-idx3-ubyte.gz",
    "fashion-mnist-test": FASHION_MNIST / "t10k-images-idx3-ubyte.gz",
}


def open_data(name, axis=None):
    """Return the data at a path, or the installed data that have this name; exit if there are none."""
    path = Path(name).resolve()
    if not path.exists() and name in BUILT_IN:
        return ArrayData(name, BUILT_IN[name], axis)
    if not path.exists() and name in INSTALLED:
        path = INSTALLED[name]
        if not path.exists():
            raise SystemExit(f"there is no {path}; Debian's package dataset-fashion-mnist installs it")
    if not path.exists():
        raise SystemExit(f"there is no {name}")
    try:
        if path.is_dir():
            return open_folder(path, axis)
        read = {".npy": read_npy, ".npz": read_npz}.get(path.suffix, read_idx)
        return ArrayData(path.name, partial(read, path), axis, path)
    except (EOFError, IndexError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SystemExit(f"cannot use {path}: {error}") from error


def open_folder(folder, axis):
    """Return the images or the .npy files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGES]
    arrays = [path for path in files if path.suffix.lower() == ".npy"]
    if images and arrays:
        raise ValueError(
            f"it has {len(images)} images and {len(arrays)} .npy files; name a folder of one kind"
        )
    if images:
        return ImageFolder(folder, images)
    if arrays:
        return NpyFolder(folder, arrays, axis)
    raise ValueError(f"it has no .npy files and no images; known are {', '.join(sorted(IMAGES))}")
