"""Arrays of CuPy, PyTorch and Numba: they are read right, and refused where they do not go together.

The modules are those of `tests.support.cuda.libraries`, so that this runs anywhere.
"""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

import numbabn as nbn
from numbabn import arrays
from numbabn.arrays import door
from numbabn.arrays import torch as torch_adapter
from tests.support.cuda import libraries
from tests.support.cuda.kinds import F32, VIEWS, normal

# The modules themselves -------------------------------------------------------------------------------------


def public(thing):
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["cupy", "torch"])
@pytest.mark.filterwarnings("ignore")
def test_real_modules_have_these_names(name):
    """The modules of these tests have no name that the real ones do not have."""
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
    """Strides of real tensors count elements, and the adapter knows how layouts and dtypes are written."""
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
    assert (found.ndim, found.size, found.itemsize) == (4, host.size, 4)
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
        (lambda m: {"device": SimpleNamespace(type="cpu", index=None)}, "cpu | x.numpy() | .cuda()"),
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
    with pytest.raises(TypeError, match=r"on cuda:0, but the layer is on cpu; .* layer.to\(x\)"):
        nbn.BatchNorm(3)(x)
    bn = nbn.BatchNorm(3).to(x)
    with pytest.raises(TypeError, match=r"a NumPy array, but the layer is on cuda:0; .* layer.to\(x\)"):
        bn(normal(4, 3))
    with pytest.raises(TypeError, match=r"on cuda:1, but the layer is on cuda:0"):
        bn(kind.array(normal(4, 3), device=1))
