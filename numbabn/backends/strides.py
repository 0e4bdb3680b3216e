"""The order of an array's axes in memory."""


def memory_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes from the largest stride to the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda i: -abs(strides[i])))
