"""Layer norm and RMS norm: every sample by itself. The functions, which remember nothing, and the layers."""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbabn.arrays import AnyArray, library_of
from numbabn.arrays.dtypes import computed_dtype
from numbabn.arrays.layout import Layout, axis_number, rows_layout
from numbabn.backends.verbs import Affine
from numbabn.norms import _checks, _options
from numbabn.norms._base import Layer
from numbabn.norms._call import SampleCall, backward
from numbabn.norms._foreign import advised
from numbabn.norms._saved import Saved
from numbabn.norms._types import A


class LayerCall(SampleCall):
    """A call with one statistic per sample: ``axis`` are the axes that are normalised together."""

    __slots__ = ("shape",)
    norm = "layer_norm"

    def _read(self, axis: object) -> None:
        x = self.x
        shape = x.shape
        if not shape:
            raise ValueError("x must have an axis to be normalised, but has shape ()")
        if type(axis) is tuple and len(axis) == 1:
            (axis,) = axis
        read = _one_axis if type(axis) is int else _some_axes  # most calls have one: a third of the time
        self.axis, self.shape, self.count, self.groups = read(shape, axis)
        self.channels = self.count

    def _layout(self, source: AnyArray) -> Layout:
        return rows_layout(source, self.axis)

    def affine(self, gamma: object, beta: object, eps: object) -> Affine:
        """Return gamma, beta and eps as backends take them; the parameters vary along the axes."""
        x, number = self.x, _checks.eps(eps)
        given_gamma = None if gamma is None else _checks.per_place(gamma, "gamma", self.shape, x)
        given_beta = None if beta is None else _checks.per_place(beta, "beta", self.shape, x)
        flat = _flat(given_gamma), _flat(given_beta)
        parameters = self.library.pair(*flat, self.count, computed_dtype(x.dtype))
        return Affine(parameters, number, (given_gamma, given_beta), self.norm == "layer_norm")


class RMSCall(LayerCall):
    """A call of RMS norm."""

    __slots__ = ()
    norm = "rms_norm"


def _flat(parameter: AnyArray | None) -> AnyArray | None:
    """Return a parameter, or None, as one dimension in C order."""
    if parameter is None or parameter.ndim == 1:
        return parameter
    if not parameter.flags.c_contiguous:
        library = library_of(parameter)
        copy = library.empty_vector(parameter)
        library.assign(copy, parameter)
        parameter = copy
    return parameter.ravel()


def _some_axes(shape: tuple[int, ...], axis: object) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """Return the axes, their lengths, and the numbers of values of a statistic and of statistics."""
    axes = _axes(axis, len(shape))
    lengths = tuple([shape[i] for i in axes])
    others = [n for i, n in enumerate(shape) if i not in axes]
    return axes, lengths, math.prod(lengths), math.prod(others)


@functools.lru_cache(1024)
def _one_axis(shape: tuple[int, ...], axis: int) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    return _some_axes(shape, axis)


def _axes(axis: object, ndim: int) -> tuple[int, ...]:
    """Return the axes that are normalised as numbers from 0, ascending."""
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(sorted(axis_number(each, ndim) for each in given))
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axis must name one axis or more, each of them once, not {axis!r}")
    return axes


def _or_machine_eps(eps: float | None, call: LayerCall) -> float:
    """Return eps, or what it is without one: the machine epsilon of the dtype that x is computed in."""
    return float(np.finfo(computed_dtype(call.x.dtype)).eps) if eps is None else eps


def layer_norm_forward(
    x: A,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Normalise every sample by itself, and keep what the backward pass needs.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    with the mean and the biased variance over the axes ``axis``, and gamma and beta that vary along them.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 1
        Of any memory layout. Fast without a copy where the normalised axes are the last ones in
        memory, as the default in C order; everything else is copied to such an array and back.
    gamma, beta : array of any float dtype, or list of numbers, optional
        Scale and shift, of the shape of the normalised axes, ascending; 1 and 0 without.
    axis : int or tuple of int, default -1
        Axes that are normalised together: -1 for features last, (1, 2, 3) for whole images, 1 for the
        channels of every pixel of NCHW, as in ConvNeXt.
    eps : float, default 1e-5
        Added to the variance; not negative. With 0, a constant sample gives NaN.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass: y is the activation of the above.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; not looked at without an activation or a residual.
    residual : array, optional
        z, of the shape and dtype of y: it is added before the activation. May be ``out``; may not overlap it
        in any other way.
    out : array, optional
        Write the result here: shape of x, dtype of x. May be x itself, which then cannot go backward; may not
        overlap x in any other way.

    Returns
    -------
    y : array
        Shape and dtype of x, memory order as ``numpy.empty_like(x)``; ``out`` if given.
    saved : Saved
        For `layer_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU, nor
        gamma.

    Raises
    ------
    TypeError
        If an array is of no library that is supported or has the wrong dtype, or if some arrays are on a GPU
        and others are not.
    ValueError
        If a shape, ``axis``, ``eps``, ``activation`` or ``negative_slope`` is wrong, ``out`` overlaps x or
        the residual partly, or arrays are on different GPUs.
    ImportError, RuntimeError
        If x is on a GPU, and numba-cuda is not installed or finds none.

    Notes
    -----
    Ba, Kiros and Hinton (2016), "Layer normalization". The bits of a sample's y and dx do not depend on the
    other samples, their number, or its place among them, nor on the number of threads. NaN and infinity stay
    in their sample; a constant sample gives exactly beta. gamma and beta are rounded to the dtype that x is
    computed in, float32 for float16 and bfloat16.

    On a GPU forward reads x once where a sample is at most 32 KB.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> y, saved = nbn.layer_norm_forward(np.array([[1.0, 3.0], [10.0, 30.0]]), eps=0.0)
    >>> y
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> saved.mean
    array([ 2., 20.])
    """
    call = LayerCall(x, axis, out)
    call.follow(activation, negative_slope, residual)
    return call.normalize(call.affine(gamma, beta, eps), None, None)


def layer_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    dresidual_out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
) -> tuple[Any, ...]:
    r"""Gradients of a `layer_norm_forward` call.

    .. math::

        d\beta = \sum dy, \qquad d\gamma = \sum dy\, \hat x, \qquad
        dx = \frac{1}{\sqrt{\sigma^2 + \epsilon}}
             \left(\gamma\, dy - \overline{\gamma\, dy} - \hat x\, \overline{\gamma\, dy\, \hat x}\right)

    with sums over the samples, and means over the normalised axes.

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
    dgamma, dbeta : array or None
        In the shapes and dtypes of gamma and beta; None where the forward call had no such parameter.
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
    >>> y, saved = nbn.layer_norm_forward(np.array([[1.0, 2.0, 6.0]]), np.ones(3), np.zeros(3))
    >>> dx, dgamma, dbeta = nbn.layer_norm_backward(np.array([[1.0, 0.0, 0.0]]), saved)
    >>> dx.sum().round(12), dbeta
    (np.float64(0.0), array([1., 0., 0.]))
    """
    _checks.norm(saved, "layer_norm")
    return backward(dy, saved, out, dresidual_out, (need_dx, need_dgamma, need_dbeta), None)


def rms_norm_forward(
    x: A,
    gamma: Any = None,
    *,
    axis: int | tuple[int, ...] = -1,
    eps: float | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Divide every sample by its root mean square, and keep what the backward pass needs.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \gamma

    with the mean over the axes ``axis``, and a gamma that varies along them.

    Parameters
    ----------
    x, gamma, axis
        As `layer_norm_forward`.
    eps : float, optional
        Added to the mean of the squares; not negative. The machine epsilon of the dtype of x unless given, as
        in PyTorch; that of float32 for float16 and bfloat16.
    activation, negative_slope, residual, out
        As `layer_norm_forward`.

    Returns
    -------
    y : array
        Shape and dtype of x, memory order as ``numpy.empty_like(x)``; ``out`` if given.
    saved : Saved
        For `rms_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU, nor
        gamma.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm_forward`.

    Notes
    -----
    Zhang and Sennrich (2019), "Root mean square layer normalization". What `layer_norm_forward` promises of
    bits, NaN and infinity holds here, too.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> y, saved = nbn.rms_norm_forward(np.array([[1.0, 7.0]]), eps=0.0)
    >>> y
    array([[0.2, 1.4]])
    """
    call = RMSCall(x, axis, out)
    call.follow(activation, negative_slope, residual)
    return call.normalize(call.affine(gamma, None, _or_machine_eps(eps, call)), None, None)


def rms_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    dresidual_out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
) -> tuple[Any, ...]:
    r"""Gradients of a `rms_norm_forward` call.

    .. math::

        d\gamma = \sum dy\, \hat x, \qquad
        dx = \frac{1}{\sqrt{\overline{x^2} + \epsilon}}
             \left(\gamma\, dy - \hat x\, \overline{\gamma\, dy\, \hat x}\right)

    with the sum over the samples, and the mean over the normalised axes.

    Parameters
    ----------
    dy, saved, out, dresidual_out
        As `layer_norm_backward`.
    need_dx, need_dgamma : bool, default True
        What to compute; the rest is None.

    Returns
    -------
    dx : array or None
        Shape and dtype of x; ``out`` if given.
    dgamma : array or None
        In the shape and dtype of gamma; None where the forward call had none.
    dresidual : array
        Third, where the forward call had a residual: the gradient with respect to it.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> y, saved = nbn.rms_norm_forward(np.array([[1.0, 7.0]]), np.ones(2), eps=0.0)
    >>> dx, dgamma = nbn.rms_norm_backward(np.array([[1.0, 0.0]]), saved)
    >>> dgamma
    array([0.2, 0. ])
    """
    _checks.norm(saved, "rms_norm")
    dx, dgamma, _, *dresidual = backward(dy, saved, out, dresidual_out, (need_dx, need_dgamma, False), None)
    return dx, dgamma, *dresidual


class _SampleLayer(Layer):
    """What `LayerNorm` and `RMSNorm` share: axes that they normalise, and no statistics that they keep."""

    _open: type[LayerCall]  # its calls
    eps: float | None  # type: ignore[assignment]

    def __init__(self, normalized_shape: int | tuple[int, ...], axis: Any, **options: Any) -> None:
        self.normalized_shape = _options.normalized_shape(normalized_shape)
        ndim = len(self.normalized_shape)
        self.axis = tuple(range(-ndim, 0)) if axis is None else _options.axes(axis, ndim)
        super().__init__(self.normalized_shape, **options)

    def __call__(self, x: A, *, residual: A | None = None, out: A | None = None) -> A:
        """Normalise x.

        Parameters
        ----------
        x : array of float16, bfloat16, float32 or float64
            With ``normalized_shape`` on the layer's axes. Do not change it before `backward`, which reads it
            again.
        residual : array, optional
            Added before the activation: shape and dtype of y. May be ``out``; may not overlap it in any
            other way.
        out : array, optional
            Write the result here; may be x itself, which then cannot go backward.

        Returns
        -------
        y : array
            Shape and dtype of x; ``out`` if given.
        """
        call = self._open(x, self.axis, out)
        if call.shape != self.normalized_shape:
            raise ValueError(
                f"x has shape {call.x.shape}, {call.shape} on the axes {self.axis}, but the layer has "
                f"normalized_shape={self.normalized_shape}; pass an x with that there, or set the axis"
            )
        call.follow(self.activation, self.negative_slope, residual)
        gamma, beta = self.params.get("gamma"), self.params.get("beta")
        affine = call.affine(gamma, beta, _or_machine_eps(self.eps, call))
        y: A
        y, self._saved = call.normalize(affine, None, None)
        return y

    def __repr__(self) -> str:
        ndim = len(self.normalized_shape)
        options = f"{self.normalized_shape}" if ndim > 1 else f"{self.normalized_shape[0]}"
        options += "" if self.axis == tuple(range(-ndim, 0)) else f", axis={self.axis}"
        options += f", eps={self.eps}"
        return self._text(options)


class LayerNorm(_SampleLayer):
    r"""Layer normalisation: every sample by itself, with learned scale and shift.

    .. math:: y = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Lengths of the axes that are normalised, and shape of gamma and beta.
    axis : int or tuple of int, optional
        These axes; the last ones unless given.
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
        ``gamma`` and ``beta``; update them in place. `backward` replaces the entries of grads.
    normalized_shape, axis : tuple of int
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
    Ba, Kiros and Hinton (2016), "Layer normalization". A call keeps x for `backward`, and does not copy it:
    do not change x before. See `layer_norm_forward` for what is promised.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> ln = nbn.LayerNorm(2)
    >>> ln(np.array([[1, 3], [10, 30]], np.float32)).round(3)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    _open = LayerCall

    @advised
    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        *,
        axis: int | tuple[int, ...] | None = None,
        eps: float = 1e-5,
        scale: bool = True,
        center: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
    ) -> None:
        super().__init__(
            normalized_shape,
            axis,
            eps=eps,
            scale=scale,
            center=center,
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            device=device,
        )


class RMSNorm(_SampleLayer):
    r"""RMS normalisation: every sample divided by its root mean square, with a learned scale.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \gamma

    Parameters
    ----------
    normalized_shape : int or tuple of int
        Lengths of the axes that are normalised, and shape of gamma.
    axis : int or tuple of int, optional
        These axes; the last ones unless given.
    eps : float, optional
        Added to the mean of the squares; the machine epsilon of the dtype of x unless given, and that of
        float32 for float16 and bfloat16.
    scale : bool, default True
        Whether there is a gamma.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass, after the addition of the ``residual`` of a call.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0.
    dtype : dtype, default float32
        Of gamma; any floating dtype, on a GPU float16, float32 or float64. x may have another.
    device : {"cpu", "cuda", "cuda:0", ...} or array, default "cpu"
        Where gamma is, and x must be; see `to`.

    Attributes
    ----------
    params, grads : dict
        ``gamma``; update it in place. `backward` replaces the entry of grads.
    normalized_shape, axis : tuple of int
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
    Zhang and Sennrich (2019), "Root mean square layer normalization". A call keeps x for `backward`, and does
    not copy it: do not change x before. See `layer_norm_forward` for what is promised.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> rms = nbn.RMSNorm(2)
    >>> rms(np.array([[1, 7]], np.float32))
    array([[0.2, 1.4]], dtype=float32)
    """

    _open = RMSCall

    @advised
    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        *,
        axis: int | tuple[int, ...] | None = None,
        eps: float | None = None,
        scale: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
    ) -> None:
        super().__init__(
            normalized_shape,
            axis,
            eps=0.0 if eps is None else eps,
            scale=scale,
            center=False,
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            device=device,
        )
        if eps is None:
            self.eps = None
