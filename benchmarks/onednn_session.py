"""oneDNN 3.2, called through the C functions of the wheel ``onednn-cpu-gomp``.

The wheel holds one shared library for Linux on x86-64, which computes with GNU OpenMP. What ctypes takes for
a call, some microseconds, is in the times.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from enum import IntEnum
from functools import partial
from importlib import metadata

import numpy as np

from tests.support.cases import FLOAT32_BYTES

DISTRIBUTION = "onednn-cpu-gomp"
LIBRARY = "libdnnl.so.3"
ALIGNMENT = 64  # bytes of a cache line, and of the widest vector

# Values of enumerations in oneDNN's dnnl_types.h and dnnl_common_types.h.
CPU, IN_ORDER, FLOAT32 = 1, 1, 3
FORWARD_TRAINING, BACKWARD = 64, 128
SCALE_AND_SHIFT = 2 | 4
IMPLEMENTATION_NAME, WORKSPACE_DESCRIPTION = 8, 135


class Role(IntEnum):
    """What an array is to a primitive, as oneDNN calls and numbers it."""

    SRC = 1
    DST = 17
    MEAN = 49
    VARIANCE = 50
    SCALE = 51
    SHIFT = 52
    WORKSPACE = 64
    DIFF_SRC = 129
    DIFF_DST = 145
    DIFF_SCALE = 255
    DIFF_SHIFT = 256


class Argument(ctypes.Structure):
    """``dnnl_exec_arg_t``: a memory object, and what it is to the primitive."""

    _fields_ = (("role", c_int), ("memory", c_void_p))


Sizes = c_int64 * 12  # dnnl_dims_t
NEW, KNOWN = POINTER(c_void_p), c_void_p  # where a function writes the handle of a new object; such a handle
SIGNATURES = {
    "engine_create": (NEW, c_int, c_size_t),
    "stream_create": (NEW, KNOWN, c_uint),
    "stream_wait": (KNOWN,),
    "memory_desc_create_with_strides": (NEW, c_int, Sizes, c_int, Sizes),
    "memory_desc_create_with_tag": (NEW, c_int, Sizes, c_int, c_int),
    "memory_create": (NEW, KNOWN, KNOWN, c_void_p),
    "batch_normalization_forward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, c_float, c_uint, KNOWN
    ),
    "batch_normalization_backward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, KNOWN, c_float, c_uint, KNOWN, KNOWN
    ),
    "layer_normalization_forward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, KNOWN, c_float, c_uint, KNOWN
    ),
    "layer_normalization_backward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, KNOWN, KNOWN, c_float, c_uint, KNOWN, KNOWN
    ),
    "primitive_desc_query": (KNOWN, c_int, c_int, c_void_p),
    "primitive_create": (NEW, KNOWN),
    "primitive_execute": (KNOWN, KNOWN, c_int, POINTER(Argument)),
    **dict.fromkeys(("engine_destroy", "stream_destroy", "memory_desc_destroy"), (KNOWN,)),
    **dict.fromkeys(("memory_destroy", "primitive_desc_destroy", "primitive_destroy"), (KNOWN,)),
}  # fmt: skip


def aligned(values: np.ndarray) -> np.ndarray:
    """Return a copy as a contiguous float32 array that starts at a multiple of 64 bytes."""
    array = aligned_bytes(values.size * FLOAT32_BYTES).view(np.float32).reshape(values.shape)
    array[...] = values
    return array


def aligned_bytes(count: int) -> np.ndarray:
    """Return an array of uint8 that starts at a multiple of 64 bytes; its contents are left open."""
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count]


def _functions() -> dict[str, Callable[..., object]]:
    """Return oneDNN's functions; each raises a RuntimeError if oneDNN refuses or fails."""
    files = metadata.distribution(DISTRIBUTION).files or []  # an ImportError if it is not installed
    path = next((file.locate() for file in files if file.name == LIBRARY), None)
    if path is None:
        raise ImportError(f"{DISTRIBUTION} has no {LIBRARY}")
    library = ctypes.CDLL(str(path))
    library.dnnl_status2str.restype = c_char_p

    def check(status, function, arguments):
        if status != 0:
            raise RuntimeError(f"oneDNN: {function.__name__}: {library.dnnl_status2str(status).decode()}")

    found = {}
    for name, types in SIGNATURES.items():
        function = found[name] = library[f"dnnl_{name}"]
        function.argtypes, function.errcheck = types, check
    size = found["memory_desc_get_size"] = library.dnnl_memory_desc_get_size  # returns no status
    size.argtypes, size.restype = (KNOWN,), c_size_t
    return found


class Session:
    """A stream on the CPU and what is made for it.

    When ``owner`` is closed, it destroys oneDNN's objects, the last one first.
    """

    def __init__(self, owner: ExitStack):
        self._owner = owner
        self._functions = _functions()
        self._engine = self._new("engine", "engine_create", CPU, 0)
        self._stream = self._new("stream", "stream_create", self._engine, IN_ORDER)

    def _new(self, kind: str, create: str, *arguments: object) -> c_void_p:
        handle = c_void_p()
        self._functions[create](handle, *arguments)
        self._owner.callback(self._functions[f"{kind}_destroy"], handle)
        return handle

    def strided(self, array: np.ndarray) -> c_void_p:
        """Return a descriptor of a float32 array's shape and strides."""
        strides = (stride // array.itemsize for stride in array.strides)
        sizes = Sizes(*array.shape), FLOAT32, Sizes(*strides)
        return self._new("memory_desc", "memory_desc_create_with_strides", array.ndim, *sizes)

    def tagged(self, shape: tuple[int, ...], tag: int) -> c_void_p:
        """Return a descriptor of float32 values of a logical shape in a layout of oneDNN's own."""
        return self._new(
            "memory_desc", "memory_desc_create_with_tag", len(shape), Sizes(*shape), FLOAT32, tag
        )

    def memory(self, description: c_void_p, array: np.ndarray) -> c_void_p:
        """Return a memory object that points to an array, which the caller has to keep."""
        return self._new("memory", "memory_create", description, self._engine, array.ctypes.data)

    def descriptor(self, kind: str, direction: str, prop: int, *arguments: object) -> c_void_p:
        """Return the descriptor of a primitive, such as ``layer_normalization`` ``forward``.

        The arguments are those of its C function between the kind of propagation and the attributes.
        """
        create = f"{kind}_{direction}_primitive_desc_create"
        return self._new("primitive_desc", create, self._engine, prop, *arguments, None)

    def implementation(self, descriptor: c_void_p) -> str:
        """Return the name of the implementation that oneDNN has chosen, such as ``bnorm_jit:avx2``."""
        name = c_char_p()
        self._functions["primitive_desc_query"](descriptor, IMPLEMENTATION_NAME, 0, ctypes.byref(name))
        return (name.value or b"").decode()

    def workspace(self, descriptor: c_void_p) -> tuple[c_void_p, np.ndarray]:
        """Return a memory object for what a forward primitive leaves to backward, and its array."""
        description = c_void_p()  # it belongs to the descriptor
        self._functions["primitive_desc_query"](
            descriptor, WORKSPACE_DESCRIPTION, 0, ctypes.byref(description)
        )
        array = aligned_bytes(self._functions["memory_desc_get_size"](description))
        array[:] = 0
        return self.memory(description, array), array

    def call(self, description: c_void_p, arguments: Mapping[Role, c_void_p]) -> Callable[[], None]:
        """Return a function that runs a new primitive on these arguments and waits for its end."""
        primitive = self._new("primitive", "primitive_create", description)
        array = (Argument * len(arguments))(*((role, memory.value) for role, memory in arguments.items()))
        execute = partial(self._functions["primitive_execute"], primitive, self._stream, len(array), array)
        wait = partial(self._functions["stream_wait"], self._stream)

        def run() -> None:
            execute()
            wait()

        return run
