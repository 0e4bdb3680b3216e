"""A claim, its experiment over all settings and seeds, and the results, which are kept as JSON.

An experiment is a function of one setting and one seed; here it is called for all of them, in as many
processes as there are cores. The table, the figure and the sentence of a claim are computed from the results
alone, so that they can be made again without running anything.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import console
import numba
import numpy as np
from joblib import Parallel, delayed, parallel_config
from llvmlite import binding
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

DIGITS = 5  # significant ones, of what is kept
MACHINE = f"{os.cpu_count()} cores of type {binding.get_host_cpu_name()}"


@dataclass(frozen=True)
class Options:
    """How a claim is run."""

    data: str = "digits"
    images: int = 2000  # at most so many for training, of data that have more than the digits
    seeds: int = 5
    quick: bool = False  # the first and last number of each factor, one epoch: does it run?
    processes: int = -1  # as many as there are cores


@dataclass(frozen=True)
class Results:
    """What was measured, as arrays with one axis for each factor of the grid and then one for the seeds.

    If a measurement is itself an array, such as the accuracy after every epoch, its axes come last.
    """

    grid: Mapping[str, Sequence[Any]]
    found: Mapping[str, np.ndarray]
    options: Mapping[str, Any]
    seconds: float

    def __getitem__(self, name):
        return self.found[name]

    def to_json(self):
        """Return the results as text."""
        found = {
            name: np.where(np.isnan(values), None, values).tolist() for name, values in self.found.items()
        }  # JSON has null, and no NaN
        kept = {"grid": self.grid, "options": self.options, "seconds": self.seconds, "found": found}
        return json.dumps(kept, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text):
        """Return the results that `to_json` wrote."""
        kept = json.loads(text)
        found = {name: np.array(values, float) for name, values in kept["found"].items()}
        return cls(kept["grid"], found, kept["options"], kept["seconds"])


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that shows how true it is.

    Parameters
    ----------
    name
        Of the script, and of the files of its results.
    statement, source
        What is claimed, in a sentence, and by whom.
    grid
        {factor: its values}; the settings are all combinations.
    epochs
        Of training in every setting.
    run
        ``run(data, rng, epochs, *setting)`` makes the experiment once and returns {name: number or array}.
    table
        ``table(results)`` returns rows of texts, of which the first are the headings.
    figure
        ``figure(results)`` returns a matplotlib figure.
    finding
        ``finding(results)`` says what was found in one sentence, which begins with a word of `evidence`.
    alone
        Whether nothing else may run at the same time, because time is measured.
    """

    name: str
    statement: str
    source: str
    grid: Mapping[str, Sequence[Any]]
    epochs: int
    run: Callable[..., Mapping[str, Any]]
    table: Callable[[Results], list[list[str]]]
    figure: Callable[[Results], Figure]
    finding: Callable[[Results], str]
    alone: bool = field(default=False)

    def plan(self, options):
        """Return the grid, the number of seeds and the epochs by the options."""
        if not options.quick:
            return dict(self.grid), options.seeds, self.epochs
        ends = {name: _ends(values) for name, values in self.grid.items()}
        return ends, 2, 1

    def num_runs(self, options):
        """Return how often the experiment is made."""
        grid, seeds, _ = self.plan(options)
        return seeds * int(np.prod([len(values) for values in grid.values()]))

    def measure(self, data, options, progress):
        """Make the experiment in all settings and from all seeds; return the `Results`.

        ``progress`` is a tqdm, which counts runs. What is compiled, and in which time, is printed above it.
        """
        grid, seeds, epochs = self.plan(options)
        start = time.perf_counter()
        jobs = [
            delayed(_run_once)(self.run, data, seed, epochs, setting)
            for setting in product(*grid.values())
            for seed in range(seeds)
        ]
        measured, told = [], set()
        processes = 1 if self.alone else options.processes
        with parallel_config(n_jobs=processes), _one_thread():
            for found, compiled in Parallel(return_as="generator")(jobs):
                for line in compiled:
                    if (what := line.partition(" in ")[0]) not in told:  # both processes may compile it
                        told.add(what)
                        progress.write(line)
                measured.append(found)
                progress.update()
        shape = [*map(len, grid.values()), seeds]
        return Results(
            grid={name: list(values) for name, values in grid.items()},
            found={name: _rounded([each[name] for each in measured], shape) for name in measured[0]},
            options={"data": options.data, "seeds": seeds, "epochs": epochs, "machine": MACHINE},
            seconds=round(time.perf_counter() - start, 1),
        )


def _ends(values):
    """Return the first and the last of numbers; of others all."""
    return [values[0], values[-1]] if isinstance(values[0], int | float) else list(values)


@contextmanager
def _one_thread():
    """Give BLAS and numbabn one thread each in this process, as joblib does in its workers."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(threads)


def _run_once(run, data, seed, epochs, setting):
    """Return what an experiment measured, and the lines that numbabn logged."""
    with console.recorded() as lines, np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return run(data, np.random.default_rng(seed), epochs, *setting), lines


def _rounded(values, shape):
    """Return measurements in order as one array, as it will be read: rounded, with NaN for infinity."""
    array = np.array(values, float)
    array = np.where(np.isfinite(array), array, np.nan)
    rounded = np.char.mod(f"%.{DIGITS}g", array).astype(float)
    return rounded.reshape(*shape, *array.shape[1:])
