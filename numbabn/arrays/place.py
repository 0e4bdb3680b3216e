"""What ``device=`` may be."""

from typing import Any

import numpy as np

from numbabn.arrays.door import LIBRARIES, default_device_library, device_library, library_of, of
from numbabn.arrays.library import HOST, Place, type_name
from numbabn.backends.verbs import Array


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
    if isinstance(device, np.ndarray) or device_library(device) is not None:
        array = of(device, "device")
        return library_of(array).place(array)
    raise TypeError(
        f"device must be 'cpu', 'cuda', 'cuda:0' or an array on the device, not {type_name(device)}"
    )


def _named_place(device: str) -> Place:
    if device == "cpu":
        return HOST
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device must be 'cpu', 'cuda' or a number such as 'cuda:0', not {device!r}")
    library = default_device_library()
    if not colon:
        return Place(library.name, library.current())
    if int(number) >= library.count():
        raise ValueError(f"device is {device!r}, but {library.module} sees {library.count()} of them")
    return Place(library.name, int(number))


def put(host: Array, place: Place) -> Any:
    """Return a copy of a NumPy array at a place, as an array of the library there."""
    return LIBRARIES[place.library].put(host, place.device)
