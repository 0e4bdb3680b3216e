"""What numbabn does on the command line: ``python -m numbabn info`` and ``python -m numbabn warm-up``."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from types import FrameType

import numba

from numbabn._config import show_config
from numbabn._progress import bar
from numbabn._warm_up import DTYPES, OPERATIONS, SHAPES, Step, compilations, steps
from numbabn.backends.cpu.jit import PARALLEL_BYTES, cache_folder, use_threads

WARM_UP = """\
Compile kernels and keep them in the cache on disk, so that no later process waits for the compiler: when a
Docker image is built, or before a lecture. Repeat it after an upgrade of numbabn or Numba. Use the same
NUMBA_CACHE_DIR and the same type of processor as later, since the cache holds machine code. Kernels for GPUs
are not cached.
"""
WARM_UP_END = """\
NC and NHWC share their kernels, with NLC and NDHWC; NCHW has those of NCL and NCDHW, but maps of fewer than
16 values use those of NHWC. Arrays in Fortran order have the kernels of NCHW or NHWC. The layout rows stands
for LayerNorm and RMSNorm, which share theirs, and layouts with groups for GroupNorm and InstanceNorm; these
three have no statistics and no uint8. With maps of fewer than 16 values, GroupNorm has the kernels of rows,
and InstanceNorm those of NHWC-groups. Of uint8, inference is batch_norm_inference to float32, and there is no
training. Statistics are those of moments and Moments, with Moments.normalize. Left out are the kernels for
activation= and residual=, for weights=, and for nan_policy="omit". The exit status is 0 if everything is
cached, 1 if not, 2 after a wrong option.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m numbabn", description="Tools of numbabn.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="print versions, processor, threads, cache and CUDA, for a bug report")
    warm_up = commands.add_parser(
        "warm-up", help="compile kernels into the cache on disk", description=WARM_UP, epilog=WARM_UP_END
    )
    _add_choice(warm_up, "--layouts", SHAPES, SHAPES)
    _add_choice(warm_up, "--dtypes", DTYPES, ["float32"])
    _add_choice(warm_up, "--operations", OPERATIONS, OPERATIONS)
    options = parser.parse_args(arguments)
    if options.command == "info":
        show_config()
        return 0
    wanted = steps(options.layouts, options.dtypes, options.operations)
    if not wanted:
        warm_up.error(
            "nothing to compile: uint8 has no training, and rows and groups have neither uint8 nor statistics"
        )
    if numba.config.DISABLE_JIT:
        print("NUMBA_DISABLE_JIT is set: nothing is compiled.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGINT, _end)
    return _fill_the_cache(wanted)


def _add_choice(
    parser: argparse.ArgumentParser, name: str, choices: Iterable[str], default: Iterable[str]
) -> None:
    parser.add_argument(
        name,
        nargs="+",
        choices=list(choices),
        default=list(default),
        metavar=name.strip("-").removesuffix("s").upper(),
        help=f"of {', '.join(choices)} (default: {' '.join(default)})",
    )


def _fill_the_cache(wanted: list[Step]) -> int:
    """Make the calls, print what was compiled, and return the exit status."""
    start = time.perf_counter()
    with compilations() as found:
        for step in _watched(wanted):
            step.run()
    print(f"{len(found)} kernels compiled in {time.perf_counter() - start:.0f} s, cache: {cache_folder()}")
    if not use_threads(PARALLEL_BYTES):
        print(
            "Kernels for several threads are left out: the number of threads (NUMBA_NUM_THREADS) is "
            f"{numba.get_num_threads()}, the threading layer {numba.threading_layer()}.",
            file=sys.stderr,
        )
    lost = [compilation for compilation in found if compilation.folder is None]
    if lost:
        print(f"{len(lost)} kernels are not cached: {lost[0].reason}", file=sys.stderr)
    return 1 if lost else 0


def _end(number: int, frame: FrameType | None) -> None:
    """End the program after Ctrl-C.

    Not with KeyboardInterrupt: it would be ignored where LLVM, which compiles, calls back to Python.
    """
    os.write(2, b"\nInterrupted. What is compiled is kept: run the same command to go on.\n")
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)  # for the exit status of interrupted programs, 130 in shells


def _watched(wanted: list[Step]) -> Iterable[Step]:
    """Return the calls, with a progress bar on a terminal; elsewhere every kernel has its line."""
    if sys.stderr.isatty():
        try:
            return bar(wanted, "warm-up", "call")
        except ImportError:  # tqdm is not installed
            pass
    logging.basicConfig(format="%(name)s: %(message)s")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
