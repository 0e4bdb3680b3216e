"""Checks of the arrays of a call: each error names the argument, what it was, and what would be right."""

import math
from typing import Any

import numpy as np

from numbabn._numbers import real
from numbabn.arrays import AnyArray, library_of, of_library, values_beside
from numbabn.arrays.device_library import described, is_float, is_half
from numbabn.arrays.dtypes import CONVERTED, result_dtype, unnamed_bfloat16
from numbabn.norms._saved import Saved


def converted(x: AnyArray, name: str, wanted: object) -> np.dtype[Any] | None:
    """Return the dtype in which integers are normalised, ``wanted``, or None for x of this dtype itself."""
    result = result_dtype(wanted)
    if x.dtype.kind in "iu" and x.dtype.newbyteorder("=") in CONVERTED:
        if not library_of(x).on_host:
            raise TypeError(
                f"{name} has dtype {x.dtype}, which is converted on the CPU only; "
                f"pass {library_of(x).cast_text(name, result.name)}"
            )
        return result
    dtype(x, name, "batch_norm")
    if x.dtype.newbyteorder("=") != result:
        raise TypeError(
            f"dtype is {result}, but {name} has dtype {x.dtype}; dtype is for integers of 8 and 16 bits: "
            f"pass {library_of(x).cast_text(name, result.name)}"
        )
    return None


def rank(x: AnyArray, name: str) -> ValueError:
    """Return the error for an array without a batch axis and a channel axis."""
    return ValueError(
        f"{name} must have a batch axis and a channel axis, but has shape {x.shape}; "
        f"for one sample pass {name}[None], for one channel {name}[:, None]"
    )


def dtype(x: AnyArray, name: str, norm: str) -> None:
    """Raise unless the dtype is one that norms take, in either byte order. ``norm`` is that of the call."""
    kind = x.dtype
    if is_float(kind):
        return
    advice = f"pass {library_of(x).cast_text(name, 'float32')}"
    if described(kind).kind == "f":
        known = "float16, bfloat16, float32 and float64"
        raise TypeError(f"{name} has dtype {kind}; {known} are supported: {advice}")
    if kind == "V2":
        raise unnamed_bfloat16(x, name)
    if kind.kind == "c":
        raise TypeError(f"{name} has complex dtype {kind}; pass {name}.real and {name}.imag separately")
    if norm == "batch_norm" and kind.kind in "iu" and kind.newbyteorder("=") in CONVERTED:
        advice += ", or to batch_norm_inference dtype=numpy.float32"
    raise TypeError(f"{name} has dtype {kind}, which is not floating point; {advice}")


def one_value(x: AnyArray, advice: str | None) -> ValueError:
    """Return the error for an x with one value per channel, of which no variance can be taken."""
    return ValueError(
        f"x has shape {x.shape}, one value per channel, whose variance is 0; "
        f"pass a larger batch{f', or {advice}' if advice else ''}"
    )


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
    values = array if type(array) is np.ndarray and type(x) is np.ndarray else values_beside(array, name, x)
    if values.dtype.kind != "f" and not is_half(values.dtype):
        raise TypeError(f"{name} has dtype {values.dtype}; it must be floating point, one value per channel")
    if values.shape != (count,):
        raise ValueError(
            f"{name} has shape {values.shape}, but x has {count} channels: it must be ({count},)"
        )
    return values


def per_place(array: object, name: str, shape: tuple[int, ...], x: AnyArray) -> AnyArray:
    """Return an array with one floating-point value for each place on the axes that are normalised."""
    values = array if type(array) is np.ndarray and type(x) is np.ndarray else values_beside(array, name, x)
    if values.dtype.kind != "f" and not is_half(values.dtype):
        raise TypeError(f"{name} has dtype {values.dtype}; it must be floating point")
    if values.shape != shape:
        raise ValueError(
            f"{name} has shape {values.shape}; it must be that of the axes of x that are normalised, {shape}"
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


def norm(saved: object, name: str) -> None:
    """Raise if saved is from the forward function of another norm than the one named."""
    if isinstance(saved, Saved) and saved._norm != name:
        raise ValueError(f"saved is from {saved._norm}_forward; pass it to {saved._norm}_backward")


def residual(array: object, x: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Return an array if it can be added to the result for x, which has this dtype."""
    values = of_library(array, "residual", x)
    if values.shape != x.shape:
        raise ValueError(
            f"residual has shape {values.shape}, but x has shape {x.shape}; it must have the same, "
            "since it is added to every element"
        )
    if values.dtype != dtype and values.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise TypeError(
            f"residual has dtype {values.dtype}, but the result has {dtype.newbyteorder('=')}; "
            f"pass {library_of(x).cast_text('residual', dtype.name)}"
        )
    return values


def gradient(dy: object, x: AnyArray) -> AnyArray:
    """Return dy if it can be the gradient of the output for x."""
    array = of_library(dy, "dy", x)
    if array.shape != x.shape:
        raise ValueError(
            f"dy has shape {array.shape}, but x of the forward call had shape {x.shape}; "
            "pass the gradient of what that call returned"
        )
    if array.dtype != x.dtype and array.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(
            f"dy has dtype {array.dtype}, but x had {x.dtype}; "
            f"pass {library_of(x).cast_text('dy', x.dtype.name)}"
        )
    return array
