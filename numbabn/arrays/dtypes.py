"""Which dtypes kernels compute in, and which they convert to one of those while they read and write."""

from typing import Any

import numpy as np

from numbabn.arrays.device_library import is_half
from numbabn.backends.verbs import Array

COMPUTED = tuple(map(np.dtype, (np.float32, np.float64)))
_FLOAT32 = COMPUTED[0]
CONVERTED = tuple(map(np.dtype, (np.uint8, np.int8, np.uint16, np.int16)))  # exact in float32


def computed_dtype(dtype: Any) -> Any:
    """Return the dtype in which numbers of a floating dtype are computed, in native byte order."""
    if dtype in COMPUTED:
        return dtype
    return _FLOAT32 if is_half(dtype) else dtype.newbyteorder("=")


def unnamed_bfloat16(x: Any, name: str) -> TypeError:
    """Return the error for an array of two bytes without a meaning."""
    return TypeError(
        f"{name} has dtype {x.dtype}, bytes without a meaning, which numpy.load makes of bfloat16: "
        f"pass {name}.view(ml_dtypes.bfloat16)"
    )


def result_dtype(value: Any) -> np.dtype[Any]:
    """Return the dtype of a result, float32 or float64, from what a user passed as ``dtype``."""
    try:
        dtype: np.dtype[Any] | None = None if value is None else np.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in COMPUTED:
        raise TypeError(f"dtype must be numpy.float32 or numpy.float64, not {value!r}")
    return dtype


def beyond_float32(factors: Array) -> bool:
    """Whether one of the factors would be infinite in float32, or lose digits there."""
    span = np.finfo(np.float32)
    return bool(((factors < span.tiny) | (factors > span.max)).any())
