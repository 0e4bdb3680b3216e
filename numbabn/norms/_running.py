"""Running statistics of a layer, and what a training batch does to them: see ``running`` of the backends.

On the CPU a batch makes new arrays; on a GPU they are updated in place.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from numbabn import arrays
from numbabn.arrays import AnyArray, follow, host_copy, library_of
from numbabn.arrays.library import Place
from numbabn.arrays.place import put
from numbabn.backends.verbs import Array, Pair, Population
from numbabn.norms._options import MOST


class Running(NamedTuple):
    """Running mean and variance of one layer, and the population of everything seen.

    One tuple, which a layer replaces in one assignment: no call can leave half of it.
    """

    mean: AnyArray
    var: AnyArray
    batches: int
    population: Population

    def state(self, population: bool) -> dict[str, Array]:
        """Return copies in NumPy under the names of a state dictionary, with the population or without.

        Counts beyond 2**63 - 1 are written as 2**63 - 1.
        """
        state = {
            "running_mean": host_copy(self.mean, "running_mean"),
            "running_var": host_copy(self.var, "running_var"),
            "num_batches_tracked": np.array(min(self.batches, MOST), np.int64),
        }
        if population:
            count, (mean, m2) = self.population
            state["population_count"] = np.array(min(count, MOST), np.int64)
            state["population_mean"] = host_copy(mean, "population_mean")
            state["population_m2"] = host_copy(m2, "population_m2")
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], place: Place) -> Self:
        """Inverse of `state`, with the arrays at ``place``; no population is one of no values."""
        zeros = np.zeros(state["running_mean"].shape)
        names = "running_mean", "running_var", "population_mean", "population_m2"
        mean, var, *moments = (arrays.of(put(state.get(name, zeros), place), name) for name in names)
        population = Population(int(state.get("population_count", 0)), tuple(moments))
        return cls(mean, var, int(state["num_batches_tracked"]), population)

    @classmethod
    def initial(cls, channels: int, dtype: np.dtype[Any], place: Place) -> Self:
        """Return mean 0 and variance 1, as in PyTorch and Keras."""
        state = {
            "running_mean": np.zeros(channels, dtype),
            "running_var": np.ones(channels, dtype),
            "num_batches_tracked": 0,
        }
        return cls.from_state(state, place)

    def after(self, batch: Pair, count: int, momentum: float | None) -> Self:
        """Return what they are after one more batch, of ``count`` values and with these statistics.

        That is the exponential average with weight ``momentum`` of the batch, its variance made unbiased; or
        without a momentum the statistics of all values of all batches.
        """
        running, verbs = (self.mean, self.var), library_of(self.mean).backend.running
        population = self.population
        follow(batch[0], self.mean)
        if momentum is None:
            running, population = verbs.pool(running, population, batch, count)
        else:
            running = verbs.average(running, batch, momentum, count / (count - 1))
        mean, var = running
        follow(mean, batch[0])
        return type(self)(mean, var, self.batches + 1, population)

    def loaded(self, other: Self) -> Self:
        """Return ``other``; on a GPU in the arrays of this one, which a CUDA graph may know."""
        library = library_of(self.mean)
        if library.on_host:
            return other
        mine = self.mean, self.var, *self.population.moments
        others = other.mean, other.var, *other.population.moments
        for target, source in zip(mine, others, strict=True):
            library.assign(target, source)
        population = self.population._replace(seen=other.population.seen)
        return self._replace(batches=other.batches, population=population)
