"""Which memory arrays share: what a result may be written to."""

import numpy as np

from numbabn.arrays.door import library_of
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
