"""Checks of what `Moments` is given: each error names the argument, what it was, and what would be right."""

import math
from typing import Any

import numpy as np

from numbabn._numbers import integers, real, sequence
from numbabn.arrays import library_of, location_text, of, on_host
from numbabn.arrays.device_library import is_float
from numbabn.arrays.dtypes import unnamed_bfloat16
from numbabn.arrays.layout import axis_number
from numbabn.backends.verbs import Array

_NAN_POLICIES = ("propagate", "omit", "raise")


def kept_axes(value: object) -> tuple[int, ...]:
    """Return channel axes as a tuple of ints, negative where they were given so."""
    return integers(value, "axis")


def kept_axes_of(values: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return the channel axes of an array of this rank as numbers from 0; no axis may be named twice."""
    axes = tuple(axis_number(value, ndim) for value in values)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must name every axis once, but {values} names one of {ndim} axes twice")
    return axes


def nan_policy(value: object) -> str:
    """Return a valid ``nan_policy``."""
    if isinstance(value, str) and value in _NAN_POLICIES:
        return value
    raise ValueError(f"nan_policy must be one of {', '.join(map(repr, _NAN_POLICIES))}, not {value!r}")


def ddof(value: object) -> float:
    """Return a valid ``ddof``: a finite number."""
    number = real(value, "ddof")
    if not math.isfinite(number):
        raise ValueError(f"ddof must be a finite number, usually 0 or 1, not {value!r}")
    return number


def chunk(array: object, name: str = "chunk") -> Array:
    """Return an array of any library as NumPy's; it has bools, any integers, or floats of up to 64 bits."""
    x = on_host(array, name)
    if _supported(x.dtype):
        return x
    if x.dtype == "V2":
        raise unnamed_bfloat16(x, name)
    if x.dtype.kind == "c":
        raise TypeError(f"{name} has complex dtype {x.dtype}; pass {name}.real and {name}.imag separately")
    raise TypeError(
        f"{name} has dtype {x.dtype}; bool, integers, float16, bfloat16, float32 and float64 are supported: "
        f"pass {name}.astype(numpy.float64)"
    )


def _supported(dtype: np.dtype[Any]) -> bool:
    """Whether it is bool, an integer, or a float of up to 64 bits."""
    return dtype.kind in "biu" or is_float(dtype)


def host_chunk(array: object, name: str) -> Array:
    """Return an array as `chunk` does, if it is on the host, where the result for it will be."""
    found = of(array, name)
    if not library_of(found).on_host:
        raise TypeError(
            f"{name} is {location_text(found)}, but Moments works on the host; pass a NumPy array, "
            "or use batch_norm_inference with the mean and the variance"
        )
    return chunk(found, name)


def same_axes(given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise unless the statistics to be merged keep as many axes as those they are merged into."""
    if len(given) != len(expected):
        raise ValueError(f"other keeps the axes {given}, which cannot be merged with the axes {expected}")


def same_channels(given: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    """Raise unless the channels of what ``name`` names have the shape of the channels seen so far."""
    if given != expected:
        raise ValueError(f"{name} has channels of shape {given}, but those seen so far have shape {expected}")


def mask(value: object, shape: tuple[int, ...]) -> Array | None:
    """Return ``where`` as bools broadcast to the chunk's shape; None where all elements are taken."""
    if value is None or value is True or value is np.True_:
        return None
    array = np.asarray(value) if isinstance(value, (bool, np.bool_)) else on_host(value, "where")
    if array.dtype.kind != "b":
        raise TypeError(f"where has dtype {array.dtype}; it must be bool: pass where != 0, or weights=")
    return _broadcast(array, shape, "where")


def weights(value: object, shape: tuple[int, ...]) -> Array | None:
    """Return weights, finite and not negative, broadcast to the chunk's shape; None where there are none."""
    if value is None:
        return None
    array = sequence(value, "weights") if isinstance(value, (list, tuple)) else on_host(value, "weights")
    if array.dtype.kind == "b" or not _supported(array.dtype):
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
