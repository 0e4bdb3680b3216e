"""Arrays of every library behind one face: NumPy's as they are, those on a GPU as a `DeviceArray`.

What is written for one kind works for the other: a `DeviceArray` has what the library uses of an ``ndarray``
under the same names. The few functions here hide what differs.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np

from numbabn._backends import cuda_module
from numbabn._libraries import Description, Library, library_of

Array: TypeAlias = np.ndarray[Any, Any]


class Flags(NamedTuple):
    """What of ``ndarray.flags`` is looked at."""

    c_contiguous: bool
    f_contiguous: bool
    aligned: bool = True
    writeable: bool = True


@final  # so that its type can be compared, which is faster than isinstance
class DeviceArray:
    """An array on a GPU: where its elements lie, and the array of its library that keeps them alive."""

    __slots__ = ("address", "device", "dtype", "library", "native", "shape", "strides")

    def __init__(self, native: Any, library: Library, description: Description) -> None:
        self.native = native
        self.library = library
        self.address, self.shape, self.strides, self.dtype, self.device = description

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def parameter(self) -> tuple[int, int]:
        """What kernels take for an array of any float dtype: address, and kind as in ``_cuda.plan``."""
        return self.address, _kind(self.dtype)

    @property
    def stream(self) -> int:
        """Handle of the stream that the library would now use for this array."""
        return self.library.stream(self.native, self.device)

    @property
    def flags(self) -> Flags:
        """As ``ndarray.flags``."""
        return _flags(self.shape, self.strides, self.itemsize)

    def transpose(self, order: tuple[int, ...]) -> "DeviceArray":
        """Return a view with the axes in another order."""
        return self._view(tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order))

    def ravel(self) -> "DeviceArray":
        """Return a view of one axis; the array must be in C order without gaps."""
        return self._view((self.size,), (self.itemsize,))

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "DeviceArray":
        description = Description(self.address, shape, strides, self.dtype, self.device)
        return DeviceArray(self.native, self.library, description)

    def empty(
        self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None
    ) -> "DeviceArray":
        """Return a new array of the same library and device: in C order, or with strides without gaps."""
        library, device = self.library, self.device
        native = library.empty(shape, strides, dtype, device, self.native)
        steps = strides or _steps(shape, range(len(shape)), dtype.itemsize)
        return DeviceArray(native, library, Description(library.address(native), shape, steps, dtype, device))

    def empty_like(self) -> "DeviceArray":
        """Return a new array without gaps, its axes in the same order in memory."""
        if self.flags.c_contiguous:
            return self.empty(self.shape, self.dtype)
        steps = _steps(self.shape, memory_order(self.strides), self.itemsize)
        return self.empty(self.shape, self.dtype, steps)

    def copy(self, order: str = "K") -> "DeviceArray":
        """Return a copy as `empty_like` lays it out; ``order`` can only be "K"."""
        result = self.empty_like()
        assign(result, self)
        return result

    def fill(self, value: float) -> None:
        """Set all elements of an array in C order."""
        if self.size:
            cuda_module("copies").fill(self, value)


AnyArray: TypeAlias = Array | DeviceArray


@functools.lru_cache(1024)
def _flags(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Flags:
    axes = [(n, step) for n, step in zip(shape, strides, strict=True) if n != 1]
    return Flags(_packed(axes[::-1], itemsize), _packed(axes, itemsize))


def _packed(axes: list[tuple[int, int]], step: int) -> bool:
    """Whether the axes, from the fastest to the slowest, leave no gaps."""
    for n, stride in axes:
        if stride != step:
            return any(n == 0 for n, _ in axes)
        step *= n
    return True


@functools.lru_cache(1024)
def _steps(shape: tuple[int, ...], order: tuple[int, ...] | range, itemsize: int) -> tuple[int, ...]:
    """Strides of an array without gaps; ``order`` is that of the axes in memory, the slowest first."""
    steps = [0] * len(shape)
    for axis in reversed(order):
        steps[axis] = itemsize
        itemsize *= shape[axis]
    return tuple(steps)


@functools.cache
def _kind(dtype: Any) -> int:
    kind: int = cuda_module("plan").KINDS[dtype.name]
    return kind


def known(array: object, name: str) -> AnyArray:
    """Return a plain NumPy array over the memory of ``array``, or a `DeviceArray`, or say what to pass.

    Raises
    ------
    TypeError
        If it is of no library that is supported. Lists are not converted: a copy nobody asked for, of a dtype
        nobody chose.
    """
    if type(array) is np.ndarray or type(array) is DeviceArray:
        return array
    library = library_of(array)
    if library is not None:
        return _on_device(array, library, name)
    kind = type_name(array)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be ignored; pass {name}.filled(value)")
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    if hasattr(array, "__cuda_array_interface__"):
        raise TypeError(
            f"{name} is a {kind} on a GPU, of a library that is not supported; "
            f"pass cupy.asarray({name}), or a NumPy array"
        )
    if hasattr(array, "__array__") or hasattr(array, "__dlpack__"):
        raise TypeError(f"{name} must be a NumPy array, not {kind}; pass numpy.asarray({name})")
    raise TypeError(
        f"{name} must be a NumPy array, not {kind}; pass numpy.asarray({name}, dtype=numpy.float32)"
    )


def beside(array: object, name: str, x: AnyArray) -> AnyArray:
    """Return an array as `known` does, if it lies in the same memory as x.

    Raises
    ------
    TypeError
        If one of the two is on a GPU and the other is not.
    ValueError
        If they are on different GPUs.
    """
    if type(array) is np.ndarray and type(x) is np.ndarray:
        return array
    found = known(array, name)
    if (type(found) is DeviceArray) != (type(x) is DeviceArray):
        raise TypeError(
            f"{name} is {where(found)}, but x is {where(x)}; pass both as NumPy arrays, or both on the GPU"
        )
    if type(found) is DeviceArray and type(x) is DeviceArray and found.device != x.device:
        raise ValueError(f"{name} is {where(found)}, but x is {where(x)}; pass arrays on one device")
    return found


def of_library(array: object, name: str, x: AnyArray) -> AnyArray:
    """Return an array as `beside` does, if it is of the library of x: results are, and their streams."""
    found = beside(array, name, x)
    if type(found) is DeviceArray and type(x) is DeviceArray and found.library is not x.library:
        raise TypeError(f"{name} is {where(found)}, but x is {where(x)}; pass arrays of one library")
    return found


def native(array: AnyArray) -> Any:
    """Return what the user gets: the array of its own library."""
    return array.native if type(array) is DeviceArray else array


def where(array: AnyArray) -> str:
    """Say what an array is and where, for messages."""
    if type(array) is DeviceArray:
        return f"a {type_name(array.native)} on cuda:{array.device}"
    return "a NumPy array"


def cast(array: AnyArray, name: str, dtype: str) -> str:
    """Return how one writes an array in another dtype, for messages."""
    if type(array) is DeviceArray:
        return array.library.cast(name, dtype)
    return f"{name}.astype(numpy.{dtype})"


def maker(array: AnyArray) -> str:
    """Return the function that makes such arrays, for messages."""
    return array.library.maker if type(array) is DeviceArray else "numpy.empty"


def vector(like: AnyArray) -> AnyArray:
    """Return a new array of one value per channel, in the library and dtype of ``like``; native bytes."""
    if type(like) is DeviceArray:
        return like.empty(like.shape, like.dtype)
    return np.empty(like.shape, like.dtype if like.dtype.isnative else like.dtype.newbyteorder("="))


def statistics(x: AnyArray, channels: int, value: float) -> AnyArray:
    """Return one float64 value per channel beside x, the same for all."""
    if type(x) is DeviceArray:
        result = x.empty((channels,), np.dtype(np.float64))
        result.fill(value)
        return result
    return np.full(channels, value)


def assign(target: AnyArray, source: AnyArray) -> None:
    """Copy the elements of one array to another of the same shape, whatever their strides."""
    if type(target) is DeviceArray:
        if target.size:
            cuda_module("copies").copy(target, source)
    else:
        target[...] = source


def memory_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Axes from the largest stride to the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda i: -abs(strides[i])))


def span(array: AnyArray) -> Array:
    """Return a NumPy array whose addresses are those of the array: to compare them, never to look there."""
    if type(array) is not DeviceArray:
        return array
    return np.asarray(_Interface(array))


def address(array: AnyArray) -> int:
    """Address of the first element."""
    if type(array) is DeviceArray:
        return array.address
    first: int = array.__array_interface__["data"][0]
    return first


class _Interface:
    def __init__(self, array: DeviceArray) -> None:
        self.__array_interface__ = {
            "data": (array.address, True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "version": 3,
        }


def _on_device(array: Any, library: Library, name: str) -> DeviceArray:
    description = library.describe(array, name)
    _, _, strides, dtype, _ = description
    if not _has_readable_dtype(dtype):
        raise TypeError(f"{name} has dtype {dtype}, which GPUs cannot read; pass float32")
    itemsize = dtype.itemsize
    if description.address % itemsize or not _are_multiples(strides, itemsize):
        raise ValueError(
            f"{name} has elements at addresses that are no multiples of {itemsize} bytes, which GPUs cannot "
            f"read; copy it to an array made by {library.maker}"
        )
    return DeviceArray(array, library, description)


def type_name(array: object) -> str:
    """Name of the type, with its module, for messages."""
    return f"{type(array).__module__}.{type(array).__qualname__}"


@functools.cache
def _has_readable_dtype(dtype: Any) -> bool:
    return bool(dtype.isnative and (dtype.kind != "f" or dtype.itemsize <= 8))


@functools.lru_cache(1024)
def _are_multiples(strides: tuple[int, ...], itemsize: int) -> bool:
    return all(step % itemsize == 0 for step in strides)
