"""The order of an array's axes in memory, and the strides that follow from it."""

import functools


def memory_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes from the largest stride to the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda i: -abs(strides[i])))


@functools.lru_cache(1024)
def dense_strides(shape: tuple[int, ...], order: tuple[int, ...] | range, itemsize: int) -> tuple[int, ...]:
    """Return the strides of an array without gaps whose axes lie in this order, the slowest first."""
    steps = [0] * len(shape)
    for axis in reversed(order):
        steps[axis] = itemsize
        itemsize *= shape[axis]
    return tuple(steps)
