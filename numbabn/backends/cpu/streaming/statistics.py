"""The verbs of streaming statistics on flat, contiguous NumPy arrays: exact sums, and moments with a range.

As in the other verbs, shape is (outer, channels, inner) and nothing is checked. ``weight`` has one value for
every element of x: bool, or float64 of which none is negative; what has weight 0 is not there at all.
"""

import platform
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding

from numbabn.backends.cpu import plan
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.streaming import column_statistics, integer_kernels, row_statistics
from numbabn.backends.cpu.streaming.digits import carried, split
from numbabn.backends.verbs import Array, View

_FLOAT32, _FLOAT64 = np.float32(0), np.float64(0)
_ROW = 4096  # elements
_LONG_ROW = 512  # elements, from which on walking along rows is faster than across: 28x28 images, not 14x14
_BLOCK = 512  # columns of a task: their sums stay in the first-level cache
_GROUP_BYTES = 16 << 10
_TASKS = 32  # of a call: their merge is serial


class Sums(NamedTuple):
    """Exact sums per channel: digits of 32 bits, the lowest first, and the range as float64."""

    number: Array  # int64 [channels]
    total: Array  # int64 [2 or 4, channels]
    squares: Array  # int64 [2 or 6, channels]
    low: Array
    high: Array


def moments(x: Array, view: View, weight: Array | None, omit: bool) -> Array:
    """Moments of chunks, to be merged in order: float64 [chunks, 6, channels].

    They are weight, mean, what the mean has rounded, m2, least and greatest value. With ``omit``, NaN is not
    there at all; else all results of its channel are NaN.
    """
    given = x
    if weight is not None:
        x = x.astype(np.float64, copy=False)
        weight = weight.astype(np.float64, copy=False)
        if omit:
            weight = np.where(np.isnan(x), 0, weight)
    elif x.dtype == np.float16:
        x = x.view(np.uint16) if _HAS_HALF else x.astype(np.float32)
    masked = True if omit or weight is not None else None
    value = _FLOAT64 if masked or x.dtype == np.float64 else _FLOAT32
    chunks = _chunks("moments", 6, x, weight, view, masked, value, _FLOAT64)
    if not omit and np.isnan(chunks[:, 1]).any():
        _spread_nan(given.reshape(view.outer, view.groups, view.inner), weight, chunks)
    return chunks


def integers(x: Array, view: View, weight: Array | None) -> Sums:
    """Exact sums of bools or integers; ``weight`` is bool."""
    if x.dtype.itemsize > 2:
        return _wide_integers(x, view, weight)
    if x.dtype == np.bool_:
        x = x.view(np.uint8)
    # No sum is rounded: those of 32 squares of bytes are below 2**24, and those of a chunk below 2**53, since
    # it has fewer than 2**21 elements a channel.
    if weight is None:
        like = _FLOAT32 if x.dtype.itemsize == 1 else _FLOAT64
        chunks = _chunks("integers", 5, x, None, view, None, _FLOAT32, like)
    else:
        x, weight = x.astype(np.float64), weight.astype(np.float64)
        chunks = _chunks("integers", 5, x, weight, view, True, _FLOAT64, _FLOAT64)
    count, s, q = chunks[:, :3].astype(np.int64).sum(axis=0)
    return Sums(count, split(s), split(q), chunks[:, 3].min(axis=0), chunks[:, 4].max(axis=0))


def _chunks(
    verb: str, parts: int, x: Array, weight: Array | None, view: View, masked: Any, value: Any, like: Any
) -> Array:
    """Run a kernel of rows or of columns; return its chunks [chunks, parts, channels]."""
    pixels, channels, inner = view.outer, view.groups, view.inner
    if inner >= _LONG_ROW:
        out = np.empty((plan.row_chunks(view, x.itemsize), parts, channels))
        getattr(row_statistics, verb)(x.nbytes, x, weight, pixels, channels, inner, masked, value, like, out)
        return out
    copies, rows, block, chunks = _columns_plan(view, x.nbytes)
    stride, left = copies * channels * inner, pixels - rows * copies
    kernel, group = getattr(column_statistics, verb), _group(stride * x.itemsize)
    out = np.empty((chunks + 1, parts, channels))
    if rows:
        kernel(
            x.nbytes, x, weight, rows, stride, group, copies, inner, block, masked, value, like, out[:chunks]
        )
    if not left:
        return out[:chunks]
    # Pixels left over are one row of their own, filled up to whole vectors.
    flat, w = _padded(x[rows * stride :]), None if weight is None else _padded(weight[rows * stride :])
    kernel(0, flat, w, 1, len(flat), group, left, inner, block, masked, value, like, out[chunks:])
    return out if rows else out[chunks:]


def _columns_plan(view: View, nbytes: int) -> tuple[int, int, int, int]:
    """(pixels side by side in a row, rows, channels of a task, chunks of rows)."""
    pixels, channels, inner = view.outer, view.groups, view.inner
    size = channels * inner
    if size < plan.MIN_COLUMNS:
        copies, block = plan.columns(view, nbytes)[0], channels
    else:
        copies, block = 1, max(1, _BLOCK // inner // LANES) * LANES
    # The last vector of a row reaches into the next one, unless rows are whole vectors.
    rows = pixels // copies - (copies * size % LANES > 0)
    blocks = -(-channels // block)
    return copies, rows, block, max(1, min(rows, nbytes // plan.CHUNK_BYTES, _TASKS // blocks))


def _group(row_bytes: int) -> int:
    """Rows summed at once: a group and the next one, which is prefetched, fit in the first-level cache."""
    return max(4, min(64, _GROUP_BYTES // row_bytes))


def _padded(x: Array) -> Array:
    padded = np.zeros(-(-len(x) // LANES) * LANES, x.dtype)
    padded[: len(x)] = x
    return padded


def _wide_integers(x: Array, view: View, weight: Array | None) -> Sums:
    """Exact sums of integers of 32 or 64 bits."""
    kind, offset = x.dtype, 1 << (8 * x.itemsize - 1)  # of signed integers, which kernels see without a sign
    x = x.view(f"u{x.itemsize}")
    flip = x.dtype.type(offset if kind.kind == "i" else 0)
    parts = _wide_chunks(x, view, weight, flip)
    n, s0, s1, *q = parts[:, :9].astype(np.int64).sum(axis=0)
    total, squares = np.zeros((4, len(n)), np.int64), np.zeros((6, len(n)), np.int64)
    total[0], total[1] = s0, s1
    squares[0], squares[1], squares[2], squares[3] = q[0], q[1] + 2 * q[2], 2 * q[3] + q[4], q[5]
    if flip:  # sum(x) = sum(v) - n * offset, sum(x * x) = sum(v * v) - 2 * offset * sum(v) + n * offset**2
        top = x.itemsize // 8  # digit of the offset
        total[top] -= n << 31
        squares[top + 1] -= s0
        squares[top + 2] -= s1
        squares[2 * top + 1] += n << 30
    least, most = parts[:, 9].min(axis=0), parts[:, 10].max(axis=0)
    low, high = ((v.astype(x.dtype) ^ flip).view(kind).astype(np.float64) for v in (least, most))
    total, squares = carried(total), carried(squares)
    return Sums(n, total, squares, np.where(n > 0, low, np.inf), np.where(n > 0, high, -np.inf))


def _wide_chunks(x: Array, view: View, weight: Array | None, flip: Any) -> Array:
    outer, channels, inner = view.outer, view.groups, view.inner
    if outer == channels == 1 and inner > _ROW:  # one long row would be one chunk
        whole = inner // _ROW * _ROW
        head = x[:whole], View(1, inner // _ROW, 1, 1, _ROW), None if weight is None else weight[:whole], flip
        tail = x[whole:], View(1, 1, 1, 1, inner - whole), None if weight is None else weight[whole:], flip
        return np.concatenate([_wide_chunks(*head), _wide_chunks(*tail)])
    chunks = max(1, min(outer, plan.MAX_CHUNKS, x.nbytes // plan.CHUNK_BYTES))
    out = np.empty((chunks, integer_kernels.PARTS, channels), np.uint64)
    integer_kernels.sums(x.nbytes, x, weight, outer, channels, inner, flip, out)
    return out


def _spread_nan(x: Array, weight: Array | None, chunks: Array) -> None:
    """Make the range of channels with a NaN NaN. Kernels pass it over, and a mean may be inf - inf."""
    nan = np.isnan(x)
    if weight is not None:
        nan &= weight.reshape(x.shape) > 0
    chunks[0, 4:, nan.any(axis=(0, 2))] = np.nan


def _converts_half() -> bool:
    """Whether the machine turns float16 into float32; LLVM's code for others calls what is not there."""
    return platform.machine().lower() in ("arm64", "aarch64") or bool(
        binding.get_host_cpu_features().get("f16c")
    )


_HAS_HALF = _converts_half()
