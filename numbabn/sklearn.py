"""An estimator for scikit-learn's pipelines; ``pip install "numbabn[sklearn]"`` installs what it needs."""

from numbers import Number
from typing import Any, Self

import numpy as np

from numbabn.arrays.dtypes import beyond_float32
from numbabn.arrays.overlap import overlaps_itself
from numbabn.backends.verbs import Array
from numbabn.norms.batch import batch_norm_inference
from numbabn.statistics.moments import Moments

try:
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        'numbabn.sklearn needs scikit-learn 1.6 or newer: pip install "numbabn[sklearn]"'
    ) from error

__all__ = ["StreamingStandardScaler"]

_FLOATS = (np.float64, np.float32, np.float16)  # dtypes that transform keeps; any other becomes float64
_INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
_SUMMED = (*_FLOATS, np.bool_, *_INTEGERS)  # dtypes that `Moments` takes


class StreamingStandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Standardise features to mean 0 and variance 1, as ``sklearn.preprocessing.StandardScaler`` does.

    .. math:: z_{nc} = \frac{x_{nc} - \mu_c}{s_c}

    with the mean and the square root of the biased variance of all samples seen. Parameters, attributes and
    methods are those of StandardScaler, and results are the same up to rounding. In addition, there is
    `merge`; the statistics are those of `Moments`, which do not depend on how the samples were cut into
    batches; and integers are summed without a float copy.

    Parameters
    ----------
    copy : bool, default True
        Whether `transform` and `inverse_transform` return a new array. If False, they write to X, if that is
        a writeable array of float32 or float64 whose elements do not share memory.
    with_mean : bool, default True
        Whether to subtract the mean.
    with_std : bool, default True
        Whether to divide by the standard deviation.

    Attributes
    ----------
    mean_ : ndarray of float64, shape (n_features,), or None
        Mean of each feature; None if neither ``with_mean`` nor ``with_std``.
    var_ : ndarray of float64, shape (n_features,), or None
        Biased variance of each feature; None without ``with_std``.
    scale_ : ndarray of float64, shape (n_features,), or None
        What X is divided by: the square root of ``var_``, but 1 for features that are constant up to
        rounding; None without ``with_std``.
    n_samples_seen_ : int, float, or ndarray of shape (n_features,)
        Number of samples, or sum of their weights: one for each feature where they differ, because NaN are
        left out. Without ``with_mean`` and ``with_std`` it is the number of samples, whatever they weigh.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str, shape (n_features,)
        Names of features, where X had them.

    See Also
    --------
    numbabn.Moments : The statistics alone, of arrays of any rank.

    Notes
    -----
    NaN are left out in `fit` and `partial_fit`, feature by feature, and stay NaN in `transform`. Infinity is
    an error in `fit` and `partial_fit`. `transform` does not search X for infinity, because it would have to
    read X twice: infinity stays infinity, where StandardScaler raises an error. Sparse matrices are not
    supported; StandardScaler takes them with ``with_mean=False``. Which features count as constant is decided
    by StandardScaler's rule. A call that raises an error has not changed the scaler.

    Examples
    --------
    >>> import numpy as np
    >>> from numbabn.sklearn import StreamingStandardScaler
    >>> X = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    >>> scaler = StreamingStandardScaler().partial_fit(X[:1])
    >>> scaler = scaler.merge(StreamingStandardScaler().fit(X[1:]))
    >>> scaler.mean_, scaler.scale_
    (array([2., 5.]), array([1.63299316, 1.        ]))
    >>> scaler.transform(X)
    array([[-1.22474487,  0.        ],
           [ 0.        ,  0.        ],
           [ 1.22474487,  0.        ]])
    """

    _parameter_constraints = {"copy": ["boolean"], "with_mean": ["boolean"], "with_std": ["boolean"]}  # noqa: RUF012

    def __init__(self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Forget everything, and learn mean and scale from X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Real numbers; NaN are left out.
        y : None
            Not used.
        sample_weight : array-like of shape (n_samples,), or float, optional
            How often each sample counts; not negative.

        Returns
        -------
        self : StreamingStandardScaler

        Raises
        ------
        TypeError, ValueError
            If X or sample_weight is not such an array, or X has an infinity.
        """
        return self._learn(X, sample_weight, reset=True)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn mean and scale from these samples and all before them; the arguments are those of `fit`."""
        return self._learn(X, sample_weight, reset=not hasattr(self, "_moments"))

    def merge(self, other: "StreamingStandardScaler") -> Self:
        """Learn from all samples that another scaler has seen, which stays as it is.

        Parameters
        ----------
        other : StreamingStandardScaler
            A scaler fitted on the same features; its parameters may differ.

        Returns
        -------
        self : StreamingStandardScaler

        Raises
        ------
        TypeError
            If other is not a StreamingStandardScaler.
        ValueError
            If other was fitted on other features, or is not fitted (``sklearn.exceptions.NotFittedError``).
        """
        if not isinstance(other, StreamingStandardScaler):
            raise TypeError(f"other must be a StreamingStandardScaler, not {type(other).__name__}")
        check_is_fitted(other)
        if not hasattr(self, "_moments"):
            moments = other._moments.copy()
        elif _features(self) == _features(other):
            moments = self._moments + other._moments
        else:
            raise ValueError(f"other was fitted on {_features(other)}, but this scaler on {_features(self)}")
        self._take(moments)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(other, name):
                setattr(self, name, getattr(other, name))
        return self

    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Standardise X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            float64, float32 and float16 keep their dtype, everything else becomes float64.
        copy : bool, optional
            In place of the parameter of the class.

        Returns
        -------
        X_tr : ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=_FLOATS, ensure_all_finite=False)
        scale = None if self.scale_ is None else 1 / self.scale_
        return self._affine(x, self.mean_ if self.with_mean else None, scale, None, copy)

    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            As for `transform`.
        copy : bool, optional
            In place of the parameter of the class.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        x = check_array(X, estimator=self, input_name="X", dtype=_FLOATS, ensure_all_finite=False)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return self._affine(x, None, self.scale_, self.mean_ if self.with_mean else None, copy)

    @np.errstate(all="ignore")  # of infinity, which is refused afterwards, when the range has it
    def _learn(self, X: Any, sample_weight: Any, reset: bool) -> Self:
        self._validate_params()
        x = check_array(X, estimator=self, input_name="X", dtype=_SUMMED, ensure_all_finite=False)
        weights = None if sample_weight is None else _column(sample_weight, len(x))
        if not (self.with_mean or self.with_std):
            weights = None  # StandardScaler counts samples then, whatever they weigh
        moments = Moments(axis=-1, nan_policy="omit").update(x, weights)
        _refuse_infinity(moments, x.dtype)
        validate_data(self, X, reset=reset, skip_check_array=True)  # last: it stores the features
        self._take(moments if reset else self._moments + moments)
        return self

    def _take(self, moments: Moments) -> None:
        """Set the attributes that are learned to those of the moments."""
        count, var = moments.count, moments.var()
        mean = moments.mean
        self._moments = moments
        self.n_samples_seen_ = count[0] if (count == count[0]).all() else count
        self.mean_ = mean if self.with_mean or self.with_std else None
        self.var_ = var if self.with_std else None
        self.scale_ = _scale(count, mean, var) if self.with_std else None

    @np.errstate(over="ignore")  # a result too large for float16 becomes infinity without a warning
    def _affine(
        self, x: Array, center: Array | None, scale: Array | None, shift: Array | None, copy: bool | None
    ) -> Array:
        """Return (x - center) * scale + shift."""
        if x.dtype == np.float16:  # so that scale and shift are not float16
            return self._affine(x.astype(np.float32), center, scale, shift, False).astype(np.float16)
        in_place = not (self.copy if copy is None else copy) and x.flags.writeable and not overlaps_itself(x)
        if x.dtype == np.float32 and scale is not None and beyond_float32(scale):
            wide = self._affine(x.astype(np.float64), center, scale, shift, False)
            return np.positive(wide, out=x if in_place else np.empty_like(x), casting="same_kind")
        ones = np.ones(x.shape[1])
        center = np.zeros_like(ones) if center is None else center
        return batch_norm_inference(
            x, center, ones, scale, shift, axis=-1, eps=0.0, out=x if in_place else None
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _features(scaler: StreamingStandardScaler) -> list[str] | str:
    """Return the names of the features of a fitted scaler, or a text with their number."""
    names = getattr(scaler, "feature_names_in_", None)
    return f"{scaler.n_features_in_} features without names" if names is None else list(names)


def _column(sample_weight: Any, samples: int) -> Array:
    """Return the weights as a column, (samples, 1), which broadcasts against X."""
    if isinstance(sample_weight, Number):
        sample_weight = np.full(samples, sample_weight)
    weights = check_array(sample_weight, ensure_2d=False, dtype=_FLOATS, input_name="sample_weight")
    if weights.shape != (samples,):
        raise ValueError(
            f"sample_weight has shape {weights.shape}; it must have one weight per sample, ({samples},)"
        )
    if (weights < 0).any():
        raise ValueError(f"sample_weight must not be negative, but is {weights.min()} somewhere")
    if not weights.any():
        raise ValueError("sample_weight must contain at least one non-zero number")
    column: Array = weights[:, None]
    return column


def _refuse_infinity(moments: Moments, dtype: np.dtype[Any]) -> None:
    """Raise if the range of a feature has an infinity."""
    infinite = np.isinf(moments.min) | np.isinf(moments.max)
    if infinite.any():
        raise ValueError(
            f"Input X contains infinity or a value too large for {dtype!r}, "
            f"the first in feature {np.argmax(infinite)}"
        )


def _scale(count: Array, mean: Array, var: Array) -> Array:
    """Return the standard deviation of each feature, but 1 where it is constant up to rounding.

    The rule for that is StandardScaler's: the error bound of a variance computed in two passes, from Chan,
    Golub and LeVeque (1983), "Algorithms for computing the sample variance: analysis and recommendations".
    """
    rounding = count * np.finfo(np.float64).eps
    constant = var <= rounding * var + (rounding * mean) ** 2
    scale = np.sqrt(var)
    scale[constant] = 1.0
    return scale
