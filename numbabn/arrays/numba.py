"""Numba: its device arrays, and those of its CUDA simulator."""

from typing import Any

from numbabn.arrays.device import Description
from numbabn.arrays.device_library import DeviceLibrary, described, numpy_dtype, without_bfloat16
from numbabn.backends import cuda_module
from numbabn.backends.verbs import Array


class Numba(DeviceLibrary):
    """Numba's own arrays. They have no current stream: theirs is the one that they were made with."""

    name = module = "numba"
    kind, maker = "DeviceNDArrayBase", "numba.cuda.device_array"

    def describe(self, native: Any, name: str) -> Description:
        return Description(
            self.pointer(native),
            native.shape,
            native.strides,
            described(native.dtype),
            native.gpu_data.context.device.id,
        )

    def pointer(self, native: Any) -> int:
        return native.device_ctypes_pointer.value or 0  # None of an empty array

    def stream(self, native: Any, device: int) -> int:
        return int(getattr(native.stream, "handle", 0))

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        stream = 0 if like is None else like.stream
        with self._cuda().gpus[device]:
            return self._cuda().device_array(shape, numpy_dtype(dtype), strides=strides, stream=stream)

    def upload(self, host: Array, device: int) -> Any:
        with self._cuda().gpus[device]:
            return self._cuda().to_device(host)

    def download(self, native: Any) -> Array:
        return without_bfloat16(native.copy_to_host())

    def current(self) -> int:
        return int(self._cuda().get_current_device().id)

    def count(self) -> int:
        return len(self._cuda().gpus)

    def cast_text(self, name: str, dtype: str) -> str:
        module = "ml_dtypes" if dtype == "bfloat16" else "numpy"
        return f"numba.cuda.to_device({name}.copy_to_host().astype({module}.{dtype}))"

    def _cuda(self) -> Any:
        return cuda_module("gpu").cuda


class Simulated(Numba):
    """The arrays of Numba's CUDA simulator, in the memory of the host."""

    name, kind = "simulator", "FakeCUDAArray"
    simulated = True

    def describe(self, native: Any, name: str) -> Description:
        array = native._ary
        return Description(self.pointer(native), array.shape, array.strides, described(array.dtype), 0)

    def pointer(self, native: Any) -> int:
        return int(native._ary.__array_interface__["data"][0])

    def stream(self, native: Any, device: int) -> int:
        return 0

    def current(self) -> int:
        return 0
