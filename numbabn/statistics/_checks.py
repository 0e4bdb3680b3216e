"""Checks of what `Moments` is given: each error names the argument, what it was, and what would be right."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbabn._numbers import integer, real
from numbabn.arrays import on_host
from numbabn.arrays.layout import axis_number
from numbabn.backends.verbs import Array

_NAN_POLICIES = ("propagate", "omit", "raise")


def kept_axes(value: object) -> tuple[int, ...]:
    """Return the channel axes as a tuple, as they were given."""
    if isinstance(value, (tuple, list)):
        return tuple(integer(each, "axis") for each in value)
    return (integer(value, "axis"),)


def kept_axes_of(values: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return channel axes as numbers from 0, each of them once."""
    axes = tuple(axis_number(value, ndim) for value in values)
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
    number = real(value, "ddof")
    if not math.isfinite(number):
        raise ValueError(f"ddof must be a finite number, usually 0 or 1, not {value!r}")
    return number


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
