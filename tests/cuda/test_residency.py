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
from numbabn.backends.cuda import channels, kernels, plan, residency
from numbabn.backends.cuda.launcher import StreamState

WHOLE = StreamState(False, False)


@pytest.fixture(autouse=True)
def _none(monkeypatch):
    monkeypatch.setattr(residency, "_holders", {})


def permit(stream, device=0, state=WHOLE):
    """Return the permit that a launch on a stream gets, or None."""
    found = [None]
    array = SimpleNamespace(device=device, stream=stream)
    has = residency.launched(array, state, lambda permit: found.append(permit))
    assert has is (found[-1] is not None)
    return found[-1]


def end(launch, device=0):
    """Write what a kernel writes when none of its blocks waits any more."""
    words = residency._holders[device]._words
    assert launch.address == words.address
    words.values[0] = launch.launch


def test_a_stream_keeps_its_permit_while_it_launches():
    launches = [permit(7) for _ in range(5)]
    assert len({launch.address for launch in launches}) == 1
    assert [launch.launch for launch in launches] == [1, 2, 3, 4, 5]


def test_there_is_one_for_each_device():
    first = permit(0)
    assert permit(99) is None
    assert permit(0) is not None
    assert permit(99, device=1).address != first.address


def test_a_permit_goes_on_when_the_last_launch_has_ended():
    first = permit(0)
    second = permit(0)
    end(first)
    assert permit(99) is None
    end(second)
    assert permit(99).address == first.address
    assert permit(0) is None


def test_streams_that_come_and_go_find_a_permit():
    """A program that has a new stream for every batch does not drift to two launches."""
    for stream in range(100):
        launch = permit(stream)
        assert launch is not None
        end(launch)


@pytest.mark.parametrize("state", [StreamState(True, False), StreamState(False, True)])
def test_graphs_and_parts_of_a_device_get_none(state):
    """A graph may run at any time, and on a part of the device fewer blocks run at once."""
    assert permit(7, state=state) is None
    assert not residency._holders


def test_a_launch_that_fails_keeps_no_permit():
    first = permit(0)

    def fail(permit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        residency.launched(SimpleNamespace(device=0, stream=0), WHOLE, fail)
    end(first)
    assert residency._holders[0].is_free
    assert permit(0).launch == 2


def test_numbers_are_in_the_order_of_launches():
    """Two threads may launch on one stream: the number of the later launch must be written later."""
    entered, go, order = threading.Event(), threading.Event(), []

    def slow(permit):
        entered.set()
        go.wait(10)
        order.append(permit.launch)

    array = SimpleNamespace(device=0, stream=0)
    first = threading.Thread(target=residency.launched, args=(array, WHOLE, slow))
    first.start()
    entered.wait(10)
    append = lambda permit: order.append(permit.launch)  # noqa: E731
    second = threading.Thread(target=residency.launched, args=(array, WHOLE, append))
    second.start()
    second.join(0.2)
    assert order == []
    go.set()
    first.join()
    second.join()
    assert order == [1, 2]


def test_the_default_stream_of_every_thread_is_its_own():
    found = [permit(2)]
    thread = threading.Thread(target=lambda: found.append(permit(2)))
    thread.start()
    thread.join()
    assert found[1] is None


def test_numbers_of_launches_fit():
    first = permit(0)
    residency._holders[0].launch = 2**31 - 1
    assert permit(0) == first


@pytest.mark.parametrize("resident", [8, 0])
def test_kernels_give_their_permits_back(resident, numba_arrays, monkeypatch):
    """Both kernels that wait do so; those of two launches need none."""
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", resident)
    x = np.random.default_rng(0).standard_normal((24, 8), dtype=np.float32)
    y, saved = nbn.batch_norm_forward(numba_arrays.array(x))
    nbn.batch_norm_backward(y, saved)
    holders = residency._holders.values()
    assert [holder.launch for holder in holders] == ([2] if resident else [])
    assert all(holder.is_free for holder in holders)


@pytest.mark.parametrize(
    ("more", "given", "expected"),
    [(0, True, True), (0, False, False), (-1, True, False)],
)
def test_one_launch_or_two(more, given, expected, monkeypatch):
    """One if all blocks of a group run at once, and there is a permit."""
    geometry = plan.geometry(view_of((40, 8, 1)), 4, 1)
    assert geometry.parts > 1
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", geometry.parts + more)

    def with_permit(array, state, launch):
        if given:
            launch(residency.Permit(64, 3))
        return given

    monkeypatch.setattr(residency, "launched", with_permit)
    x = SimpleNamespace(device=0, stream=0)
    launched = []
    monkeypatch.setattr(kernels.forward, "launch", lambda *arguments: launched.append(arguments))
    assert channels.launched_once(kernels.forward, x, (0, geometry), ()) is expected
    assert [arguments[4][2:] for arguments in launched] == [(64, 3)] * expected
