"""Checks of the arrays of a call: each error names the argument, what it was, and what would be right."""

import math

import numpy as np

from numbabn._numbers import real
from numbabn.arrays import AnyArray, beside, library_of, of_library
from numbabn.arrays.overlap import overlap, overlaps_itself, same_memory

_COMPUTE_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def data(x: AnyArray, name: str) -> None:
    """Raise unless the array is floating point, of rank two or more."""
    if x.dtype not in _COMPUTE_DTYPES:
        dtype(x, name)
    if x.ndim < 2:
        raise ValueError(
            f"{name} must have a batch axis and a channel axis, but has shape {x.shape}; "
            f"for one sample pass {name}[None], for one channel {name}[:, None]"
        )


def dtype(x: AnyArray, name: str) -> None:
    """Raise unless the dtype is float32 or float64, in either byte order."""
    kind = x.dtype
    if kind in _COMPUTE_DTYPES or (kind.kind == "f" and kind.newbyteorder("=") in _COMPUTE_DTYPES):
        return
    advice = f"pass {library_of(x).cast_text(name, 'float32')}"
    if kind.kind == "f":
        raise TypeError(f"{name} has dtype {kind}; float32 and float64 are supported: {advice}")
    if kind.kind == "c":
        raise TypeError(f"{name} has complex dtype {kind}; pass {name}.real and {name}.imag separately")
    raise TypeError(f"{name} has dtype {kind}, which is not floating point; {advice}")


def eps(value: object) -> float:
    """Return eps as a finite number, not negative."""
    if type(value) is float and 0.0 <= value < math.inf:
        return value
    number = real(value, "eps")
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"eps must be a finite number >= 0, for example 1e-5, not {value!r}")
    return number


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
    """Return variances as ``per_channel`` does; refuse negative ones, unless they are on a GPU.

    Reading them there would synchronise with the GPU.
    """
    values = per_channel(array, name, count, x)
    if not count or not library_of(values).on_host:
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
            f"dy has dtype {array.dtype}, but x had {x.dtype}; "
            f"pass {library_of(x).cast_text('dy', x.dtype.name)}"
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
    if overlaps_itself(array):
        raise ValueError(
            "elements of out share memory, as in a broadcast array; "
            f"pass one made by {library_of(array).maker}"
        )
    for name, other in inputs.items():
        if overlap(array, other) and not (name == inplace and same_memory(array, other)):
            raise ValueError(
                f"out overlaps {name} in memory; pass {inplace} itself to compute in place, "
                "or an array of its own"
            )
    if not array.flags.writeable:
        raise ValueError("out is read-only; pass an array that can be written to")
    return array
