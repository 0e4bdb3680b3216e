"""Running statistics: what a training batch does to them, as new values and never in place."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from numbabn._arrays import Array
from numbabn.functional import Saved


class Running(NamedTuple):
    """Running statistics of one layer; ``population`` is (count, mean, m2) of everything seen, in float64."""

    mean: Array
    var: Array
    batches: int
    population: tuple[int, Array, Array]

    def state(self, population: bool) -> dict[str, Array]:
        """Copies under the names of a state dictionary."""
        state = {
            "running_mean": self.mean.copy(),
            "running_var": self.var.copy(),
            "num_batches_tracked": np.array(self.batches, np.int64),
        }
        if population:
            count, mean, m2 = self.population
            state["population_count"] = np.array(count, np.int64)
            state["population_mean"] = mean.copy()
            state["population_m2"] = m2.copy()
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Inverse of `state`."""
        mean = state["running_mean"]
        population = (0, np.zeros(mean.shape), np.zeros(mean.shape))
        if "population_count" in state:
            population = int(state["population_count"]), state["population_mean"], state["population_m2"]
        return cls(mean, state["running_var"], int(state["num_batches_tracked"]), population)


def initial(channels: int, dtype: np.dtype[Any]) -> Running:
    """Mean 0 and variance 1, as in PyTorch and Keras."""
    return Running(
        np.zeros(channels, dtype), np.ones(channels, dtype), 0, (0, np.zeros(channels), np.zeros(channels))
    )


# Statistics that overflow are infinite, and no warning may come between a result and its statistics.
@np.errstate(all="ignore")
def averaged(running: Running, batch: Saved, momentum: float) -> Running:
    """Exponential average with weight ``momentum`` of the batch, its variance made unbiased."""
    unbiased = momentum * (batch.count / (batch.count - 1))
    mean = (running.mean * (1 - momentum) + batch.mean * momentum).astype(running.mean.dtype)
    var = (running.var * (1 - momentum) + batch.var * unbiased).astype(running.var.dtype)
    return Running(mean, var, running.batches + 1, running.population)


@np.errstate(all="ignore")
def pooled(running: Running, batch: Saved) -> Running:
    """Statistics of all values of all batches: Chan, Golub and LeVeque (1979), eq. 2.1."""
    count, mean, m2 = running.population
    total = count + batch.count
    delta = batch.mean - mean
    mean = mean + delta * (batch.count / total)
    m2 = m2 + batch.var * batch.count + delta * delta * (count * (batch.count / total))
    dtype = running.mean.dtype
    return Running(
        mean.astype(dtype), (m2 / (total - 1)).astype(dtype), running.batches + 1, (total, mean, m2)
    )
