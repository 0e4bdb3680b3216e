"""What a batch does to running statistics: in place and in one launch, so that a CUDA graph does it again.

Launched on the stream of the batch, which may be of another library than the layer.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.arguments import moments, statistics
from numbabn.backends.cuda.gpu import Kernel, load, store, thread_number
from numbabn.backends.cuda.merging import merge_means
from numbabn.backends.cuda.parameters import load_parameter, store_parameter
from numbabn.backends.verbs import Pair, Population


def average(running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
    """Update running to running * (1 - momentum) + batch * momentum, and return it.

    The variance of the batch is multiplied by ``correction``. Computed in float64, and rounded to the dtypes
    of the running mean and variance.
    """
    if momentum == 0.0:  # nothing of a batch that may be infinite
        return running
    channels = running[0].size
    _average.launch(
        batch[0], plan.blocks(channels),
        moments(batch), channels, float(1 - momentum), float(momentum), float(momentum * correction),
        statistics(running),
    )  # fmt: skip
    return running


def pool(running: Pair, population: Population, batch: Pair, count: int) -> tuple[Pair, Population]:
    """Update and return the statistics and the population: of all values, and of ``count`` more in the batch.

    The population is float64. The statistics are its mean and its unbiased variance, rounded to the dtypes of
    the running ones.
    """
    channels = running[0].size
    _pool.launch(
        batch[0], plan.blocks(channels),
        moments(batch), channels, float(count), float(population.seen),
        moments(population.moments), statistics(running),
    )  # fmt: skip
    return running, Population(population.seen + count, population.moments)


@Kernel
def _average(batch, channels, keep, mean_weight, var_weight, running):
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        mean = load(batch.mean, c, zero) * mean_weight
        var = load(batch.var, c, zero) * var_weight
        if keep != 0.0:  # nothing of what may be NaN
            mean += load_parameter(running.mean, running.mean_kind, c, 0.0) * keep
            var += load_parameter(running.var, running.var_kind, c, 0.0) * keep
        store_parameter(running.mean, running.mean_kind, c, mean)
        store_parameter(running.var, running.var_kind, c, var)


@Kernel
def _pool(batch, channels, count, seen, population, running):
    """Merge ``count`` values of the batch into the ``seen`` ones of the population, whose var is an m2."""
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        known, m2 = load(population.mean, c, zero), load(population.var, c, zero)
        total, mean, between = merge_means(seen, known, count, load(batch.mean, c, zero))
        m2 = m2 + load(batch.var, c, zero) * count + between
        store(population.mean, c, mean)
        store(population.var, c, m2)
        store_parameter(running.mean, running.mean_kind, c, mean)
        store_parameter(running.var, running.var_kind, c, m2 / (total - 1.0))
