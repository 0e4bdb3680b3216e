"""What a batch does to running statistics: in place and in one launch, so that a CUDA graph does it again.

Launched on the stream of the batch, which may be of another library than the layer.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.gpu import Kernel, load, load_parameter, store, store_parameter, thread_number
from numbabn.backends.cuda.groups import merge_means
from numbabn.backends.cuda.plan import parameter
from numbabn.backends.verbs import Pair, Population


def average(running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
    """Update running to running * (1 - momentum) + batch * momentum, and return it.

    The variance of the batch is multiplied by ``correction``. Computed in float64, and rounded to the dtypes
    of the running mean and variance.
    """
    (mean, var), (batch_mean, batch_var) = running, batch
    _average.launch(
        batch_mean, plan.blocks(mean.size),
        parameter(mean), parameter(var), batch_mean.address, batch_var.address,
        mean.size, float(1 - momentum), float(momentum), float(momentum * correction),
    )  # fmt: skip
    return running


def pool(running: Pair, population: Population, batch: Pair, count: int) -> tuple[Pair, Population]:
    """Update and return the statistics and the population: of all values, and of ``count`` more in the batch.

    The population is float64. The statistics are its mean and its unbiased variance, rounded to the dtypes of
    the running ones.
    """
    (mean, var), (known, m2), (batch_mean, batch_var) = running, population.moments, batch
    _pool.launch(
        batch_mean, plan.blocks(mean.size), parameter(mean), parameter(var), known.address, m2.address,
        batch_mean.address, batch_var.address, mean.size, float(population.seen), float(count),
    )  # fmt: skip
    return running, Population(population.seen + count, population.moments)


@Kernel
def _average(mean, var, batch_mean, batch_var, channels, keep, mean_weight, var_weight):
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        value = load_parameter(mean, c, 0.0) * keep + load(batch_mean, c, zero) * mean_weight
        store_parameter(mean, c, value)
        value = load_parameter(var, c, 0.0) * keep + load(batch_var, c, zero) * var_weight
        store_parameter(var, c, value)


@Kernel
def _pool(
    mean, var, population_mean, population_m2, batch_mean, batch_var, channels, population_count, batch_count,
):  # fmt: skip
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        total, merged, between = merge_means(
            population_count, load(population_mean, c, zero), batch_count, load(batch_mean, c, zero)
        )
        m2 = load(population_m2, c, zero) + load(batch_var, c, zero) * batch_count + between
        store(population_mean, c, merged)
        store(population_m2, c, m2)
        store_parameter(mean, c, merged)
        store_parameter(var, c, m2 / (total - 1.0))
