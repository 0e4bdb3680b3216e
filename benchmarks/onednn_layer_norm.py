"""Layer norm by oneDNN 3.2, called through the C functions of the wheel ``onednn-cpu-gomp``.

The wheel holds one shared library for Linux on x86-64, which computes with GNU OpenMP. What ctypes takes for
a call, some microseconds, is in the times.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
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


class Role(IntEnum):
    """What an array is to a primitive, as oneDNN calls and numbers it."""

    SRC = 1
    DST = 17
    MEAN = 49
    VARIANCE = 50
    SCALE = 51
    SHIFT = 52
    DIFF_SRC = 129
    DIFF_DST = 145
    DIFF_SCALE = 255
    DIFF_SHIFT = 256


FORWARD_ROLES = (Role.SRC, Role.SCALE, Role.SHIFT, Role.DST, Role.MEAN, Role.VARIANCE)
BACKWARD_ROLES = (  # without SHIFT, which the formula does not need, oneDNN returns invalid_arguments
    Role.DIFF_DST, Role.SRC, Role.MEAN, Role.VARIANCE, Role.SCALE, Role.SHIFT,
    Role.DIFF_SRC, Role.DIFF_SCALE, Role.DIFF_SHIFT,
)  # fmt: skip


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
    "memory_create": (NEW, KNOWN, KNOWN, c_void_p),
    "layer_normalization_forward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, KNOWN, c_float, c_uint, KNOWN
    ),
    "layer_normalization_backward_primitive_desc_create": (
        NEW, KNOWN, c_int, KNOWN, KNOWN, KNOWN, KNOWN, c_float, c_uint, KNOWN, KNOWN
    ),
    "primitive_create": (NEW, KNOWN),
    "primitive_execute": (KNOWN, KNOWN, c_int, POINTER(Argument)),
    **dict.fromkeys(("engine_destroy", "stream_destroy", "memory_desc_destroy"), (KNOWN,)),
    **dict.fromkeys(("memory_destroy", "primitive_desc_destroy", "primitive_destroy"), (KNOWN,)),
}  # fmt: skip


def _functions() -> dict[str, Callable[..., object]]:
    """Return oneDNN's functions; each raises a RuntimeError if oneDNN refuses or fails."""
    files = metadata.distribution(DISTRIBUTION).files or []  # an ImportError if it is not installed
    path = next((file.locate() for file in files if file.name == LIBRARY), None)
    if path is None:
        raise ImportError(f"{DISTRIBUTION} has no {LIBRARY}")
    library = ctypes.CDLL(str(path))
    library.dnnl_status2str.restype = ctypes.c_char_p

    def check(status, function, arguments):
        if status != 0:
            raise RuntimeError(f"oneDNN: {function.__name__}: {library.dnnl_status2str(status).decode()}")

    found = {}
    for name, types in SIGNATURES.items():
        function = found[name] = library[f"dnnl_{name}"]
        function.argtypes, function.errcheck = types, check
    return found


class _Session:
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

    def description(self, array: np.ndarray) -> c_void_p:
        """Return a descriptor of a float32 array's shape and strides."""
        strides = (stride // array.itemsize for stride in array.strides)
        sizes = Sizes(*array.shape), FLOAT32, Sizes(*strides)
        return self._new("memory_desc", "memory_desc_create_with_strides", array.ndim, *sizes)

    def memory(self, array: np.ndarray) -> c_void_p:
        """Return a memory object that points to an array, which the caller has to keep."""
        return self._new("memory", "memory_create", self.description(array), self._engine, array.ctypes.data)

    def layer_norm(self, direction: str, kind: int, *arguments: object) -> c_void_p:
        """Return the descriptor of a layer norm primitive; the arguments are those before its attributes."""
        create = f"layer_normalization_{direction}_primitive_desc_create"
        return self._new("primitive_desc", create, self._engine, kind, *arguments, None)

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


def _aligned(values: np.ndarray) -> np.ndarray:
    """Return a copy as a contiguous float32 array that starts at a multiple of 64 bytes."""
    raw = np.empty(values.size * FLOAT32_BYTES + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array = raw[start : start + values.size * FLOAT32_BYTES].view(np.float32).reshape(values.shape)
    array[...] = values
    return array


class LayerNorm:
    """Layer norm of one x and one dy over the last axis, forward for training and backward.

    Memory and primitives are made once, and every call writes into the same results. oneDNN's objects are
    destroyed with the instance. The arrays belong to NumPy; oneDNN only points to them.
    """

    def __init__(self, x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float):
        y, statistics = np.zeros(x.shape), np.zeros(x.shape[:-1])
        values = {
            Role.SRC: x, Role.SCALE: gamma, Role.SHIFT: beta,
            Role.DST: y, Role.MEAN: statistics, Role.VARIANCE: statistics,
            Role.DIFF_DST: dy, Role.DIFF_SRC: y, Role.DIFF_SCALE: gamma, Role.DIFF_SHIFT: beta,
        }  # fmt: skip
        self._arrays = {role: _aligned(array) for role, array in values.items()}
        with ExitStack() as owner:
            session = _Session(owner)
            memory = {role: session.memory(array) for role, array in self._arrays.items()}
            data, row = (session.description(self._arrays[role]) for role in (Role.SRC, Role.MEAN))
            options = row, eps, SCALE_AND_SHIFT
            forward = session.layer_norm("forward", FORWARD_TRAINING, data, data, *options)
            backward = session.layer_norm("backward", BACKWARD, data, data, data, *options, forward)
            self._forward = session.call(forward, {role: memory[role] for role in FORWARD_ROLES})
            self._backward = session.call(backward, {role: memory[role] for role in BACKWARD_ROLES})
            weakref.finalize(self, owner.pop_all().close)

    def forward(self) -> np.ndarray:
        """Compute y, and keep mean and variance for backward."""
        self._forward()
        return self._arrays[Role.DST]

    def backward(self) -> tuple[np.ndarray, ...]:
        """Compute dx, dgamma and dbeta from what the last forward pass kept."""
        self._backward()
        return tuple(self._arrays[role] for role in (Role.DIFF_SRC, Role.DIFF_SCALE, Role.DIFF_SHIFT))
