"""Groups of channels whose blocks are a cluster, which the simulator starts together."""

import re

import pytest
from numba import config

if not config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

import numpy as np

from numbabn.backends.cuda import plan, residency
from numbabn.backends.cuda.gpu import (
    Kernel,
    cluster_arrive,
    cluster_load,
    cluster_store,
    cluster_wait,
    cuda,
    store,
)
from tests.cuda.test_simulator import Array, floats
from tests.support.backends import Numba
from tests.support.checks import assert_same_bits
from tests.support.cuda import simulator
from tests.support.cuda.weak_memory import SimulationError
from tests.support.problems import Problem
from tests.support.table import everything

# One channel a group, and several: of two parts and more.
CASES = [((24, 8), 1), ((2, 2, 70), 1), ((2, 9, 7, 7), 1), ((2, 4, 2, 5), -1)]


@pytest.fixture
def clusters(monkeypatch):
    """The sizes of the clusters that are launched, on a device that runs them."""
    found, launch = [], simulator.simulator.launch

    def counted(function, blocks, arguments, cluster=1):
        found.append(cluster)
        launch(function, blocks, arguments, cluster)

    monkeypatch.setattr(simulator.simulated, "launch", counted)
    monkeypatch.setattr(plan, "CLUSTER_SIMULATED", plan.CLUSTER)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_same_bits(shape, axis, dtype, clusters, monkeypatch):
    """The bits are those of two launches, for any seed, and no permit is needed."""
    problem, backend = Problem(shape, axis, dtype, offset=3.0), Numba()
    with monkeypatch.context() as patch:
        patch.setattr(plan, "CLUSTER_SIMULATED", 0)
        patch.setattr(plan, "RESIDENT_SIMULATED", 0)
        expected = everything(backend, problem)
    assert set(clusters) == {1}
    monkeypatch.setattr(residency, "launched", lambda *of: pytest.fail("a permit was asked for"))
    for seed in range(2):
        clusters.clear()
        with simulator.seeded(seed):
            found = everything(backend, problem)
        assert max(clusters) > 1
        for name, value in found.items():
            assert_same_bits(value, expected[name], f"{name}, seed {seed}")


def test_groups_of_more_blocks_than_a_cluster_has(clusters, monkeypatch):
    monkeypatch.setattr(plan, "CLUSTER_SIMULATED", 2)
    everything(Numba(), Problem((24, 8), 1))
    assert set(clusters) == {1}


def test_groups_of_more_channels_than_the_memory_of_a_cluster_has(clusters, monkeypatch):
    monkeypatch.setattr(plan, "CLUSTER_CHANNELS", 7)
    everything(Numba(), Problem((24, 8), 1))
    assert set(clusters) == {1}


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_no_group_has_more_channels(itemsize):
    """So that the smaller size is never met."""
    for channels in range(1, 200):
        for inner in (1, 2, 3, 4, 7, 16, 49):
            cut = plan.geometry(plan.View(1, 640, channels, 1, inner), itemsize, 1)
            assert cut.span <= plan.CLUSTER_CHANNELS


# What the simulator finds ----------------------------------------------------------------------------------


@Kernel
def _pass_on(out, size, meet, stay):
    """Every block writes what the next block of its cluster has left."""
    k, t = int(cuda.blockIdx.x), int(cuda.threadIdx.x)
    if t == 0:
        cluster_store(0, np.float64(k))
    if meet:
        cluster_arrive()
        cluster_wait()
    value = cluster_load((k + 1) % size, 0) if t == 1 else np.float64(0)
    if stay:
        cluster_arrive()
        cluster_wait()
    if t == 1:
        store(out, k, np.float32(value))


def run(blocks, size, *flags, seed=0):
    out = floats(blocks)
    with simulator.seeded(seed):
        simulator.simulator.launch(_pass_on.function, blocks, (out.address, size, *flags), size)
    return out.values


def outcome(seed, *flags):
    """Return the error that clusters of 3 blocks raise, or None."""
    try:
        run(6, 3, *flags, seed=seed)
    except SimulationError as error:
        return error
    return None


def test_a_block_reads_what_another_has_left():
    for seed in range(5):
        np.testing.assert_array_equal(run(6, 3, 1, 1, seed=seed), [1, 2, 0, 4, 5, 3])


@pytest.mark.parametrize(
    ("flags", "message"),
    [((0, 1), "read before it is written|nothing says"), ((1, 0), "is read, which has ended")],
)
def test_mistakes_are_found(flags, message):
    found = [outcome(seed, *flags) for seed in range(10)]
    errors = [str(error) for error in found if error is not None]
    assert len(errors) >= 5
    assert all(re.search(message, error) for error in errors)


@Kernel
def _misuse(out, arrive, wait):
    for _ in range(arrive):
        cluster_arrive()
    for _ in range(wait):
        cluster_wait()


@pytest.mark.parametrize(
    ("arrive", "wait", "message"),
    [(2, 1, "arrives twice"), (0, 1, "before it has arrived"), (1, 0, "not waited for its cluster")],
)
def test_the_barrier_is_used_as_it_must_be(arrive, wait, message):
    with pytest.raises(SimulationError, match=message):
        simulator.simulator.launch(_misuse.function, 4, (Array(np.zeros(1)).address, arrive, wait), 2)


def test_blocks_are_whole_clusters():
    with pytest.raises(SimulationError, match="no whole clusters"):
        run(5, 2, 1, 1)
