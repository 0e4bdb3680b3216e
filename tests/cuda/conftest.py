"""Libraries for the tests: the modules of `tests.support.cuda.libraries` in place of the real ones.

Their arrays are in the memory of the host, so that the simulator of CUDA can read them.
"""

import sys
from types import SimpleNamespace

import numba
import pytest

from numbabn.arrays import numba as numba_adapter
from numbabn.arrays.device_library import DeviceLibrary
from tests.support.cuda import libraries
from tests.support.cuda.kinds import Kind


@pytest.fixture
def in_host_memory(monkeypatch):
    """Let the simulator read the arrays of all libraries."""
    monkeypatch.setattr(DeviceLibrary, "simulated", True)


@pytest.fixture
def cupy(monkeypatch, in_host_memory):
    module = libraries.cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return Kind("cupy", module)


@pytest.fixture
def torch(monkeypatch, in_host_memory):
    module = libraries.torch()
    monkeypatch.setitem(sys.modules, "torch", module)
    return Kind("torch", module)


@pytest.fixture
def numba_arrays(monkeypatch, in_host_memory):
    module = libraries.numba()
    if not numba.config.ENABLE_CUDASIM:
        gpu = SimpleNamespace(cuda=module, SIMULATED=False)
        monkeypatch.setattr(numba_adapter, "cuda_module", lambda name: gpu)
    else:
        monkeypatch.setattr(numba_adapter.Numba, "_cuda", lambda self: module)
    return Kind("numba", module)


@pytest.fixture(params=["cupy", "torch", "numba_arrays"])
def kind(request):
    return request.getfixturevalue(request.param)
