"""Group norm: groups of channels of every sample. The functions, which remember nothing, and the layer."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbabn.arrays import AnyArray
from numbabn.arrays.layout import Layout, axis_number, samples_layout
from numbabn.norms import _checks, _options
from numbabn.norms._call import SampleCall, backward
from numbabn.norms._foreign import advised
from numbabn.norms._saved import Saved
from numbabn.norms._tracking import ChannelLayer
from numbabn.norms._types import A


class GroupCall(SampleCall):
    """A call with one statistic for each group of channels of every sample."""

    __slots__ = ("num_groups",)
    norm = "group_norm"

    def __init__(self, x: object, axis: object, num_groups: int | None, out: object) -> None:
        self.num_groups = num_groups or 0  # None: as many as channels
        super().__init__(x, axis, out)

    def _read(self, axis: object) -> None:
        x = self.x
        if x.ndim < 2:
            raise _checks.rank(x, "x")
        self.axis = axis_number(axis, x.ndim)
        if self.axis == 0:
            raise ValueError("axis must be that of the channels, but axis 0 of x is that of the samples")
        self.channels = x.shape[self.axis]
        if not self.num_groups:
            self.num_groups = self.channels
        self.groups = x.shape[0] * self.num_groups
        self.count = x.size // self.groups if self.groups else 0

    def check_groups(self) -> None:
        """Raise unless the channels can be cut into groups of the same size; a layer knows that they can."""
        if self.channels % self.num_groups:
            raise ValueError(
                f"num_groups is {self.num_groups}, but x has {self.channels} channels on axis {self.axis}, "
                "which cannot be cut into so many groups of the same size"
            )

    def _layout(self, source: AnyArray) -> Layout:
        return samples_layout(source, self.axis, self.num_groups)


def group_norm_forward(
    x: A,
    num_groups: int,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Normalise groups of channels of every sample, and keep what the backward pass needs.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of sample n over the channels of group g and all other axes.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 2
        Any memory layout; samples on axis 0, C channels on ``axis``: NC, NCL, NCHW and NCDHW have 1, NHWC has
        -1. Samples that do not lie one after the other in memory are copied, and y is copied back.
    num_groups : int
        G, a divisor of C: channels 0 to C/G - 1 are the first group, and so on.
    gamma, beta : array of any float dtype, or list of numbers, shape (C,), optional
        Scale and shift; 1 and 0 without. A list becomes an array of float64.
    axis : int, default 1
        Channel axis; not 0.
    eps : float, default 1e-5
        Added to the variance; not negative. With 0, a constant group gives NaN.
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
        For `group_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU, nor
        gamma.

    Raises
    ------
    TypeError, ValueError, ImportError, RuntimeError
        As `batch_norm_forward`, and if ``num_groups`` does not divide the number of channels.

    Notes
    -----
    Wu and He (2018), "Group normalization". With one group it is layer norm of whole images with one gamma
    per channel; with as many groups as channels it is instance norm. The bits of a sample's y and dx do not
    depend on the other samples, their number, or its place among them, nor on the number of threads. NaN and
    infinity stay in their group; a constant group gives exactly beta. gamma and beta may be rounded to the
    dtype that x is computed in, float32 for float16 and bfloat16.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, saved = nbn.group_norm_forward(x, 2, eps=0.0)
    >>> y
    array([[-1.,  1., -1.,  1.]])
    >>> saved.mean
    array([[ 2., 20.]])
    """
    call = GroupCall(x, axis, _options.groups(num_groups), out)
    call.check_groups()
    call.follow(activation, negative_slope, residual)
    return call.normalize(call.affine(gamma, beta, eps), None, None)


def group_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    dresidual_out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
) -> tuple[Any, ...]:
    r"""Gradients of a `group_norm_forward` call.

    .. math::

        d\beta_c = \sum dy, \qquad d\gamma_c = \sum dy\, \hat x, \qquad
        dx = \frac{1}{\sqrt{\sigma_{ng}^2 + \epsilon}}
             \left(\gamma_c\, dy - \overline{\gamma\, dy} - \hat x\, \overline{\gamma\, dy\, \hat x}\right)

    with sums over all values of a channel, and means over those of a sample's group.

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
    >>> y, saved = nbn.group_norm_forward(np.array([[1.0, 2.0, 6.0]]), 1, np.ones(3), np.zeros(3))
    >>> dx, dgamma, dbeta = nbn.group_norm_backward(np.array([[1.0, 0.0, 0.0]]), saved)
    >>> dx.sum().round(12), dbeta
    (np.float64(0.0), array([1., 0., 0.]))
    """
    _checks.norm(saved, "group_norm")
    return backward(dy, saved, out, dresidual_out, (need_dx, need_dgamma, need_dbeta), None)


class GroupNorm(ChannelLayer):
    r"""Group normalisation: groups of channels of every sample, with learned scale and shift per channel.

    .. math:: y = \frac{x - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} \gamma_c + \beta_c

    Parameters
    ----------
    num_groups : int
        G, a divisor of ``num_channels``.
    num_channels : int
        C, the length of x along ``axis``.
    axis : int, default 1
        Channel axis of x, of any rank from 2: 1 for NC, NCL, NCHW and NCDHW, -1 for NHWC.
    eps : float, default 1e-5
        Added to the variance; not negative.
    scale, center : bool, default True
        Whether there is a gamma, and a beta.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass, after the addition of the ``residual`` of a call.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0.
    dtype : dtype, default float32
        Of the parameters; any floating dtype, on a GPU float16, float32 or float64. x may have another.
    device : {"cpu", "cuda", "cuda:0", ...} or array, default "cpu"
        Where the parameters are, and x must be; see `to`.

    Attributes
    ----------
    params, grads : dict
        ``gamma`` and ``beta``, shape (C,); update them in place. `backward` replaces the entries of grads.
    num_groups, num_channels, axis : int
        As given.
    activation, negative_slope
        As given; may be set.
    dresidual : array or None
        Gradient of the residual, from the last `backward`; None if there was none.
    training : bool
        The mode, which changes nothing here; see `train` and `eval`.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range. A refused call changes nothing.

    Notes
    -----
    Wu and He (2018), "Group normalization". A call keeps x for `backward`, and does not copy it: do not
    change x before. See `group_norm_forward` for what is promised.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> gn = nbn.GroupNorm(2, 4)
    >>> gn(np.array([[1, 3, 10, 30]], np.float32)).round(3)
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    @advised
    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        scale: bool = True,
        center: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
    ) -> None:
        self.num_groups = _options.groups(num_groups)
        super().__init__(
            num_channels,
            _options.channel_axis(axis),
            eps=eps,
            scale=scale,
            center=center,
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            device=device,
        )
        if self.num_channels % self.num_groups:
            raise ValueError(
                f"num_channels is {num_channels}, which cannot be cut into num_groups={num_groups} groups of "
                "the same size"
            )

    def __call__(self, x: A, *, residual: A | None = None, out: A | None = None) -> A:
        """Normalise x.

        Parameters
        ----------
        x : array of float16, bfloat16, float32 or float64, rank >= 2
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
        call = GroupCall(x, self.axis, self.num_groups, out)
        self._check_input(call)
        call.follow(self.activation, self.negative_slope, residual)
        affine = call.affine(self.params.get("gamma"), self.params.get("beta"), self.eps)
        y: A
        y, self._saved = call.normalize(affine, None, None)
        return y

    def __repr__(self) -> str:
        return self._text(f"{self.num_groups}, {self.num_channels}, axis={self.axis}, eps={self.eps}")
