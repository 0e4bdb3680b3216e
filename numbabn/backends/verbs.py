"""The verbs of normalisation, which every backend has, and the named tuples that they pass.

A norm is one reading of dense memory: five lengths in memory order, `View`. Statistics are taken per (batch,
group), over outer, members and inner; gamma and beta have one value per (group, member). Batch normalisation
has batch = members = 1, and its groups are the channels. Instance norm has a batch of samples and members =
1, group norm the channels of a group as members. Layer and RMS norm have one group, and outer = inner = 1: a
sample's members lie side by side.

Arrays are flat and contiguous: NumPy's on the CPU, `DeviceMemory` on the GPU. A backend checks nothing, and
writes to nothing but its results, which come last among the arguments. Running statistics on a GPU are the
exception: they are updated in place, so that a CUDA graph does it again.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]


class DeviceMemory(Protocol):
    """What the GPU backend asks of an array: where its elements lie, and how to get more memory beside it."""

    @property
    def address(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def stream(self) -> int: ...
    def empty(self, shape: tuple[int, ...], dtype: Any) -> "DeviceMemory": ...


class View(NamedTuple):
    """An array as five lengths, in the order of its memory from the slowest to the fastest."""

    batch: int
    outer: int
    groups: int
    members: int
    inner: int

    @property
    def values(self) -> int:
        """Number of values that one statistic is taken over."""
        return self.outer * self.members * self.inner


# Two arrays of one value per (batch, group), or per (group, member): statistics, parameters or sums. On the
# CPU they are float64, but for the parameters of layer and RMS norm, which have the dtype that x is computed
# in: one array [2, n] where a verb makes them, a tuple of two where they were given. On the GPU it is a tuple
# of two, of float64 where a verb makes them, of any float dtype where they were given; of parameters either
# may be None there, which is 1 for gamma and 0 for beta.
Pair: TypeAlias = Any


class Affine:
    """The map after normalisation, y = xhat * gamma + beta, and the eps that is added to the variance.

    A class with slots, which is made in half the time of a named tuple.
    """

    __slots__ = ("centered", "eps", "given", "parameters")

    def __init__(
        self,
        parameters: Pair,
        eps: float,
        given: tuple[Any, Any] = (None, None),
        centered: bool = True,
    ) -> None:
        self.parameters = parameters
        self.eps = eps
        self.given = given  # gamma and beta as they were passed: their gradients are made like them
        self.centered = centered  # whether the mean is subtracted; in RMS norm it is 0 by definition


class Kept(NamedTuple):
    """What the forward pass of an activation keeps for the backward pass: where the derivative is 1.

    Only the backend that made it knows how. ``phase`` is added to the index of an element.
    """

    memory: Any
    phase: int


class Result(NamedTuple):
    """What a verb writes in place of an array y: y = activation(v + residual), v being what is normalised.

    All arrays are flat and have one order of memory. The residual may be y itself, and None adds nothing. The
    activation of a is a where a > 0, and else a * slope, or 0 without a slope; it is at most the ceiling, if
    there is one. Its derivative at NaN is 1 without a slope, and the slope with one.
    """

    y: Any
    residual: Any
    kept: Any  # memory of a `Kept`, or None where there will be no backward pass
    phase: int
    slope: float | None
    ceiling: float | None

    @property
    def dtype(self) -> Any:
        """Dtype of y."""
        return self.y.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.y.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes that are read and written beside x."""
        return int(self.y.nbytes + (0 if self.residual is None else self.residual.nbytes))


class Gradient(NamedTuple):
    """What a verb reads in place of an array dy: the gradient g = dy * activation'(v + residual).

    g is also written to ``dresidual`` where dx is, unless that is None; it may be the array dy itself.
    """

    dy: Any
    dresidual: Any
    kept: Any  # memory of a `Kept`; None is the derivative 1
    phase: int
    derivative: float  # where it is not 1

    @property
    def dtype(self) -> Any:
        """Dtype of dy."""
        return self.dy.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dy.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes that are read and written beside x and dx."""
        return int(self.dy.nbytes + (0 if self.dresidual is None else self.dresidual.nbytes))


class Population(NamedTuple):
    """All values that running statistics have seen: their number, mean and m2 in float64."""

    seen: int
    moments: Pair  # mean, m2


class RunningVerbs(Protocol):
    """What a batch does to running statistics."""

    def average(self, running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
        """Return running * (1 - momentum) + batch * momentum; the batch's variance times ``correction``."""

    def pool(self, running: Pair, population: Population, batch: Pair, count: int) -> tuple[Pair, Population]:
        """Return the statistics and the population of all values and ``count`` more, those of the batch."""


class SampleVerbs(Protocol):
    """The verbs where every sample has statistics of its own; as those of `Backend` for batch norm."""

    def keep(self, y: Any, view: View) -> Kept: ...

    def forward(self, x: Any, view: View, affine: Affine, y: Any) -> Pair: ...

    def backward_reduce(
        self, dy: Any, x: Any, view: View, statistics: Pair, eps: float, gradients: Pair
    ) -> Pair: ...

    def backward(
        self, dy: Any, x: Any, view: View, statistics: Pair, affine: Affine, dx: Any, gradients: Pair
    ) -> None: ...


class Backend(Protocol):
    """The verbs in the order in which data meets them. ``forward`` and ``backward`` are combinations.

    In the place of y there may be a `Result`, and in that of dy a `Gradient`.
    """

    running: RunningVerbs
    samples: SampleVerbs

    def keep(self, y: Any, view: View) -> Kept:
        """Return memory for what an activation keeps of y, for a `Result` and then for a `Gradient`."""

    def moments(self, x: Any, view: View, like: np.floating | None = None) -> Pair:
        """Return (mean, m2), m2 being the sum of squared deviations from the mean.

        Short sums have the dtype of the scalar ``like``, float64 unless given; everything else is float64.
        """

    def normalize(self, x: Any, view: View, statistics: Pair, affine: Affine, y: Any) -> None:
        """Write y = (x - mean) / sqrt(var + eps) * gamma + beta."""

    def forward(self, x: Any, view: View, affine: Affine, y: Any) -> Pair:
        """`normalize` with the statistics of x itself; return them as (mean, biased variance)."""

    def backward_reduce(
        self, dy: Any, x: Any, view: View, statistics: Pair, eps: float, gradients: Pair
    ) -> Pair:
        """Return (sum of dy, sum of dy * xhat), and write it to the gradients: the pair (dgamma, dbeta).

        Gradients have any float dtype, and are None where they are not needed.
        """

    def backward_apply(
        self, dy: Any, x: Any, view: View, statistics: Pair, affine: Affine, sums: Pair, count: int, dx: Any
    ) -> None:
        """Write dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

        The sums may be those of more arrays than x, and ``count`` their number of values per statistic.
        """

    def backward(
        self, dy: Any, x: Any, view: View, statistics: Pair, affine: Affine, dx: Any, gradients: Pair
    ) -> None:
        """Write dx and the gradients of the training forward: `backward_reduce` and `backward_apply`."""

    def backward_known(self, dy: Any, view: View, statistics: Pair, affine: Affine, dx: Any) -> None:
        """Write dx = dy * gamma / sqrt(var + eps): the gradient where the statistics are constants."""
