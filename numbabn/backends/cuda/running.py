"""What a batch does to running statistics: in place and in one launch, so that a CUDA graph does it again.

Launched on the stream of the batch, which may be of another library than the layer.
"""

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.cuda.gpu import Kernel, load, load_parameter, store, store_parameter, thread_number
from numbabn.backends.cuda.plan import parameter
from numbabn.backends.verbs import Pair, Population


def average(running: Pair, batch: Pair, momentum: float, correction: float) -> Pair:
    """Update running to running * (1 - momentum) + batch * momentum, and return it.

    The variance of the batch is multiplied by ``correction``. Computed in float64, and rounded to the dtypes
    of the running mean and variance.
    """
    (mean, var), (batch_mean, batch_var) = running, batch
    if momentum == 0.0:  # nothing of a batch that may be infinite
        return running
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
    total = population.seen + count
    weight = count / total
    _pool.launch(
        batch_mean, plan.blocks(mean.size), parameter(mean), parameter(var), known.address, m2.address,
        batch_mean.address, batch_var.address, mean.size, float(count), weight, population.seen * weight,
        float(total - 1),
    )  # fmt: skip
    return running, Population(total, population.moments)


@Kernel
def _average(mean, var, batch_mean, batch_var, channels, keep, mean_weight, var_weight):
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        value = load(batch_mean, c, zero) * mean_weight
        if keep != 0.0:  # nothing of what may be NaN
            value += load_parameter(mean, c, 0.0) * keep
        store_parameter(mean, c, value)
        value = load(batch_var, c, zero) * var_weight
        if keep != 0.0:
            value += load_parameter(var, c, 0.0) * keep
        store_parameter(var, c, value)


@Kernel
def _pool(
    mean, var, population_mean, population_m2, batch_mean, batch_var, channels, batch_count, weight,
    cross, divisor,
):  # fmt: skip
    c = thread_number()
    if c < channels:
        zero = np.float64(0)
        known = load(population_mean, c, zero)
        delta = load(batch_mean, c, zero) - known
        known += delta * weight
        m2 = load(population_m2, c, zero) + load(batch_var, c, zero) * batch_count + delta * delta * cross
        store(population_mean, c, known)
        store(population_m2, c, m2)
        store_parameter(mean, c, known)
        store_parameter(var, c, m2 / divisor)
