"""The memory in which blocks meet: one for each stream, and never taken from under a launch."""

import ctypes
import itertools
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
from numbabn.backends.cuda import gpu, plan, workspaces
from numbabn.backends.cuda.launcher import StreamState
from tests.support.cuda import simulator

SMALL, LARGE = (40, 8, 1), (400, 80, 1)


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    monkeypatch.setattr(workspaces, "_pieces", {})
    monkeypatch.setattr(workspaces, "_slabs", {})
    monkeypatch.setattr(workspaces, "_cut", simulator.plain_cut)
    monkeypatch.setattr(workspaces, "SLAB_BYTES", 2**20)


def of(shape, stream=0, device=0):
    return workspaces.workspace(
        SimpleNamespace(device=device, stream=stream), plan.geometry(view_of(shape), 4, 1)
    )


def slabs(device=0):
    return len(workspaces._slabs[device])


def test_the_same_while_it_is_large_enough():
    first = of(LARGE)
    assert of(SMALL) == of(LARGE) == first


def test_pieces_lie_apart():
    """Memory of one is not that of another, also after they have grown."""
    pieces = []
    for stream, shape in itertools.product((0, 7, 8), (SMALL, LARGE)):
        of(shape, stream)
        pieces += workspaces._pieces.values()
    places = sorted({(piece.address, piece.address + piece.nbytes) for piece in pieces})
    assert len(places) == 12
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(places))
    assert slabs() == 1


def test_memory_is_zero_and_no_call_to_the_driver_is_needed(monkeypatch):
    """But for the first piece on a device: a new stream can be captured in a CUDA graph at once."""
    made, zeros = [], gpu.device_zeros
    monkeypatch.setattr(gpu, "device_zeros", lambda *size: made.append(size) or zeros(*size))
    for stream in range(40):
        space = of(SMALL, stream)
        counters = np.ctypeslib.as_array((ctypes.c_int32 * 4).from_address(space.counters))
        assert not counters.any()
        counters[...] = 1
    assert made == [(0, workspaces.SLAB_BYTES)]


def test_a_slab_that_is_used_up_is_kept():
    """A captured graph may have its addresses."""
    of(SMALL)
    kept = weakref.ref(workspaces._slabs[0][0]._memory)
    scratch(workspaces.SLAB_BYTES)
    assert slabs() > 1
    assert kept() is not None


def test_no_slab_is_made_during_a_capture(monkeypatch):
    of(SMALL)
    before = dict(workspaces._pieces)
    monkeypatch.setattr(gpu, "stream_state", lambda array: StreamState(True, False))
    of(SMALL, stream=7)
    known = dict(workspaces._pieces)
    with pytest.raises(
        RuntimeError, match=r"captured in a CUDA graph needs 16777216 bytes on cuda:0.*before"
    ):
        scratch(workspaces.SLAB_BYTES)
    assert workspaces._pieces == known != before
    assert slabs() == 1


@pytest.mark.parametrize("nbytes", [2**17, 2**19 - 2**10, 2**19, 2**20, 2**22])
def test_what_was_called_on_one_stream_can_be_captured_on_another(nbytes, monkeypatch):
    """However full the slabs were before."""
    purposes = "sums", "totals", "chunks"
    for purpose in purposes:
        scratch(nbytes // 16, purpose=purpose)
    scratch(10, stream=5)  # a small stream leaves room for the large one, too
    monkeypatch.setattr(gpu, "stream_state", lambda array: StreamState(True, False))
    made = slabs()
    for purpose in purposes:
        scratch(nbytes // 16, stream=7, purpose=purpose)
    assert slabs() == made


def test_one_for_each_stream_and_device():
    assert len({of(SMALL), of(SMALL, stream=7), of(SMALL, device=1)}) == 3


def test_the_default_stream_of_every_thread_is_its_own():
    found = [of(SMALL, stream=2)]
    thread = threading.Thread(target=lambda: found.append(of(SMALL, stream=2)))
    thread.start()
    thread.join()
    assert found[0] != found[1]


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


def test_scratch_memory_doubles():
    scratch(10)
    large = scratch(11)
    assert scratch(20).address == large.address


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
