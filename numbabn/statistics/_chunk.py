"""The population of one chunk of data: the kernels of the CPU backend run over it piece by piece."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbabn.backends.cpu.streaming import statistics
from numbabn.backends.verbs import Array
from numbabn.statistics._pieces import Piece, cut, pieces
from numbabn.statistics._population import Exact, Population, Real

_SCAN_BYTES = 1 << 20  # of the parts in which a chunk is searched for its first NaN


@np.errstate(all="ignore")  # NumPy would warn of NaN and infinity where kernels run as plain Python
def population(
    x: Array, kept: Sequence[int], weights: Array | None, where: Array | None, nan_policy: str
) -> Population:
    """Return the population of an array; its channels are the axes ``kept``, in this order, flat.

    ``weights`` and ``where`` have the shape of x, or are None. A NaN raises a ValueError where ``nan_policy``
    is "raise".
    """
    channels = int(np.prod([x.shape[axis] for axis in kept], dtype=np.int64))
    integers = x.dtype.kind in "biu" and weights is None
    found = Population(
        Exact.nothing(channels) if integers else None,
        None if integers else Real.nothing(channels),
        np.full(channels, np.inf),
        np.full(channels, -np.inf),
        weighted=weights is not None,
    )
    if x.size == 0:
        return found
    suspicious = nan_policy == "raise"
    for piece in pieces(x, [a for a in (weights, where) if a is not None], kept):
        place = _place(piece, x.shape, kept)
        weight = _weight(piece.beside, weights is not None)
        if found.exact:
            low, high = _add_integers(found.exact, piece, place, weight)
        elif found.real:
            low, high = _add_reals(found.real, piece, place, weight, nan_policy == "omit")
            if suspicious and np.isnan(found.real.moments[2]).any():
                _refuse_nan(x, kept, weights, where)
                suspicious = False  # there is none: the mean is NaN by infinities of both signs
        found.low[place] = np.minimum(found.low[place], low)
        found.high[place] = np.maximum(found.high[place], high)
    if found.exact:
        found.exact.carry()
    return found


def _weight(beside: list[Array], weighted: bool) -> Array | None:
    """Return a piece's weights: float64 where weights were given, bools where only a mask was, else None."""
    if not beside:
        return None
    if not weighted:
        return beside[0]
    weight = beside[0].astype(np.float64, copy=False)
    return weight if len(beside) == 1 else np.where(beside[1], weight, 0)


def _place(piece: Piece, shape: tuple[int, ...], kept: Sequence[int]) -> Any:
    """Return the index of a piece's channels, in the piece's order, among the flat channels of the array."""
    whole = all(piece.place[axis] == slice(0, shape[axis]) for axis in kept)
    if whole and [a for a in piece.kept if shape[a] > 1] == [a for a in kept if shape[a] > 1]:
        return slice(None)
    numbers = np.arange(np.prod([shape[axis] for axis in kept], dtype=np.int64))
    numbers = numbers.reshape([shape[axis] for axis in kept])[tuple(piece.place[axis] for axis in kept)]
    return numbers.transpose([kept.index(axis) for axis in piece.kept]).reshape(-1)


def _add_integers(exact: Exact, piece: Piece, place: Any, weight: Array | None) -> tuple[Array, Array]:
    """Add a piece to the sums of the channels ``place``; return their range (least, greatest)."""
    sums = statistics.integers(piece.x, piece.view, weight)
    exact.add(sums.number, sums.total, sums.squares, place)
    return sums.low, sums.high


def _add_reals(real: Real, piece: Piece, place: Any, weight: Array | None, omit: bool) -> tuple[Array, Array]:
    """Merge a piece into the moments of the channels ``place``; return their range (least, greatest)."""
    chunks, exponent = statistics.moments(piece.x, piece.view, weight, omit)
    real.absorb(chunks, exponent, place)
    return chunks[:, 4].min(axis=0), chunks[:, 5].max(axis=0)


def _refuse_nan(x: Array, kept: Sequence[int], weights: Array | None, where: Array | None) -> None:
    """Raise an error with the place of the first NaN of an array; return if there is none."""
    for index in cut(x.shape, range(x.ndim), x.itemsize, _SCAN_BYTES):
        bad = np.isnan(x[index])
        if weights is not None:
            bad &= weights[index] > 0
        if where is not None:
            bad &= where[index]
        if bad.any():
            first = np.unravel_index(np.argmax(bad), bad.shape)
            at = tuple(int(i + part.start) for i, part in zip(first, index, strict=True))
            channel = tuple(at[axis] for axis in kept)
            raise ValueError(
                f"chunk has a NaN in channel {channel[0] if len(channel) == 1 else channel}, the first at "
                f'chunk{list(at)}; nan_policy="omit" leaves NaN out, "propagate" lets it through'
            )
