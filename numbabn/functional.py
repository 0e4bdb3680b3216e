"""Batch normalisation as functions: nothing is remembered but what `Saved` holds for the backward pass.

Arrays are in NumPy, or on a GPU: of CuPy, of Numba, or CUDA tensors of PyTorch. Results are of the library of
x, gradients of parameters of that of the parameter. On a GPU all arrays of a call are on one device; nothing
is copied to the host and nothing waits: work goes to the current stream of the library of x, for Numba to the
stream that its array was made with.
"""

from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from numbabn import _checks, _cpu, _memory, _views
from numbabn._arrays import AnyArray, DeviceArray, assign, native, statistics, vector
from numbabn._backends import cuda_module
from numbabn._synchronised import Message

# An array of NumPy, CuPy, Numba or PyTorch: results are of the same kind. No static type covers the four, so
# that the others are Any.
A = TypeVar("A")


class Saved:
    """What a forward call leaves for its backward call. Opaque, except for the statistics.

    Attributes
    ----------
    mean, var : array, shape (C,)
        Mean and biased variance that x was normalised with, in float64; arrays that were given on a GPU are
        these arrays themselves.
    count : int
        Number of values per channel.
    training : bool
        Whether they are the statistics of x itself, through which gradients flow, or were given.
    """

    __slots__ = (
        "_beta", "_eps", "_gamma", "_layout", "_mean", "_scale", "_synchronised", "_var", "_x",
        "count", "training",
    )  # fmt: skip

    count: int
    training: bool
    _mean: AnyArray
    _var: AnyArray
    _x: AnyArray | None  # dense, or None where y was written over it
    _layout: _views.Layout
    _scale: AnyArray | None  # the values of gamma
    _gamma: AnyArray | None  # gamma and beta as given: their gradients are like them
    _beta: AnyArray | None
    _eps: float
    _synchronised: bool  # whether statistics and count are those of all ranks

    @property
    def mean(self) -> Any:  # noqa: D102 - see Attributes
        return native(self._mean)

    @property
    def var(self) -> Any:  # noqa: D102
        return native(self._var)

    def __repr__(self) -> str:
        channels = self._mean.shape[0]
        return f"Saved(channels={channels}, count={self.count}, training={self.training})"


def moments(x: A, *, axis: int = 1) -> tuple[int, A, A]:
    r"""Count, mean and sum of squared deviations per channel.

    .. math:: \mu_c = \frac1n \sum x, \qquad M_{2,c} = \sum (x - \mu_c)^2

    over all axes but ``axis``; the variance is ``m2 / count``, or ``m2 / (count - 1)`` unbiased.

    Parameters
    ----------
    x : array of float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``.
    axis : int, default 1
        Channel axis.

    Returns
    -------
    count : int
        Values per channel.
    mean, m2 : array of float64, shape (C,)
        NaN and 0 where there are no values.

    Raises
    ------
    TypeError
        If x is not an array of float32 or float64.
    ValueError
        If x has rank below 2, or no such axis.

    Notes
    -----
    Everything is summed in float64 about values of the data, and chunks are merged with the formula of Chan,
    Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances",
    so that no offset of the data costs accuracy. The result has the same bits for any number of threads.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> count, mean, m2 = nbn.moments(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> count, mean, m2 / count
    (2, array([ 2., 20.]), array([  1., 100.]))
    """
    array = _checks.data(x, "x")
    axis = _checks.axis(axis, array.ndim)
    array = _views.dense(array)
    count, mean, m2 = _moments(array, _views.layout(array, axis), array.shape[axis])
    return count, native(mean), native(m2)


def _moments(x: AnyArray, layout: _views.Layout, channels: int) -> tuple[int, Any, Any]:
    if x.size == 0:
        return 0, statistics(x, channels, np.nan), statistics(x, channels, 0.0)
    return x.size // channels, *_backend(x).moments(layout.flat(x), layout.shape)


def batch_norm_forward(
    x: A,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    mean: Any = None,
    var: Any = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Normalise every channel of a batch, and keep what the backward pass needs.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of x over all axes but ``axis``, or with those given.

    Parameters
    ----------
    x : array of float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``: NC, NCL, NCHW and NCDHW have 1, NHWC has -1.
    gamma, beta : array of any float dtype, shape (C,), optional
        Scale and shift; 1 and 0 without.
    axis : int, default 1
        Channel axis.
    eps : float, default 1e-5
        Added to the variance; not negative. With 0, a constant channel gives NaN.
    mean, var : array of any float dtype, shape (C,), optional
        Use these statistics, constants for the backward pass, in place of those of x. Both or none.
    out : array, optional
        Write the result here: shape of x, dtype of x. May be x itself, which then cannot go backward;
        may not overlap x in any other way.

    Returns
    -------
    y : array
        Shape and dtype of x, memory order as ``numpy.empty_like(x)``; ``out`` if given.
    saved : Saved
        For `batch_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU, nor
        gamma, mean and var.

    Raises
    ------
    TypeError
        If an array is of no library that is supported or has the wrong dtype, if some arrays are on a GPU and
        others are not, or if ``out`` is of another library than x.
    ValueError
        If a shape, ``axis`` or ``eps`` is wrong, ``out`` overlaps x partly, a channel has just one value to
        take statistics of, or arrays are on different GPUs.
    ImportError, RuntimeError
        If x is on a GPU, and numba-cuda is not installed or finds none.

    Notes
    -----
    Ioffe and Szegedy (2015), "Batch normalization: accelerating deep network training by reducing internal
    covariate shift". An empty batch gives an empty result. NaN and infinity stay in their channel. A constant
    channel gives exactly beta. A negative variance is refused on the CPU; on a GPU, where to look at it would
    be to wait for it, its channel becomes NaN, unless eps makes it positive.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, saved = nbn.batch_norm_forward(x, eps=0.0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> saved.var
    array([  1., 100.])
    """
    return _forward(x, gamma, beta, axis, eps, mean, var, out, None)


@np.errstate(all="ignore")
def synchronised_forward(
    x: A, gamma: Any, beta: Any, axis: int, eps: float, out: A | None, message: Message
) -> tuple[A, Saved]:
    """`batch_norm_forward` with the statistics of the batches of all ranks."""
    return _forward(x, gamma, beta, axis, eps, None, None, out, message)


def _forward(
    x: A,
    gamma: Any,
    beta: Any,
    axis: int,
    eps: float,
    mean: Any,
    var: Any,
    out: A | None,
    message: Message | None,
) -> tuple[A, Saved]:
    array = _checks.data(x, "x")
    axis = _checks.axis(axis, array.ndim)
    eps = _checks.eps(eps)
    channels = array.shape[axis]
    saved = Saved()
    saved._gamma = None if gamma is None else _checks.per_channel(gamma, "gamma", channels, array)
    saved._beta = None if beta is None else _checks.per_channel(beta, "beta", channels, array)
    saved._eps = eps
    saved.count = array.size // channels if channels else 0
    saved.training = mean is None and var is None
    saved._synchronised = message is not None
    if not saved.training:
        saved._mean, saved._var = _given_statistics(mean, var, channels, array)
    elif saved.count == 1 and message is None:
        raise ValueError(
            f"x has shape {array.shape}, one value per channel, whose variance is 0; pass a larger batch, "
            "or mean= and var= to use known statistics"
        )
    target = None if out is None else _checks.output(out, array, "x", {"x": array})

    source = _views.dense(array)
    layout = saved._layout = _views.layout(source, axis)
    y = _memory.empty_like(source) if target is None or not layout.matches(target) else target
    saved._x = None if target is not None and _checks.same_memory(target, array) else source
    scale = saved._scale = None if saved._gamma is None else _views.vector(saved._gamma)
    shift = None if saved._beta is None else _views.vector(saved._beta)
    own = saved.training and message is None  # the statistics are those of x, and of nothing else
    if message is not None:
        saved.count, saved._mean, saved._var = message.statistics(*_moments(source, layout, channels))
    if source.size == 0:
        if own:
            saved._mean, saved._var = (statistics(source, channels, np.nan) for _ in range(2))
        return _deliver(y, target), saved
    backend, flat_x, flat_y, shape = _backend(source), layout.flat(source), layout.flat(y), layout.shape
    if own:
        saved._mean, saved._var = backend.forward(flat_x, flat_y, shape, scale, shift, eps)
    else:
        backend.normalize(flat_x, flat_y, shape, saved._mean, saved._var, scale, shift, eps)
    return _deliver(y, target), saved


def batch_norm_inference(
    x: A,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: A | None = None,
) -> A:
    r"""Normalise every channel with known statistics.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c

    Parameters
    ----------
    x : array of float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``.
    mean, var : array of any float dtype, shape (C,)
        Statistics of the population, usually running averages.
    gamma, beta : array of any float dtype, shape (C,), optional
        Scale and shift; 1 and 0 without.
    axis : int, default 1
        Channel axis.
    eps : float, default 1e-5
        Added to the variance; not negative.
    out : array, optional
        Write the result here; may be x itself.

    Returns
    -------
    y : array
        Shape and dtype of x; ``out`` if given.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_forward`.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> nbn.batch_norm_inference(x, np.array([2.0, 20.0]), np.array([1.0, 100.0]), eps=0.0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    if mean is None or var is None:
        raise TypeError("mean and var must be arrays of one value per channel, not None")
    return batch_norm_forward(x, gamma, beta, axis=axis, eps=eps, mean=mean, var=var, out=out)[0]


@np.errstate(all="ignore")
def batch_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
) -> tuple[A | None, Any, Any]:
    r"""Gradients of a forward call.

    With xhat the normalised x and means over a channel's n values:

    .. math::

        d\beta = \sum dy, \qquad d\gamma = \sum dy\, \hat x, \qquad
        dx = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
             \left(dy - \overline{dy} - \hat x\, \overline{dy\, \hat x}\right)

    where the statistics were those of x; where they were given, the two means are absent from dx.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y: shape and dtype of x, any memory layout.
    saved : Saved
        From the `batch_norm_forward` call that made y.
    out : array, optional
        Write dx here: shape and dtype of x. May be dy itself; may not overlap dy or x in any other way.
    need_dx, need_dgamma, need_dbeta : bool, default True
        What to compute; the rest is None.

    Returns
    -------
    dx : array or None
        Shape and dtype of x; ``out`` if given.
    dgamma, dbeta : array or None, shape (C,)
        In the dtypes of gamma and beta; None where the forward call had no such parameter.

    Raises
    ------
    TypeError
        If dy is not an array of the library and dtype of x, or saved is not a `Saved`.
    ValueError
        If a shape is wrong, ``out`` overlaps an input partly, or the forward call overwrote x (``out=x``).

    Notes
    -----
    Ioffe and Szegedy (2015), section 3. An empty batch has an empty dx, and zero dgamma and dbeta.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, saved = nbn.batch_norm_forward(x, np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = nbn.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
    >>> dx.sum().round(12), dbeta
    (np.float64(0.0), array([1.]))
    """
    return _backward(dy, saved, out, need_dx, need_dgamma, need_dbeta, None)


@np.errstate(all="ignore")
def synchronised_backward(
    dy: A, saved: Saved, out: A | None, need_dx: bool, message: Message
) -> tuple[A | None, Any, Any]:
    """`batch_norm_backward` of `synchronised_forward`; dgamma and dbeta are sums over all ranks."""
    return _backward(dy, saved, out, need_dx, True, True, message)


def _backward(
    dy: A,
    saved: Saved,
    out: A | None,
    need_dx: bool,
    need_dgamma: bool,
    need_dbeta: bool,
    message: Message | None,
) -> tuple[A | None, Any, Any]:
    if not (isinstance(saved, Saved) and hasattr(saved, "_x")):
        raise TypeError(f"saved must come from batch_norm_forward, but is {type(saved).__name__}")
    if saved._x is None:
        raise ValueError(
            "saved is from a forward call that wrote y over x (out=x), so x is gone; "
            "give that call an array of its own to go backward"
        )
    x, layout = saved._x, saved._layout
    array = _checks.gradient(dy, x)
    target = None
    if out is not None:
        if not need_dx:
            raise ValueError("out is given, but need_dx is False: there is nothing to write to it")
        target = _checks.output(out, x, "dy", {"dy": array, "x": x})
    source = _views.as_layout(array, x, layout)
    dgamma = vector(saved._gamma) if need_dgamma and saved._gamma is not None else None
    dbeta = vector(saved._beta) if need_dbeta and saved._beta is not None else None
    dx = None
    if need_dx:
        dx = _memory.empty_like(x) if target is None or not layout.matches(target) else target
    if message is None:
        _run_backward(source, x, dx, saved, dgamma, dbeta)
    else:
        _run_synchronised_backward(source, x, dx, saved, dgamma, dbeta, message)
    return (
        None if dx is None else _deliver(dx, target),
        None if dgamma is None else native(dgamma),
        None if dbeta is None else native(dbeta),
    )


def _run_backward(
    dy: AnyArray,
    x: AnyArray,
    dx: AnyArray | None,
    saved: Saved,
    dgamma: AnyArray | None,
    dbeta: AnyArray | None,
) -> None:
    """Fill whichever of dx, dgamma and dbeta are not None."""
    if x.size == 0:
        for gradient in (dgamma, dbeta):
            if gradient is not None:
                gradient.fill(0)
        return
    backend, layout, scale = _backend(x), saved._layout, saved._scale
    shape, flat_dy, flat_x = layout.shape, layout.flat(dy), layout.flat(x)
    mean, var, eps = saved._mean, saved._var, saved._eps
    if saved.training and dx is not None:
        backend.backward(flat_dy, flat_x, layout.flat(dx), shape, scale, mean, var, eps, dgamma, dbeta)
        return
    if dgamma is not None or dbeta is not None:
        backend.backward_reduce(flat_dy, flat_x, shape, mean, var, eps, dgamma, dbeta)
    if dx is not None:
        backend.scale(flat_dy, layout.flat(dx), shape, scale, var, eps)


def _run_synchronised_backward(
    dy: AnyArray,
    x: AnyArray,
    dx: AnyArray | None,
    saved: Saved,
    dgamma: AnyArray | None,
    dbeta: AnyArray | None,
    message: Message,
) -> None:
    """Fill whichever of dx, dgamma and dbeta are not None, with the sums of all ranks."""
    backend, layout, mean, var, eps = _backend(x), saved._layout, saved._mean, saved._var, saved._eps
    shape, flat_dy, flat_x = layout.shape, layout.flat(dy), layout.flat(x)
    if x.size:
        sums = backend.backward_reduce(flat_dy, flat_x, shape, mean, var, eps, None, None)
    else:
        sums = np.zeros((2, mean.size))
    sums = message.sums(sums)
    for gradient, total in ((dbeta, sums[0]), (dgamma, sums[1])):
        if gradient is not None:
            assign(gradient, total)
    if dx is not None and x.size:
        flat_dx, scale, count = layout.flat(dx), saved._scale, saved.count
        backend.backward_apply(flat_dy, flat_x, flat_dx, shape, scale, mean, var, eps, sums, count)


def _backend(x: AnyArray) -> ModuleType:
    return cuda_module("") if type(x) is DeviceArray else _cpu


def _given_statistics(mean: Any, var: Any, channels: int, x: AnyArray) -> tuple[AnyArray, AnyArray]:
    if mean is None or var is None:
        missing, present = ("mean", "var") if mean is None else ("var", "mean")
        raise ValueError(f"{present} is given without {missing}; pass both to use known statistics, or none")
    return (
        _views.vector(_checks.per_channel(mean, "mean", channels, x)),
        _views.vector(_checks.variance(var, "var", channels, x)),
    )


def _deliver(result: AnyArray, target: AnyArray | None) -> Any:
    """Return the result in ``out``, copied there where its memory order is another."""
    if target is not None and target is not result:
        assign(target, result)
        result = target
    return native(result)
