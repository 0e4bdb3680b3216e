"""Where the arrays of a layer are, what ``device=`` may be, and the way there and back through NumPy."""

from typing import Any, NamedTuple

import numpy as np

from numbabn._arrays import AnyArray, Array, DeviceArray, known, type_name
from numbabn._libraries import LIBRARIES, default_library, library_of


class Place(NamedTuple):
    """Where the arrays of a layer are: the name of a library and the number of a device."""

    library: str  # its name in LIBRARIES, or numpy
    device: int

    def put(self, host: Array) -> Any:
        """Return a copy of a NumPy array there, as an array of the library."""
        if self == HOST:
            return host.copy()
        if host.dtype not in _DEVICE_DTYPES:
            raise TypeError(f"dtype is {host.dtype}; on a GPU parameters can be float16, float32 and float64")
        return LIBRARIES[self.library].upload(host, self.device)

    def __str__(self) -> str:
        return "cpu" if self == HOST else f"cuda:{self.device}"


HOST = Place("numpy", 0)
_DEVICE_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def place_of(array: AnyArray) -> Place:
    """Return where an array is."""
    if type(array) is DeviceArray:
        return Place(_NAMES[array.library], array.device)
    return HOST


_NAMES = {library: name for name, library in LIBRARIES.items()}


def place(device: object) -> Place:
    """Return the place that "cpu", "cuda", "cuda:1" or an array stands for.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If there is no such device.
    """
    if isinstance(device, str):
        return _named_place(device)
    if isinstance(device, np.ndarray) or library_of(device) is not None:
        return place_of(known(device, "device"))
    raise TypeError(
        f"device must be 'cpu', 'cuda', 'cuda:0' or an array on the device, not {type_name(device)}"
    )


def _named_place(device: str) -> Place:
    if device == "cpu":
        return HOST
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device must be 'cpu', 'cuda' or a number such as 'cuda:0', not {device!r}")
    name = default_library()
    library = LIBRARIES[name]
    if not colon:
        return Place(name, library.current())
    if int(number) >= library.count():
        raise ValueError(f"device is {device!r}, but {library.module} sees {library.count()} of them")
    return Place(name, int(number))


def to_host(array: AnyArray) -> Array:
    """Return a copy in NumPy; bfloat16 becomes float32."""
    if type(array) is not DeviceArray:
        return array.copy()
    if array.dtype.kind == "f" and not array.flags.c_contiguous:
        array = array.copy()  # by a kernel, since Numba copies what is dense only
    return array.library.download(array.native)


def gathered(value: object, name: str) -> Array:
    """Return values of any kind, or an array of any library wherever it is, as a NumPy array."""
    library = library_of(value)
    on_gpu = library.on_gpu(value) if library else hasattr(value, "__cuda_array_interface__")
    return to_host(known(value, name)) if on_gpu else np.asarray(value)
