"""The memory in which blocks meet: one for each stream, and never taken from under a launch."""

import threading
import weakref
from types import SimpleNamespace

import pytest
from numba import config

if not config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from benchmarks.gpu.launches import view_of
from numbabn.backends.cuda import plan, workspaces

SMALL, LARGE = (40, 8, 1), (400, 80, 1)


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    monkeypatch.setattr(workspaces, "_memory", {})
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
