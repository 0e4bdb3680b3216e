"""float16 and bfloat16 as storage: kernels take their bits as integers of 16 bits, and compute in float32.

Numba has no arrays of either. Those of float16 become unsigned integers, and those of bfloat16 signed ones,
which are views. bfloat16 is a dtype of ml_dtypes, which is not imported: its kind is that of bytes without a
meaning.
"""

from typing import Any

import numpy as np

from numbabn.backends.verbs import Gradient, Result

FLOAT16_BITS, BFLOAT16_BITS = np.dtype(np.uint16), np.dtype(np.int16)
_FLOAT32 = np.dtype(np.float32)


def bits(array: Any) -> Any:
    """Return an array as kernels take it: of float16 and bfloat16 the bits, any other as it is.

    Of a `Result` or `Gradient` it is the same with its two arrays.
    """
    if isinstance(array, (Result, Gradient)):
        first, second, *others = array
        kind: Any = type(array)
        return kind(bits(first), None if second is None else bits(second), *others)
    if array.dtype == np.float16:
        return array.view(FLOAT16_BITS)
    return array.view(BFLOAT16_BITS) if array.dtype.kind == "V" else array


def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which kernels compute with what they take in this one."""
    return _FLOAT32 if dtype in (FLOAT16_BITS, BFLOAT16_BITS) else dtype
