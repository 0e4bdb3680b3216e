"""What a batch does to running statistics: new arrays, so that nobody sees half of it."""

import numpy as np

from numbabn._arrays import Array
from numbabn._cpu.welford import merged


def average(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, momentum: float, correction: float
) -> tuple[Array, Array]:
    """Return both averages with weight ``momentum`` of the batch; ``correction`` makes its variance unbiased.

    Computed in float64, and rounded to the dtypes of mean and var.
    """
    keep = np.float64(1 - momentum)
    return (
        (mean * keep + batch_mean * momentum).astype(mean.dtype),
        (var * keep + batch_var * (momentum * correction)).astype(var.dtype),
    )


def pool(
    mean: Array,
    var: Array,
    population_mean: Array,
    population_m2: Array,
    batch_mean: Array,
    batch_var: Array,
    count: int,
    batch_count: int,
) -> tuple[Array, Array, Array, Array]:
    """Return (mean, unbiased variance) rounded to their dtypes and (mean, m2) in float64, of all values.

    ``count`` values were seen before the batch.
    """
    total, population_mean, population_m2 = merged(
        count, population_mean, population_m2, batch_count, batch_mean, batch_var * batch_count
    )
    unbiased = population_m2 / (total - 1)
    return population_mean.astype(mean.dtype), unbiased.astype(var.dtype), population_mean, population_m2
