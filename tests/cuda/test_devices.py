"""Where layers are: what ``device=`` may be, systems that lack something, and layers that move.

The modules are those of `tests.support.cuda.libraries`, so that this runs anywhere.
"""

import copy
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import numbabn as nbn
from numbabn import backends
from numbabn.arrays import door
from numbabn.arrays import numba as numba_adapter
from numbabn.arrays.library import HOST
from numbabn.arrays.place import place
from tests.support.cuda import libraries
from tests.support.cuda.kinds import Kind, normal

# What device= may be ----------------------------------------------------------------------------------------


@pytest.fixture
def hardware(monkeypatch, in_host_memory):
    """A machine with GPUs that Numba can use."""
    gpu = SimpleNamespace(SIMULATED=False, cuda=libraries.numba())
    for module in (door, numba_adapter):
        monkeypatch.setattr(module, "cuda_module", lambda name: gpu)
    monkeypatch.setattr(door, "find_spec", lambda name: sys.modules.get(name))
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    return gpu.cuda


@pytest.mark.parametrize("present", [(), ("cupy",), ("torch",), ("cupy", "torch"), ("torch without CUDA",)])
def test_library_of_cuda(hardware, monkeypatch, present):
    for name in present:
        module = getattr(libraries, name.split()[0])()
        module.cuda.is_available = lambda name=name: " " not in name
        monkeypatch.setitem(sys.modules, name.split()[0], module)
    expected = "cupy" if "cupy" in present else "torch" if "torch" in present else "numba"
    assert place("cuda") == (expected, 0)
    assert place("cuda:1") == (expected, 1)
    module = hardware if expected == "numba" else sys.modules[expected]
    module.current.device = 1
    assert place("cuda") == (expected, 1)
    bn = nbn.BatchNorm(3, device="cuda")
    kind = Kind(expected, module)
    arrays = [*bn.params.values(), *bn.grads.values(), bn.running_mean, bn.running_var]
    assert all(kind.is_mine(array) and kind.device_of(array) == 1 for array in arrays)
    assert repr(bn).endswith("device='cuda:1')")
    with pytest.raises(ValueError, match=r"device is 'cuda:2', but \w+ sees 2"):
        place("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_no_such_device(device):
    with pytest.raises(ValueError, match="device must be 'cpu', 'cuda' or a number such as 'cuda:0'"):
        nbn.BatchNorm(3, device=device)


@pytest.mark.parametrize("device", [0, None, [1.0], np.float32(1)])
def test_device_of_a_wrong_type(device):
    with pytest.raises(TypeError, match="device must be 'cpu', 'cuda', 'cuda:0' or an array"):
        nbn.BatchNorm(3).to(device)


def test_device_of_an_array(kind):
    x = kind.array(normal(4, 3), device=1)
    assert place(x) == (kind.name, 1)
    assert place(np.ones(3)) is HOST
    assert repr(nbn.BatchNorm(3, device=x)).endswith("device='cuda:1')")


def test_dtype_that_no_gpu_has(kind):
    with pytest.raises(
        TypeError, match=r"dtype is .*; on a GPU parameters can be float16, float32 and float64"
    ):
        nbn.BatchNorm(3, dtype=np.longdouble, device=kind.array(normal(4, 3)))


# Systems that lack something --------------------------------------------------------------------------------


@pytest.fixture
def no_backend(monkeypatch):
    """Nothing known yet of the GPU backend."""
    backends.cuda_module.cache_clear()
    yield
    backends.cuda_module.cache_clear()


def test_without_numba_cuda(no_backend, cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "numbabn.backends.cuda.gpu", None)
    for call in (lambda: nbn.moments(cupy.array(normal(4, 3))), lambda: nbn.BatchNorm(3, device="cuda")):
        with pytest.raises(ImportError, match=r'numba-cuda.*python -m pip install "numbabn\[cuda\]"'):
            call()


def test_without_a_driver(no_backend, cupy, monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: False, cuda_error=lambda: "no libcuda.so")
    monkeypatch.setitem(sys.modules, "numbabn.backends.cuda.gpu", SimpleNamespace(SIMULATED=False, cuda=cuda))
    for call in (lambda: nbn.moments(cupy.array(normal(4, 3))), lambda: nbn.BatchNorm(3, device="cuda")):
        with pytest.raises(RuntimeError, match=r'no libcuda.so.*driver.*pip install "numbabn\[cuda\]"'):
            call()


# Layers that move -------------------------------------------------------------------------------------------


def test_state_comes_to_the_host(kind):
    bn = nbn.BatchNorm(3, dtype=np.float16).to(kind.array(normal(4, 3)))
    assert kind.is_mine(bn.running_var)
    state = bn.state_dict()
    assert all(type(value) is np.ndarray for value in state.values())
    assert {name: value.dtype for name, value in state.items() if "num" not in name} == dict.fromkeys(
        ("gamma", "beta", "running_mean", "running_var"), np.float16
    )


def test_moving(kind):
    bn = nbn.BatchNorm(3, momentum=None)
    bn(normal(4, 3))
    bn.params["gamma"][:] = 1, 2, 3
    state, grads = bn.state_dict(), bn.grads
    x = kind.array(normal(4, 3), device=1)
    assert bn.to(x) is bn
    held = dict(bn.params)
    assert bn.to(x).params == held  # already there
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(x)
    for layer in (bn, copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert kind.device_of(layer.params["gamma"]) == 1
        assert kind.device_of(layer.grads["beta"]) == 1
        found = layer.to("cpu").state_dict()
        assert found.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value)
        assert layer.grads.keys() == grads.keys()
        assert type(layer.running_mean) is np.ndarray
