"""Every backend behind one interface: NumPy arrays in, arrays of a library in between, NumPy arrays out.

An array keeps its strides and its place within a larger one on the way to a device. After a call, its
arguments and the memory around them are compared with what they were.
"""

import ctypes
import importlib
from types import SimpleNamespace

import numba
import numpy as np
from numpy.lib.array_utils import byte_bounds

import numbabn as nbn

SIMULATED = bool(numba.config.ENABLE_CUDASIM)


class MissingError(Exception):
    """Why a backend cannot be tested here."""


class Backend:
    """NumPy on the CPU, and the base of all libraries: a call whose arrays are moved there and back."""

    name = device = "cpu"
    dtypes = (np.float16, np.float32, np.float64, np.longdouble)
    layouts = (
        "contiguous", "fortran", "transposed", "sliced", "negative", "broadcast", "offset", "loose",
    )  # fmt: skip

    def __init__(self):
        self._placed = {}  # id of an array: (array, bytes around it, template)

    # What a library does ------------------------------------------------------------------------------------

    def upload(self, memory):
        """Return a copy of an array of bytes, as an array of the library."""
        return memory.copy()

    def view(self, memory, start, like):
        """Return an array over uploaded bytes from ``start`` on, with shape, strides, dtype of ``like``."""
        return np.ndarray(like.shape, like.dtype, memory, start, like.strides)

    def download(self, array):
        """Return a dense array of the library as a NumPy array."""
        return array.copy(order="K")

    def kind(self):
        """Return the type of the library's arrays."""
        return np.ndarray

    # Calls --------------------------------------------------------------------------------------------------

    def put(self, array):
        """Return a NumPy array as one of the library, in a copy of all the memory that it is a view of."""
        if not isinstance(array, np.ndarray):
            return array
        whole = array
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        start, end = byte_bounds(whole)
        memory = self.upload(np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8))
        native = self.view(memory, array.__array_interface__["data"][0] - start, array)
        self._placed[id(native)] = native, memory, start, array
        return native

    def part(self, native, start, shape):
        """Return an array within one that `put` has returned, from an element on."""
        _, memory, _, like = self._placed[id(native)]
        return self.view(memory, start * like.itemsize, np.empty(shape, like.dtype))

    def get(self, result):
        """Return a result with its arrays as NumPy arrays; they must have been arrays of the library."""
        if isinstance(result, tuple):
            return tuple(self.get(item) for item in result)
        if isinstance(result, nbn.Saved):
            named = {name: self.get(getattr(result, name)) for name in ("mean", "var")}
            return SimpleNamespace(native=result, count=result.count, training=result.training, **named)
        if result is None or isinstance(result, int):
            return result
        assert isinstance(result, self.kind()), f"{type(result)} is not of {self.name}"
        return self.look(result)

    def look(self, native):
        """Return the values of an array of the library."""
        if id(native) not in self._placed:
            return self.download(native)
        _, memory, start, like = self._placed[id(native)]
        first = like.__array_interface__["data"][0] - start
        return np.ndarray(like.shape, like.dtype, self.download(memory), first, like.strides)

    def call(self, function, *arguments, out=None, **options):
        """Call with the arrays moved to the library; only ``out`` may change, and it must be the result.

        ``out`` is an array, or the position of the argument that is to be overwritten.
        """
        natives = [self.put(getattr(argument, "native", argument)) for argument in arguments]
        named = {name: self.put(value) for name, value in options.items()}
        if out is not None:
            named["out"] = natives[out] if isinstance(out, int) else self.put(out)
        placed = [self._placed[id(n)] for n in (*natives, *named.values()) if id(n) in self._placed]
        before = [self.download(memory) for _, memory, _, _ in placed]
        target = None
        try:
            result = function(*natives, **named)
            target = named.get("out")
        finally:
            for (native, memory, start, like), bytes_before in zip(placed, before, strict=True):
                same = self.download(memory) == bytes_before
                if native is target:
                    same |= self._elements(like, start, len(same))
                assert same.all(), "memory was written that is not the result's"
        first = result[0] if isinstance(result, tuple) else result
        assert out is None or first is target, "the result is not out"
        values = self.get(result)
        self._placed.clear()
        return values

    def _elements(self, array, start, size):
        """Mark the bytes of the array's elements."""
        marks = np.zeros(size, bool)
        first = array.__array_interface__["data"][0] - start
        strides = (*array.strides, 1)
        np.lib.stride_tricks.as_strided(marks[first:], (*array.shape, array.itemsize), strides)[...] = True
        return marks

    def forward(self, *arguments, **options):
        return self.call(nbn.batch_norm_forward, *arguments, **options)

    def inference(self, *arguments, **options):
        return self.call(nbn.batch_norm_inference, *arguments, **options)

    def backward(self, *arguments, **options):
        return self.call(nbn.batch_norm_backward, *arguments, **options)

    def moments(self, *arguments, **options):
        return self.call(nbn.moments, *arguments, **options)


class Numba(Backend):
    """Numba's device arrays, or those of its simulator, which lie in the memory of the host."""

    name, device = "numba", "cuda"
    dtypes = (np.float16, np.float32, np.float64)

    def __init__(self):
        super().__init__()
        if not SIMULATED:
            need_gpu()

    def upload(self, memory):
        from numba import cuda

        return cuda.to_device(memory)

    def view(self, memory, start, like):
        if SIMULATED:
            return self.kind()(np.ndarray(like.shape, like.dtype, memory._ary, start, like.strides))
        return self.kind()(like.shape, like.strides, like.dtype, gpu_data=memory.gpu_data.view(start))

    def download(self, array):
        return array.copy_to_host()

    def kind(self):
        from numba.cuda.cudadrv import devicearray

        return devicearray.FakeCUDAArray if SIMULATED else devicearray.DeviceNDArray


class CuPy(Backend):
    """CuPy's arrays."""

    name, device = "cupy", "cuda"
    dtypes = (np.float16, np.float32, np.float64)

    def __init__(self):
        super().__init__()
        need_gpu()
        self.cupy = _module("cupy")

    def upload(self, memory):
        return self.cupy.asarray(memory)

    def view(self, memory, start, like):
        return self.cupy.ndarray(like.shape, like.dtype, memory.data + start, strides=like.strides)

    def download(self, array):
        return array.get()

    def kind(self):
        return self.cupy.ndarray


class Torch(Backend):
    """PyTorch's tensors, which do not know negative strides."""

    name, device = "torch", "cuda"
    dtypes = (np.float16, np.float32, np.float64)
    layouts = tuple(name for name in Backend.layouts if name != "negative")

    def __init__(self):
        super().__init__()
        need_gpu()
        self.torch = _module("torch")
        if not self.torch.cuda.is_available():
            raise MissingError("PyTorch was built without CUDA")

    def upload(self, memory):
        return self.torch.from_numpy(memory.copy()).cuda()

    def view(self, memory, start, like):
        dtype, size = getattr(self.torch, like.dtype.name), like.itemsize
        offset, strides = start // size, [step // size for step in like.strides]
        return self.torch.as_strided(memory.view(dtype), like.shape, strides, offset)

    def download(self, array):
        return array.cpu().numpy()

    def kind(self):
        return self.torch.Tensor


BACKENDS = {"cpu": Backend, "numba": Numba, "cupy": CuPy, "torch": Torch}


def _module(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"needs {name}") from error


def has_gpu():
    """Whether tests can run on a GPU."""
    try:
        need_gpu()
    except (MissingError, ImportError):
        return False
    return True


def need_gpu():
    """Raise `MissingError` unless there is a GPU that numba-cuda can use."""
    if SIMULATED:
        raise MissingError("needs a GPU, not a simulated one")
    from numba import cuda

    if getattr(cuda, "implementation", None) != "NVIDIA":
        raise MissingError("needs numba-cuda, or NUMBA_ENABLE_CUDASIM=1")
    if not cuda.is_available():
        raise MissingError("needs a GPU, or NUMBA_ENABLE_CUDASIM=1")
