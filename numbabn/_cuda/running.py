"""What a batch does to running statistics: in place and in one launch, so that a CUDA graph does it again.

Launched on the stream of the batch, which may be of another library than the layer.
"""

import numpy as np

from numbabn._arrays import DeviceArray
from numbabn._cuda import plan
from numbabn._cuda.gpu import Kernel, load, load_parameter, store, store_parameter, thread_number


def average(
    mean: DeviceArray,
    var: DeviceArray,
    batch_mean: DeviceArray,
    batch_var: DeviceArray,
    momentum: float,
    correction: float,
) -> tuple[DeviceArray, DeviceArray]:
    """Update and return mean and var; as ``_cpu.running.average``."""
    _average.launch(
        batch_mean, plan.blocks(mean.size),
        mean.parameter, var.parameter, batch_mean.address, batch_var.address,
        mean.size, float(1 - momentum), float(momentum), float(momentum * correction),
    )  # fmt: skip
    return mean, var


def pool(
    mean: DeviceArray,
    var: DeviceArray,
    population_mean: DeviceArray,
    population_m2: DeviceArray,
    batch_mean: DeviceArray,
    batch_var: DeviceArray,
    count: int,
    batch_count: int,
) -> tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray]:
    """Update and return the first four; as ``_cpu.running.pool``."""
    weight = batch_count / (count + batch_count)
    _pool.launch(
        batch_mean, plan.blocks(mean.size), mean.parameter, var.parameter, population_mean.address,
        population_m2.address, batch_mean.address, batch_var.address, mean.size, float(batch_count), weight,
        count * weight, float(count + batch_count - 1),
    )  # fmt: skip
    return mean, var, population_mean, population_m2


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
