"""Arrays on a GPU, of whatever library: where the elements lie, and the array that keeps them alive."""

import functools
import math
from typing import Any, NamedTuple, Protocol, final

from numbabn.backends import cuda_module
from numbabn.backends.strides import dense_strides


class BFloat16:
    """The dtype bfloat16, which NumPy lacks, for parameters; ``BFLOAT16`` is its only instance."""

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
    dtype: Any
    device: int


class Owner(Protocol):
    """What an array on a GPU asks of its library. ``native`` are the library's own arrays."""

    def pointer(self, native: Any) -> int:
        """Return the address of an array that `DeviceLibrary.describe` would not refuse."""

    def stream(self, native: Any, device: int) -> int:
        """Return the handle of the stream that the library would now use for this array."""

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        """Return a new array without values, in C order or with strides that leave no gaps.

        ``like`` is the array that it is a result for, or None.
        """


class Flags(NamedTuple):
    """The flags of ``ndarray.flags`` that are read."""

    c_contiguous: bool
    f_contiguous: bool
    aligned: bool = True
    writeable: bool = True

    @property
    def carray(self) -> bool:
        """Whether kernels take the array as it is: in C order, aligned and writeable."""
        return self.c_contiguous and self.aligned and self.writeable


@final  # so that its type can be compared, which is faster than isinstance
class DeviceArray:
    """An array on a GPU, with what is used of an ``ndarray`` under the same names."""

    __slots__ = ("address", "device", "dtype", "library", "native", "shape", "strides")

    def __init__(self, native: Any, library: Owner, description: Description) -> None:
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
        itemsize: int = self.dtype.itemsize
        return itemsize

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

    def reshape(self, shape: tuple[int, ...]) -> "DeviceArray":
        """Return a view in another shape; the array must be in C order without gaps."""
        return self._view(shape, dense_strides(shape, range(len(shape)), self.itemsize))

    def _view(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "DeviceArray":
        description = Description(self.address, shape, strides, self.dtype, self.device)
        return DeviceArray(self.native, self.library, description)

    def empty(
        self, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None
    ) -> "DeviceArray":
        """Return a new array of the same library and device: in C order, or with strides without gaps."""
        library, device = self.library, self.device
        native = library.empty(shape, strides, dtype, device, self.native)
        steps = strides or dense_strides(shape, range(len(shape)), dtype.itemsize)
        return DeviceArray(native, library, Description(library.pointer(native), shape, steps, dtype, device))

    def fill(self, value: float) -> None:
        """Set all elements of an array in C order."""
        if self.size:
            cuda_module("copies").fill(self, value)


@functools.lru_cache(1024)
def _flags(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Flags:
    axes = [(n, step) for n, step in zip(shape, strides, strict=True) if n != 1]
    return Flags(_are_packed(axes[::-1], itemsize), _are_packed(axes, itemsize))


def _are_packed(axes: list[tuple[int, int]], step: int) -> bool:
    """Whether the axes, (length, stride) from the fastest to the slowest, leave no gaps."""
    for n, stride in axes:
        if stride != step:
            return any(n == 0 for n, _ in axes)
        step *= n
    return True
