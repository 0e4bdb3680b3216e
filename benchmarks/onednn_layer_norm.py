"""Layer norm by oneDNN."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

import numpy as np

from benchmarks.onednn_session import BACKWARD, FORWARD_TRAINING, SCALE_AND_SHIFT, Role, Session, aligned

KIND = "layer_normalization"
FORWARD_ROLES = (Role.SRC, Role.SCALE, Role.SHIFT, Role.DST, Role.MEAN, Role.VARIANCE)
BACKWARD_ROLES = (  # without SHIFT, which the formula does not need, oneDNN returns invalid_arguments
    Role.DIFF_DST, Role.SRC, Role.MEAN, Role.VARIANCE, Role.SCALE, Role.SHIFT,
    Role.DIFF_SRC, Role.DIFF_SCALE, Role.DIFF_SHIFT,
)  # fmt: skip


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
        self._arrays = {role: aligned(array) for role, array in values.items()}
        with ExitStack() as owner:
            session = Session(owner)
            memory = {
                role: session.memory(session.strided(array), array) for role, array in self._arrays.items()
            }
            data, row = (session.strided(self._arrays[role]) for role in (Role.SRC, Role.MEAN))
            options = row, eps, SCALE_AND_SHIFT
            forward = session.descriptor(KIND, "forward", FORWARD_TRAINING, data, data, *options)
            backward = session.descriptor(KIND, "backward", BACKWARD, data, data, data, *options, forward)
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
