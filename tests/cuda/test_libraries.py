"""What is asked of CuPy, PyTorch and Numba: their arrays are read right, and results are arrays of theirs.

The modules are those of `libraries`, so that this runs anywhere; the tests that launch kernels run where CUDA
is simulated.
"""

import copy
import ctypes
import pickle
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import numbabn as nbn
from numbabn import arrays, backends
from numbabn.arrays import door
from numbabn.arrays import numba as numba_adapter
from numbabn.arrays import torch as torch_adapter
from numbabn.arrays.library import HOST
from numbabn.arrays.place import place
from numbabn.backends.strides import memory_order
from tests import reference
from tests.checks import assert_close
from tests.cuda import libraries

F32 = np.float32
simulated = pytest.mark.skipif(not numba.config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1")


class Kind:
    """A library under test: how to make its arrays, and how to look into them."""

    def __init__(self, name, module):
        self.name, self.module, self.current = name, module, module.current

    def array(self, host, device=0):
        """Return a copy of ``host`` with its strides, on a device."""
        before, self.current.device = self.current.device, device
        # The memory around a view comes along, so that strides of any sign and size stay what they are.
        whole = host if host.base is None else host.base
        whole = np.array(whole, order="K")
        offset = host.__array_interface__["data"][0] - _base(host).__array_interface__["data"][0]
        view = np.ndarray(host.shape, host.dtype, _flat(whole), offset, host.strides)
        made = self.over(view, device)
        self.current.device = before
        return made

    def over(self, view, device=0):
        """Return an array over the memory of a NumPy array."""
        if self.name == "torch":
            return self.module.Tensor(view, getattr(self.module, view.dtype.name), self.gpu(device))
        if self.name == "numba":
            return self.module.DeviceNDArrayBase(view)
        whole = SimpleNamespace(data=SimpleNamespace(device_id=device, memory=view))
        return self.module.view(whole, view)

    def gpu(self, device):
        return self.module.device("cuda", device)

    def is_mine(self, native):
        kind = {"cupy": "ndarray", "torch": "Tensor", "numba": "DeviceNDArrayBase"}[self.name]
        return type(native) is getattr(self.module, kind)

    def device_of(self, native):
        if self.name == "torch":
            return native.device.index
        return native.data.device_id if self.name == "cupy" else native.gpu_data.context.device.id


def _base(host):
    return host if host.base is None else host.base


def _flat(whole):
    """Bytes of an array without gaps."""
    return np.ndarray(whole.nbytes, np.uint8, whole.transpose(memory_order(whole.strides)))


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


def normal(*shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


VIEWS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "NHWC": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)).transpose(0, 3, 1, 2),
    "every other": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "every other sample": lambda x: np.repeat(x, 2, axis=0)[1::2],
}


# The modules themselves -------------------------------------------------------------------------------------


def public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["cupy", "torch"])
@pytest.mark.filterwarnings("ignore")
def test_real_modules_have_these_names(name):
    """So that nothing is asked of them here that they do not have."""
    real = pytest.importorskip(name)
    fake = getattr(libraries, name)()
    assert public(fake) - {"current", "view"} <= set(dir(real))
    assert public(fake.cuda) <= set(dir(real.cuda))
    array = {"cupy": "ndarray", "torch": "Tensor"}[name]
    own = {"values", "negated", "requires_grad"}  # the last one is there, on instances
    assert public(getattr(fake, array)) - own <= set(dir(getattr(real, array)))
    assert door.LIBRARIES[name].kind == array
    assert getattr(real, array).__module__.partition(".")[0] == name


@pytest.mark.filterwarnings("ignore")
def test_real_tensors():
    """Strides count elements, layouts and dtypes are written as the adapter reads them."""
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 3, 4).transpose(0, 2)[1:]
    assert tensor.stride() == (1, 4, 12)
    assert tensor.element_size() == 4
    assert tensor.layout is torch.strided
    assert not tensor.is_neg()
    assert tensor.device.type == "cpu"
    assert torch.empty_strided((2, 3), [1, 2], dtype=torch.float64).stride() == (1, 2)
    names = ("float16", "bfloat16", "float32", "float64", "complex64", "int64")
    dtypes = [torch_adapter._from_torch(getattr(torch, name), "x") for name in names]
    assert [dtype.name for dtype in dtypes] == list(names)
    with pytest.raises(TypeError, match=r"x has dtype torch.float8_e5m2; pass x.to\(torch.float32\)"):
        torch_adapter._from_torch(torch.float8_e5m2, "x")


# Arrays as they are read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_description(kind, view):
    host = VIEWS[view](normal(4, 3, 5, 2))
    array = kind.array(host, device=1)
    found = arrays.of(array, "x")
    assert found.native is array
    assert (found.shape, found.strides, found.dtype, found.device) == (
        host.shape,
        host.strides,
        host.dtype,
        1,
    )
    assert (found.ndim, found.size, found.itemsize, found.nbytes) == (4, host.size, 4, host.nbytes)
    assert found.flags[:2] == (host.flags.c_contiguous, host.flags.f_contiguous)
    at = np.ctypeslib.as_array((ctypes.c_float * 1).from_address(found.address))
    assert at[0] == host[0, 0, 0, 0]


@pytest.mark.parametrize("view", VIEWS)
def test_empty_like(kind, view):
    host = VIEWS[view](normal(4, 3, 5, 2))
    array = arrays.of(kind.array(host, device=1), "x")
    result = array.library.empty_like(array)
    assert kind.is_mine(result.native)
    assert kind.device_of(result.native) == 1
    assert kind.current.device == 0
    assert (result.shape, result.dtype, result.strides) == (
        host.shape,
        host.dtype,
        np.empty_like(host).strides,
    )


def test_stream_is_the_current_one(kind):
    if kind.name == "numba":
        array = kind.module.DeviceNDArrayBase(normal(4, 3), stream=SimpleNamespace(handle=77))
        found = arrays.of(array, "x")
        assert found.stream == found.empty((3,), np.dtype(F32)).stream == 77
        assert arrays.of(kind.array(normal(4, 3)), "x").stream == 0
        return
    first, second = (arrays.of(kind.array(normal(4, 3), device), "x") for device in (0, 1))
    assert (first.stream, second.stream) == (1000, 1001)
    kind.current.streams[1] = 5  # as within ``with stream:``
    assert (first.stream, second.stream) == (1000, 5)


def test_derived_types(torch):
    class Parameter(torch.module.Tensor):
        __module__ = "torch.nn.parameter"

    host = normal(4, 3)
    found = arrays.of(Parameter(host, torch.module.float32, torch.gpu(0)), "gamma")
    assert found.library is door.LIBRARIES["torch"]
    assert door.device_library(host) is None


def tensor(torch, **changes):
    made = torch.array(normal(4, 3))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (lambda m: {"device": SimpleNamespace(type="cpu", index=None)}, "cpu | numpy.asarray(x | .cuda()"),
        (lambda m: {"requires_grad": True}, "requires grad | x.detach()"),
        (lambda m: {"layout": m.sparse_coo}, "sparse_coo | x.to_dense()"),
        (lambda m: {"negated": True}, "negation | x.resolve_neg()"),
        (
            lambda m: {"dtype": m.float8_e5m2, "values": np.ones((4, 3), np.uint8)},
            "float8_e5m2 | x.to(torch.float32)",
        ),
        (
            lambda m: {"dtype": m.int64, "values": np.ones((4, 3), int)},
            "int64 | not floating point | x.to(torch.float32)",
        ),
        (lambda m: {"dtype": m.complex64, "values": np.ones((4, 3), "c8")}, "complex64 | x.real"),
        (
            lambda m: {"dtype": m.bfloat16, "values": np.ones((4, 3), np.uint16)},
            "bfloat16 | float32 and float64 | x.to(torch.float32)",
        ),
    ],
)
def test_refused_tensors(torch, changes, fragments):
    x = tensor(torch, **changes(torch.module))
    for call in (nbn.batch_norm_forward, nbn.moments, nbn.BatchNorm(3)):
        with pytest.raises(TypeError) as refusal:
            call(x)
        assert all(fragment in str(refusal.value) for fragment in fragments.split(" | ")), refusal.value


@pytest.mark.parametrize(
    ("host", "error", "fragments"),
    [
        (normal(4, 3, dtype=np.float16), TypeError, "float16 | float32 and float64"),
        (np.ones((4, 3), int), TypeError, "int64 | not floating point"),
        (np.ones((4, 3), ">f4"), TypeError, ">f4 | GPUs cannot read | float32"),
        (np.ones((4, 3), np.longdouble), TypeError, "GPUs cannot read | float32"),
        (np.ones(49, np.uint8)[1:].view(F32).reshape(4, 3), ValueError, "multiples of 4 bytes | empty"),
        (normal(3), ValueError, "(3,) | batch axis"),
    ],
)
def test_refused_arrays(cupy, host, error, fragments):
    with pytest.raises(error) as refusal:
        nbn.moments(cupy.over(host))
    assert all(fragment in str(refusal.value) for fragment in fragments.split(" | ")), refusal.value


# Arrays that do not go together -----------------------------------------------------------------------------


def test_mixed_memory(kind):
    x, on_gpu = normal(4, 3), kind.array(normal(4, 3))
    gamma, gamma_on_gpu = np.ones(3, F32), kind.array(np.ones(3, F32))
    _, saved = nbn.batch_norm_forward(x)
    for name, call in {
        "gamma": lambda: nbn.batch_norm_forward(x, gamma_on_gpu),
        "beta": lambda: nbn.batch_norm_forward(on_gpu, None, gamma),
        "mean": lambda: nbn.batch_norm_inference(on_gpu, gamma, gamma_on_gpu),
        "var": lambda: nbn.batch_norm_inference(x, gamma, gamma_on_gpu),
        "out": lambda: nbn.batch_norm_forward(x, out=on_gpu),
        "dy": lambda: nbn.batch_norm_backward(on_gpu, saved),
    }.items():
        with pytest.raises(TypeError) as refusal:
            call()
        for fragment in (name, "a NumPy array", "cuda:0", "both on the GPU"):
            assert fragment in str(refusal.value)


def test_two_devices(kind):
    x, gamma = kind.array(normal(4, 3)), kind.array(np.ones(3, F32), device=1)
    with pytest.raises(ValueError, match=r"gamma is .* on cuda:1, but x is .* on cuda:0; .* one device"):
        nbn.batch_norm_forward(x, gamma)
    with pytest.raises(ValueError, match=r"out is .* on cuda:1, but x is .* on cuda:0; .* one device"):
        nbn.batch_norm_forward(x, out=kind.array(normal(4, 3), device=1))


def test_results_are_of_one_library(cupy, torch):
    x, out = cupy.array(normal(4, 3)), torch.array(normal(4, 3))
    with pytest.raises(
        TypeError, match=r"out is a torch\.\S*Tensor on cuda:0, but x is a cupy.* one library"
    ):
        nbn.batch_norm_forward(x, out=out)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda m: m[6:18].reshape(4, 3), "overlaps x"),
        (lambda m: m[0:24].reshape(4, 6)[:, ::2], "overlaps x"),
        (lambda m: np.broadcast_to(m[12:15], (4, 3)), "made by cupy.empty"),
        (lambda m: m[12:24].reshape(3, 4), r"\(3, 4\)"),
        (lambda m: m[12:24].astype(np.float64).reshape(4, 3), "float64"),
    ],
)
def test_refused_out(cupy, part, message):
    memory = normal(24)
    x, out = cupy.over(memory[:12].reshape(4, 3)), cupy.over(part(memory))
    before = memory.copy()
    with pytest.raises((TypeError, ValueError), match=message):
        nbn.batch_norm_forward(x, out=out)
    assert (memory == before).all()


def test_layer_elsewhere(kind):
    x = kind.array(normal(4, 3))
    with pytest.raises(TypeError, match=r"on cuda:0, but the layer is on cpu; .* bn.to\(x\)"):
        nbn.BatchNorm(3)(x)
    bn = nbn.BatchNorm(3).to(x)
    with pytest.raises(TypeError, match=r"a NumPy array, but the layer is on cuda:0; .* bn.to\(x\)"):
        bn(normal(4, 3))
    with pytest.raises(TypeError, match=r"on cuda:1, but the layer is on cuda:0"):
        bn(kind.array(normal(4, 3), device=1))


# What device= may be ----------------------------------------------------------------------------------------


@pytest.fixture
def hardware(monkeypatch):
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


# Through the simulator --------------------------------------------------------------------------------------


def values(native):
    return native.values


def parameters(channels):
    rng = np.random.default_rng(1)
    return [rng.uniform(0.5, 2, channels).astype(F32) for _ in range(4)]


@simulated
@pytest.mark.parametrize("view", VIEWS)
def test_results(kind, view):
    """Values, and whose arrays they are, for every memory order of x and dy."""
    x, dy = VIEWS[view](normal(3, 2, 2, 2)), VIEWS[view](normal(3, 2, 2, 2, seed=1))
    gamma, beta, mean, var = parameters(2)
    native, dy_native = kind.array(x, device=1), kind.array(dy, device=1)
    on_gpu = [kind.array(p, device=1) for p in (gamma, beta, mean, var)]

    y, saved = nbn.batch_norm_forward(native, *on_gpu[:2])
    dx, dgamma, dbeta = nbn.batch_norm_backward(dy_native, saved)
    frozen = nbn.batch_norm_inference(native, on_gpu[2], on_gpu[3], *on_gpu[:2])
    count, own_mean, own_m2 = nbn.moments(native)

    results = [y, dx, dgamma, dbeta, frozen, own_mean, own_m2, saved.mean, saved.var]
    assert all(kind.is_mine(result) and kind.device_of(result) == 1 for result in results)
    assert values(y).strides == values(dx).strides == np.empty_like(x).strides
    assert values(dgamma).dtype == values(dbeta).dtype == F32
    assert values(saved.mean).dtype == values(own_m2).dtype == np.float64
    _, exact_mean, exact_m2 = reference.moments(x, 1)
    assert count == 12
    np.testing.assert_allclose(values(own_mean), exact_mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(values(own_m2), exact_m2, rtol=1e-12)
    assert_close(values(y), reference.forward(x, gamma, beta), reference.forward_error(x, gamma, beta), "y")
    exact = reference.backward(dy, x, gamma)
    errors = reference.backward_error(dy, x, gamma, beta)
    for name, result, value, error in zip(
        ("dx", "dgamma", "dbeta"), (dx, dgamma, dbeta), exact, errors, strict=True
    ):
        assert_close(values(result), value, error, name)
    given = {"mean": mean, "var": var}
    expected = reference.forward(x, gamma, beta, **given)
    assert_close(values(frozen), expected, reference.forward_error(x, gamma, beta, **given), "frozen y")


@simulated
def test_out_of_any_strides(kind):
    x = normal(3, 2, 2, 2)
    expected = values(nbn.batch_norm_forward(kind.array(x))[0])
    for view in VIEWS.values():
        host = view(np.full(x.shape, 7, F32))
        out = kind.array(host)
        y, saved = nbn.batch_norm_forward(kind.array(x), out=out)
        assert y is out
        np.testing.assert_array_equal(values(out), expected)
        gradient = kind.array(view(normal(3, 2, 2, 2, seed=1)))
        dx, *_ = nbn.batch_norm_backward(kind.array(values(gradient).copy()), saved)
        assert nbn.batch_norm_backward(gradient, saved, out=gradient)[0] is gradient
        np.testing.assert_allclose(values(gradient), values(dx), rtol=0, atol=1e-6)
    x_native = kind.array(x)
    y, saved = nbn.batch_norm_forward(x_native, out=x_native)
    np.testing.assert_array_equal(values(x_native), expected)
    with pytest.raises(ValueError, match="out=x"):
        nbn.batch_norm_backward(x_native, saved)


@simulated
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 0)])
def test_empty(kind, shape):
    x = kind.over(np.zeros(shape, F32))
    channels = shape[1]
    gamma, beta, *_ = (kind.array(p) for p in parameters(channels))
    y, saved = nbn.batch_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta = nbn.batch_norm_backward(x, saved)
    assert y.shape == dx.shape == shape
    assert (values(dgamma) == 0).all()
    assert (values(dbeta) == 0).all()
    assert values(dbeta).shape == (channels,)
    count, mean, m2 = nbn.moments(x)
    assert count == 0
    assert np.isnan(values(mean)).all()
    assert np.isnan(values(saved.var)).all()
    assert (values(m2) == 0).all()


@simulated
def test_parameters_of_other_libraries_and_dtypes(cupy, torch):
    """Gradients are of the library and dtype of the parameter; bfloat16 has eight bits."""
    x, dy = normal(5, 2), normal(5, 2, seed=1)
    gamma, beta = np.array([1.5, -0.75], F32), np.array([0.5, 2], F32)
    bfloat16 = torch.module.Tensor(
        (gamma.view(np.uint32) >> 16).astype(np.uint16), torch.module.bfloat16, torch.gpu(0)
    )
    half = cupy.array(np.repeat(beta, 2).astype(np.float16)[::2])
    y, saved = nbn.batch_norm_forward(cupy.array(x), bfloat16, half)
    assert_close(values(y), reference.forward(x, gamma, beta), reference.forward_error(x, gamma, beta), "y")
    _, dgamma, dbeta = nbn.batch_norm_backward(cupy.array(dy), saved)
    assert dgamma.dtype is torch.module.bfloat16
    assert values(dbeta).dtype == np.float16
    exact = reference.backward(dy, x, gamma)
    # One rounding to the dtype; the sums themselves are of float32 and much better.
    np.testing.assert_allclose(values(dgamma.float()), exact[1], rtol=2.0**-8)
    np.testing.assert_allclose(values(dbeta), exact[2], rtol=2.0**-10)
    with pytest.raises(TypeError, match=r"dy is a torch\.\S*Tensor on cuda:0, but x is a cupy.*one library"):
        nbn.batch_norm_backward(torch.array(dy), saved)


@simulated
@pytest.mark.parametrize(
    ("momentum", "dtype"), [(0.1, F32), (1, np.float64), (0.25, np.float16), (None, F32), (None, np.float64)]
)
def test_running_statistics(kind, momentum, dtype):
    """In place on the GPU, and what they are on the CPU; state goes both ways."""
    bn, twin = (nbn.BatchNorm(2, momentum=momentum, dtype=dtype) for _ in range(2))
    batches = [normal(4, 2, dtype=np.float64, seed=seed) + seed for seed in range(3)]
    twin.to(kind.array(batches[0]))
    held = twin.running_mean, twin.running_var
    for x in batches:
        y, expected = twin(kind.array(x)), bn(x)
        np.testing.assert_allclose(values(y), expected, rtol=0, atol=1e-12)
        twin.backward(kind.array(x)), bn.backward(x)
    assert (twin.running_mean, twin.running_var) == held
    assert twin.num_batches_tracked == 3
    state, expected = twin.state_dict(), bn.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        # Of float64 throughout, rounded to the dtype once a batch.
        np.testing.assert_allclose(
            state[name], value, rtol=8 * np.finfo(value.dtype).eps if value.dtype.kind == "f" else 0
        )

    other = nbn.BatchNorm(2, momentum=momentum, dtype=dtype, device=kind.array(x))
    parameter, mean = other.params["gamma"], other.running_mean
    other.load_state_dict({**state, "gamma": kind.array(np.array([2, 3], dtype))})
    assert other.params["gamma"] is parameter
    assert other.running_mean is mean
    assert values(parameter).tolist() == [2, 3]
    np.testing.assert_array_equal(values(mean), state["running_mean"])
    found = other.state_dict()
    for name in state.keys() - {"gamma"}:
        np.testing.assert_array_equal(found[name], state[name])
    other.eval(), twin.eval()
    twin.params["gamma"] = other.params["gamma"]
    np.testing.assert_array_equal(values(other(kind.array(x))), values(twin(kind.array(x))))


def scattered(values, rng):
    """Return an array of these values with gaps, some axes backwards, in any order of axes."""
    order = rng.permutation(values.ndim)
    moved = values.transpose(order)
    memory = np.full([2 * n + 1 for n in moved.shape], 9, values.dtype)
    part = tuple(slice(0, 2 * n, 2) if rng.random() < 0.5 else slice(n, 0, -1) for n in moved.shape)
    memory[part] = moved
    return memory[part].transpose(np.argsort(order))


@simulated
@pytest.mark.parametrize("small", [2**32, 1])
@pytest.mark.parametrize("dtype", [np.float16, F32, np.float64])
def test_strided_copies(cupy, dtype, small, monkeypatch):
    """Any strides to any, float16 by the kernel that converts; nothing else is written."""
    monkeypatch.setattr("numbabn.backends.cuda.copies.SMALL", small)
    rng, assign = np.random.default_rng(0), door.LIBRARIES["cupy"].assign
    for shape in ((1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 2, 3)):
        source, target = (scattered(normal(*shape, dtype=dtype, seed=s), rng) for s in (0, 1))
        around = target.base.copy()
        assign(arrays.of(cupy.over(target), "out"), arrays.of(cupy.over(source), "x"))
        np.testing.assert_array_equal(target, source)
        assert (target.base == around).sum() >= around.size - target.size
        expected = np.arange(target.size, dtype=F32).reshape(shape)  # and from one dtype to another
        assign(arrays.of(cupy.over(target), "out"), arrays.of(cupy.over(expected), "x"))
        np.testing.assert_array_equal(target, expected)
