"""Libraries for the tests: the modules of `tests.support.cuda.libraries` in place of the real ones."""

import sys
from types import SimpleNamespace

import numba
import pytest

from numbabn.arrays import numba as numba_adapter
from tests.support.cuda import libraries
from tests.support.cuda.kinds import Kind


@pytest.fixture
def cupy(monkeypatch):
    module = libraries.cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return Kind("cupy", module)


@pytest.fixture
def torch(monkeypatch):
    module = libraries.torch()
    monkeypatch.setitem(sys.modules, "torch", module)
    return Kind("torch", module)


@pytest.fixture
def numba_arrays(monkeypatch):
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
