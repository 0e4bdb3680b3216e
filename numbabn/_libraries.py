"""The libraries whose arrays on a GPU are accepted: one adapter each.

None is imported here: an array that is met shows that its library is there, and ``device="cuda"`` asks for
one. An array is described by its address and strides, so that its values are never touched here.
"""

import functools
import importlib
import sys
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from numbabn._backends import cuda_module


class BFloat16:
    """The dtype that NumPy lacks, as far as parameters need one; there is one instance, ``BFLOAT16``."""

    name = "bfloat16"
    kind = "f"
    itemsize = 2
    isnative = True

    def newbyteorder(self, _: str) -> "BFloat16":
        """Return itself."""
        return self

    def __str__(self) -> str:
        return self.name


BFLOAT16: Any = BFloat16()


class Description(NamedTuple):
    """Where the elements of an array lie: address and strides in bytes, and the number of the device."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int


class Library:
    """What is asked of every library. ``native`` are its arrays, ``host`` are NumPy arrays."""

    module: str
    kind: str  # the name of its arrays' type
    maker: str  # what makes an array, for messages

    def describe(self, native: Any, name: str) -> Description:
        """Return where an array lies, or raise a TypeError that says what to pass instead."""
        raise NotImplementedError

    def address(self, native: Any) -> int:
        """Return the address of an array of this library's that `describe` would not refuse."""
        raise NotImplementedError

    def on_gpu(self, native: Any) -> bool:
        """Whether an array is on a GPU."""
        return True

    def stream(self, native: Any, device: int) -> int:
        """Return the handle of the stream that the library would now use for this array."""
        raise NotImplementedError

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        """Return a new array without values, in C order or with strides that leave no gaps.

        ``like`` is the array that it is a result for, or None.
        """
        raise NotImplementedError

    def upload(self, host: np.ndarray[Any, Any], device: int) -> Any:
        """Return a copy on the GPU of an array of float16, float32 or float64."""
        raise NotImplementedError

    def download(self, native: Any) -> np.ndarray[Any, Any]:
        """Return a copy of a dense array; bfloat16 becomes float32."""
        raise NotImplementedError

    def current(self) -> int:
        """Return the number of the current device."""
        raise NotImplementedError

    def count(self) -> int:
        """Return the number of devices."""
        raise NotImplementedError

    def cast(self, name: str, dtype: str) -> str:
        """Return how one writes the array ``name`` in another dtype."""
        return f"{name}.astype({self.module}.{dtype})"

    def _load(self) -> Any:
        return sys.modules.get(self.module) or importlib.import_module(self.module)


class CuPy(Library):
    """CuPy. Its strides are in bytes and its dtypes are NumPy's; bfloat16 is that of ml_dtypes."""

    module, kind, maker = "cupy", "ndarray", "cupy.empty"

    def describe(self, native: Any, name: str) -> Description:
        memory = native.data
        return Description(
            memory.ptr, native.shape, native.strides, _described(native.dtype), memory.device_id
        )

    def address(self, native: Any) -> int:
        return int(native.data.ptr)

    def stream(self, native: Any, device: int) -> int:
        return int(self._load().cuda.get_current_stream(device).ptr)

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        cupy = self._load()
        kind = _numpy_dtype(dtype)
        with cupy.cuda.Device(device):
            result = cupy.empty(shape, kind)
            return result if strides is None else cupy.ndarray(shape, kind, result.data, strides)

    def upload(self, host: np.ndarray[Any, Any], device: int) -> Any:
        cupy = self._load()
        with cupy.cuda.Device(device):
            return cupy.array(host)

    def download(self, native: Any) -> np.ndarray[Any, Any]:
        return _without_bfloat16(native.get())

    def current(self) -> int:
        return int(self._load().cuda.Device().id)

    def count(self) -> int:
        return int(self._load().cuda.runtime.getDeviceCount())


class Torch(Library):
    """PyTorch. Its strides count elements, and its dtypes are its own; it knows bfloat16."""

    module, kind, maker = "torch", "Tensor", "torch.empty"

    def describe(self, native: Any, name: str) -> Description:
        device = native.device
        if not self.on_gpu(native):
            raise TypeError(
                f"{name} must be a NumPy array or on a GPU, not a torch.Tensor on {device}; "
                f"pass numpy.asarray({name}.detach()), or {name}.detach().cuda()"
            )
        if native.requires_grad:
            raise TypeError(
                f"{name} is a torch.Tensor that requires grad, of which autograd would lose track; "
                f"pass {name}.detach() and call batch_norm_backward yourself"
            )
        if native.layout is not self._load().strided:
            raise TypeError(f"{name} is a torch.Tensor of layout {native.layout}; pass {name}.to_dense()")
        if native.is_neg():
            raise TypeError(f"{name} is a torch.Tensor with a pending negation; pass {name}.resolve_neg()")
        size = native.element_size()
        return Description(
            native.data_ptr(),
            tuple(native.shape),
            tuple([size * step for step in native.stride()]),
            _from_torch(native.dtype, name),
            device.index,
        )

    def address(self, native: Any) -> int:
        return int(native.data_ptr())

    def on_gpu(self, native: Any) -> bool:
        return bool(native.device.type == "cuda")

    def stream(self, native: Any, device: int) -> int:
        return int(self._load().cuda.current_stream(device).cuda_stream)

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        torch = self._load()
        options = {"dtype": getattr(torch, dtype.name), "device": torch.device("cuda", device)}
        if strides is None:
            return torch.empty(shape, **options)
        return torch.empty_strided(shape, [step // dtype.itemsize for step in strides], **options)

    def upload(self, host: np.ndarray[Any, Any], device: int) -> Any:
        torch = self._load()
        return torch.from_numpy(host).to(torch.device("cuda", device))

    def download(self, native: Any) -> np.ndarray[Any, Any]:
        tensor = native.float() if native.dtype is self._load().bfloat16 else native
        result: np.ndarray[Any, Any] = tensor.cpu().numpy()
        return result

    def current(self) -> int:
        return int(self._load().cuda.current_device())

    def count(self) -> int:
        return int(self._load().cuda.device_count())

    def cast(self, name: str, dtype: str) -> str:
        return f"{name}.to(torch.{dtype})"


class Numba(Library):
    """Numba's own arrays. They have no current stream: theirs is the one that they were made with."""

    module, kind, maker = "numba", "DeviceNDArrayBase", "numba.cuda.device_array"

    def describe(self, native: Any, name: str) -> Description:
        return Description(
            self.address(native),
            native.shape,
            native.strides,
            _described(native.dtype),
            native.gpu_data.context.device.id,
        )

    def address(self, native: Any) -> int:
        return native.device_ctypes_pointer.value or 0  # None of an empty array

    def stream(self, native: Any, device: int) -> int:
        return int(getattr(native.stream, "handle", 0))

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        stream = 0 if like is None else like.stream
        with self._load().gpus[device]:
            return self._load().device_array(shape, _numpy_dtype(dtype), strides=strides, stream=stream)

    def upload(self, host: np.ndarray[Any, Any], device: int) -> Any:
        with self._load().gpus[device]:
            return self._load().to_device(host)

    def download(self, native: Any) -> np.ndarray[Any, Any]:
        return _without_bfloat16(native.copy_to_host())

    def current(self) -> int:
        return int(self._load().get_current_device().id)

    def count(self) -> int:
        return len(self._load().gpus)

    def cast(self, name: str, dtype: str) -> str:
        return f"numba.cuda.to_device({name}.copy_to_host().astype(numpy.{dtype}))"

    def _load(self) -> Any:
        return cuda_module("gpu").cuda


class Simulated(Numba):
    """The arrays of Numba's CUDA simulator, in the memory of the host."""

    kind = "FakeCUDAArray"

    def describe(self, native: Any, name: str) -> Description:
        array = native._ary
        return Description(self.address(native), array.shape, array.strides, _described(array.dtype), 0)

    def address(self, native: Any) -> int:
        return int(native._ary.__array_interface__["data"][0])

    def stream(self, native: Any, device: int) -> int:
        return 0

    def current(self) -> int:
        return 0


LIBRARIES = {"cupy": CuPy(), "torch": Torch(), "numba": Numba(), "simulator": Simulated()}
_ROOTS = {"cupy": "cupy", "torch": "torch", "numba": "numba", "numba_cuda": "numba"}


def library_of(array: object) -> Library | None:
    """Return the library of an array, whose type may derive from the library's."""
    array_type: Any = type(array)
    return _library_of_type(array_type)


@functools.lru_cache(256)
def _library_of_type(array_type: Any) -> Library | None:
    for base in array_type.__mro__:
        module = _ROOTS.get(base.__module__.partition(".")[0])
        for library in LIBRARIES.values():
            if library.module == module and library.kind == base.__name__:
                return library
    return None


def default_library() -> str:
    """Return the name of the library that ``device="cuda"`` stands for: CuPy, else PyTorch, else Numba."""
    if cuda_module("gpu").SIMULATED:
        return "simulator"
    if find_spec("cupy"):
        return "cupy"
    if find_spec("torch") and importlib.import_module("torch").cuda.is_available():
        return "torch"
    return "numba"


def _described(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind != "V" or dtype.name != "bfloat16" else BFLOAT16


def _numpy_dtype(dtype: Any) -> Any:
    return importlib.import_module("ml_dtypes").bfloat16 if dtype is BFLOAT16 else dtype


def _without_bfloat16(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return host.astype(np.float32) if _described(host.dtype) is BFLOAT16 else host


@functools.lru_cache(64)
def _from_torch(dtype: Any, name: str) -> Any:
    kind = str(dtype).removeprefix("torch.")
    if kind == "bfloat16":
        return BFLOAT16
    known = getattr(np, kind, None)  # not np.dtype(kind), which may know more once ml_dtypes is imported
    if known is None:
        raise TypeError(f"{name} has dtype {dtype}; pass {name}.to(torch.float32)")
    return np.dtype(known)
