"""What a forward call leaves for its backward call."""

from typing import Any, Literal, Self, TypeAlias

from numbabn.arrays import AnyArray, library_of, native
from numbabn.arrays.layout import Layout
from numbabn.backends.verbs import Affine, Pair
from numbabn.norms._epilogue import Passed

# Whose the statistics are: those of x, those of all ranks of a synchronised layer, or given as constants.
Origin: TypeAlias = Literal["x", "ranks", "given"]


class Saved:
    """What a forward call leaves for its backward call. Opaque, except for the statistics.

    Attributes
    ----------
    mean, var : array
        Mean and biased variance that x was normalised with, in float64; arrays that were given on a GPU are
        these arrays themselves. Batch norm has one per channel, shape (C,); group norm one per sample and
        group, (N, G); instance norm (N, C), or (C,) where they were given. Layer norm has one per sample,
        shaped as the axes of x that it does not normalise; RMS norm's mean is 0, and its variance the mean of
        the squares.
    count : int
        Number of values of each mean.
    training : bool
        Whether they are the statistics of x itself, through which gradients flow, or were given.

    Examples
    --------
    >>> import numpy as np
    >>> import numbabn as nbn
    >>> y, saved = nbn.batch_norm_forward(np.array([[1.0], [3.0]]))
    >>> saved.mean, saved.var, saved.count
    (array([2.]), array([1.]), 2)
    """

    __slots__ = ("_affine", "_count", "_layout", "_norm", "_origin", "_passed", "_statistics", "_x")

    def __init__(
        self,
        norm: str,  # what its functions are called before "_forward"
        x: AnyArray | None,  # dense, or None where y was written over it
        layout: Layout,
        affine: Affine,
        statistics: Pair,
        count: int,
        origin: Origin,
        passed: Passed | None,  # None where nothing follows the norm
    ) -> None:
        self._norm = norm
        self._x = x
        self._layout = layout
        self._affine = affine
        self._statistics = statistics
        self._count = count
        self._origin = origin
        self._passed = passed

    @property
    def mean(self) -> Any:
        """The means, in float64."""
        return _delivered(self._layout, self._statistics[0])

    @property
    def var(self) -> Any:
        """The biased variances, in float64; of RMS norm the mean squares."""
        return _delivered(self._layout, self._statistics[1])

    @property
    def count(self) -> int:
        """The number of values of each mean."""
        return self._count

    @property
    def training(self) -> bool:
        """Whether the statistics are those of x."""
        return self._origin != "given"

    def __copy__(self) -> Self:
        return self  # which never changes

    def __reduce__(self) -> Any:
        x = self._x
        if not library_of(self._statistics[0]).on_host:
            raise TypeError(
                "saved holds arrays on a GPU, which cannot be pickled or copied deeply; "
                "keep what forward was given"
            )
        # Pickle brings an array of any other order of its axes to C order. Here memory order is what counts.
        flat, shape = (None, ()) if x is None else (self._layout.flat(x), x.shape)
        rest = (self._affine, self._statistics, self._count, self._origin, self._passed)
        return _restored, (self._norm, flat, shape, self._layout, rest)

    def __repr__(self) -> str:
        shape = self._layout.per_statistic(self._statistics[0]).shape
        return f"Saved({self._norm}, statistics={shape}, count={self.count}, training={self.training})"


def _delivered(layout: Layout, statistics: AnyArray) -> Any:
    """Return statistics as the user gets them; on a GPU a copy, where they get another shape."""
    shaped, library = layout.per_statistic(statistics), library_of(statistics)
    if library.on_host or shaped.shape == statistics.shape:
        return native(shaped)
    copy = library.empty_like(shaped)
    library.assign(copy, shaped)
    return native(copy)


def _restored(
    norm: str, flat: AnyArray | None, shape: tuple[int, ...], layout: Layout, rest: tuple[Any, ...]
) -> Saved:
    return Saved(norm, None if flat is None else layout.restored(flat, shape), layout, *rest)
