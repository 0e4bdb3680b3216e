"""Every array that a user passes is recognised here, once."""

import functools
from importlib.util import find_spec
from numbers import Number
from typing import Any

import numpy as np

from numbabn._numbers import sequence
from numbabn.arrays.cupy import CuPy
from numbabn.arrays.device import DeviceArray
from numbabn.arrays.device_library import DeviceLibrary, load
from numbabn.arrays.library import AnyArray, Library, type_name
from numbabn.arrays.numba import Numba, Simulated
from numbabn.arrays.numpy import NumPy
from numbabn.arrays.torch import Torch
from numbabn.backends import cuda_module
from numbabn.backends.verbs import Array

_NUMPY = NumPy()
_DEVICE_LIBRARIES: tuple[DeviceLibrary, ...] = (CuPy(), Torch(), Numba(), Simulated())
LIBRARIES: dict[str, Library] = {library.name: library for library in (_NUMPY, *_DEVICE_LIBRARIES)}
_ROOTS = {"cupy": "cupy", "torch": "torch", "numba": "numba", "numba_cuda": "numba"}


def of(array: object, name: str) -> AnyArray:
    """Return a plain NumPy array over the memory of ``array``, or a `DeviceArray`, or say what to pass.

    Raises
    ------
    TypeError
        If it is of no library that is supported. Lists are not converted: a copy nobody asked for, of a dtype
        nobody chose.
    """
    if type(array) is np.ndarray or type(array) is DeviceArray:
        return array
    library = device_library(array)
    if library is not None:
        return library.of(array, name)
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


def library_of(array: AnyArray) -> Library:
    """Return the library of an array that `of` has recognised."""
    return _NUMPY if type(array) is np.ndarray else array.library


def native(array: AnyArray) -> Any:
    """Return what the user gets: the array of its own library."""
    return array if type(array) is np.ndarray else array.native


def beside(array: object, name: str, x: AnyArray) -> AnyArray:
    """Return an array as `of` does, if it lies in the same memory as x.

    Raises
    ------
    TypeError
        If one of the two is on a GPU and the other is not.
    ValueError
        If they are on different GPUs.
    """
    found = of(array, name)
    here, there = library_of(found), library_of(x)
    if here.on_host != there.on_host:
        raise TypeError(
            f"{name} is {location_text(found)}, but x is {location_text(x)}; "
            "pass both as NumPy arrays, or both on the GPU"
        )
    if here.place(found).device != there.place(x).device:
        raise ValueError(
            f"{name} is {location_text(found)}, but x is {location_text(x)}; pass arrays on one device"
        )
    return found


def values_beside(values: object, name: str, x: AnyArray) -> AnyArray:
    """Return an array as `beside` does; a list or tuple of numbers becomes one of float64, where x is.

    Where it is of another library than x, work on x will come after earlier work on it.
    """
    if isinstance(values, Number):
        raise TypeError(
            f"{name} is {values!r}, a single number; pass a NumPy array or a list with all of its values"
        )
    if not isinstance(values, (list, tuple)):
        found = beside(values, name, x)
        follow(x, found)
        return found
    library = library_of(x)
    return of(library.put(sequence(values, name), library.place(x).device), name)


def follow(array: AnyArray, other: AnyArray) -> None:
    """Let later work on an array come after earlier work on one in the same memory, if of another library."""
    if library_of(array) is not library_of(other):
        cuda_module("gpu").follow(array, other)


def of_library(array: object, name: str, x: AnyArray) -> AnyArray:
    """Return an array as `beside` does, if it also is of x's library, whose type and stream results have.

    Raises
    ------
    TypeError, ValueError
        As `beside`, and if the library is another.
    """
    if type(array) is np.ndarray and type(x) is np.ndarray:
        return array
    found = beside(array, name, x)
    if library_of(found) is not library_of(x):
        raise TypeError(
            f"{name} is {location_text(found)}, but x is {location_text(x)}; pass arrays of one library"
        )
    return found


def on_host(array: object, name: str) -> Array:
    """Return a plain NumPy array: a copy of one that is on a GPU."""
    found = of(array, name)
    library = library_of(found)
    return found if library.on_host else library.to_host(found)


def host_copy(array: object, name: str) -> Array:
    """Return a copy in NumPy, wherever the array is; bfloat16 becomes float32."""
    found = of(array, name)
    return library_of(found).to_host(found)


def to_numpy(value: Any, name: str) -> Array:
    """Return values of any kind, or an array of any library wherever it is, as a NumPy array."""
    library = device_library(value)
    on_gpu = library.on_gpu(value) if library else hasattr(value, "__cuda_array_interface__")
    if library is not None and not on_gpu:  # a tensor of PyTorch on the CPU, which may be a parameter
        return library.download(value.detach())
    return on_host(value, name) if on_gpu else np.asarray(value)


def location_text(array: AnyArray) -> str:
    """Say what an array is and where, for messages."""
    return library_of(array).location_text(array)


def device_library(array: object) -> DeviceLibrary | None:
    """Return the library of an array whose type is, or derives from, that of a library of GPU arrays."""
    array_type: Any = type(array)
    return _library_of_type(array_type)


@functools.lru_cache(256)
def _library_of_type(array_type: Any) -> DeviceLibrary | None:
    for base in array_type.__mro__:
        module = _ROOTS.get(base.__module__.partition(".")[0])
        for library in _DEVICE_LIBRARIES:
            if library.module == module and library.kind == base.__name__:
                return library
    return None


def default_device_library() -> DeviceLibrary:
    """Return the library that ``device="cuda"`` stands for: CuPy, else PyTorch, else Numba."""
    cupy, torch, numba, simulator = _DEVICE_LIBRARIES
    if cuda_module("gpu").SIMULATED:
        return simulator
    if find_spec("cupy"):
        return cupy
    if find_spec("torch") and load("torch").cuda.is_available():
        return torch
    return numba
