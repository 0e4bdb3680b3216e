"""Batch norm by oneDNN, in the layouts of NumPy's users and in oneDNN's own, alone or with ReLU in one pass.

oneDNN 3.2 has batch norm with an addition and ReLU (``fuse_norm_add_relu``) on GPUs alone: on a CPU it
answers "unimplemented", in every layout.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from ctypes import c_void_p
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.onednn_session import BACKWARD, FORWARD_TRAINING, SCALE_AND_SHIFT, Role, Session, aligned

KIND = "batch_normalization"
FUSE_RELU, FUSE_ADD_RELU = 8, 16  # of dnnl_normalization_flags_t
FORWARD_ROLES = (Role.SRC, Role.SCALE, Role.SHIFT, Role.DST, Role.MEAN, Role.VARIANCE)
BACKWARD_ROLES = (
    Role.DIFF_DST, Role.SRC, Role.MEAN, Role.VARIANCE, Role.SCALE,
    Role.DIFF_SRC, Role.DIFF_SCALE, Role.DIFF_SHIFT,
)  # fmt: skip
TAGS = {16: 78, 8: 102}  # channels in a block -> dnnl_nChw16c, dnnl_nChw8c


class Layout(Protocol):
    """How oneDNN holds an array of four axes."""

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Return an array's values in the order in memory, as a contiguous array."""

    def restored(self, stored: np.ndarray) -> np.ndarray:
        """Return the array whose values ``stored`` has; the inverse of `stored`."""

    def describe(self, session: Session, stored: np.ndarray) -> c_void_p:
        """Return oneDNN's descriptor of a stored array."""


@dataclass(frozen=True)
class Plain:
    """A layout of NumPy's users: NCHW, whose channels are on axis 1, or NHWC, with axis -1."""

    axis: int

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def restored(self, stored: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return stored

    def describe(self, session: Session, stored: np.ndarray) -> c_void_p:
        """Return oneDNN's descriptor of an array, whose axes it calls N, C, H, W in any layout."""
        return session.strided(np.moveaxis(stored, self.axis, 1))


@dataclass(frozen=True)
class Blocked:
    """A layout of oneDNN's own for arrays of NCHW, such as nChw8c.

    The channels come in blocks; those of a block are beside each other in memory.
    """

    block: int

    @classmethod
    def of_machine(cls) -> Blocked:
        """Return the layout with the widest blocks that oneDNN has machine code for.

        With AVX-512 that is nChw16c, with AVX2 nChw8c. In any other width oneDNN falls back to its reference
        implementation, which is slower by far.
        """
        with ExitStack() as owner:
            session = Session(owner)
            for block, tag in TAGS.items():
                data = session.tagged((1, block, 1, 1), tag)
                options = data, data, 0.0, SCALE_AND_SHIFT
                forward = session.descriptor(KIND, "forward", FORWARD_TRAINING, *options)
                if "jit" in session.implementation(forward):
                    return cls(block)
        raise RuntimeError("oneDNN has a reference implementation alone for blocks of channels")

    @property
    def name(self) -> str:
        """Return what oneDNN calls the layout."""
        return f"nChw{self.block}c"

    def stored(self, array: np.ndarray) -> np.ndarray:
        """Return a contiguous array of N, blocks, H, W and the channels of a block."""
        n, c, h, w = array.shape
        if c % self.block:
            raise ValueError(f"{self.name} takes a multiple of {self.block} channels, not {c}")
        return np.ascontiguousarray(
            array.reshape(n, c // self.block, self.block, h, w).transpose(0, 1, 3, 4, 2)
        )

    def restored(self, stored: np.ndarray) -> np.ndarray:
        """Return the array of NCHW whose values ``stored`` has."""
        n, blocks, h, w, block = stored.shape
        return stored.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)

    def describe(self, session: Session, stored: np.ndarray) -> c_void_p:
        """Return oneDNN's descriptor of a stored array."""
        n, blocks, h, w, block = stored.shape
        return session.tagged((n, blocks * block, h, w), TAGS[block])


class Options(NamedTuple):
    """What oneDNN is to compute: in which layout, with what added to the variance, and what follows."""

    layout: Layout
    eps: float
    relu: bool = False


class BatchNorm:
    """Batch norm of one x and one dy with or without ReLU, forward for training and backward.

    x and dy are NCHW; in the layout ``Plain(-1)`` they are NHWC. Memory and primitives are made once, and
    every call writes into the same results. oneDNN's objects are destroyed with the instance. The arrays
    belong to NumPy; oneDNN only points to them.
    """

    def __init__(self, x: np.ndarray, dy: np.ndarray, gamma: np.ndarray, beta: np.ndarray, options: Options):
        layout = self._layout = options.layout
        data = {Role.SRC: x, Role.DST: np.zeros_like(x), Role.DIFF_DST: dy, Role.DIFF_SRC: np.zeros_like(x)}
        channels = {
            Role.SCALE: gamma, Role.SHIFT: beta, Role.MEAN: gamma, Role.VARIANCE: gamma,
            Role.DIFF_SCALE: gamma, Role.DIFF_SHIFT: beta,
        }  # fmt: skip
        stored = {role: aligned(layout.stored(array)) for role, array in data.items()}
        self._arrays = stored | {role: aligned(array) for role, array in channels.items()}
        with ExitStack() as owner:
            session = Session(owner)
            like_x = layout.describe(session, stored[Role.SRC])
            memory = {role: session.memory(like_x, array) for role, array in stored.items()}
            for role in channels:
                array = self._arrays[role]
                memory[role] = session.memory(session.strided(array), array)
            flags = options.eps, SCALE_AND_SHIFT | (FUSE_RELU if options.relu else 0)
            forward = session.descriptor(KIND, "forward", FORWARD_TRAINING, like_x, like_x, *flags)
            backward = session.descriptor(KIND, "backward", BACKWARD, like_x, like_x, like_x, *flags, forward)
            kept: tuple[Role, ...] = ()
            if options.relu:  # where y is positive
                kept = (Role.WORKSPACE,)
                memory[Role.WORKSPACE], self._arrays[Role.WORKSPACE] = session.workspace(forward)
            self._forward = session.call(forward, {role: memory[role] for role in (*FORWARD_ROLES, *kept)})
            self._backward = session.call(backward, {role: memory[role] for role in (*BACKWARD_ROLES, *kept)})
            self.implementations = session.implementation(forward), session.implementation(backward)
            weakref.finalize(self, owner.pop_all().close)

    def forward(self) -> np.ndarray:
        """Compute y, and keep for backward what it needs; y is in the order of memory."""
        self._forward()
        return self._arrays[Role.DST]

    def backward(self) -> tuple[np.ndarray, ...]:
        """Compute dx, dgamma and dbeta from what the last forward pass kept; dx is in the order of memory."""
        self._backward()
        return tuple(self._arrays[role] for role in (Role.DIFF_SRC, Role.DIFF_SCALE, Role.DIFF_SHIFT))
