"""`Moments`: statistics of data of any size, in one pass over its chunks; they can be saved and merged."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from numbabn import _progress
from numbabn.arrays.dtypes import result_dtype
from numbabn.arrays.overlap import output
from numbabn.backends.verbs import Array
from numbabn.statistics import _checks, _chunk, _file, _state
from numbabn.statistics._population import Population
from numbabn.statistics._standard import Standard


class Moments:
    r"""Count, mean, variance and range per channel of everything seen.

    .. math:: \mu_c = \frac{\sum w x}{\sum w}, \qquad
              \sigma_c^2 = \frac{\sum w (x - \mu_c)^2}{\sum w - \mathrm{ddof}}

    over all axes but ``axis``, with w = 1 unless weights are given. The result does not depend on how the
    data is cut into chunks, nor on the order in which parts are merged.

    Parameters
    ----------
    axis : int or tuple of int, default -1
        Channel axes: those that results keep, in this order. -1 is for (N, C) and NHWC, 1 for NCHW, (1, 2, 3)
        for every pixel of a batch of images by itself, () for one result of all elements.
    nan_policy : {"propagate", "omit", "raise"}, default "propagate"
        What a NaN does. "propagate": mean, variance and range of its channel become NaN. "omit": it is left
        out and not counted. "raise": `update` raises an error that names its place.

    Attributes
    ----------
    axis : tuple of int
        As given.
    nan_policy : str
        As given.

    Notes
    -----
    Integers and bools are added up exactly: mean and variance are the rational results, rounded once to
    float64. Everything else is summed in float64 about values of the data, and merged with the formula of
    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample
    variances", with weight, mean and m2 held in two float64 each. However the data is cut and merged, the
    means agree within 1e-14 times the size of the data and the variances within a relative 1e-12, also where
    the mean is 1e8 standard deviations. The bits of one `update` are the same for any number of threads.

    An `update` takes its chunk whole or, when there is an error or Ctrl-C, not at all. Several threads must
    not update one object at once: give each thread an object of its own, and merge them.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> m = nbn.Moments(axis=-1)
    >>> for chunk in (np.array([[1, 10], [2, 20]]), np.array([[6, 60]])):
    ...     m = m.update(chunk)
    >>> m.count, m.mean, m.var(ddof=1)
    (array([3, 3]), array([ 3., 30.]), array([  7., 700.]))
    >>> m
    Moments(axis=-1, nan_policy='propagate'): 2 channels, 3 values each
    """

    __slots__ = ("_population", "_shape", "axis", "nan_policy")

    axis: tuple[int, ...]
    nan_policy: str
    _shape: tuple[int, ...] | None
    _population: Population

    def __init__(self, axis: int | tuple[int, ...] = -1, *, nan_policy: str = "propagate") -> None:
        self.axis = _checks.kept_axes(axis)
        self.nan_policy = _checks.nan_policy(nan_policy)
        self._shape = None
        self._population = Population.nothing(0)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the channels and of all results, or None before the first update fixed it."""
        return self._shape

    def update(self, chunk: Array, weights: Array | None = None, where: Array | bool | None = None) -> Self:
        """Add the values of a chunk of data.

        Parameters
        ----------
        chunk : array of bool, any integer, float16, bfloat16, float32 or float64
            An array of any library that `numbabn.moments` takes; one on a GPU is copied to the host. Its
            memory may have any layout, and may be mapped from a file: it is read in pieces. The first chunk
            fixes the lengths of the channel axes; the number of the other axes, and their lengths, may change
            from chunk to chunk, and may be 0.
        weights : ndarray of any real dtype, or list of numbers, optional
            How often each element counts; finite and not negative, broadcast against the chunk as NumPy does.
            Elements of weight 0 are left out: of the range, too, and even if they are NaN.
        where : bool or ndarray of bool, optional
            Which elements to take, broadcast against the chunk as NumPy does.

        Returns
        -------
        Moments
            This object.

        Raises
        ------
        TypeError
            If an array is of an unsupported library or has an unsupported dtype.
        ValueError
            If a shape or a weight is wrong, or there is a NaN under ``nan_policy="raise"``. The object has
            not changed then.

        Examples
        --------
        >>> import numpy as np, numbabn as nbn
        >>> x = np.array([[1.0, 5.0], [3.0, np.nan]])
        >>> m = nbn.Moments(nan_policy="omit").update(x, weights=np.array([[1.0], [3.0]]))
        >>> m.count, m.mean
        (array([4., 1.]), array([2.5, 5. ]))
        """
        x = _checks.chunk(chunk)
        kept = _checks.kept_axes_of(self.axis, x.ndim)
        shape = tuple(x.shape[axis] for axis in kept)
        if self._shape is not None:
            _checks.same_channels(shape, self._shape, "chunk")
        mask = _checks.mask(where, x.shape)
        weight = _checks.weights(weights, x.shape)
        seen = _chunk.population(x, kept, weight, mask, self.nan_policy)
        self._population = seen if self._shape is None else self._population.merge(seen)
        self._shape = shape
        return self

    def merge(self, other: "Moments") -> Self:
        """Add everything that another object has seen, which stays as it is.

        Parameters
        ----------
        other : Moments
            Its channels have the same shape, though they may be other axes, and its ``nan_policy`` is the
            same. It may have seen nothing.

        Returns
        -------
        Moments
            This object.

        Raises
        ------
        TypeError
            If other is not a Moments.
        ValueError
            If its channels have another shape, or its ``nan_policy`` is another one.
        OverflowError
            If a channel would count more than 2**63 - 1 values. This object has not changed then.
        """
        if not isinstance(other, Moments):
            raise TypeError(f"other must be a Moments, not {type(other).__name__}")
        _checks.same_axes(other.axis, self.axis)
        if other.nan_policy != self.nan_policy:
            raise ValueError(
                f"other has nan_policy={other.nan_policy!r}, which cannot be merged with "
                f"{self.nan_policy!r}: the result would have neither"
            )
        if other._shape is not None:
            if self._shape is None:
                self._population = other._population
            else:
                _checks.same_channels(other._shape, self._shape, "other")
                self._population = self._population.merge(other._population)
            self._shape = other._shape
        return self

    def __add__(self, other: "Moments") -> "Moments":
        if not isinstance(other, Moments):
            return NotImplemented
        return self.copy().merge(other)

    def copy(self) -> Self:
        """Return an independent object in the same state."""
        twin = type(self)(self.axis, nan_policy=self.nan_policy)
        twin._shape = self._shape
        twin._population = self._population  # shared: merges make a new one, and never change it
        return twin

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    @property
    def count(self) -> Array:
        """Number of values per channel, int64; once weights were given, the sum of weights, float64.

        One number per channel, because NaN and ``where`` may leave out different elements of each.
        """
        return self._shaped(self._seen().count())

    @property
    def mean(self) -> Array:
        """Mean per channel, float64; NaN where the count is 0."""
        return self._shaped(self._seen().mean())

    def var(self, ddof: float = 0) -> Array:
        """Variance per channel, float64; NaN where count <= ddof.

        Parameters
        ----------
        ddof : float, default 0
            Subtracted from the count in the divisor: 0 for the variance of the data, 1 for the unbiased
            estimate.

        Returns
        -------
        ndarray of float64
        """
        return self._shaped(self._seen().var(_checks.ddof(ddof)))

    def std(self, ddof: float = 0) -> Array:
        """Standard deviation per channel: the square root of `var`.

        Parameters
        ----------
        ddof : float, default 0
            As for `var`.

        Returns
        -------
        ndarray of float64
        """
        return self._shaped(np.sqrt(self._seen().var(_checks.ddof(ddof))))

    @property
    def min(self) -> Array:
        """Least value per channel, float64 (integers above 2**53 are rounded); NaN where the count is 0."""
        return self._extreme(self._seen().low)

    @property
    def max(self) -> Array:
        """Greatest value per channel, float64, rounded as `min` is; NaN where the count is 0."""
        return self._extreme(self._seen().high)

    def _extreme(self, values: Array) -> Array:
        # False for a channel without values, where low is infinity and high is -infinity, and for NaN.
        has_range = self._population.low <= self._population.high
        return self._shaped(np.where(has_range, values, np.nan))

    def _seen(self) -> Population:
        """Return the population, or raise before the first update, when there are no channels yet."""
        if self._shape is None:
            raise ValueError("nothing was seen yet; the first update tells how many channels there are")
        return self._population

    def _shaped(self, values: Array) -> Array:
        return values.reshape(self._shape or ())

    @classmethod
    def from_chunks(
        cls,
        chunks: Iterable[Array],
        *,
        axis: int | tuple[int, ...] = -1,
        nan_policy: str = "propagate",
        progress: bool = False,
    ) -> Self:
        """Return the statistics of all chunks of an iterable.

        Parameters
        ----------
        chunks : iterable of arrays
            Each of them is given to `update`.
        axis, nan_policy
            As for the class.
        progress : bool, default False
            Show a bar; needs tqdm, ``pip install "numbabn[progress]"``.

        Returns
        -------
        Moments

        Raises
        ------
        ImportError
            If ``progress`` is True and tqdm is not installed.

        Examples
        --------
        >>> import numpy as np, numbabn as nbn
        >>> nbn.Moments.from_chunks(np.arange(6.0).reshape(3, 1, 2)).mean
        array([2., 3.])
        """
        moments = cls(axis, nan_policy=nan_policy)
        for chunk in _progress.bar(chunks, "moments", "chunk") if progress else chunks:
            moments.update(chunk)
        return moments

    def normalize(self, x: Array, out: Array | None = None, dtype: DTypeLike = np.float32) -> Array:
        r"""Standardise an array by what was seen.

        .. math:: y = \frac{x - \mu_c}{\sigma_c}

        with the mean and the square root of the biased variance of each channel; a channel of variance 0 is
        divided by 1, as by scikit-learn's StandardScaler.

        Parameters
        ----------
        x : array of bool, any integer, float16, bfloat16, float32 or float64
            A NumPy array with the channels of the chunks on the same axes; the other axes may have any
            length. Integers of 8 and 16 bits are converted while they are read, in one pass.
        out : ndarray, optional
            Write the result here: shape of x, ``dtype``. May be x itself where x has this dtype; may not
            overlap x in any other way.
        dtype : {float32, float64}, default float32
            Dtype of the result.

        Returns
        -------
        ndarray of ``dtype``
            Shape and memory order of x; ``out`` if given.

        Raises
        ------
        TypeError
            If x or out is no NumPy array or has an unsupported dtype.
        ValueError
            If nothing was seen yet, a shape is wrong, or out overlaps x partly.

        Notes
        -----
        The arithmetic has the dtype of the result for integers of 8 and 16 bits, that of x for float32 and
        float64, and is float64 for everything else, which is converted first.

        Examples
        --------
        >>> import numpy as np, numbabn as nbn
        >>> images = np.array([[[[0, 10], [4, 30]]]], np.uint8)
        >>> nbn.Moments(axis=-1).update(images).normalize(images)
        array([[[[-1., -1.],
                 [ 1.,  1.]]]], dtype=float32)
        """
        var = self._seen().var(0.0)
        array = _checks.host_chunk(x, "x")
        kept = _checks.kept_axes_of(self.axis, array.ndim)
        _checks.same_channels(tuple(array.shape[axis] for axis in kept), self.shape or (), "x")
        result = result_dtype(dtype)
        target = None if out is None else output(out, array, result, "x", {"x": array})
        standard = Standard(kept, self.mean, self._shaped(var))
        y = standard.write(array, target, result)
        return y if out is None else out

    def to_dict(self) -> dict[str, Any]:
        """Return the state as new NumPy arrays, for `from_dict`; its keys may change with the version."""
        state: dict[str, Any] = {
            "format": np.array(_state.FORMAT, np.int64),
            "axis": np.array(self.axis, np.int64),
            "nan_policy": np.array(self.nan_policy),
        }
        if self._shape is not None:
            state |= {"shape": np.array(self._shape, np.int64), **self._population.arrays()}
        return state

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return an object in a state that `to_dict` returned.

        Raises
        ------
        TypeError
            If the state is not a mapping.
        ValueError
            If it is not the state of a Moments, or one of another version.
        """
        values = _state.checked(state)
        moments = cls(tuple(values["axis"].tolist()), nan_policy=str(values["nan_policy"]))
        if "shape" in values:
            moments._shape = tuple(values["shape"].tolist())
            moments._population = Population.from_arrays(values)
        return moments

    def __reduce__(self) -> Any:
        return type(self).from_dict, (self.to_dict(),)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file: npz without pickle, under exactly this name.

        Whenever the process is killed, the old file or the new one is there, and whole.

        Parameters
        ----------
        path : str or path
            Name of the file. An existing file is replaced.

        Examples
        --------
        >>> import pathlib, tempfile, numpy as np, numbabn as nbn
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "moments.npz"
        >>> nbn.Moments().update(np.array([[1.0], [3.0]])).save(path)
        >>> nbn.Moments.load(path).mean
        array([2.])
        """
        _file.save(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return an object in a state that `save` wrote.

        Raises
        ------
        OSError
            If the file does not exist or cannot be opened.
        ValueError
            If `save` did not write it, or it is damaged.
        """
        with Path(path).open("rb") as file:
            try:
                return cls.from_dict(_file.load(file))
            except Exception as error:  # reading a damaged zip file raises some ten types of errors
                raise ValueError(
                    f"{os.fspath(path)} is not a state that Moments.save wrote: {error}"
                ) from error

    def __repr__(self) -> str:
        axis = self.axis[0] if len(self.axis) == 1 else self.axis
        name = f"{type(self).__name__}(axis={axis}, nan_policy={self.nan_policy!r})"
        if self._shape is None:
            return f"{name}: nothing seen"
        count = self._population.count()
        least, most = (count.min(), count.max()) if count.size else (0, 0)
        each = f"{least:.15g} values each" if least == most else f"{least:.15g} to {most:.15g} values each"
        channels = "x".join(map(str, self._shape)) or "1"
        return f"{name}: {channels} channels, {each}"
