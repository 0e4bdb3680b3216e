"""Running statistics of a layer, and what a training batch does to them: see ``running`` of the backends.

On the CPU they are new arrays after every batch; on a GPU they are updated in place.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np

from numbabn import _cpu
from numbabn._arrays import AnyArray, Array, DeviceArray, assign, known
from numbabn._backends import cuda_module
from numbabn._places import Place, to_host
from numbabn.functional import Saved


class Running(NamedTuple):
    """Running statistics of one layer; ``population`` is (count, mean, m2) of everything seen, in float64."""

    mean: AnyArray
    var: AnyArray
    batches: int
    population: tuple[int, AnyArray, AnyArray]

    def state(self, population: bool) -> dict[str, Array]:
        """Copies in NumPy under the names of a state dictionary."""
        state = {
            "running_mean": to_host(self.mean),
            "running_var": to_host(self.var),
            "num_batches_tracked": np.array(self.batches, np.int64),
        }
        if population:
            count, mean, m2 = self.population
            state["population_count"] = np.array(count, np.int64)
            state["population_mean"] = to_host(mean)
            state["population_m2"] = to_host(m2)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], place: Place) -> Self:
        """Inverse of `state`, with the arrays at ``place``."""
        zeros = np.zeros(state["running_mean"].shape)
        names = "running_mean", "running_var", "population_mean", "population_m2"
        mean, var, population_mean, population_m2 = (
            known(place.put(state.get(name, zeros)), name) for name in names
        )
        population = int(state.get("population_count", 0)), population_mean, population_m2
        return cls(mean, var, int(state["num_batches_tracked"]), population)

    def loaded(self, other: "Running") -> "Running":
        """Return ``other``; on a GPU in the arrays of this one, which a CUDA graph may know."""
        if type(self.mean) is not DeviceArray:
            return other
        mine, others = (
            (self.mean, self.var, *self.population[1:]),
            (other.mean, other.var, *other.population[1:]),
        )
        for target, source in zip(mine, others, strict=True):
            assign(target, source)
        return self._replace(batches=other.batches, population=(other.population[0], *self.population[1:]))


def initial(channels: int, dtype: np.dtype[Any], place: Place) -> Running:
    """Mean 0 and variance 1, as in PyTorch and Keras."""
    state = {
        "running_mean": np.zeros(channels, dtype),
        "running_var": np.ones(channels, dtype),
        "num_batches_tracked": 0,
    }
    return Running.from_state(state, place)


# Statistics that overflow are infinite, and no warning may come between a result and its statistics.
@np.errstate(all="ignore")
def averaged(running: Running, batch: Saved, momentum: float) -> Running:
    """Exponential average with weight ``momentum`` of the batch, its variance made unbiased."""
    correction = batch.count / (batch.count - 1)
    mean, var = _backend(running).average(
        running.mean, running.var, batch._mean, batch._var, momentum, correction
    )
    return Running(mean, var, running.batches + 1, running.population)


@np.errstate(all="ignore")
def pooled(running: Running, batch: Saved) -> Running:
    """Statistics of all values of all batches."""
    count, population_mean, population_m2 = running.population
    mean, var, population_mean, population_m2 = _backend(running).pool(
        running.mean, running.var, population_mean, population_m2, batch._mean, batch._var, count, batch.count
    )
    population = count + batch.count, population_mean, population_m2
    return Running(mean, var, running.batches + 1, population)


def _backend(running: Running) -> ModuleType:
    return cuda_module("running") if type(running.mean) is DeviceArray else _cpu.running
