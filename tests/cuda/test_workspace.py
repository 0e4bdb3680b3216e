"""The memory in which blocks meet: one for each stream, and never taken from under a launch."""

import threading
import weakref
from types import SimpleNamespace

import pytest
from numba import config

if not config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

import numpy as np

import numbabn as nbn
from benchmarks.gpu.launches import view_of
from numbabn.arrays.device import DeviceArray
from numbabn.backends.cuda import plan, workspaces

SMALL, LARGE = (40, 8, 1), (400, 80, 1)


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    monkeypatch.setattr(workspaces, "_memory", {})
    monkeypatch.setattr(workspaces, "_scratch", {})
    monkeypatch.setattr(workspaces, "_outgrown", [])


def of(shape, stream=0, device=0):
    return workspaces.workspace(
        SimpleNamespace(device=device, stream=stream), plan.geometry(view_of(shape), 4, 1)
    )


def test_the_same_while_it_is_large_enough():
    first = of(LARGE)
    assert of(SMALL) == of(LARGE) == first


def test_a_captured_graph_keeps_its_memory():
    of(SMALL)
    block = workspaces._memory[0, 0, 0]
    kept = [weakref.ref(memory) for memory in block[2:]]
    del block
    assert of(LARGE) != of(SMALL, stream=7)
    assert all(memory() is not None for memory in kept)


def test_one_for_each_stream_and_device():
    assert len({of(SMALL), of(SMALL, stream=7), of(SMALL, device=1)}) == 3
    assert workspaces.streams(0) == 2
    assert workspaces.streams(1) == 1


def test_streams_are_counted_under_the_lock(monkeypatch):
    """Another thread that adds its stream meanwhile would end the iteration with an error."""
    held = []

    class Watched(dict):
        def __iter__(self):
            held.append(workspaces._lock.locked())
            return super().__iter__()

    monkeypatch.setattr(workspaces, "_memory", Watched())
    of(SMALL)
    assert workspaces.streams(0) == 1
    assert held == [True]


def test_the_default_stream_of_every_thread_is_its_own():
    found = [of(SMALL, stream=2)]
    thread = threading.Thread(target=lambda: found.append(of(SMALL, stream=2)))
    thread.start()
    thread.join()
    assert found[0] != found[1]


def test_fewer_blocks_wait_where_more_streams_are_busy(monkeypatch):
    """Together they leave room for the last block of any: else none would end."""
    from numbabn.backends.cuda.channels import groups_are_resident

    geometry = plan.geometry(view_of(SMALL), 4, 1)
    kernel = SimpleNamespace(resident=lambda x, *arguments: geometry.parts * plan.CONCURRENT_LAUNCHES)
    x = SimpleNamespace(device=0)
    for stream in range(plan.CONCURRENT_LAUNCHES):
        of(SMALL, stream)
        assert groups_are_resident(kernel, x, geometry, ())
    of(SMALL, 99)
    assert not groups_are_resident(kernel, x, geometry, ())


def scratch(count, stream=0, purpose="sums"):
    return workspaces.scratch(SimpleNamespace(device=0, stream=stream), purpose, (2, count))


def test_scratch_memory_is_the_same_while_it_is_large_enough():
    first = scratch(10)
    assert scratch(5).address == scratch(10).address == first.address
    assert (first.size, first.itemsize, first.strides) == (20, 8, (80, 8))


def test_scratch_memory_is_of_a_stream_a_purpose_and_a_thread():
    """Between two launches of a call, another thread may launch those of its own on the same stream."""
    found = [scratch(10), scratch(10, stream=7), scratch(10, purpose="totals")]
    thread = threading.Thread(target=lambda: found.append(scratch(10)))
    thread.start()
    thread.join()
    assert len({each.address for each in found}) == 4


def test_a_captured_graph_keeps_its_scratch_memory():
    scratch(10)
    (small,) = workspaces._scratch.values()
    kept = weakref.ref(small.memory)
    del small
    large = scratch(11)
    assert kept() is not None
    assert scratch(20).address == large.address  # twice as large as before


CALLS = {
    "batch": lambda x, gamma: nbn.batch_norm_forward(x, gamma, gamma),
    "group": lambda x, gamma: nbn.group_norm_forward(x, 2, gamma, gamma),
    "instance": lambda x, gamma: nbn.instance_norm_forward(x, gamma, gamma),
    "layer": lambda x, gamma: nbn.layer_norm_forward(x, gamma, gamma, axis=1),
    "rms": lambda x, gamma: nbn.rms_norm_forward(x, gamma, axis=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_backward_call_allocates_its_results_alone(name, numba_arrays, monkeypatch):
    """Else a captured graph would write to memory that was given to others when the call returned."""
    shape = (2, 4, 3, 3) if name in ("batch", "group", "instance") else (3, 4)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    # Layer and RMS norm convert parameters of another dtype.
    gamma = np.ones(4, np.float32 if x.ndim == 4 else np.float64)
    y, saved = CALLS[name](numba_arrays.array(x), numba_arrays.array(gamma))
    made, empty = [], DeviceArray.empty

    def noted(self, shape, dtype, strides=None):
        made.append((*shape, dtype))
        return empty(self, shape, dtype, strides)

    monkeypatch.setattr(DeviceArray, "empty", noted)
    results = getattr(nbn, f"{name}_norm_backward")(y, saved)
    parameters = [(*gamma.shape, gamma.dtype)] * (len(results) - 1)
    assert made == [*parameters, (*shape, x.dtype)]
    made.clear()
    getattr(nbn, f"{name}_norm_backward")(y, saved, need_dx=False)
    assert made == parameters
