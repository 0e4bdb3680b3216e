"""The checks of `hardware`: on a GPU where there is one, and on the host as far as they can go there."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from tests.cuda import hardware
from tests.support.backends import BACKENDS, MissingError, has_gpu
from tests.support.cases import Case

needs_gpu = pytest.mark.skipif(not has_gpu(), reason="needs a GPU")


def backend(library):
    try:
        return BACKENDS[library]()
    except MissingError as reason:
        pytest.skip(str(reason))


@needs_gpu
@pytest.mark.parametrize("row", hardware.whole_cases(), ids=lambda row: row.name)
def test_whole_case(row):
    """With the first library that there is: most of the time goes to the reference."""
    library = next(name for name in hardware.LIBRARIES if hardware.missing(name) is None)
    row.check(backend(library), *row.arguments)


@needs_gpu
@pytest.mark.parametrize("row", hardware.repeated_cases(), ids=lambda row: row.name)
@pytest.mark.parametrize("library", hardware.LIBRARIES)
def test_same_bits(library, row):
    row.check(backend(library), *row.arguments)


@needs_gpu
@pytest.mark.parametrize("check", hardware.STREAM_CHECKS)
@pytest.mark.parametrize("library", hardware.STREAMS)
def test_streams(library, check):
    hardware.on_streams(backend(library), check)


# On the host ------------------------------------------------------------------------------------------------


class HostStreams:
    """A stand-in for a library's streams, which does everything at once; a graph is the function itself."""

    warm_calls = 1

    def __init__(self, waits=False, replays=True, late=False):
        self.waits, self.replays, self.late = waits, replays, late

    put = get = staticmethod(np.array)

    def copy(self, array):
        return np.full_like(array, np.nan) if self.late else array.copy()

    def synchronize(self):
        pass

    def occupy(self):
        pass

    def stream(self):
        return SimpleNamespace(wait_event=lambda event: None, synchronize=self.synchronize)

    def on(self, stream):
        return nullcontext()

    def event(self, stream):
        return None

    def passed(self, event):
        return self.waits

    def captured(self, stream, function):
        return function if self.replays else self.synchronize, None


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hardware, "SHAPE", (3, 2, 5))
    monkeypatch.setattr(hardware, "LAUNCHES", 3)


@pytest.mark.parametrize("check", hardware.STREAM_CHECKS)
def test_a_library_as_it_should_be(check, small):
    assert check(HostStreams())


@pytest.mark.parametrize(
    ("check", "fault", "message"),
    [
        (hardware.busy_stream, {"waits": True}, "the host waited"),
        (hardware.busy_stream, {"late": True}, "y differs"),
        (hardware.graph, {"replays": False}, "y differs"),
        (hardware.layer_graph, {"replays": False}, "running_mean differs"),
    ],
)
def test_a_library_with_a_fault(check, fault, message, small):
    with pytest.raises(AssertionError, match=message):
        check(HostStreams(**fault))


def test_a_replay_that_writes_to_other_memory_is_found(small, monkeypatch):
    class Sharing(HostStreams):
        """Its graph writes to all memory that was allocated last."""

        def put(self, values):
            self.last = np.array(values)
            return self.last

        def captured(self, stream, function):
            def replay():
                function()
                self.last[...] = 0.0

            return replay, None

    with pytest.raises(AssertionError, match="another array's"):
        hardware.graph(Sharing())


def test_results_that_differ_are_found(small, monkeypatch):
    values = iter(range(1000))
    monkeypatch.setattr(hardware, "step", lambda *_: [np.full(3, next(values))] * 4)
    with pytest.raises(AssertionError, match="y differs"):
        hardware.two_streams(HostStreams())
    cpu = BACKENDS["cpu"]()
    monkeypatch.setattr(cpu, "download", lambda array: next(values))
    with pytest.raises(AssertionError, match="bits differ between runs"):
        hardware.repeat(cpu, Case((3, 2), "NC"))
