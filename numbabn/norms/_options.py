"""Checks of a layer: its options, its input, and the states that it loads."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbabn._numbers import integer, integers, real
from numbabn.arrays import AnyArray, library_of, location_text, to_numpy
from numbabn.arrays.device_library import is_half
from numbabn.arrays.library import Place
from numbabn.backends.verbs import Array
from numbabn.norms._conventions import call_for

_LARGEST_USUAL = 0.9  # of momentum: Keras' and Flax' defaults are 0.99
_TO_CALLER = 4  # from a warning here through __init__ and what wraps it to the user's line
MOST = np.iinfo(np.int64).max  # of a count in a state
_NOT_NEGATIVE = ("running_var", "num_batches_tracked", "population_count", "population_m2")


def momentum(value: object) -> float | None:
    """Return the weight of a new batch, from 0 to 1, or None."""
    if value is None:
        return None
    number = real(value, "momentum")
    if not 0 <= number <= 1:
        raise ValueError(
            f"momentum is the weight of the new batch and must be from 0 to 1, or None for the exact "
            f"population statistics, not {value!r} (Keras' momentum is 1 minus this one)"
        )
    if _LARGEST_USUAL < number < 1:  # 1 is the statistics of the last batch, which nobody means by mistake
        warnings.warn(
            f"momentum={value!r} is the weight of the new batch, so that running statistics hardly remember "
            f"older ones; Keras' and Flax' momentum={value!r} is momentum={1 - number:.6g} here",
            stacklevel=_TO_CALLER,
        )
    return number


def channels(value: object) -> int:
    """Return num_channels as a positive integer."""
    number = integer(value, "num_channels")
    if number < 1:
        raise ValueError(f"num_channels must be at least 1, not {number}")
    return number


def channel_axis(value: object) -> int:
    """Return the channel axis of a norm whose samples are on axis 0."""
    number = integer(value, "axis")
    if number == 0:
        raise ValueError("axis must be that of the channels, not 0, which is that of the samples")
    return number


def groups(value: object) -> int:
    """Return num_groups as a positive integer."""
    number = integer(value, "num_groups")
    if number < 1:
        raise ValueError(f"num_groups must be at least 1, not {number}")
    return number


def normalized_shape(value: object) -> tuple[int, ...]:
    """Return the lengths of the axes that a layer normalises, all of them positive."""
    shape = integers(value, "normalized_shape")
    if not shape or min(shape) < 1:
        raise ValueError(f"normalized_shape must have one length or more, all at least 1, not {value!r}")
    return shape


def axes(value: object, number: int) -> tuple[int, ...]:
    """Return the axes that a layer normalises: as many as its normalized_shape has lengths."""
    result = integers(value, "axis")
    if len(result) != number:
        raise ValueError(f"axis is {value!r}, but normalized_shape has {number} lengths; name as many axes")
    # Axes from the end come after those from the front, whatever the rank of x.
    if list(result) != sorted(result, key=lambda axis: (axis < 0, axis)):
        raise ValueError(f"axis must name the axes of normalized_shape in ascending order, not {value!r}")
    return result


def parameter_dtype(value: Any) -> np.dtype[Any]:
    """Return a floating dtype for parameters and running statistics."""
    try:
        kind: np.dtype[Any] | None = None if value is None else np.dtype(value)
    except TypeError:
        kind = None
    if kind is None or (kind.kind != "f" and not is_half(kind)):
        raise TypeError(f"dtype must be floating point, for example numpy.float32, not {kind or repr(value)}")
    return kind


def layer_input(x: AnyArray, axis: int, num_channels: int, place: Place) -> None:
    """Raise unless x has the layer's channels on the axis, and is on the layer's device."""
    channels = x.shape[axis]
    if channels != num_channels:
        raise ValueError(
            f"x has shape {x.shape}, {channels} channels on axis {axis}, but the layer has num_channels="
            f"{num_channels}; pass an x with {num_channels} there, or {_other_axis(x, num_channels)}"
        )
    if str(library_of(x).place(x)) != str(place):
        raise TypeError(
            f"x is {location_text(x)}, but the layer is on {place}; "
            "pass an x there, or move the layer: layer.to(x)"
        )


def _other_axis(x: AnyArray, num_channels: int) -> str:
    """Say how the layer is made for channels on the axis of x that has so many values, if one has."""
    for axis in (-1, *range(1, x.ndim - 1)):
        if x.shape[axis] == num_channels:
            return f"make the layer with axis={axis}, where x has so many"
    return "set the layer's axis"


def writable_parameters(params: Mapping[str, AnyArray]) -> None:
    """Raise unless all parameters of a layer can be written to."""
    for name, value in params.items():
        if not value.flags.writeable:
            raise ValueError(f"params[{name!r}] is read-only; put an array that can be written to there")


def state(given: Any, layer: Any) -> dict[str, Array]:
    """Return copies of a state dictionary's values in the dtypes of the layer's own state."""
    expected: dict[str, Array] = layer.state_dict()
    if not isinstance(given, Mapping):
        raise TypeError(f"state must be a dictionary as from state_dict(), not {type(given).__name__}")
    missing = sorted(expected.keys() - given.keys())
    unknown = sorted(given.keys() - expected.keys(), key=str)
    if missing or unknown:
        raise KeyError(
            f"state has missing keys {missing} and unknown keys {unknown}; "
            f"it needs exactly {sorted(expected)}{_advice(layer, given) if missing and unknown else ''}"
        )
    return {name: state_value(name, given[name], like, f"state[{name!r}]") for name, like in expected.items()}


def _advice(layer: Any, given: Mapping[Any, Any]) -> str:
    """Say which call loads a state with the names of another framework."""
    return f"; for a state of another framework, call {call_for(layer, given)}"


def state_value(name: str, value: Any, like: Array, label: str) -> Array:
    """Return a copy of a value with this key, in the dtype of the layer's own; messages name it by label."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored; pass {label}.filled(value)")
    try:
        array = to_numpy(value, label)
    except ValueError as error:
        raise ValueError(f"{label} is not an array of shape {like.shape}: {error}") from None
    if array.shape != like.shape:
        raise ValueError(f"{label} has shape {array.shape}; it must be {like.shape}")
    if array.dtype == "V2" and like.dtype.kind == "V":  # what numpy.load makes of bfloat16
        array = array.view(like.dtype)
    integers = like.dtype.kind == "i"
    if array.dtype.kind not in ("iu" if integers else "f") and (integers or not is_half(array.dtype)):
        raise TypeError(f"{label} has dtype {array.dtype}; it must be like {like.dtype}")
    if name in _NOT_NEGATIVE and (array < 0).any():
        raise ValueError(f"{label} must not be negative, but is {array.min()} somewhere")
    if like.dtype.kind == "i" and (array > MOST).any():
        raise ValueError(f"{label} must be at most 2**63 - 1, but is {array.max()}")
    with np.errstate(all="ignore"):  # what is too large is refused below, and a signalling NaN is a NaN
        result: Array = array.astype(like.dtype)
    lost = np.isfinite(array) & ~np.isfinite(result)
    if lost.any():
        raise ValueError(
            f"{label} has the value {array[lost][0]}, which is beyond the range of the layer's {like.dtype}"
        )
    return result
