"""Which launches may have blocks that wait: as many at a time as leave room for those that are waited for."""

import threading
from types import SimpleNamespace

import pytest
from numba import config

if not config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

import numpy as np

import numbabn as nbn
from benchmarks.gpu.launches import view_of
from numbabn.backends.cuda import channels, gpu, kernels, plan, residency
from numbabn.backends.cuda.launcher import StreamState

PERMITS = plan.CONCURRENT_LAUNCHES


@pytest.fixture(autouse=True)
def _none(monkeypatch):
    monkeypatch.setattr(residency, "_holders", {})


@pytest.fixture
def state(monkeypatch):
    """What streams are: a captured or a partial one, by their numbers."""
    found = {}
    whole = StreamState(False, False)
    monkeypatch.setattr(gpu, "stream_state", lambda array: found.get(array.stream, whole))
    return found


def permit(stream, device=0):
    return residency.permit(SimpleNamespace(device=device, stream=stream))


def end(launch):
    """Write what a kernel writes when none of its blocks waits any more."""
    for holders in residency._holders.values():
        for holder in holders:
            if holder.launch == launch.launch and holder._words.address + 4 * holder._k == launch.address:
                holder._words.values[holder._k] = launch.launch


def test_a_stream_keeps_its_permit_while_it_launches():
    launches = [permit(7) for _ in range(5)]
    assert len({launch.address for launch in launches}) == 1
    assert [launch.launch for launch in launches] == [1, 2, 3, 4, 5]


def test_there_are_as_many_as_launches_may_run_at_once():
    assert len({permit(stream).address for stream in range(PERMITS)}) == PERMITS
    assert permit(99) is None
    assert permit(0) is not None
    assert permit(99, device=1) is not None


def test_a_permit_goes_on_when_the_last_launch_has_ended():
    launches = [permit(stream) for stream in range(PERMITS)]
    second = permit(0)
    end(launches[0])
    assert permit(99) is None
    end(second)
    assert permit(99).address == launches[0].address
    assert permit(0) is None


def test_streams_that_come_and_go_find_a_permit():
    """A program that has a new stream for every batch does not drift to two launches."""
    for stream in range(100):
        launch = permit(stream)
        assert launch is not None
        end(launch)


def test_the_permit_of_a_captured_stream_stays_there(state):
    """The graph may run whenever it likes."""
    state[7] = StreamState(True, False)
    captured = permit(7)
    del state[7]
    end(captured)
    others = [permit(stream) for stream in range(100, 100 + PERMITS - 1)]
    assert all(others)
    assert permit(99) is None
    assert permit(7).address == captured.address


def test_streams_on_a_part_of_the_device_get_none(state):
    state[7] = StreamState(False, True)
    assert permit(7) is None
    assert len({permit(stream).address for stream in range(PERMITS)}) == PERMITS


def test_the_default_stream_of_every_thread_is_its_own():
    found = [permit(2)]
    thread = threading.Thread(target=lambda: found.append(permit(2)))
    thread.start()
    thread.join()
    assert found[0].address != found[1].address


def test_numbers_of_launches_fit():
    first = permit(0)
    (holder, *_) = residency._holders[0]
    holder.launch = 2**31 - 1
    assert permit(0) == first


@pytest.mark.parametrize("resident", [PERMITS * 8, 0])
def test_kernels_give_their_permits_back(resident, numba_arrays, monkeypatch):
    """Both kernels that wait do so; those of two launches need none."""
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", resident)
    x = np.random.default_rng(0).standard_normal((24, 8), dtype=np.float32)
    y, saved = nbn.batch_norm_forward(numba_arrays.array(x))
    nbn.batch_norm_backward(y, saved)
    holders = residency._holders.get(0, [])
    assert [holder.launch for holder in holders] == ([2, 0, 0, 0] if resident else [])
    assert all(holder.is_free for holder in holders)


@pytest.mark.parametrize(
    ("blocks", "given", "expected"),
    [(PERMITS, True, True), (PERMITS, False, False), (PERMITS - 1, True, False)],
)
def test_one_launch_or_two(blocks, given, expected, monkeypatch):
    """One if a share of the resident blocks holds a group, and there is a permit."""
    geometry = plan.geometry(view_of((40, 8, 1)), 4, 1)
    assert geometry.parts > 1
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", geometry.parts * blocks)
    found = residency.Permit(64, 3) if given else None
    monkeypatch.setattr(residency, "permit", lambda array: found)
    x = SimpleNamespace(device=0, stream=0)
    launched = []
    monkeypatch.setattr(kernels.forward, "launch", lambda *arguments: launched.append(arguments))
    assert channels.launched_once(kernels.forward, x, (0, geometry), ()) is expected
    assert [arguments[4][2:] for arguments in launched] == [(64, 3)] * expected
