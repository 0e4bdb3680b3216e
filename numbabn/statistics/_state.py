"""The state of `Moments` as arrays by name, which ``to_dict`` returns and state files hold; and its check."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbabn.backends.cpu.streaming.digits import joined
from numbabn.backends.verbs import Array
from numbabn.statistics._population import SQUARE_DIGITS, SUM_DIGITS

FORMAT = 1  # version of the keys and of what they mean

# Arrays whose last axis are the channels, flat, and the lengths of their other axes.
CHANNEL_ARRAYS = {
    "min": (), "max": (),
    "exact_count": (), "exact_total": (SUM_DIGITS,), "exact_squares": (SQUARE_DIGITS,),
    "real_moments": (6,), "real_exponent": (),
}  # fmt: skip
_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)
_DTYPES = {  # kernels write to these arrays: nothing but the exact dtype, in native byte order
    "format": _INT64, "axis": _INT64, "nan_policy": np.dtype(np.str_), "shape": _INT64,
    "weighted": np.dtype(np.bool_), "min": _FLOAT64, "max": _FLOAT64,
    "exact_count": _INT64, "exact_total": _INT64, "exact_squares": _INT64, "real_moments": _FLOAT64,
    "real_exponent": _INT64,
}  # fmt: skip
_MOST_EXPONENT = 1074  # of the least float64 above 0
_MOST_COUNT = 2.0**63  # of values: what counts is an int64
_ALWAYS = {"format", "axis", "nan_policy"}
_AFTER_AN_UPDATE = {"shape", "weighted", "min", "max"}
_EXACT, _REAL = ({name for name in _DTYPES if name.startswith(part)} for part in ("exact", "real"))


def checked(given: Any) -> dict[str, Array]:
    """Return copies of the arrays of a state, or raise where they cannot be one."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state must be a dictionary as from to_dict(), not {type(given).__name__}")
    values = {name: np.array(given[name], order="C") for name in _DTYPES if name in given}
    _check_names(set(values), set(given))
    version = values["format"]
    if version.shape != () or version.dtype.kind not in "iu" or version != FORMAT:
        raise ValueError(f"state has format {version}; this version of numbabn reads {FORMAT}")
    for name, value in values.items():
        dtype = _DTYPES[name]
        if value.dtype != dtype and not value.dtype.kind == dtype.kind == "U":
            raise ValueError(f"state[{name!r}] has dtype {value.dtype}; it must be {dtype.name}")
    _check_axes(values)
    channels = math.prod(values["shape"].tolist()) if "shape" in values else 0
    for name, value in values.items():
        if name in CHANNEL_ARRAYS:
            shape: tuple[int, ...] = (*CHANNEL_ARRAYS[name], channels)
        else:
            shape = (value.size,) if name in ("axis", "shape") else ()
        if value.shape != shape:
            raise ValueError(f"state[{name!r}] has shape {value.shape}; it must be {shape}")
    _check_values(values)
    return values


def _check_names(known: set[str], given: set[Any]) -> None:
    """Raise unless the names of a state, of which some are known, are complete and no others."""
    needed = set(_ALWAYS)
    for part in (_AFTER_AN_UPDATE, _EXACT, _REAL):
        if known & part:
            needed |= part | _AFTER_AN_UPDATE
    if known != needed or given - known:
        raise ValueError(
            f"state is not one of Moments: missing keys {sorted(needed - known)}, "
            f"unknown keys {sorted(given - known, key=str)}"
        )


def _check_axes(values: dict[str, Array]) -> None:
    """Raise unless the channel axes are different ones, and as many as the lengths."""
    axis = values["axis"].tolist()
    shape = values.get("shape", values["axis"]).tolist()
    if np.ndim(axis) != 1 or np.ndim(shape) != 1 or len(axis) != len(shape):
        raise ValueError(f"state has axis {axis} and shape {shape}, which must be two lists of one length")
    if len(set(axis)) < len(axis):
        raise ValueError(f"state has axis {axis}, which names an axis twice")
    if "shape" in values and min(shape, default=0) < 0:
        raise ValueError(f"state has shape {shape}, which has a negative length")


def _check_values(values: dict[str, Array]) -> None:
    """Raise where a number cannot have come out of any data."""
    real, count = values.get("real_moments"), values.get("exact_count")
    if count is not None:
        total, squares = values["exact_total"], values["exact_squares"]
        # Digits of 32 bits, the last with the sign: of sums of 2**63 values below 2**64 it is below 2**31.
        digits = np.concatenate([total[:-1], squares[:-1]])
        fine = (count >= 0) & ((digits >= 0) & (digits < 1 << 32)).all(axis=0)
        fine &= (total[-1] >= -(1 << 31)) & (total[-1] < 1 << 31)
        fine &= (squares[-1] >= 0) & (squares[-1] < 1 << 31)
        # By Cauchy and Schwarz; else the variance would be negative.
        n, s, q = count.astype(object), joined(total), joined(squares)
        fine &= np.array(n * q >= s * s, np.bool_)
        _refuse_channel(fine, "exact sums")
    if real is not None:
        weight, low, m2 = real[0], real[1], real[4]
        exponent = values["real_exponent"]
        fine = np.isfinite(weight) & (weight >= 0) & ~(m2 < 0)
        fine &= np.abs(low) <= np.spacing(np.where(np.isfinite(weight), weight, 0.0))  # False for NaN
        fine &= (exponent >= -_MOST_EXPONENT) & (exponent <= _MOST_EXPONENT)
        if not values["weighted"]:
            fine &= exponent == 0
            fine &= (weight == np.floor(weight)) & (low == np.floor(low))
            exact = np.zeros(weight.shape, np.int64) if count is None else count
            fine &= weight < _MOST_COUNT - exact.astype(np.float64)
        _refuse_channel(fine, "moments")
    if "min" in values:
        low, high = values["min"], values["max"]
        nothing = (low == np.inf) & (high == -np.inf)
        _refuse_channel((low <= high) | nothing | np.isnan(low) | np.isnan(high), "a range")


def _refuse_channel(fine: Array, what: str) -> None:
    if not fine.all():
        channel = int(np.argmin(fine))
        raise ValueError(f"state has {what} of channel {channel} that no data can have")
