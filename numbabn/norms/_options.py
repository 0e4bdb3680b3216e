"""Checks of a layer: its options, its input, and the states that it loads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from numbabn._numbers import integer, real
from numbabn.arrays import AnyArray, library_of, location_text, to_numpy
from numbabn.arrays.library import Place
from numbabn.backends.verbs import Array

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


def layer_input(x: AnyArray, axis: int, num_channels: int, place: Place) -> None:
    """Raise unless x has the layer's channels on the axis, and is on the layer's device."""
    channels = x.shape[axis]
    if channels != num_channels:
        raise ValueError(
            f"x has shape {x.shape}, {channels} channels on axis {axis}, but the layer has "
            f"num_channels={num_channels}; pass an x with {num_channels} there, or set the layer's axis"
        )
    if str(library_of(x).place(x)) != str(place):
        raise TypeError(
            f"x is {location_text(x)}, but the layer is on {place}; "
            "pass an x there, or move the layer: bn.to(x)"
        )


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
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored; pass {label}.filled(value)")
    try:
        array = to_numpy(value, label)
    except ValueError as error:
        raise ValueError(f"{label} is not an array of shape {like.shape}: {error}") from None
    if array.shape != like.shape:
        raise ValueError(f"{label} has shape {array.shape}; it must be {like.shape}")
    if array.dtype.kind not in ("iu" if like.dtype.kind == "i" else "f"):
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
