"""Instance norm: every channel of every sample. The functions, which remember nothing, and the layer."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbabn.backends.verbs import Pair, View
from numbabn.norms import _checks, _options
from numbabn.norms._call import Call, backward
from numbabn.norms._foreign import advised
from numbabn.norms._saved import Saved
from numbabn.norms._tracking import TrackingLayer
from numbabn.norms._types import A
from numbabn.norms.group import GroupCall


class _Call(GroupCall):
    """A call with one statistic for each channel of every sample."""

    __slots__ = ()
    norm = "instance_norm"

    def __init__(self, x: object, axis: object, out: object) -> None:
        super().__init__(x, axis, 0, out)

    def check_count(self, advice: str | None) -> None:
        """Raise if a channel of a sample has just one value."""
        if self.count == 1:
            raise ValueError(
                f"x has shape {self.x.shape}, one value per channel of a sample, whose variance is 0; pass "
                f"larger maps{f', or {advice}' if advice else ''}"
            )

    def over_samples(self, statistics: Pair) -> Pair:
        """Return the means over all samples of the statistics of each channel."""
        mean, var = statistics
        view, verbs = View(1, self.x.shape[0], self.channels, 1, 1), self.library.backend
        return verbs.moments(mean, view)[0], verbs.moments(var, view)[0]


class _KnownCall(Call):
    """A call with known statistics of the channels: inference of batch norm."""

    __slots__ = ()
    norm = "instance_norm"


def instance_norm_forward(
    x: A,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    mean: Any = None,
    var: Any = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Normalise every channel of every sample, and keep what the backward pass needs.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of channel c of sample n over all other axes, or with those given.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 2
        Any memory layout; samples on axis 0, C channels on ``axis``: NCL, NCHW and NCDHW have 1, NHWC has -1.
        Samples that do not lie one after the other in memory are copied, and y is copied back.
    gamma, beta : array of any float dtype, or list of numbers, shape (C,), optional
        Scale and shift; 1 and 0 without. A list becomes an array of float64.
    axis : int, default 1
        Channel axis; not 0, unless statistics are given.
    eps : float, default 1e-5
        Added to the variance; not negative. With 0, a constant channel gives NaN.
    mean, var : array of any float dtype, or list of numbers, shape (C,), optional
        Use these statistics for all samples, constants for the backward pass, in place of those of x. Both or
        none.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass: y is the activation of the above.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; not looked at without an activation or a residual.
    residual : array, optional
        z, of the shape and dtype of y: it is added before the activation. May be ``out``; may not overlap it
        in any other way.
    out : array, optional
        Write the result here: shape of x, dtype of x. May be x itself, which then cannot go backward;
        may not overlap x in any other way.

    Returns
    -------
    y : array
        Shape and dtype of x, memory order as ``numpy.empty_like(x)``; ``out`` if given.
    saved : Saved
        For `instance_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU,
        nor gamma, mean and var.

    Raises
    ------
    TypeError, ValueError, ImportError, RuntimeError
        As `batch_norm_forward`, and if a channel of a sample has just one value to take statistics of.

    Notes
    -----
    Ulyanov, Vedaldi and Lempitsky (2016), "Instance normalization: the missing ingredient for fast
    stylization". The bits of a sample's y and dx do not depend on the other samples, their number, or its
    place among them, nor on the number of threads. NaN and infinity stay in their channel of their sample; a
    constant channel gives exactly beta. gamma and beta may be rounded to the dtype that x is computed in,
    float32 for float16 and bfloat16.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[[1.0, 3.0]], [[10.0, 30.0]]])
    >>> y, saved = nbn.instance_norm_forward(x, eps=0.0)
    >>> y
    array([[[-1.,  1.]],
    <BLANKLINE>
           [[-1.,  1.]]])
    >>> saved.mean
    array([[ 2.],
           [20.]])
    """
    if mean is not None or var is not None:
        known_call = _KnownCall(x, axis, out)
        known_call.follow(activation, negative_slope, residual)
        affine, known = known_call.affine_and_known(gamma, beta, eps, mean, var)
        return known_call.normalize(affine, known, None)
    call = _Call(x, axis, out)
    call.follow(activation, negative_slope, residual)
    call.check_count("mean= and var= to use known statistics")
    return call.normalize(call.affine(gamma, beta, eps), None, None)


def instance_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    dresidual_out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
) -> tuple[Any, ...]:
    r"""Gradients of an `instance_norm_forward` call.

    .. math::

        d\beta_c = \sum dy, \qquad d\gamma_c = \sum dy\, \hat x, \qquad
        dx = \frac{\gamma_c}{\sqrt{\sigma_{nc}^2 + \epsilon}}
             \left(dy - \overline{dy} - \hat x\, \overline{dy\, \hat x}\right)

    with sums over all values of a channel, and means over those of one sample; where the statistics were
    given, the two means are absent from dx.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y: shape and dtype of x, any memory layout.
    saved : Saved
        From the forward call that made y.
    out : array, optional
        Write dx here: shape and dtype of x. May be dy itself; may not overlap dy or x in any other way.
    dresidual_out : array, optional
        Write dresidual here: shape and dtype of x. May be dy itself; may not overlap dy, x or ``out`` in any
        other way.
    need_dx, need_dgamma, need_dbeta : bool, default True
        What to compute; the rest is None.

    Returns
    -------
    dx : array or None
        Shape and dtype of x; ``out`` if given.
    dgamma, dbeta : array or None, shape (C,)
        In the dtypes of gamma and beta; None where the forward call had no such parameter.
    dresidual : array
        Fourth, where the forward call had a residual: its gradient, which is dy times the derivative of the
        activation.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> y, saved = nbn.instance_norm_forward(np.array([[[1.0, 2.0, 6.0]]]), np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = nbn.instance_norm_backward(np.array([[[1.0, 0.0, 0.0]]]), saved)
    >>> dx.sum().round(12), dbeta
    (np.float64(0.0), array([1.]))
    """
    _checks.norm(saved, "instance_norm")
    return backward(dy, saved, out, dresidual_out, (need_dx, need_dgamma, need_dbeta), None)


def _refuse_none(momentum: object) -> None:
    """Raise for the momentum with which batch norm keeps the population of all values."""
    if momentum is None:
        raise TypeError("momentum must be a number from 0 to 1, the weight of the new batch, not None")


class InstanceNorm(TrackingLayer):
    r"""Instance normalisation: every channel of every sample.

    .. math:: y = \frac{x - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} \gamma_c + \beta_c

    Parameters
    ----------
    num_channels : int
        C, the length of x along ``axis``.
    axis : int, default 1
        Channel axis of x, of any rank from 3: 1 for NCL, NCHW and NCDHW, -1 for NHWC.
    eps : float, default 1e-5
        Added to the variance; not negative.
    track_running_stats : bool, default False
        Whether there are running statistics, with which evaluation mode normalises all samples. Without,
        every sample is normalised with its own statistics in evaluation mode, too.
    momentum : float, default 0.1
        Weight of the **new** batch in the running statistics, as of `BatchNorm`.
    scale, center : bool, default False
        Whether there is a gamma, and a beta; without, as in PyTorch.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass, after the addition of the ``residual`` of a call.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0.
    dtype : dtype, default float32
        Of parameters and running statistics; any floating dtype, on a GPU float16, float32 or float64. x may
        have another.
    device : {"cpu", "cuda", "cuda:0", ...} or array, default "cpu"
        Where parameters and statistics are, and x must be; see `to`.

    Attributes
    ----------
    params, grads : dict
        ``gamma`` and ``beta``, shape (C,), as far as the layer has them; update them in place. `backward`
        replaces the entries of grads.
    running_mean, running_var : array of shape (C,), or None
        Start at 0 and 1. A batch adds the means over its samples of their means and unbiased variances, as in
        PyTorch.
    num_batches_tracked : int
        Training batches seen.
    activation, negative_slope
        As given; may be set.
    dresidual : array or None
        Gradient of the residual, from the last `backward`; None if there was none.
    training : bool
        The mode; see `train` and `eval`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range. A refused call changes nothing.

    Notes
    -----
    Ulyanov, Vedaldi and Lempitsky (2016), "Instance normalization: the missing ingredient for fast
    stylization". A call keeps x for `backward`, and does not copy it: do not change x before. See
    `instance_norm_forward` for what is promised.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> norm = nbn.InstanceNorm(1)
    >>> norm(np.array([[[1, 3]], [[10, 30]]], np.float32)).round(3)
    array([[[-1.,  1.]],
    <BLANKLINE>
           [[-1.,  1.]]], dtype=float32)
    """

    # Eleven parameters: the options of the layer, which a user passes by keyword.
    @advised
    def __init__(
        self,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        track_running_stats: bool = False,
        momentum: float = 0.1,
        scale: bool = False,
        center: bool = False,
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
    ) -> None:
        _refuse_none(momentum)
        self.momentum = _options.momentum(momentum)
        super().__init__(
            num_channels,
            _options.channel_axis(axis),
            track_running_stats,
            eps=eps,
            scale=scale,
            center=center,
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            device=device,
        )

    def __call__(self, x: A, *, residual: A | None = None, out: A | None = None) -> A:
        """Normalise x; in training mode, update the running statistics if there are any.

        Parameters
        ----------
        x : array of float16, bfloat16, float32 or float64, rank >= 3
            With ``num_channels`` along ``axis``, on the device of the layer. Do not change it before
            `backward`, which reads it again.
        residual : array, optional
            Added before the activation: shape and dtype of y. May be ``out``; may not overlap it in any
            other way.
        out : array, optional
            Write the result here; may be x itself, which then cannot go backward.

        Returns
        -------
        y : array
            Shape, dtype and library of x; ``out`` if given.
        """
        running = self._running
        _refuse_none(self.momentum)
        if running is not None and not self.training:
            return self._evaluated(x, (running.mean, running.var), residual, out)
        call = _Call(x, self.axis, out)
        self._check_input(call)
        call.follow(self.activation, self.negative_slope, residual)
        call.check_count("use evaluation mode: layer.eval()" if running else None)
        affine = call.affine(self.params.get("gamma"), self.params.get("beta"), self.eps)
        y: A
        y, saved = call.normalize(affine, None, None)
        if running is not None and not self._frozen and saved.count:
            batch = call.over_samples(saved._statistics)
            self._running = running.after(batch, saved.count, self.momentum)
        self._saved = saved
        return y

    def _evaluated(self, x: A, statistics: Pair, residual: A | None, out: A | None) -> A:
        """Normalise x with these statistics."""
        call = _KnownCall(x, self.axis, out)
        self._check_input(call)
        call.follow(self.activation, self.negative_slope, residual)
        given = self.params.get("gamma"), self.params.get("beta"), self.eps
        affine, known = call.affine_and_known(*given, *statistics)
        y: A
        y, self._saved = call.normalize(affine, known, None)
        return y

    def __repr__(self) -> str:
        return self._text(f"{self.num_channels}, axis={self.axis}, eps={self.eps}, momentum={self.momentum}")
