"""Which array libraries are known, and what to say about the others."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def numpy_array(array: object, name: str) -> Array:
    """Return a plain NumPy array over the memory of ``array``, or say what to pass instead.

    Raises
    ------
    TypeError
        If it is not a NumPy array. Lists are not converted: a copy nobody asked for, of a dtype nobody chose.
    """
    if type(array) is np.ndarray:
        return array
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.filled(value)")
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    if hasattr(array, "__cuda_array_interface__"):
        raise TypeError(f"{name} is a {kind} on a GPU, which is not supported yet; copy it to a NumPy array")
    if hasattr(array, "__array__") or hasattr(array, "__dlpack__"):
        raise TypeError(f"{name} must be a NumPy array, not {kind}; pass numpy.asarray({name})")
    raise TypeError(
        f"{name} must be a NumPy array, not {kind}; pass numpy.asarray({name}, dtype=numpy.float32)"
    )
