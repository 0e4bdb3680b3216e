"""CuPy: arrays on a GPU."""

from typing import Any

from numbabn.arrays.device import Description
from numbabn.arrays.device_library import DeviceLibrary, described, load, numpy_dtype, without_bfloat16
from numbabn.backends.verbs import Array


class CuPy(DeviceLibrary):
    """CuPy. Its strides are in bytes and its dtypes are NumPy's; bfloat16 is that of ml_dtypes."""

    name = module = "cupy"
    kind, maker = "ndarray", "cupy.empty"

    def describe(self, native: Any, name: str) -> Description:
        memory = native.data
        return Description(
            memory.ptr, native.shape, native.strides, described(native.dtype), memory.device_id
        )

    def pointer(self, native: Any) -> int:
        return int(native.data.ptr)

    def stream(self, native: Any, device: int) -> int:
        return int(load(self.module).cuda.get_current_stream(device).ptr)

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        cupy = load(self.module)
        kind = numpy_dtype(dtype)
        with cupy.cuda.Device(device):
            result = cupy.empty(shape, kind)
            return result if strides is None else cupy.ndarray(shape, kind, result.data, strides)

    def upload(self, host: Array, device: int) -> Any:
        cupy = load(self.module)
        with cupy.cuda.Device(device):
            return cupy.array(host)

    def download(self, native: Any) -> Array:
        return without_bfloat16(native.get())

    def current(self) -> int:
        return int(load(self.module).cuda.Device().id)

    def count(self) -> int:
        return int(load(self.module).cuda.runtime.getDeviceCount())
