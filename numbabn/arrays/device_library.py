"""What all libraries of arrays on a GPU have in common: one adapter each derives from this."""

import functools
import importlib
import sys
from typing import Any, Protocol

import numpy as np
from numba import config

from numbabn.arrays.device import BFLOAT16, Description, DeviceArray, Owner
from numbabn.arrays.library import AnyArray, Library, Place, type_name
from numbabn.backends import cuda_module
from numbabn.backends.strides import dense_strides, memory_order
from numbabn.backends.verbs import Array, Backend

_FLOAT64 = np.dtype(np.float64)
_PUT_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), _FLOAT64)


class DeviceLibrary(Library, Owner, Protocol):
    """What is asked of every library of arrays on a GPU. ``native`` are its own arrays, ``host`` are NumPy's.

    None of these libraries is imported before it is needed: an array that is met shows that its library is
    there, and ``device="cuda"`` asks for one. An array is described by its address and strides, so that its
    values are not touched.
    """

    on_host: bool = False
    simulated: bool = False  # whether its arrays are in host memory, as the CUDA simulator needs them
    module: str  # where the type of its arrays is defined
    kind: str  # the name of that type

    # What each library does in its own way.

    def describe(self, native: Any, name: str) -> Description:
        """Return where an array lies, or raise a TypeError that says what to pass instead."""

    def on_gpu(self, native: Any) -> bool:
        """Whether an array is on a GPU."""
        return True

    def upload(self, host: Array, device: int) -> Any:
        """Return a copy on the GPU of an array of float16, float32 or float64."""

    def download(self, native: Any) -> Array:
        """Return a copy of a dense array; bfloat16 becomes float32."""

    def current(self) -> int:
        """Return the number of the current device."""

    def count(self) -> int:
        """Return the number of devices."""

    # What follows from it.

    @property
    def backend(self) -> Backend:
        backend: Backend = cuda_module("")
        return backend

    def of(self, native: Any, name: str) -> DeviceArray:
        """Return the array as a `DeviceArray`.

        Raises
        ------
        TypeError, ValueError
            If it is not on a GPU, or has a dtype or addresses that kernels cannot read, or if CUDA is
            simulated and the array is on a real GPU.
        """
        description = self.describe(native, name)
        if config.ENABLE_CUDASIM and not self.simulated:
            raise TypeError(
                f"{name} is a {type_name(native)} on a GPU, but CUDA is simulated in this process, because "
                "NUMBA_ENABLE_CUDASIM is set; unset it, or pass numba.cuda.to_device of a NumPy array"
            )
        _, shape, strides, dtype, _ = description
        if not _has_readable_dtype(dtype):
            raise TypeError(f"{name} has dtype {dtype}, which GPUs cannot read; pass float32")
        itemsize = dtype.itemsize
        if description.address % itemsize or not _are_multiples(shape, strides, itemsize):
            raise ValueError(
                f"{name} has elements at addresses that are no multiples of {itemsize} bytes, which GPUs "
                f"cannot read; copy it to an array made by {self.maker}"
            )
        return DeviceArray(native, self, description)

    def place(self, array: DeviceArray) -> Place:
        return Place(self.name, array.device)

    def to_host(self, array: DeviceArray) -> Array:
        if array.dtype.kind == "f" and not array.flags.c_contiguous:
            array = self._copy(array)  # by a kernel, since Numba copies what is dense only
        return self.download(array.native)

    def put(self, host: Array, device: int) -> Any:
        if host.dtype not in _PUT_DTYPES:
            raise TypeError(f"dtype is {host.dtype}; on a GPU parameters can be float16, float32 and float64")
        return self.upload(host, device)

    def dense(self, array: DeviceArray) -> DeviceArray:
        flags = array.flags
        if flags.c_contiguous or flags.f_contiguous:
            return array
        return array if array.transpose(memory_order(array.strides)).flags.c_contiguous else self._copy(array)

    def writable(self, array: DeviceArray) -> DeviceArray:
        return array

    def empty_like(self, array: DeviceArray, dtype: Any = None) -> DeviceArray:
        dtype = array.dtype if dtype is None else dtype
        if array.flags.c_contiguous:
            return array.empty(array.shape, dtype)
        steps = dense_strides(array.shape, memory_order(array.strides), dtype.itemsize)
        return array.empty(array.shape, dtype, steps)

    def empty_in_order(self, like: DeviceArray, order: tuple[int, ...] | range) -> DeviceArray:
        return like.empty(like.shape, like.dtype, dense_strides(like.shape, order, like.itemsize))

    def empty_vector(self, like: DeviceArray) -> DeviceArray:
        return like.empty(like.shape, like.dtype)

    def constants(
        self, beside: DeviceArray, count: int, values: tuple[float, float]
    ) -> tuple[DeviceArray, ...]:
        arrays = tuple(beside.empty((count,), _FLOAT64) for _ in values)
        for array, value in zip(arrays, values, strict=True):
            array.fill(value)
        return arrays

    def pair(
        self, first: AnyArray, second: AnyArray, count: int, dtype: Any = None
    ) -> tuple[AnyArray, AnyArray]:
        return tuple(None if array is None else array.library.dense(array) for array in (first, second))  # type: ignore[return-value]

    def pairs(self, first: tuple[Any, Any], second: tuple[Any, Any], count: int) -> tuple[Any, Any]:
        return self.pair(*first, count), self.pair(*second, count)

    def assign(self, target: DeviceArray, source: DeviceArray) -> None:
        if target.size:
            cuda_module("copies").copy(target, source)

    def address(self, array: DeviceArray) -> int:
        return array.address

    def addresses(self, array: DeviceArray) -> Array:
        return np.asarray(_Addresses(array))

    def location_text(self, array: DeviceArray) -> str:
        return f"a {type_name(array.native)} on cuda:{array.device}"

    def cast_text(self, name: str, dtype: str) -> str:
        return f"{name}.astype({self.module}.{dtype})"

    def _copy(self, array: DeviceArray) -> DeviceArray:
        """Return a copy without gaps, its axes in the same order in memory."""
        result = self.empty_like(array)
        self.assign(result, array)
        return result


class _Addresses:
    """The interface of a NumPy array whose memory is that of a device: nobody may read there."""

    def __init__(self, array: DeviceArray) -> None:
        self.__array_interface__ = {
            "data": (array.address, True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "version": 3,
        }


@functools.cache
def _has_readable_dtype(dtype: Any) -> bool:
    return bool(dtype.isnative and (dtype.kind != "f" or dtype.itemsize <= 8))


@functools.lru_cache(1024)
def _are_multiples(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    # The stride of an axis of length 1 means nothing.
    return all(step % itemsize == 0 for step, n in zip(strides, shape, strict=True) if n > 1)


def load(module: str) -> Any:
    """Return a library's module; imported only if it was not."""
    return sys.modules.get(module) or importlib.import_module(module)


def described(dtype: Any) -> Any:
    """Return a dtype of NumPy's kind as descriptions have it: that of ml_dtypes becomes ``BFLOAT16``."""
    return dtype if dtype.kind != "V" or dtype.name != "bfloat16" else BFLOAT16


def is_float(dtype: Any) -> bool:
    """Whether it is float16, bfloat16, float32 or float64, in either byte order."""
    return is_half(dtype) or dtype.char in "fd"


def is_half(dtype: Any) -> bool:
    """Whether it is float16, in either byte order, or bfloat16: dtypes of storage, computed in float32."""
    return described(dtype) is BFLOAT16 or dtype.char == "e"


def numpy_dtype(dtype: Any) -> Any:
    """Inverse of `described`."""
    return importlib.import_module("ml_dtypes").bfloat16 if dtype is BFLOAT16 else dtype


def without_bfloat16(host: Array) -> Array:
    """Return a NumPy array of bfloat16 as float32, and any other as it is."""
    return host.astype(np.float32) if described(host.dtype) is BFLOAT16 else host
