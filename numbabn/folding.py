"""Batch norm of inference, folded into the dense layer or convolution beside it."""

import math
from typing import Any, NamedTuple

import numpy as np

from numbabn import arrays
from numbabn._numbers import integer, integers
from numbabn.arrays import AnyArray, library_of, location_text, native, on_host
from numbabn.arrays.device import BFLOAT16
from numbabn.arrays.device_library import described, is_float
from numbabn.backends.verbs import Array
from numbabn.norms._tracking import TrackingLayer
from numbabn.norms._types import A

_NEIGHBOURS = {0: 1, 1: 0, -1: -2, -2: -1}  # the two channel axes of a weight, before its kernel or behind
_LARGEST_BFLOAT16 = (2 - 2.0**-7) * 2.0**127


def fold_into_dense(
    weight: A, bias: Any, bn: TrackingLayer, *, channel_axis: int = -1, fold_before: bool = False
) -> tuple[A, Any]:
    r"""Return weight and bias of a dense layer that does what the layer and its norm do in inference.

    With the norm's :math:`y = x \cdot \mathit{scale} + \mathit{shift}`, see `BatchNorm.affine`, and a layer
    x @ weight + bias, that is behind the layer

    .. math:: w'_{io} = w_{io}\, \mathit{scale}_o, \qquad
              b'_o = b_o\, \mathit{scale}_o + \mathit{shift}_o

    and in front of it, with ``fold_before=True``,

    .. math:: w'_{io} = w_{io}\, \mathit{scale}_i, \qquad
              b'_o = b_o + \sum_i w_{io}\, \mathit{shift}_i.

    Parameters
    ----------
    weight : array of float16, bfloat16, float32 or float64, shape (I, O) or (O, I)
        Of NumPy, or of a library of arrays on a GPU.
    bias : array of one of these dtypes, shape (O,), or None
        Of the same library and device as weight. None is a layer without bias.
    bn : BatchNorm, or InstanceNorm that tracks running statistics
        With O channels, or in front of the layer with I; on any device, in any mode: its running statistics
        are used.
    channel_axis : int, default -1
        The axis of weight with the O output channels: -1 for (I, O), where the layer is x @ weight, as in
        Keras and Flax; 0 for (O, I), where it is x @ weight.T, as in PyTorch. For a square weight a wrong
        axis cannot be noticed.
    fold_before : bool, default False
        Whether the norm is in front of the layer: nothing but the norm is between x and the layer.

    Returns
    -------
    weight : array
        New; shape, dtype, library, device and memory order of weight, in native byte order.
    bias : array, shape (O,)
        New; dtype of bias, or of weight where bias is None.

    Raises
    ------
    TypeError
        If an array is of no library that is supported or has another dtype, bias is elsewhere than weight, or
        bn is another layer.
    ValueError
        If shapes or ``channel_axis`` do not fit, bn has an activation, no running statistics or not the
        variances that `BatchNorm.affine` takes, or a result is beyond the range of its dtype.

    Notes
    -----
    Ioffe and Szegedy (2015), section 3.1.

    The arithmetic is float64, once on the host; each result is rounded once to its dtype, to bfloat16 by way
    of float32. So y changes by no more than :math:`|x| \cdot |w'| + |b'|`, the sum of the sizes of its terms,
    times 2**-24 = 6e-8 in float32, 2**-11 in float16 and 2**-8 in bfloat16; the rounding of the matrix
    product comes on top, as it did before. Of a weight or bias below the smallest normal number of the dtype,
    1.2e-38 in float32 and 6.1e-5 in float16, digits are lost.

    Nothing is changed in weight, bias and bn. Leave the norm out of the network afterwards.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> bn = nbn.BatchNorm(2, eps=0.0)
    >>> bn.running_mean[:], bn.running_var[:] = [3, 0], [4, 1]
    >>> x, weight = np.array([[1.0, 2.0]]), np.array([[5.0, 1.0], [4.0, 1.0]])
    >>> bn.eval()(x @ weight)
    array([[5., 3.]])
    >>> folded, bias = nbn.fold_into_dense(weight, None, bn)
    >>> x @ folded + bias
    array([[5., 3.]])
    """
    array = _floating(weight, "weight")
    if array.ndim != 2:
        raise ValueError(f"weight of a dense layer must have shape (I, O) or (O, I), not {array.shape}")
    number = integer(channel_axis, "channel_axis")
    if not -2 <= number <= 1:
        raise ValueError(f"channel_axis must be -1 for a weight (I, O) or 0 for (O, I), not {number}")
    layer = _Layer(array, number % 2, 1 - number % 2, groups=1, transposed=False, dense=True)
    return _folded(layer, bias, bn, fold_before, None)


def fold_into_conv(
    weight: A,
    bias: Any,
    bn: TrackingLayer,
    *,
    channel_axis: int = 0,
    groups: int = 1,
    transposed: bool = False,
    fold_before: bool = False,
    padding: Any = None,
) -> tuple[A, Any]:
    r"""Return weight and bias of a convolution that does what the convolution and its norm do in inference.

    With the norm's :math:`y = x \cdot \mathit{scale} + \mathit{shift}`, see `BatchNorm.affine`, that is
    behind the convolution, for every place k of the kernel,

    .. math:: w'_{oik} = w_{oik}\, \mathit{scale}_o, \qquad
              b'_o = b_o\, \mathit{scale}_o + \mathit{shift}_o

    and in front of it, with ``fold_before=True``,

    .. math:: w'_{oik} = w_{oik}\, \mathit{scale}_i, \qquad
              b'_o = b_o + \sum_{ik} w_{oik}\, \mathit{shift}_i.

    Parameters
    ----------
    weight : array of float16, bfloat16, float32 or float64, rank >= 3
        Of NumPy, or of a library of arrays on a GPU. O output and I input channels on two axes, before the
        axes of the kernel or behind them. With groups, one of the two has the channels of one group:
        (O, I / groups, H, W), as in all frameworks.
    bias : array of one of these dtypes, shape (O,), or None
        Of the same library and device as weight. None is a convolution without bias.
    bn : BatchNorm, or InstanceNorm that tracks running statistics
        With O channels, or in front of the convolution with I; on any device, in any mode: its running
        statistics are used.
    channel_axis : {0, -1, 1, -2}, default 0
        The axis of weight with the output channels of a convolution, or with the input channels of a
        transposed one. The other channel axis is beside it::

            OIHW   channel_axis=0                     PyTorch; ONNX
            IOHW   channel_axis=0, transposed=True    PyTorch; ONNX
            HWIO   channel_axis=-1                    Keras; Flax
            HWOI   channel_axis=-1, transposed=True   Keras; Flax with transpose_kernel=True
            HWIO   channel_axis=-2, transposed=True   Flax

        A wrong axis is noticed by the number of its channels, and not where that happens to be the norm's. A
        depthwise weight of Keras, (H, W, I, M), has I groups: pass ``weight.reshape(H, W, 1, I * M)``.
    groups : int, default 1
        Of the convolution. It matters for a norm in front of it, and for transposed convolutions: the norm or
        the bias has the channels of all groups then, and an axis of weight those of one.
    transposed : bool, default False
        Whether the convolution is a transposed one.
    fold_before : bool, default False
        Whether the norm is in front of the convolution: nothing but the norm is between x and it.
    padding : int, tuple, or {"valid", "same", "causal"}, optional
        Zeros that the convolution puts around its input: a number, one for each axis, or pairs; 0 if there
        are none. Needed for ``fold_before`` only, and there only whether it is 0 matters. Other modes than
        zeros, which repeat values of the input, are no padding here.

    Returns
    -------
    weight : array
        New; shape, dtype, library, device and memory order of weight, in native byte order.
    bias : array, shape (O,)
        New; dtype of bias, or of weight where bias is None. Of a transposed convolution with ``fold_before``
        a copy of bias, or None.

    Raises
    ------
    TypeError
        If an array is of no library that is supported or has another dtype, bias is elsewhere than weight, or
        bn is another layer.
    ValueError
        If shapes, ``channel_axis`` or ``groups`` do not fit, bn has an activation, no running statistics or
        not the variances that `BatchNorm.affine` takes, a result is beyond the range of its dtype, or the
        norm cannot be folded.

    Notes
    -----
    Ioffe and Szegedy (2015), section 3.1. For rounding see `fold_into_dense`.

    **A norm in front** can be folded where every output pixel has all places of the kernel over shifted
    values, since the bias is the same for all pixels. Two cases are refused, unless all shifts are 0:

    - *Zero padding.* The zeros come after the norm and are not shifted, so that pixels at the border need
      another bias.
    - *Transposed convolutions.* Their output pixels get different numbers of places of the kernel: fewer at
      the border, and with a stride inside, too; a kernel of one pixel with stride 2 reaches every fourth
      pixel of a map. A stride as long as the kernel would be exact, but the function is not told the stride.

    Fold such a norm into the layer in front of it, if there is no activation in between, or keep it.

    Nothing is changed in weight, bias and bn. Leave the norm out of the network afterwards.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> bn = nbn.BatchNorm(2, eps=0.0)
    >>> bn.running_mean[:], bn.running_var[:] = [3, 0], [4, 1]
    >>> weight = np.ones((2, 1, 1, 1), np.float32)  # OIHW
    >>> folded, bias = nbn.fold_into_conv(weight, np.array([7.0, 0.0]), bn)
    >>> folded.ravel(), bias
    (array([0.5, 1. ], dtype=float32), array([2., 0.]))
    """
    array = _floating(weight, "weight")
    if array.ndim < 3:
        raise ValueError(
            f"weight has shape {array.shape}; that of a convolution has two channel axes and one or more of "
            "the kernel; for a dense layer use fold_into_dense"
        )
    axes = _axes(channel_axis, array.ndim)
    layer = _Layer(array, *axes, _groups(groups, array, axes[0]), bool(transposed), dense=False)
    pads = _pads(padding, layer.taps)
    inexact = None
    if transposed:
        inexact = (
            "the convolution is transposed, and its output pixels get different numbers of shifted values, "
            "for which one bias cannot stand"
        )
    elif pads:
        given = (
            "padding is not given (pass 0 if there is none)" if padding is None else f"padding is {padding!r}"
        )
        inexact = (
            f"{given}: zeros around the input come after the norm and are not shifted, "
            "but the bias would treat them as if they were"
        )
    return _folded(layer, bias, bn, fold_before, inexact)


class _Layer(NamedTuple):
    """A layer with a weight: which channels are on which axis.

    The groups of a convolution share the channels of one axis, the ``shared`` one, among them; the other has
    the channels ``within`` one group. A dense layer has one group.
    """

    weight: AnyArray
    shared_axis: int
    within_axis: int
    groups: int
    transposed: bool
    dense: bool

    def channels(self, shared: bool) -> int:
        """Return the number of channels of all groups that lie on the shared axis, or on the other one."""
        lengths = self.weight.shape
        number: int = lengths[self.shared_axis] if shared else lengths[self.within_axis] * self.groups
        return number

    @property
    def taps(self) -> int:
        """Number of places of the kernel."""
        axes = self.shared_axis, self.within_axis
        return math.prod(n for i, n in enumerate(self.weight.shape) if i not in axes)

    def blocks(self, values: Array) -> Array:
        """Return values of the shape of weight as (groups, shared channels of each, within, taps)."""
        moved = np.moveaxis(values, (self.shared_axis, self.within_axis), (0, 1))
        shared, within, *_ = moved.shape
        return moved.reshape(self.groups, shared // self.groups, within, self.taps)

    def unblocked(self, blocks: Array) -> Array:
        """Inverse of `blocks`."""
        axes = self.shared_axis, self.within_axis
        kernel = (n for i, n in enumerate(self.weight.shape) if i not in axes)
        groups, shared, within, _ = blocks.shape
        return np.moveaxis(blocks.reshape(groups * shared, within, *kernel), (0, 1), axes)

    def along(self, values: Array, shared: bool) -> Array:
        """Return one value per channel of the shared axis, or of the other, lined up with `blocks`."""
        return values.reshape((self.groups, -1, 1, 1) if shared else (self.groups, 1, -1, 1))


class _Norm(NamedTuple):
    """A norm beside a layer: its constants, and where in the layer's weight its channels are."""

    before: bool  # whether it is in front of the layer
    on_shared: bool  # whether its channels are those that the groups of the layer share
    scale: Array
    shift: Array

    @classmethod
    def beside(cls, layer: _Layer, bn: object, before: bool) -> "_Norm":
        """Return the norm in front of a layer or behind it, if it has as many channels as the layer there."""
        if not isinstance(bn, TrackingLayer):
            raise TypeError(
                "bn must be a BatchNorm, or an InstanceNorm with track_running_stats=True, which normalise "
                f"with constants in evaluation mode, not {type(bn).__name__}"
            )
        on_shared = before == layer.transposed
        if layer.channels(on_shared) != bn.num_channels:
            raise _wrong_channels(layer, on_shared, bn.num_channels, before)
        if bn.activation is not None:
            place = "in front of" if before else "behind"
            raise ValueError(
                f"bn {place} the layer has activation={bn.activation!r}, which is no linear map and cannot "
                "be folded; let the network apply the activation by itself, and set that of bn to None"
            )
        return cls(before, on_shared, *bn._constants())


def _folded(layer: _Layer, bias: object, bn: object, before: bool, inexact: str | None) -> tuple[Any, Any]:
    """Return the new weight and bias; ``inexact`` says why a norm in front with a shift cannot be folded."""
    norm = _Norm.beside(layer, bn, bool(before))
    given = None if bias is None else _checked_bias(bias, layer)
    if norm.before and inexact is not None and norm.shift.any():
        c = int(np.argmax(norm.shift != 0))
        raise ValueError(
            f"a norm in front of this layer cannot be folded into it: it shifts channel {c} by "
            f"{norm.shift[c]:.6g}, and {inexact}; fold it into the layer in front of it, or keep it"
        )
    weight = layer.weight
    # NaN and infinity stay in their channels behind the layer; in front of it they reach every bias.
    with np.errstate(all="ignore"):
        offsets = None if given is None else on_host(given, "bias").astype(np.float64)
        blocks = layer.blocks(on_host(weight, "weight").astype(np.float64))
        constants = (blocks, norm.scale, norm.shift, 0.0 if offsets is None else offsets)
        finite = all(np.isfinite(each).all() for each in constants)
        scaled = layer.unblocked(blocks * layer.along(norm.scale, norm.on_shared))
        if not norm.before:
            offsets = norm.shift if offsets is None else offsets * norm.scale + norm.shift
        elif not layer.transposed:
            shifts = (blocks * layer.along(norm.shift, norm.on_shared)).sum(axis=(2, 3)).ravel()
            offsets = shifts if offsets is None else offsets + shifts
    _refuse_beyond(scaled, "weight", weight.dtype, finite)
    if offsets is None:
        return _rounded(scaled, weight.dtype, weight), None
    bias_dtype = (weight if given is None else given).dtype
    _refuse_beyond(offsets, "bias", bias_dtype, finite)
    return _rounded(scaled, weight.dtype, weight), _rounded(offsets, bias_dtype, weight)


def _refuse_beyond(exact: Array, name: str, dtype: Any, finite: bool) -> None:
    """Raise if a value is beyond the range of its dtype; infinity is, if all that it is made of is finite."""
    largest = _LARGEST_BFLOAT16 if described(dtype) is BFLOAT16 else float(np.finfo(dtype).max)
    size = np.abs(exact)
    beyond = ~(size <= largest) if finite else np.isfinite(exact) & (size > largest)
    if beyond.any():
        raise ValueError(
            f"the folded {name} has the value {exact[beyond][0]:.6g}, which is beyond the range of {dtype}; "
            f"pass a {name} of a wider dtype"
        )


def _rounded(exact: Array, dtype: Any, weight: AnyArray) -> Any:
    """Return values in this dtype, where weight lies, and in its memory order where they have its shape."""
    library = library_of(weight)
    # Numba puts only what is contiguous on a GPU.
    source = arrays.of(library.put(np.ascontiguousarray(exact), library.place(weight).device), "weight")
    like = library.dense(weight) if source.shape == weight.shape else source
    result = library.empty_like(like, dtype.newbyteorder("="))
    with np.errstate(all="ignore"):  # of values that become 0
        library.assign(result, source)
    return native(result)


def _floating(array: object, name: str) -> AnyArray:
    """Return an array of any library, if it has a float dtype that layers have."""
    found = arrays.of(array, name)
    if not is_float(found.dtype):
        raise TypeError(
            f"{name} has dtype {found.dtype}; it must be floating point: "
            "float16, bfloat16, float32 or float64"
        )
    return found


def _checked_bias(array: object, layer: _Layer) -> AnyArray:
    """Return the bias, if it lies where the weight does and has a value for each output channel."""
    bias, weight = _floating(array, "bias"), layer.weight
    if library_of(bias).place(bias) != library_of(weight).place(weight):
        raise TypeError(
            f"bias is {location_text(bias)}, but weight is {location_text(weight)}; "
            "pass both of one library, on one device"
        )
    outputs = layer.channels(not layer.transposed)
    if bias.shape != (outputs,):
        raise ValueError(
            f"bias has shape {bias.shape}, but weight has shape {weight.shape}: it must be "
            f"({outputs},), one value per output channel"
        )
    return bias


def _groups(groups: object, weight: AnyArray, shared_axis: int) -> int:
    """Return the number of groups of a convolution, among which the channels of an axis can be shared."""
    number, shared = integer(groups, "groups"), weight.shape[shared_axis]
    if number < 1 or shared % number:
        raise ValueError(
            f"groups must be a number of groups that can share the {shared} channels on axis {shared_axis} "
            f"of weight, which has shape {weight.shape}, not {number}"
        )
    return number


def _wrong_channels(layer: _Layer, on_shared: bool, channels: int, before: bool) -> ValueError:
    """Return the error for a norm whose channels are not those of its side of the layer."""
    side, axis = "input" if before else "output", layer.shared_axis if on_shared else layer.within_axis
    each = f" per group on axis {axis}, and groups={layer.groups}"
    if on_shared or layer.dense:
        each = f" on axis {axis}"
    return ValueError(
        f"weight has shape {layer.weight.shape}, {layer.weight.shape[axis]} {side} channels{each}, "
        f"but bn has num_channels={channels}; {_advice(layer, before)}"
    )


def _advice(layer: _Layer, before: bool) -> str:
    """Say what makes the channels of a weight and of a norm the same."""
    place = "in front of" if before else "behind"
    options = "channel_axis" if layer.dense else "channel_axis, groups and transposed"
    return f"pass the norm {place} this layer, set {options} as its weight is, or fold_before={not before}"


def _axes(channel_axis: object, ndim: int) -> tuple[int, int]:
    """Return the axis of a weight that groups share, and the other channel axis, as numbers from 0."""
    number = integer(channel_axis, "channel_axis")
    if number not in _NEIGHBOURS:
        raise ValueError(
            f"channel_axis must be 0 or 1, for channels before the kernel, or -1 or -2, for channels behind "
            f"it, not {number}"
        )
    return number % ndim, _NEIGHBOURS[number] % ndim


def _pads(padding: object, taps: int) -> bool:
    """Whether a convolution with a kernel of so many places puts zeros around its input, for all we know."""
    if padding is None:
        return True
    if isinstance(padding, str):
        if padding.lower() not in ("valid", "same", "causal"):
            raise ValueError(
                f"padding must be a number of zeros, 'valid', 'same' or 'causal', not {padding!r}; "
                "a padding with other values than zeros is padding=0 here"
            )
        return padding.lower() != "valid" and taps > 1
    axes = padding if isinstance(padding, (tuple, list)) else (padding,)
    numbers = [number for axis in axes for number in integers(axis, "padding")]
    if min(numbers, default=0) < 0:
        raise ValueError(f"padding must not be negative, but is {padding!r}")
    return any(numbers)
