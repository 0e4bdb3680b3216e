"""Mean and standard deviation per channel of a data set of any size, in one pass.

The data may be a folder of images (with all folders in it), a NumPy file (.npy, which is memory-mapped, or
.npz), or a file in the IDX format of MNIST, compressed or not::

    python examples/dataset_statistics.py                        # something that is there
    python examples/dataset_statistics.py --data photos/ --state photos.npz
    python examples/dataset_statistics.py --data images.npy --workers 4

With a state file, a run that was interrupted, in whatever way, goes on where the file was last written, and
ends with the same bits as one run would have, whatever the number of workers then and now. Files that have
changed in between are refused. Workers are processes of Dask, ``python -m pip install "numbabn[dask]"``.
"""

import argparse
import gzip
import hashlib
import time
import zipfile
import zlib
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import numbabn as nbn

# Debian's package of Fashion-MNIST installs its training images here.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CHUNK_BYTES = 16 << 20
CHUNK_FILES = 16
CHUNKS_PER_WORKER = 8  # each worker gets this many chunks before the state may be written again
IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


# Data, which are read in chunks and have a channel axis -----------------------------------------------------


class ArrayData:
    """An array from a file or from scikit-learn, which is processed in chunks along its first axis."""

    unit = "row"

    def __init__(self, name, read, axis, path=None):
        self.name, self.read, self.path = name, read, path
        self.array = array = read()
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"it has no rows of values, its shape is {array.shape}")
        self.dtype = array.dtype
        self.axis = guess_axis(array.shape) if axis is None else axis
        rows = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes))
        self.edges = [*range(0, len(array), rows), len(array)]

    def load(self, i):
        """Return chunk i, which is the rows from ``edges[i]`` to ``edges[i + 1]``, the last one excluded."""
        return self.array[self.edges[i] : self.edges[i + 1]]

    def identity(self):
        """Return a text that identifies the data: a description, and for a file its fingerprint."""
        return f"{self}{fingerprint(self.path, [self.path]) if self.path else ''}"

    def __getstate__(self):
        return {**vars(self), "array": None}  # a worker process reads the array itself

    def __setstate__(self, state):
        vars(self).update(state)
        self.array = self.read()

    def __str__(self):
        return f"{self.name}: {self.dtype} {self.array.shape}, channel axis {self.axis}"


class FolderData:
    """The images of a folder; a chunk holds the pixels of some of its files, in the shape (pixels, 3)."""

    unit, axis, dtype = "file", -1, np.dtype(np.uint8)

    def __init__(self, folder):
        self.folder = folder
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
        if not self.files:
            raise SystemExit(f"{folder} has no images; known are {', '.join(sorted(IMAGES))}")
        self.name = folder.name
        self.edges = [*range(0, len(self.files), CHUNK_FILES), len(self.files)]

    def load(self, i):
        """Return chunk i, which is the pixels of its files in one array of shape (pixels, 3)."""
        return np.concatenate([read_image(path) for path in self.files[self.edges[i] : self.edges[i + 1]]])

    def identity(self):
        """Return a text that identifies the data: a description, and the fingerprint of all files."""
        return f"{self}{fingerprint(self.folder, self.files)}"

    def __str__(self):
        return f"{self.name}: {len(self.files)} images"


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
    return 1 if len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4) else -1


def read_image(path):
    """Return the RGB pixels of an image file, in the shape (pixels, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # these have more than 8 bits, and convert() would clip them to 255
                raise ValueError(f"its pixels, of mode {image.mode}, have more than 8 bits; use a .npy file")
            return np.asarray(image.convert("RGB")).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot use {path}: {error}") from error


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


def open_data(name, axis):
    """Return the data at a path, or the data of scikit-learn that have this name."""
    path = Path(name).resolve()
    if path.is_dir():
        return FolderData(path)
    if path.exists():
        read = {".npy": read_npy, ".npz": read_npz}.get(path.suffix, read_idx)
        try:
            return ArrayData(path.name, partial(read, path), axis, path)
        except (EOFError, IndexError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise SystemExit(f"cannot use {path}: {error}") from error
    built_in = {"digits": read_digits, "sample-images": read_sample_images}
    if name not in built_in:
        raise SystemExit(f"there is no {name}")
    return ArrayData(name, built_in[name], axis)


# One pass ---------------------------------------------------------------------------------------------------


def statistics(data, state, seconds, workers):
    """Return the moments of the data, computed in one pass.

    With a path as ``state``, the pass goes on from the state file there, if it exists, and writes that file
    at the end and whenever at least ``seconds`` have passed since the last time. ``workers`` is the number of
    Dask's processes; with 0 this process does the work.
    """
    identity = data.identity() if state else None
    moments, done = load_state(state, identity) if state and state.exists() else (nbn.Moments(data.axis), 0)
    last, chunks = time.monotonic(), len(data.edges) - 1
    step = CHUNKS_PER_WORKER * workers if workers else 1
    with (
        cluster(workers),
        tqdm(total=data.edges[-1], initial=data.edges[done], unit=data.unit, desc=data.name) as progress,
    ):
        while done < chunks:
            end = min(done + step, chunks)
            # The parts are added one by one and in order, so that the bits of the result do not depend on
            # the number of workers.
            for part in distributed(data, done, end) if workers else [of_chunk(data, done)]:
                moments += part
            progress.update(data.edges[end] - data.edges[done])
            done = end
            if state and (done == chunks or time.monotonic() - last >= seconds):
                save_state(state, identity, moments, done)
                last = time.monotonic()
    return moments


def of_chunk(data, i):
    """Return the moments of chunk i."""
    return nbn.Moments(data.axis).update(data.load(i))


def distributed(data, start, end):
    """Return the moments of each chunk from start to end - 1, computed by Dask's workers."""
    import dask

    there = dask.delayed(data)
    return dask.compute(*(dask.delayed(of_chunk)(there, i) for i in range(start, end)))


def cluster(workers):
    """Return a context in which Dask has this number of worker processes on this machine, possibly none."""
    if not workers:
        return nullcontext()
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise SystemExit('--workers needs Dask: python -m pip install "numbabn[dask]"') from error

    return Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)


def load_state(path, identity):
    """Return the moments in a state file and the number of chunks that they cover."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            state = dict(file)
        done, of = int(state.pop("done")), str(state.pop("data"))
        moments = nbn.Moments.from_dict(state)
    except Exception as error:  # a broken file can raise almost any exception
        raise SystemExit(f"{path} is no state file, or broken ({error}); delete it to start anew") from error
    if of != identity:
        raise SystemExit(f"{path} is the state of other data, {of}; give another --state for {identity}")
    return moments, done


def save_state(path, identity, moments, done):
    """Write the moments and the number of chunks that they cover.

    They are written to a temporary file, which replaces the old state file once it is complete.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, done=done, data=identity, **moments.to_dict())
    temporary.replace(path)


# The command ------------------------------------------------------------------------------------------------


def report(moments, scale):
    """Print the statistics of each channel, and lines to paste into programs with torchvision or Keras."""
    mean, std, var = (np.atleast_1d(values) for values in (moments.mean, moments.std(), moments.var()))
    low, high, count = (np.atleast_1d(values) for values in (moments.min, moments.max, moments.count))
    print(f"{'channel':>7}  {'count':>12}  {'mean':>12}  {'std':>12}  {'min':>8}  {'max':>8}")
    for c in range(min(len(mean), 10)):
        print(f"{c:7}  {count[c]:12}  {mean[c]:12.6f}  {std[c]:12.6f}  {low[c]:8g}  {high[c]:8g}")
    if len(mean) > 10:
        print(f"and {len(mean) - 10} more")
    print("\n# torchvision" + (f", after ToTensor(), which divides by {scale:g}" if scale != 1 else ""))
    print(f"transforms.Normalize(mean={listed(mean / scale)}, std={listed(std / scale)})")
    print("# Keras, on the values as they are")
    print(f"keras.layers.Normalization(mean={listed(mean)}, variance={listed(var)})")


def listed(values):
    """Return the text of a Python list of numbers."""
    return "[" + ", ".join(f"{value:.8g}" for value in values) + "]"


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    default = str(FASHION_MNIST) if FASHION_MNIST.exists() else "sample-images"
    parser.add_argument(
        "--data",
        default=default,
        help="a path, or scikit-learn's digits or sample-images (default %(default)s)",
    )
    parser.add_argument("--axis", type=int, help="channel axis of an array (default: by its shape)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="go on from this file, and write to it")
    parser.add_argument("--save-every", type=float, default=10, metavar="SECONDS", help="(default 10)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes of Dask (default none)"
    )
    args = parser.parse_args()
    if args.state and not args.state.parent.is_dir():
        raise SystemExit(f"there is no folder {args.state.parent} for the state file")
    return args


def main():
    """Compute the statistics of the data and print them."""
    args = parse_args()
    data = open_data(args.data, args.axis)
    start = time.perf_counter()
    try:
        moments = statistics(data, args.state, args.save_every, args.workers)
    except (OSError, TypeError, ValueError) as error:  # faulty data raise these; workers cannot exit
        raise SystemExit(f"{data.name}: {error}") from error
    print(f"{data}; {time.perf_counter() - start:.1f} s\n")
    report(moments, 255 if data.dtype == np.uint8 else 1)


if __name__ == "__main__":
    main()
