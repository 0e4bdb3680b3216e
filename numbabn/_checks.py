"""Every check of an argument and its message, once: the argument, what it was, and what would be right."""

import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from numbabn._arrays import (
    AnyArray,
    Array,
    DeviceArray,
    address,
    beside,
    cast,
    known,
    maker,
    of_library,
    span,
    where,
)
from numbabn._places import HOST, Place, gathered, place_of, to_host

_NOT_NEGATIVE = ("running_var", "num_batches_tracked", "population_count", "population_m2")
_COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def data(array: object, name: str) -> AnyArray:
    """Return a floating-point array of rank two or more."""
    x = known(array, name)
    dtype(x, name)
    if x.ndim < 2:
        raise ValueError(
            f"{name} must have a batch axis and a channel axis, but has shape {x.shape}; "
            f"for one sample pass {name}[None], for one channel {name}[:, None]"
        )
    return x


def dtype(x: AnyArray, name: str) -> None:
    """Raise unless the dtype is float32 or float64, in either byte order."""
    kind = x.dtype
    if kind in _COMPUTE_DTYPES or (kind.kind == "f" and kind.newbyteorder("=") in _COMPUTE_DTYPES):
        return
    advice = f"pass {cast(x, name, 'float32')}"
    if kind.kind == "f":
        raise TypeError(f"{name} has dtype {kind}; float32 and float64 are supported: {advice}")
    if kind.kind == "c":
        raise TypeError(f"{name} has complex dtype {kind}; pass {name}.real and {name}.imag separately")
    raise TypeError(f"{name} has dtype {kind}, which is not floating point; {advice}")


def integer(value: object, name: str) -> int:
    """Return an integer of any kind as an int."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def axis(value: object, ndim: int) -> int:
    """Return the channel axis as a number from 0."""
    number = integer(value, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis must be from {-ndim} to {ndim - 1} for an array of rank {ndim}, not {number}")
    return number % ndim


def eps(value: object) -> float:
    """Return eps as a finite number, not negative."""
    number = _real(value, "eps")
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"eps must be a finite number >= 0, for example 1e-5, not {value!r}")
    return number


def momentum(value: object) -> float | None:
    """Return the weight of a new batch, from 0 to 1, or None."""
    if value is None:
        return None
    number = _real(value, "momentum")
    if not 0 <= number <= 1:
        raise ValueError(
            f"momentum is the weight of the new batch and must be from 0 to 1, or None for the exact "
            f"population statistics, not {value!r} (Keras' momentum is 1 minus this one)"
        )
    return number


def channels(value: object) -> int:
    """Return num_channels as a positive integer."""
    number = integer(value, "num_channels")
    if number < 1:
        raise ValueError(f"num_channels must be at least 1, not {number}")
    return number


def parameter_dtype(value: Any) -> np.dtype[Any]:
    """Return a floating dtype for parameters and running statistics."""
    try:
        kind: np.dtype[Any] | None = None if value is None else np.dtype(value)
    except TypeError:
        kind = None
    if kind is None or kind.kind != "f":
        raise TypeError(f"dtype must be floating point, for example numpy.float32, not {kind or repr(value)}")
    return kind


def layer_input(x: object, channel_axis: int, num_channels: int, place: Place) -> Any:
    """Return x, or the `DeviceArray` of it, if it has the layer's channels and lies where the layer does."""
    if (
        type(x) is np.ndarray
        and place is HOST
        and -x.ndim <= channel_axis < x.ndim
        and x.shape[channel_axis] == num_channels
    ):
        return x  # whatever else may be wrong with x, the function says
    array = data(x, "x")
    on_axis = array.shape[axis(channel_axis, array.ndim)]
    if on_axis != num_channels:
        raise ValueError(
            f"x has shape {array.shape}, {on_axis} channels on axis {channel_axis}, but the layer has "
            f"num_channels={num_channels}; pass an x with {num_channels} there, or set the layer's axis"
        )
    if str(place_of(array)) != str(place):
        raise TypeError(
            f"x is {where(array)}, but the layer is on {place}; pass an x there, or move the layer: bn.to(x)"
        )
    return array


def writable_parameters(params: Mapping[str, AnyArray]) -> None:
    """Raise unless all parameters of a layer can be written to."""
    for name, value in params.items():
        if not value.flags.writeable:
            raise ValueError(f"params[{name!r}] is read-only; put an array that can be written to there")


def state(given: Any, expected: dict[str, Array]) -> dict[str, Array]:
    """Return copies of a state dictionary's values in the expected dtypes."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state must be a dictionary as from state_dict(), not {type(given).__name__}")
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys(), key=str)
    if missing or unknown:
        raise KeyError(
            f"state has missing keys {missing} and unknown keys {unknown}; "
            f"it needs exactly {sorted(expected)}"
        )
    return {name: _state_value(name, given[name], like) for name, like in expected.items()}


def _state_value(name: str, value: Any, like: Array) -> Array:
    label = f"state[{name!r}]"
    try:
        array = gathered(value, label)
    except ValueError as error:
        raise ValueError(f"{label} is not an array of shape {like.shape}: {error}") from None
    if array.shape != like.shape:
        raise ValueError(f"{label} has shape {array.shape}; it must be {like.shape}")
    if array.dtype.kind not in ("iu" if like.dtype.kind == "i" else "f"):
        raise TypeError(f"{label} has dtype {array.dtype}; it must be like {like.dtype}")
    if name in _NOT_NEGATIVE and (array < 0).any():
        raise ValueError(f"{label} must not be negative, but is {array.min()} somewhere")
    return array.astype(like.dtype)


def per_channel(array: object, name: str, count: int, x: AnyArray) -> AnyArray:
    """Return an array with one floating-point value per channel, which lies where x does."""
    values = beside(array, name, x)
    if values.dtype.kind != "f":
        raise TypeError(f"{name} has dtype {values.dtype}; it must be floating point, one value per channel")
    if values.shape != (count,):
        raise ValueError(
            f"{name} has shape {values.shape}, but x has {count} channels: it must be ({count},)"
        )
    return values


def variance(array: object, name: str, count: int, x: AnyArray) -> AnyArray:
    """Return variances as ``per_channel`` does; on a GPU they may be negative: to look would be to wait."""
    values = per_channel(array, name, count, x)
    if type(values) is DeviceArray or not count:
        return values
    if not values[values.argmin()] >= 0.0 and (values < 0).any():  # argmin is fast
        c = int(np.argmax(values < 0))
        raise ValueError(f"{name} must not be negative, but {name}[{c}] is {values[c]}")
    return values


def gradient(dy: object, x: AnyArray) -> AnyArray:
    """Return dy if it can be the gradient of the output for x."""
    array = of_library(dy, "dy", x)
    if array.shape != x.shape:
        raise ValueError(
            f"dy has shape {array.shape}, but the forward call that gave saved had x of shape {x.shape}; "
            "pass the saved of the same call"
        )
    if array.dtype != x.dtype and array.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(
            f"dy has dtype {array.dtype}, but x had {x.dtype}; pass {cast(array, 'dy', x.dtype.name)}"
        )
    return array


def output(out: object, x: AnyArray, inplace: str, inputs: dict[str, AnyArray]) -> AnyArray:
    """Return out if a result for x can be written to it.

    It may be the same memory as the input named ``inplace``, and must not overlap any input otherwise.
    """
    array = of_library(out, "out", x)
    if array.shape != x.shape:
        raise ValueError(f"out has shape {array.shape}; it must be that of the result, {x.shape}")
    native = x.dtype.newbyteorder("=")
    if array.dtype is not x.dtype and array.dtype.newbyteorder("=") != native:
        raise TypeError(f"out has dtype {array.dtype}; it must be that of the result, {native}")
    if _overlaps_itself(array):
        raise ValueError(
            f"elements of out share memory, as in a broadcast array; pass one made by {maker(array)}"
        )
    for name, other in inputs.items():
        if _overlap(array, other) and not (name == inplace and same_memory(array, other)):
            raise ValueError(
                f"out overlaps {name} in memory; pass {inplace} itself to compute in place, "
                "or an array of its own"
            )
    if not array.flags.writeable:
        raise ValueError("out is read-only; pass an array that can be written to")
    return array


def same_memory(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays have the same elements at the same addresses."""
    if a is b:
        return True
    return a.shape == b.shape and a.dtype == b.dtype and a.strides == b.strides and address(a) == address(b)


def _overlaps_itself(array: AnyArray) -> bool:
    """Whether two elements may have one address: not if every stride steps over all shorter strides."""
    if array.flags.c_contiguous or array.size == 0:
        return False
    end = array.itemsize
    for step, size in sorted(
        (abs(step), size) for step, size in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1:
            if step < end:
                return True
            end += step * (size - 1)
    return False


def _overlap(a: AnyArray, b: AnyArray) -> bool:
    if type(a) is DeviceArray:
        a, b = span(a), span(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _real(value: object, name: str) -> float:
    if type(value) is float:  # isinstance with an abstract class takes longer than a kernel's launch
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer
            return math.inf
    raise TypeError(f"{name} must be a real number, not {value!r}")


# Streaming statistics ---------------------------------------------------------------------------------------

_NAN_POLICIES = ("propagate", "omit", "raise")


def kept_axes(value: object) -> tuple[int, ...]:
    """Return the channel axes as a tuple, as they were given."""
    if isinstance(value, (tuple, list)):
        return tuple(integer(each, "axis") for each in value)
    return (integer(value, "axis"),)


def kept_axes_of(values: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return channel axes as numbers from 0, each of them once."""
    axes = tuple(axis(value, ndim) for value in values)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must name every axis once, but {values} names one of {ndim} axes twice")
    return axes


def nan_policy(value: object) -> str:
    """Return one of the policies."""
    if isinstance(value, str) and value in _NAN_POLICIES:
        return value
    raise ValueError(f"nan_policy must be one of {', '.join(map(repr, _NAN_POLICIES))}, not {value!r}")


def ddof(value: object) -> float:
    """Return a finite number to take from the count."""
    number = _real(value, "ddof")
    if not math.isfinite(number):
        raise ValueError(f"ddof must be a finite number, usually 0 or 1, not {value!r}")
    return number


def on_host(array: object, name: str) -> Array:
    """Return a plain NumPy array: a copy of one that is on a GPU."""
    x = known(array, name)
    return to_host(x) if type(x) is DeviceArray else x


def chunk(array: object, name: str = "chunk") -> Array:
    """Return an array of numbers that are real: bool, any integer, float16, float32 or float64."""
    x = on_host(array, name)
    if x.dtype.kind in "biu" or (x.dtype.kind == "f" and x.dtype.itemsize <= 8):
        return x
    if x.dtype.kind == "c":
        raise TypeError(f"{name} has complex dtype {x.dtype}; pass {name}.real and {name}.imag separately")
    raise TypeError(
        f"{name} has dtype {x.dtype}; bool, integers, float16, float32 and float64 are supported: "
        f"pass {name}.astype(numpy.float64)"
    )


def same_axes(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise unless statistics keep equally many axes."""
    if len(given) != len(expected):
        raise ValueError(f"other keeps the axes {given}, which cannot be merged with the axes {expected}")


def same_channels(given: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    """Raise unless statistics of two kinds of channels can be merged."""
    if given != expected:
        raise ValueError(f"{name} has channels of shape {given}, but those seen so far have shape {expected}")


def mask(value: object, shape: tuple[int, ...]) -> Array | None:
    """Return a mask for an array of this shape, broadcast."""
    if value is None:
        return None
    array = np.asarray(value) if isinstance(value, bool) else on_host(value, "where")
    if array.dtype.kind != "b":
        raise TypeError(f"where has dtype {array.dtype}; it must be bool: pass where != 0, or weights=")
    return _broadcast(array, shape, "where")


def weights(value: object, shape: tuple[int, ...]) -> Array | None:
    """Return weights for an array of this shape, broadcast; finite and not negative."""
    if value is None:
        return None
    array = on_host(value, "weights")
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        hint = "pass where= for a mask" if array.dtype.kind == "b" else "pass weights.astype(numpy.float64)"
        raise TypeError(f"weights has dtype {array.dtype}; real numbers are supported: {hint}")
    wide = _broadcast(array, shape, "weights")
    bad = ~(array >= 0) | np.isinf(array)
    if bad.any():
        at = tuple(map(int, np.unravel_index(np.argmax(bad), bad.shape)))
        raise ValueError(f"weights must be finite and >= 0, but weights{list(at)} is {array[at]}")
    return wide


def _broadcast(array: Array, shape: tuple[int, ...], name: str) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to the chunk's {shape}; "
            f"one value per sample of the first axis is {name}.reshape(-1{', 1' * (len(shape) - 1)})"
        ) from None


_STATE_KINDS = {
    "format": "iu", "axis": "iu", "nan_policy": "U", "shape": "iu", "weighted": "b", "min": "f", "max": "f",
    "exact_count": "iu", "exact_total": "iu", "exact_squares": "iu",
    "real_moments": "f",
}  # fmt: skip
_STATE_ROWS = {"exact_total": 4, "exact_squares": 6, "real_moments": 6}


def moments_state(given: Any, version: int) -> dict[str, Array]:
    """Return copies of the arrays of a state of `Moments`, or raise where they cannot be one."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state must be a dictionary as from to_dict(), not {type(given).__name__}")
    values = {name: np.array(given[name]) for name in _STATE_KINDS if name in given}
    names = set(values)
    needed = {"format", "axis", "nan_policy"}
    seen = {"shape", "weighted", "min", "max"}
    exact, real = ({n for n in _STATE_KINDS if n.startswith(part)} for part in ("exact", "real"))
    for group in (seen, exact, real):
        if names & group:
            needed |= group | seen
    if names != needed or set(given) - names:
        raise ValueError(
            f"state is not one of Moments: missing keys {sorted(needed - names)}, "
            f"unknown keys {sorted(set(given) - names, key=str)}"
        )
    if values["format"].shape != () or values["format"].dtype.kind not in "iu" or values["format"] != version:
        raise ValueError(f"state has format {values['format']}; this version of numbabn reads {version}")
    channels = math.prod(values["shape"].tolist()) if "shape" in values else 0
    for name, value in values.items():
        rows = (_STATE_ROWS[name],) if name in _STATE_ROWS else ()
        shape = {
            "axis": (value.size,),
            "shape": (value.size,),
            "format": (),
            "nan_policy": (),
            "weighted": (),
        }
        if value.dtype.kind not in _STATE_KINDS[name] or value.shape != shape.get(name, (*rows, channels)):
            raise ValueError(f"state[{name!r}] cannot have dtype {value.dtype} and shape {value.shape}")
    if len(values.get("shape", values["axis"])) != len(values["axis"]):
        raise ValueError(f"state has axis {values['axis'].tolist()} and shape {values['shape'].tolist()}")
    return values
