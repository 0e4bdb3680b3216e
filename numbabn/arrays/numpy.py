"""NumPy: arrays in the memory of the host, and the CPU backend that works on them."""

from typing import Any

import numpy as np

from numbabn.arrays import memory
from numbabn.arrays.library import HOST, Library, Place
from numbabn.backends import cpu
from numbabn.backends.cpu.quiet import quiet
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import Array, Backend

_FLOAT64 = np.dtype(np.float64)  # made once: astype takes a fifth less time than with the type


class NumPy(Library):
    """NumPy. Its arrays are used as they are."""

    name, maker, on_host = "numpy", "numpy.empty", True
    backend: Backend = cpu

    def place(self, array: Array) -> Place:
        return HOST

    def to_host(self, array: Array) -> Array:
        return array.copy()

    def put(self, host: Array, device: int) -> Array:
        return host.copy()

    def dense(self, array: Array) -> Array:
        flags = array.flags
        if flags.carray and array.dtype.isnative:  # most arrays, found out at once
            return array
        if not (flags.aligned and array.dtype.isnative):
            return array.astype(array.dtype.newbyteorder("="), order="K")
        # C or Fortran order is found out faster.
        if flags.forc or array.transpose(memory_order(array.strides)).flags.c_contiguous:
            return writable(array)
        return array.copy("K")

    def writable(self, array: Array) -> Array:
        return writable(array)

    empty_like = staticmethod(memory.empty_like)  # a method would add a call for every small array

    def empty_in_order(self, like: Array, order: tuple[int, ...] | range) -> Array:
        in_order: Array = np.empty([like.shape[i] for i in order], like.dtype)
        return in_order.transpose(sorted(range(like.ndim), key=order.__getitem__))

    def empty_vector(self, like: Array) -> Array:
        dtype = like.dtype
        return np.empty(like.shape, dtype if dtype.isnative else dtype.newbyteorder("="))

    def constants(self, beside: Array, count: int, values: tuple[float, float]) -> Array:
        pair = np.empty((2, count))
        pair[0], pair[1] = values
        return pair

    def pair(
        self, first: Array | None, second: Array | None, count: int, dtype: np.dtype[Any] = _FLOAT64
    ) -> tuple[Array, Array]:
        # A signalling NaN warns, and so does what is beyond the dtype, which becomes infinity.
        return quiet().run(_pair, first, second, count, dtype)

    def pairs(
        self, first: tuple[Any, Any], second: tuple[Any, Any], count: int
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        return quiet().run(_pairs, first, second, count)

    def assign(self, target: Array, source: Array) -> None:
        target[...] = source

    def address(self, array: Array) -> int:
        first: int = array.__array_interface__["data"][0]
        return first

    def addresses(self, array: Array) -> Array:
        return array

    def location_text(self, array: Array) -> str:
        return "a NumPy array"

    def cast_text(self, name: str, dtype: str) -> str:
        return f"{name}.astype({'ml_dtypes' if dtype == 'bfloat16' else 'numpy'}.{dtype})"


def writable(array: Array) -> Array:
    """Return an array over the same memory that may be written to, though nobody does.

    Numba has another type for read-only arrays, and would compile all kernels once more for it.
    """
    if array.flags.writeable:
        return array
    result: Array = np.asarray(_Writable(array)).view(array.dtype)  # bfloat16 has no name in the interface
    return result


class _Writable:
    """The memory of an array, which it keeps alive, without the mark that it is read-only."""

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = interface["data"][0], False
        self.__array_interface__, self.array = interface, array


def _pair(first: Array | None, second: Array | None, count: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    return (
        np.ones(count, dtype) if first is None else first.astype(dtype),
        np.zeros(count, dtype) if second is None else second.astype(dtype),
    )


def _pairs(
    first: tuple[Any, Any], second: tuple[Any, Any], count: int
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (a, b), (c, d) = first, second
    return (
        np.ones(count) if a is None else a.astype(_FLOAT64),
        np.zeros(count) if b is None else b.astype(_FLOAT64),
    ), (c.astype(_FLOAT64), d.astype(_FLOAT64))
