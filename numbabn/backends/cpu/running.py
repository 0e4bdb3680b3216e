"""What a batch does to running statistics.

There are new arrays, so that other threads see the old ones or the new; but for those of PyTorch's modules.

Statistics that overflow are infinite. A warning turned into an error would leave y without its update.
"""

import numpy as np

from numbabn.backends.arithmetic import merge_means
from numbabn.backends.cpu.jit import small_kernel
from numbabn.backends.cpu.quiet import quiet
from numbabn.backends.verbs import Pair, Population


def average(running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
    """Return running * (1 - momentum) + batch * momentum.

    The variance of the batch is multiplied by ``correction``. Computed in float64, and rounded to the dtypes
    of the running mean and variance.
    """
    return quiet().run(_average, running, batch, momentum, correction)


def _average(running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
    mean, var = running
    if momentum == 0.0:  # nothing of a batch that may be infinite
        return mean.copy(), var.copy()
    if momentum == 1.0:  # nothing of what may be NaN
        return batch[0].astype(mean.dtype), (batch[1] * correction).astype(var.dtype)
    keep = np.float64(1 - momentum)
    return (
        (mean * keep + batch[0] * momentum).astype(mean.dtype),
        (var * keep + batch[1] * (momentum * correction)).astype(var.dtype),
    )


def pool(running: Pair, population: Population, batch: Pair, count: int) -> tuple[Pair, Population]:
    """Return the statistics and the population of all values and of ``count`` more, those of the batch.

    The population is float64. The statistics are its mean and its unbiased variance, rounded to the dtypes of
    the running ones.
    """
    return quiet().run(_pool, running, population, batch, count)


def _pool(running: Pair, population: Population, batch: Pair, count: int) -> tuple[Pair, Population]:
    (mean, m2), (batch_mean, batch_var) = population.moments, batch
    total, mean, between = merge_means(population.seen, mean, count, batch_mean)
    m2 = m2 + batch_var * count + between
    statistics = mean.astype(running[0].dtype), (m2 / (total - 1)).astype(running[1].dtype)
    return statistics, Population(total, (mean, m2))


@small_kernel
def move(mean, var, batch, momentum, correction):
    """Do in place what `average` does, to floats of 32 or 64 bits; batch [2, channels] is float64."""
    keep, unbiased = 1.0 - momentum, momentum * correction
    for c in range(len(mean)):
        mean[c] = mean[c] * keep + batch[0, c] * momentum
        var[c] = var[c] * keep + batch[1, c] * unbiased
