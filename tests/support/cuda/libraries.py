"""CuPy, PyTorch and Numba's arrays as far as numbabn uses them, over memory of the host.

Where CUDA is simulated, kernels read and write host addresses, so that arrays of these modules go through the
whole library. The modules note devices and streams; `tests.cuda.test_libraries` compares their names with
those of the real modules.
"""

import math
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

from tests.support.cuda.allocations import allocations

DEVICES = 2


class Current:
    """The current device, and on every device a current stream of its own."""

    def __init__(self):
        self.device = 0
        self.streams = {device: 1000 + device for device in range(DEVICES)}


def module(name):
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    made.current = Current()
    return made


def noted(values):
    """Return the array, whose memory the simulator shall let kernels touch."""
    allocations.add(values)
    return values


def unwritten(shape, dtype):
    """Return a new array, of bytes that no result has."""
    result = np.empty(shape, dtype)
    result.reshape(-1).view(np.uint8)[:] = 0xA5
    return result


def elements(memory, shape, dtype, strides):
    """View on the memory of an array that has no gaps."""
    return np.ndarray(shape, dtype, memory, strides=strides)


def cupy():
    """A module like CuPy."""
    made = module("cupy")
    current = made.current

    class Device:
        def __init__(self, number=None):
            self.id = current.device if number is None else number

        def __enter__(self):
            self.before, current.device = current.device, self.id

        def __exit__(self, *_):
            current.device = self.before

    class ndarray:  # noqa: N801
        """Strides in bytes, dtypes of NumPy; ``data`` points to the first element and keeps the memory."""

        __module__ = "cupy"

        def __init__(self, shape, dtype, memptr, strides):
            self.data, self.shape, self.dtype = memptr, shape, np.dtype(dtype)
            self.values = elements(memptr.memory, shape, dtype, strides)
            self.strides = self.values.strides

        def get(self):
            return self.values.copy()

    def empty(shape, dtype):
        return array(unwritten(shape, dtype))

    def array(host):
        result = ndarray.__new__(ndarray)
        result.values = noted(np.array(host, order="C"))
        address = result.values.__array_interface__["data"][0]
        memory = result.values.reshape(-1).view(np.uint8)
        result.data = SimpleNamespace(ptr=address, device_id=current.device, memory=memory)
        result.shape, result.strides, result.dtype = host.shape, result.values.strides, host.dtype
        return result

    def get_current_stream(device_id):
        return SimpleNamespace(ptr=current.streams[device_id])

    made.ndarray, made.empty, made.array = ndarray, empty, array
    made.cuda = SimpleNamespace(
        Device=Device,
        get_current_stream=get_current_stream,
        runtime=SimpleNamespace(getDeviceCount=lambda: DEVICES),
    )
    made.view = lambda whole, values: _cupy_view(ndarray, whole, values)
    return made


def _cupy_view(ndarray, whole, values):
    """Array over part of the memory of another: ``values`` is a view of ``whole.values``."""
    result = ndarray.__new__(ndarray)
    result.values, result.dtype = noted(values), values.dtype
    result.shape, result.strides = values.shape, values.strides
    address = values.__array_interface__["data"][0]
    result.data = SimpleNamespace(ptr=address, device_id=whole.data.device_id, memory=whole.data.memory)
    return result


class TorchDtype:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


def torch():
    """A module like PyTorch, with bfloat16 and with tensors on the CPU and on two GPUs."""
    made = module("torch")
    current = made.current
    for name in ("float16", "bfloat16", "float32", "float64", "int64", "uint8", "complex64", "float8_e5m2"):
        setattr(made, name, TorchDtype(name))
    made.strided, made.sparse_coo = "torch.strided", "torch.sparse_coo"
    storage = {"bfloat16": np.uint16, "float8_e5m2": np.uint8}  # of what NumPy does not know

    class Tensor:
        """Strides in elements; bfloat16 values are the upper halves of those of float32."""

        __module__ = "torch"
        requires_grad = False
        negated = False

        def __init__(self, values, dtype, device, layout=made.strided):
            self.values, self.dtype, self.device, self.layout = noted(values), dtype, device, layout
            self.shape = values.shape

        def stride(self):
            return tuple(step // self.values.itemsize for step in self.values.strides)

        def element_size(self):
            return self.values.itemsize

        def data_ptr(self):
            return self.values.__array_interface__["data"][0]

        def is_neg(self):
            return self.negated

        def to(self, device):
            return Tensor(self.values.copy(), self.dtype, device)

        def cpu(self):
            return self.to(SimpleNamespace(type="cpu", index=None))

        def float(self):
            return Tensor(_widened(self.values), made.float32, self.device)

        def numpy(self):
            if self.device.type != "cpu" or self.dtype is made.bfloat16:
                raise TypeError("can't convert to numpy")
            return self.values

        def __array__(self, dtype=None, copy=None):
            return self.numpy()

    def empty(shape, dtype, device):
        return Tensor(unwritten(shape, storage.get(dtype.name, dtype.name)), dtype, device)

    def empty_strided(shape, stride, dtype, device):
        kind = np.dtype(storage.get(dtype.name, dtype.name))
        memory = unwritten(math.prod(shape), kind)
        strides = [step * kind.itemsize for step in stride]
        return Tensor(elements(memory, shape, kind, strides), dtype, device)

    def from_numpy(host):
        return Tensor(host, getattr(made, host.dtype.name), SimpleNamespace(type="cpu", index=None))

    made.Tensor, made.empty, made.empty_strided, made.from_numpy = Tensor, empty, empty_strided, from_numpy
    made.device = lambda kind, index: SimpleNamespace(type=kind, index=index)
    made.cuda = SimpleNamespace(
        current_stream=lambda device: SimpleNamespace(cuda_stream=current.streams[device]),
        current_device=lambda: current.device,
        device_count=lambda: DEVICES,
        is_available=lambda: True,
    )
    return made


def _widened(values):
    return (values.astype(np.uint32) << 16).view(np.float32)


def numba():
    """``numba.cuda`` as far as its arrays go, with the device and stream of every array noted."""
    current = Current()

    class Context:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            self.before, current.device = current.device, self.number

        def __exit__(self, *_):
            current.device = self.before

    class DeviceNDArrayBase:
        __module__ = "numba.cuda.cudadrv.devicearray"

        def __init__(self, values, stream=0):
            self.values, self.stream = noted(values), stream
            self.shape, self.strides, self.dtype = values.shape, values.strides, values.dtype
            self.device_ctypes_pointer = SimpleNamespace(value=values.__array_interface__["data"][0] or None)
            device = SimpleNamespace(id=current.device)
            self.gpu_data = SimpleNamespace(context=SimpleNamespace(device=device))

        def copy_to_host(self):
            return self.values.copy()

    def device_array(shape, dtype, strides=None, stream=0):
        memory = unwritten(math.prod(shape), dtype)
        return DeviceNDArrayBase(np.ndarray(shape, dtype, memory, strides=strides), stream)

    return SimpleNamespace(
        current=current,
        DeviceNDArrayBase=DeviceNDArrayBase,
        gpus=[Context(number) for number in range(DEVICES)],
        get_current_device=lambda: SimpleNamespace(id=current.device),
        device_array=device_array,
        to_device=lambda host: DeviceNDArrayBase(host.copy()),
    )
