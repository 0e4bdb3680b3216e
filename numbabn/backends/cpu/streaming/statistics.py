"""The verbs of streaming statistics: `integers` sums exactly, `moments` takes moments with a range.

Both take ``x, view, weight``:

x
    A flat, contiguous NumPy array: of bools or integers for `integers`; of float16, bfloat16, float32 or
    float64 for `moments`, and with weights of bools or integers, too.
view
    How x is read: (outer, groups, inner), the groups being the channels. batch and members are 1.
weight
    None, or a flat array with one value for every element of x. Elements of weight 0 are left out of the sums
    and of the range, even if they are NaN. `integers` takes bools only; `moments` takes bools, or float64 of
    which none is negative.

As in the other verbs, nothing is checked and nothing is written to. What they return is described with each.
"""

from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cpu import plan
from numbabn.backends.cpu.column_sums import GROUP
from numbabn.backends.cpu.half import bits
from numbabn.backends.cpu.jit import Kernel
from numbabn.backends.cpu.simd import LANES
from numbabn.backends.cpu.streaming import column_statistics, integer_kernels, row_statistics
from numbabn.backends.cpu.streaming.digits import carried, split
from numbabn.backends.cpu.streaming.lanes import Summation
from numbabn.backends.verbs import Array, View

_FLOAT32, _FLOAT64 = np.float32(0), np.float64(0)
_ROW = 4096  # elements: one long row of 32- or 64-bit integers is cut into rows of this length
_LONG_ROW = 512  # elements, from which on walking along rows is faster than across: 28x28 images, not 14x14
_BLOCK = 512  # columns of a task: their sums stay in the first-level cache
_GROUP_BYTES = 16 << 10  # of the rows that are summed at once
_HEAVY = 2.0**64  # sums of weights between this and its inverse are taken as they are
_LARGE = 2.0**900  # values below this have sums, with any weights that are taken as they are
_SHRINK = 600  # exponent: divided by 2**600, all values have sums and sums of squares
_TASKS = 32  # chunks of rows times blocks of channels: not more, because the merge of chunks is serial


class _Kernels(NamedTuple):
    """The two kernels of a verb, and how many numbers each gives per chunk and channel."""

    rows: Kernel
    columns: Kernel
    parts: int


_MOMENTS = _Kernels(row_statistics.moments, column_statistics.moments, 6)
_INTEGERS = _Kernels(row_statistics.integers, column_statistics.integers, 5)


class Sums(NamedTuple):
    """Exact sums of every channel: digits of 32 bits, the lowest first, see `digits`; and the range."""

    number: Array  # int64 [channels]: how many values; not "count", which is a method of every tuple
    total: Array  # int64 [2 or 4, channels]: their sum
    squares: Array  # int64 [2 or 6, channels]: the sum of their squares
    low: Array  # float64 [channels]: the least value; infinity where there is none
    high: Array  # float64 [channels]: the greatest value; -infinity where there is none


def integers(x: Array, view: View, weight: Array | None) -> Sums:
    """Return the exact sums and the range of bools or integers."""
    if x.dtype.itemsize > 2:
        return _wide_integers(x, view, weight)
    if x.dtype == np.bool_:
        x = x.view(np.uint8)
    # No sum is rounded: in float32 at most 256 squares of bytes are summed, which are less than 2**24, and in
    # float64 those of a chunk, which has fewer than 2**21 elements a channel: they are less than 2**53.
    if weight is None:
        summation = Summation(None, _FLOAT32, _FLOAT32 if x.dtype.itemsize == 1 else _FLOAT64)
    else:
        x, weight = x.astype(np.float64), weight.astype(np.float64)
        summation = Summation(True, _FLOAT64, _FLOAT64)
    chunks = _chunks(_INTEGERS, x, weight, view, summation)
    count, s, q = chunks[:, :3].astype(np.int64).sum(axis=0)
    return Sums(count, split(s), split(q), chunks[:, 3].min(axis=0), chunks[:, 4].max(axis=0))


def moments(x: Array, view: View, weight: Array | None, omit: bool) -> tuple[Array, Array]:
    """Return (chunks, exponents): moments and range of chunks, to be merged in order, and their scale.

    Chunks are float64 [chunks, 6, channels]: weight, mean, the low part of the mean (see `doubled`), m2,
    least and greatest value; where a chunk has no values for a channel, they are 0, any number, 0, 0,
    infinity and -infinity. Weight and m2 are to be multiplied by 2**exponent, of int64 [channels]. With
    ``omit``, NaN is left out like an element of weight 0. Without, a channel with a NaN has a chunk whose
    mean and m2 are NaN, and in the first chunk its range is NaN.
    """
    given = x
    if weight is not None:
        x = x.astype(np.float64, copy=False)
        weight = weight.astype(np.float64, copy=False)
        if omit:
            weight = np.where(np.isnan(x), 0, weight)
    else:
        x = bits(x)
    masked = True if omit or weight is not None else None
    value = _FLOAT64 if masked or x.dtype == np.float64 else _FLOAT32
    summation = Summation(masked, value, _FLOAT64)
    chunks = _chunks(_MOMENTS, x, weight, view, summation)
    exponent = np.zeros(view.groups, np.int64)
    if weight is not None and (extreme := _extreme_weights(chunks)).any():
        weights = weight.reshape(view.outer, view.groups, view.inner)
        exponent[extreme] = np.frexp(weights[:, extreme].max(axis=(0, 2)))[1]
        # The largest weight becomes nearly 1.
        weight = scaled_weights(weights, -exponent[:, None]).reshape(-1)
        chunks = _chunks(_MOMENTS, x, weight, view, summation)
    # Not in the kernel, where it would cost time in every call, though it happens in hardly any.
    if x.dtype == np.float64 and (lost := _overflowed(chunks)).any():
        small = _chunks(_MOMENTS, np.ldexp(x, -_SHRINK), weight, view, summation)
        chunks[:, 1:3, lost] = np.ldexp(small[:, 1:3, lost], _SHRINK)
        chunks[:, 3, lost] = np.ldexp(small[:, 3, lost], 2 * _SHRINK)
    if not omit and np.isnan(chunks[:, 1]).any():
        _spread_nan(given.reshape(view.outer, view.groups, view.inner), weight, chunks)
    return chunks, exponent


def scaled_weights(weights: Array, exponent: Array) -> Array:
    """Return weights * 2**exponent, none of which is 0 that was not: with the weight, a NaN would be lost."""
    least = np.nextafter(0.0, 1.0)
    return np.where(weights > 0, np.maximum(np.ldexp(weights, exponent), least), 0.0)


def _extreme_weights(chunks: Array) -> Array:
    """Whether a channel's weights are so small that m2 would lose digits, or so large that it would overflow.

    The weights of a channel count together: small ones beside others that are not do no harm.
    """
    total = chunks[:, 0].sum(axis=0)
    extreme: Array = (total > 0) & ((total < 1 / _HEAVY) | (total > _HEAVY))
    return extreme


def _overflowed(chunks: Array) -> Array:
    """Whether the sums of a channel may have overflowed, though its mean is a number.

    It takes two values only, whose difference is no number. Infinite values are summed again for nothing.
    """
    size = np.maximum(-chunks[:, 4].min(axis=0), chunks[:, 5].max(axis=0))
    overflowed: Array = (size > _LARGE) & ~np.isfinite(chunks[:, 1]).all(axis=0)
    return overflowed


def _chunks(kernels: _Kernels, x: Array, weight: Array | None, view: View, summation: Summation) -> Array:
    """Run the kernel of rows or that of columns; return its chunks [chunks, parts, channels]."""
    pixels, channels, inner = view.outer, view.groups, view.inner
    if inner >= _LONG_ROW:
        out = np.empty((plan.row_chunks(view, x.itemsize), kernels.parts, channels))
        kernels.rows(x.nbytes, x, weight, (pixels, channels, inner), *summation, out)
        return out
    copies, rows, block, chunks = _columns_plan(view, x.nbytes)
    stride, left = copies * channels * inner, pixels - rows * copies
    group = _group(min(stride, block * inner) * x.itemsize)
    out = np.empty((chunks + 1, kernels.parts, channels))
    if rows:
        cut = rows, stride, group, copies, inner
        kernels.columns(x.nbytes, x, weight, cut, block, *summation, out[:chunks])
    if not left:
        return out[:chunks]
    # Pixels left over are one row of their own, filled up to whole vectors.
    flat, w = _padded(x[rows * stride :]), None if weight is None else _padded(weight[rows * stride :])
    cut = 1, len(flat), group, left, inner
    kernels.columns(0, flat, w, cut, block, *summation, out[chunks:])
    return out if rows else out[chunks:]


def _columns_plan(view: View, nbytes: int) -> tuple[int, int, int, int]:
    """Return (pixels side by side in a row, rows, channels of a task, chunks of rows)."""
    pixels, channels, inner = view.outer, view.groups, view.inner
    size = channels * inner
    if size < plan.MIN_COLUMNS:
        copies, block = plan.columns(view, nbytes)[0], channels
    else:
        copies, block = 1, max(1, _BLOCK // inner // LANES) * LANES
    # The last vector of a row reaches into the next row, unless rows are whole vectors: then the last row is
    # left over.
    rows = pixels // copies - (copies * size % LANES > 0)
    blocks = -(-channels // block)
    return copies, rows, block, max(1, min(rows, nbytes // plan.CHUNK_BYTES, _TASKS // blocks))


def _group(row_bytes: int) -> int:
    """Return how many rows to sum at once: they fit in the first-level cache beside the sums."""
    return max(GROUP, min(64, _GROUP_BYTES // row_bytes))


def _padded(x: Array) -> Array:
    """Return the elements and zeros after them, up to whole vectors."""
    padded = np.zeros(-(-len(x) // LANES) * LANES, x.dtype)
    padded[: len(x)] = x
    return padded


def _wide_integers(x: Array, view: View, weight: Array | None) -> Sums:
    """Return the exact sums and the range of integers of 32 or 64 bits.

    The kernel works on unsigned integers v: for signed x that is x + offset, the bits of x with the sign
    flipped. Their digits are what the kernel documents, and the offset is taken out of the sums again.
    """
    kind, offset = x.dtype, 1 << (8 * x.itemsize - 1)
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
    """Return what `integer_kernels.sums` gives: uint64 [chunks, parts, channels]."""
    outer, channels, inner = view.outer, view.groups, view.inner
    if outer == channels == 1 and inner > _ROW:  # one long row would be one chunk, and one task
        whole = inner // _ROW * _ROW
        head = x[:whole], View(1, inner // _ROW, 1, 1, _ROW), None if weight is None else weight[:whole], flip
        tail = x[whole:], View(1, 1, 1, 1, inner - whole), None if weight is None else weight[whole:], flip
        return np.concatenate([_wide_chunks(*head), _wide_chunks(*tail)])
    chunks = max(1, min(outer, plan.MAX_CHUNKS, x.nbytes // plan.CHUNK_BYTES))
    out = np.empty((chunks, integer_kernels.PARTS, channels), np.uint64)
    integer_kernels.sums(x.nbytes, x, weight, (outer, channels, inner), flip, out)
    return out


def _spread_nan(x: Array, weight: Array | None, chunks: Array) -> None:
    """Make the range NaN, in the first chunk, of channels that have a NaN.

    Kernels ignore NaN in the range, and a mean that is NaN does not tell: it may be inf - inf.
    """
    nan = np.isnan(x)
    if weight is not None:
        nan &= weight.reshape(x.shape) > 0
    chunks[0, 4:, nan.any(axis=(0, 2))] = np.nan
