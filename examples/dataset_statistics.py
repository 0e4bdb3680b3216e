"""Mean and standard deviation per channel of a data set of any size, in one pass.

The data may be a folder of images or of .npy files (with all folders in it), a NumPy file (.npy, which is
memory-mapped, or .npz), or a file in the IDX format of MNIST, compressed or not::

    python examples/dataset_statistics.py                        # something that is there
    python examples/dataset_statistics.py --data photos/ --state photos.npz --skip-broken
    python examples/dataset_statistics.py --data images.npy --workers 4 --output images.json

With a state file, a run that was interrupted, in whatever way, goes on where the file was last written, and
ends with the same bits as one run would have, whatever the number of workers then and now. Files that have
changed in between are refused. Workers are processes of Dask, ``python -m pip install "numbabn[dask]"``.
"""

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import console
import numpy as np
from checkpoint import replacing
from dataset_files import BUILT_IN, INSTALLED, BrokenFileError, open_data
from tqdm import tqdm

import numbabn as nbn

CHUNKS_PER_WORKER = 8  # each worker gets this many chunks before the state may be written again
MOST_ROWS = 10  # of a table, and of lists that are printed


# One pass ---------------------------------------------------------------------------------------------------


def statistics(data, args):
    """Return the moments of the data, computed in one pass, and what was wrong with files that were skipped.

    With a path ``args.state``, the pass goes on from the state file there, if it exists, and writes that file
    at the end and whenever at least ``args.save_every`` seconds have passed since the last time, but not
    before a file could be read: if all of them fail, the cause may be a codec that is missing.
    ``args.workers`` is the number of Dask's processes; with 0 this process does the work.
    """
    state, workers = args.state, args.workers
    identity = data.identity() if state else None
    moments, skipped, done = nbn.Moments(data.axis), [], 0
    if state and state.exists():
        moments, skipped, done = load_state(state, identity)
    last, chunks = time.monotonic(), len(data.edges) - 1
    step = CHUNKS_PER_WORKER * workers if workers else 1
    with (
        cluster(workers),
        tqdm(total=data.edges[-1], initial=data.edges[done], unit=data.unit, desc=data.name) as progress,
    ):
        while done < chunks:
            end = min(done + step, chunks)
            compute = distributed if workers else in_turn
            # The parts are added one by one and in order, so that the bits of the result do not depend on
            # the number of workers.
            for part, broken in compute(data, done, end, args.skip_broken):
                moments += part
                skipped += broken
            progress.update(data.edges[end] - data.edges[done])
            done = end
            due = done == chunks or time.monotonic() - last >= args.save_every
            if state and due and moments.shape is not None:
                save_state(state, identity, moments, skipped, done)
                last = time.monotonic()
    return moments, skipped


def of_chunk(data, i, skip_broken):
    """Return the moments of chunk i, and what was wrong with files that were skipped."""
    moments, broken = nbn.Moments(data.axis), []
    for read in data.arrays(i):
        try:
            moments.update(read())
        except BrokenFileError as error:
            if not skip_broken:
                raise
            broken.append(str(error))
    return moments, broken


def in_turn(data, start, end, skip_broken):
    """Yield what `of_chunk` returns for each chunk from start to end - 1."""
    return (of_chunk(data, i, skip_broken) for i in range(start, end))


def distributed(data, start, end, skip_broken):
    """Return what `of_chunk` returns for each chunk from start to end - 1, computed by Dask's workers."""
    import dask

    there = dask.delayed(data)
    return dask.compute(*(dask.delayed(of_chunk)(there, i, skip_broken) for i in range(start, end)))


def cluster(workers):
    """Return a context in which Dask has this number of worker processes on this machine, possibly none."""
    if not workers:
        return nullcontext()
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise SystemExit('--workers needs Dask: python -m pip install "numbabn[dask]"') from error

    return Client(n_workers=workers, threads_per_worker=1, dashboard_address=":0")


def load_state(path, identity):
    """Return what a state file holds: moments, what was skipped, and the number of chunks that they cover."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            state = dict(file)
        done, skipped, of = int(state.pop("done")), state.pop("skipped").tolist(), str(state.pop("data"))
        moments = nbn.Moments.from_dict(state)
    except Exception as error:  # a broken file can raise almost any exception
        raise SystemExit(f"{path} is no state file, or broken ({error}); delete it to start anew") from error
    if of != identity:
        raise SystemExit(f"{path} is the state of other data, {of}; give another --state for {identity}")
    return moments, skipped, done


def save_state(path, identity, moments, skipped, done):
    """Write moments, what was skipped, and the number of chunks that they cover."""
    skipped = np.array(skipped, dtype=np.str_)
    with replacing(path) as file:
        np.savez(file, done=done, skipped=skipped, data=identity, **moments.to_dict())


# What is printed and written --------------------------------------------------------------------------------


def as_numbers(moments):
    """Return the statistics of each channel as lists, which JSON can hold: None is no finite number."""
    found = {
        "count": moments.count, "mean": moments.mean, "std": moments.std(), "var": moments.var(),
        "min": moments.min, "max": moments.max,
    }  # fmt: skip
    return {name: [finite(value) for value in np.atleast_1d(found[name]).tolist()] for name in found}


def finite(value):
    """Return the number, or None in place of infinity and NaN."""
    return value if math.isfinite(value) else None


def print_table(moments, kind):
    """Print the statistics of each channel or feature."""
    mean, std = (np.atleast_1d(values) for values in (moments.mean, moments.std()))
    low, high, count = (np.atleast_1d(values) for values in (moments.min, moments.max, moments.count))
    print(f"{kind:>7}  {'count':>12}  {'mean':>12}  {'std':>12}  {'min':>8}  {'max':>8}")
    for c in range(min(len(mean), MOST_ROWS)):
        print(f"{c:7}  {count[c]:12}  {mean[c]:12.6f}  {std[c]:12.6f}  {low[c]:8g}  {high[c]:8g}")
    if len(mean) > MOST_ROWS:
        print(f"and {len(mean) - MOST_ROWS} more; --output FILE writes all of them")


def print_for_images(moments, scale):
    """Print lines to paste into programs with torchvision or Keras."""
    mean, std, var = (np.atleast_1d(values) for values in (moments.mean, moments.std(), moments.var()))
    print("\n# torchvision" + (f", after ToTensor(), which divides by {scale:g}" if scale != 1 else ""))
    print(f"transforms.Normalize(mean={listed(mean / scale)}, std={listed(std / scale)})")
    print("# Keras, on the values as they are")
    print(f"keras.layers.Normalization(mean={listed(mean)}, variance={listed(var)})")


def print_for_features(moments):
    """Print what scikit-learn's StandardScaler learns from a feature matrix."""
    mean, std, var = (np.atleast_1d(values) for values in (moments.mean, moments.std(), moments.var()))
    if len(mean) > MOST_ROWS:
        return
    print("\n# scikit-learn: StandardScaler().fit(x) has the attributes")
    print(f"n_samples_seen_ = {np.max(moments.count)}")
    print(f"mean_ = {listed(mean)}")
    print(f"var_ = {listed(var)}")
    print(f"scale_ = {listed(np.where(std == 0, 1, std))}")


def print_skipped(skipped):
    """Print how many files were skipped, and what was wrong with the first of them."""
    print(f"\n{len(skipped)} file{'' if len(skipped) == 1 else 's'} skipped:")
    for line in skipped[:MOST_ROWS]:
        print(line)
    if len(skipped) > MOST_ROWS:
        print(f"and {len(skipped) - MOST_ROWS} more; --output FILE names all of them")


def listed(values):
    """Return the text of a Python list of numbers."""
    return "[" + ", ".join(f"{value:.8g}" for value in values) + "]"


# The command ------------------------------------------------------------------------------------------------


def axis_or_none(text):
    """Return the axis that an option names; with "none" there are no channels."""
    return () if text == "none" else int(text)


def parse_args():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    default = "fashion-mnist" if INSTALLED["fashion-mnist"].exists() else "sample-images"
    parser.add_argument(
        "--data",
        default=default,
        help=f"a path, or one of {', '.join([*BUILT_IN, *INSTALLED])} (default %(default)s)",
    )
    parser.add_argument(
        "--axis", type=axis_or_none, help="channel axis of arrays, or none (default: by their shape)"
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="go on from this file, and write to it")
    parser.add_argument("--save-every", type=float, default=10, metavar="SECONDS", help="(default 10)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all results to this file, as JSON")
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out files of a folder that cannot be used"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes of Dask (default none)"
    )
    args = parser.parse_args()
    for file, what in ((args.state, "state"), (args.output, "output")):
        if file and not file.parent.is_dir():
            raise SystemExit(f"there is no folder {file.parent} for the {what} file")
    return args


def main(args):
    """Compute the statistics of the data, print them and write them."""
    data = open_data(args.data, args.axis)
    start = time.perf_counter()
    try:
        moments, skipped = statistics(data, args)
    except (OSError, TypeError, ValueError) as error:  # faulty data raise these; workers cannot exit
        raise SystemExit(f"{data.name}: {error}") from error
    if moments.shape is None:
        raise SystemExit(f"{data.name}: all {len(skipped)} files are broken, the first: {skipped[0]}")
    print(f"{data}; {time.perf_counter() - start:.1f} s\n")
    print_table(moments, "channel" if data.images else "feature")
    if data.images:
        print_for_images(moments, 255 if data.dtype == np.uint8 else 1)
    else:
        print_for_features(moments)
    if skipped:
        print_skipped(skipped)
    if args.output:
        results = {"data": str(data), **as_numbers(moments), "skipped": skipped}
        with replacing(args.output) as file:
            file.write(json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")


if __name__ == "__main__":
    options = parse_args()
    go_on = "run the same command to go on" if options.state else "nothing is kept without --state FILE"
    console.set_up(f"Interrupted; {go_on}.")
    main(options)
