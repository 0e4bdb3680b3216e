"""Generated problems, and shapes for every path of the kernels."""

import contextlib
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

from numbabn.backends.cpu import jit, plan
from tests.support.group_problems import GroupProblem
from tests.support.jit import JIT
from tests.support.problems import FLOAT_DTYPES, LAYOUTS, Problem

# Generated problems -----------------------------------------------------------------------------------------

# One, primes, whole vectors of 16 values, one value more and one less, and more than a block of the kernels.
SIZES = (1, 2, 3, 5, 7, 8, 13, 15, 16, 17, 31, 32, 33, 49, 64, 67, 100, 127, 257, 1021, 4099, 8200)


@st.composite
def shapes(draw, elements=40_000 if JIT else 3_000):
    """Shapes of rank 2 to 6, their longest axis anywhere."""
    shape = []
    for _ in range(draw(st.integers(2, 6))):
        left = elements // math.prod(shape)
        shape.append(draw(st.sampled_from([n for n in SIZES if n <= left])))
    return tuple(draw(st.permutations(shape)))


@st.composite
def problems(
    draw,
    shapes=shapes(),  # noqa: B008 - strategies are values
    training=True,
    layouts=tuple(LAYOUTS),
    kinds=FLOAT_DTYPES,
):
    """Problems of every kind; for training, of two values per channel or more.

    x and dy have one of the ``layouts``, gamma and beta one of the dtypes ``kinds`` where they are not None.
    """
    shape = draw(shapes)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if training and math.prod(shape) == shape[axis]:
        other = (axis + 1) % len(shape)
        shape = (*shape[:other], 2, *shape[other + 1 :])
    return Problem(
        shape,
        axis,
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        layout=draw(st.sampled_from(sorted(layouts))),
        dy_layout=draw(st.sampled_from(sorted(layouts))),
        offset=draw(st.sampled_from([0.0, 1.0, -30.0, 1e4])),
        spread=draw(st.sampled_from([1.0, 1e-3, 100.0])),
        gamma_dtype=draw(st.sampled_from([None, *kinds])),
        beta_dtype=draw(st.sampled_from([None, *kinds])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.5])),
        seed=draw(st.integers(0, 2**16)),
    )


def divisors(number):
    """Return the numbers of groups that so many channels can be cut into."""
    return [groups for groups in range(1, number + 1) if number % groups == 0]


@st.composite
def group_problems(draw, shapes=shapes()):  # noqa: B008 - strategies are values
    """Group and instance norms of every kind."""
    shape = draw(shapes)
    axis = draw(st.integers(1, len(shape) - 1))
    groups = draw(st.sampled_from([None, *divisors(shape[axis])]))
    if groups is None and math.prod(shape) == shape[0] * shape[axis]:
        shape = (*shape, 2)
    return GroupProblem(
        shape,
        axis - draw(st.sampled_from([0, len(shape)])),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        dy_layout=draw(st.sampled_from(sorted(LAYOUTS))),
        offset=draw(st.sampled_from([0.0, 1.0, -30.0, 1e4])),
        spread=draw(st.sampled_from([1.0, 1e-3, 100.0])),
        gamma_dtype=draw(st.sampled_from([None, *FLOAT_DTYPES])),
        beta_dtype=draw(st.sampled_from([None, *FLOAT_DTYPES])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.5])),
        seed=draw(st.integers(0, 2**16)),
        groups=groups,
    )


@st.composite
def empty_problems(draw):
    """Problems without a single element, channels or not."""
    shape = list(draw(shapes(elements=500)))
    for i in draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)):
        shape[i] = 0
    return Problem(
        tuple(shape),
        draw(st.integers(-len(shape), len(shape) - 1)),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        gamma_dtype=draw(st.sampled_from([None, *FLOAT_DTYPES])),
        beta_dtype=draw(st.sampled_from([None, *FLOAT_DTYPES])),
    )


# Results at every address -----------------------------------------------------------------------------------

# The address of out decides where streamed vectors begin: every position within a cache line, and the next.
STARTS = range(18) if JIT else (0, 5)


# Every path of the kernels ----------------------------------------------------------------------------------

# Which kernels run is decided by the shape, and by sizes that only arrays of megabytes have. The regimes
# change the sizes, so that small arrays take the paths of large ones.
_STREAMING = {(plan, "STREAM_BYTES"): 0}
_PHASES = {
    (plan, "PARALLEL_BYTES"): 0,
    (plan, "FUSED_TASKS"): 1 << 30,
    (plan, "CHUNK_BYTES"): 512,
    (plan, "thread_count"): lambda: 1 << 30,
}
_BLOCKS = {
    (plan, "PARALLEL_BYTES"): 0,
    (plan, "FUSED_TASKS"): 1,
    (plan, "BLOCK_BYTES"): 4096,
    (plan, "ADJACENT_BYTES"): 4096,
}
_IN_PARALLEL = {(jit, "PARALLEL_BYTES"): 0}
REGIMES = {
    "as planned": {},
    "streaming": _STREAMING,
    "phases": _PHASES,
    "phases, streaming": _PHASES | _STREAMING,
    "phases in parallel": _PHASES | _IN_PARALLEL,
    "blocks": _BLOCKS,
    "blocks, streaming": _BLOCKS | _STREAMING,
    "blocks in parallel, streaming": _BLOCKS | _IN_PARALLEL | _STREAMING,
}
# For tests of addresses, in hundreds of calls: serial, since entering a parallel region takes milliseconds on
# a busy machine, and streaming, since plain stores do not mind addresses.
SERIAL_REGIMES = ("as planned", "streaming", "phases, streaming", "blocks, streaming")


@contextlib.contextmanager
def regime(name):
    """Within the block, work is cut up and written as one of the `REGIMES` says."""
    remembering = [f for f in vars(plan).values() if hasattr(f, "cache_clear")]
    with contextlib.ExitStack() as stack:
        for (module, constant), value in REGIMES[name].items():
            stack.enter_context(mock.patch.object(module, constant, value))
        for function in remembering:  # plans of one regime, which would be wrong in the next
            function.cache_clear()
            stack.callback(function.cache_clear)
        yield


# (shape, channel axis). Comments say what is new in each; bytes are of float32.
SMALL_PATHS = (
    # rows: 16 pixels and more a channel
    ((3, 5, 16), 1),  # one vector a row
    ((2, 3, 17), 1),  # rows that begin in the middle of a vector, and end with one element
    ((4, 33, 5, 7), 1),  # vectors that reach into the next channel; a block of channels left over
    ((1, 2, 63), 1),
    ((2, 1, 4, 16), 1),  # one channel: one long row
    ((16, 4, 31), -2),
    ((5, 3, 512), 1),  # a segment of the sums
    ((1, 3, 513), 1),  # one element more
    ((2, 2, 4096), 1),  # as many as are summed about one shift
    ((1, 3, 4097), 1),
    ((2, 2, 9001), 1),
    ((3, 64, 4, 5), 1),
    ((1, 1, 66_000), 1),  # a task of the second phase ends inside a row
    # columns: fewer than 16 pixels
    ((32, 64), 1),
    ((7, 3), 1),  # fewer pixels than lie side by side in a row of columns
    ((17, 3), 1),  # one pixel left over: fewer columns than to the next cache line
    ((1000, 3), 1),  # copies side by side, and pixels left over
    ((129, 7, 3), -1),
    ((64, 5, 3, 5), 1),  # fewer than 16, but more than one
    ((40, 8, 2, 2), 1),
    ((6, 700), 1),  # more than one panel of columns
    ((100, 37), 1),  # a width that is no multiple of 16
    ((1, 9, 15), 1),  # one row
    ((130, 272), 1),  # more rows than are summed about one shift
)
LARGE_PATHS = (
    ((8, 32, 28, 28), 1),  # 800 KB: blocks of channels in parallel
    ((4, 3, 130, 130), 1),  # few channels: cut inside of them
    ((2, 2, 100_003), 1),  # rows longer than a task of the second phase
    ((300_001, 1), 1),  # one channel: rows, although NC
    ((8192, 32), 1),  # 1 MB: columns in chunks
    ((100_001, 3), 1),
    ((31, 30, 29, 24), -1),
    ((300, 160, 3, 3), 1),
    ((600, 272), 1),  # 650 KB: few chunks of rows
    ((20_000, 16), 1),  # more rows than are summed about one shift
)
# Written past the caches without being told to.
STREAMING_PATHS = (((36, 64, 48, 48), 1), ((48, 40, 40, 64), -1))

PATHS = [
    *((shape, axis, name) for shape, axis in SMALL_PATHS for name in REGIMES),
    *((shape, axis, name) for shape, axis in LARGE_PATHS for name in ("as planned", "streaming") if JIT),
    *((shape, axis, "as planned") for shape, axis in STREAMING_PATHS if JIT),
]
# Parallel kernels are compiled apart.
PATH_PARAMETERS = [
    pytest.param(*path, marks=pytest.mark.slow) if "parallel" in path[2] else path for path in PATHS
]
PATH_NAMES = [f"{'x'.join(map(str, shape))} on {axis}, {name}" for shape, axis, name in PATHS]
