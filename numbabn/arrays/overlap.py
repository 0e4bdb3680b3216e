"""Which memory arrays share: what a result may be written to."""

from typing import Any

import numpy as np

from numbabn.arrays.door import library_of, of_library
from numbabn.arrays.library import AnyArray


def same_memory(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays have the same elements at the same addresses."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or library_of(a).address(a) != library_of(b).address(b):
        return False
    # The stride of an axis of length 1 means nothing.
    return all(s == t for s, t, n in zip(a.strides, b.strides, a.shape, strict=True) if n > 1)


def overlaps_itself(array: AnyArray) -> bool:
    """Whether two elements may have one address: not if every stride steps over all shorter strides."""
    if array.flags.c_contiguous or array.size == 0:
        return False
    end = array.itemsize
    for step, size in sorted(
        (abs(step), size) for step, size in zip(array.strides, array.shape, strict=True)
    ):
        if size > 1:
            if step < end:
                return True
            end += step * (size - 1)
    return False


def overlap(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays may have an element in common; exact unless that takes long to find out."""
    a, b = library_of(a).addresses(a), library_of(b).addresses(b)
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def refuse_overlap(array: AnyArray, argument: str, other: AnyArray, name: str, inplace: str) -> None:
    """Raise if the array named ``argument`` overlaps another one, and is not the same as that ``inplace``."""
    if overlap(array, other) and not (name == inplace and same_memory(array, other)):
        raise ValueError(
            f"{argument} overlaps {name} in memory; pass {inplace} itself to compute in place, "
            "or an array of its own"
        )


def output(
    out: object,
    x: AnyArray,
    dtype: np.dtype[Any],
    inplace: str,
    inputs: dict[str, AnyArray],
    argument: str = "out",
) -> AnyArray:
    """Return out if a result for x of this dtype can be written to it.

    It may be the same memory as the input named ``inplace``, and must not overlap any input otherwise.
    ``argument`` is what the user calls it.
    """
    array = of_library(out, argument, x)
    if array.shape != x.shape:
        raise ValueError(f"{argument} has shape {array.shape}; it must be that of the result, {x.shape}")
    native = dtype.newbyteorder("=")
    if array.dtype is not dtype and array.dtype.newbyteorder("=") != native:
        raise TypeError(f"{argument} has dtype {array.dtype}; it must be that of the result, {native}")
    if overlaps_itself(array):
        raise ValueError(
            f"elements of {argument} share memory, as in a broadcast array; "
            f"pass one made by {library_of(array).maker}"
        )
    for name, other in inputs.items():
        refuse_overlap(array, argument, other, name, inplace)
    if not array.flags.writeable:
        raise ValueError(f"{argument} is read-only; pass an array that can be written to")
    return array
