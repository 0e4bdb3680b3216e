"""Batch norm with ReLU, and with an addition and ReLU, in each library, as the users of the library write it.

As `benchmarks.libraries`, which has the operations of batch norm alone: the same numbers and the same work
for all, each in a process of its own. The gradients are those of x, gamma and beta, and of the residual where
there is one. PyTorch goes through autograd, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.libraries import (
    BACKWARD,
    BOTH,
    COPY,
    EPS,
    FORWARD,
    NUMBABN,
    ONEDNN,
    ONEDNN_BLOCKED,
    OUT,
    Operations,
    onednn_training,
    steps,
    tensor,
    touched,
)
from tests.support.cases import Case


@dataclass(frozen=True)
class EpilogueCase(Case):
    """One array to normalise, with ReLU, and before it with or without the addition of another array."""

    residual: bool = False

    @property
    def name(self) -> str:
        """Return one label, such as ``relu 32x64x14x14 NCHW`` or ``add+relu 32x64x14x14 NCHW``."""
        return f"{self.epilogue} {super().name}"

    @property
    def epilogue(self) -> str:
        """Return what follows the norm, ``relu`` or ``add+relu``."""
        return "add+relu" if self.residual else "relu"


@dataclass(frozen=True)
class Data:
    """The inputs of one case, the same for every library."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    residual: np.ndarray | None

    @classmethod
    def of(cls, case: EpilogueCase, seed: int = 0) -> Data:
        """Return float32 data for a case; a million normal numbers are repeated to fill large arrays."""
        rng = np.random.default_rng(seed)
        fill = partial(rng.standard_normal, dtype=np.float32)
        x, dy, z = (np.resize(fill(min(case.size, 1_000_003)), case.shape) for _ in range(3))
        return cls(x, dy, fill(case.channels), fill(case.channels), z if case.residual else None)


def numbabn(
    case: EpilogueCase,
    data: Data,
    y: np.ndarray | None = None,
    dx: np.ndarray | None = None,
    dresidual: np.ndarray | None = None,
) -> Operations:
    import numbabn as nbn

    forward = partial(
        nbn.batch_norm_forward, data.x, data.gamma, data.beta,
        axis=case.axis, eps=EPS, activation="relu", residual=data.residual, out=y,
    )  # fmt: skip
    return steps(
        forward, lambda kept: nbn.batch_norm_backward(data.dy, kept[1], out=dx, dresidual_out=dresidual)
    )


def numbabn_out(case: EpilogueCase, data: Data) -> Operations:
    dresidual = touched(case.shape) if case.residual else None
    return numbabn(case, data, touched(case.shape), touched(case.shape), dresidual)


def numbabn_plain(case: EpilogueCase, data: Data, y: np.ndarray | None = None) -> Operations:
    """Return the forward pass of batch norm with nothing after it."""
    import numbabn as nbn

    plain = partial(nbn.batch_norm_forward, data.x, data.gamma, data.beta, axis=case.axis, eps=EPS, out=y)
    return {FORWARD: plain}


def numbabn_plain_out(case: EpilogueCase, data: Data) -> Operations:
    return numbabn_plain(case, data, touched(case.shape))


def numbabn_chain(case: EpilogueCase, data: Data) -> Operations:
    """Return the operations of plain batch norm and NumPy's functions after it."""
    import numbabn as nbn

    def forward():
        v, saved = nbn.batch_norm_forward(data.x, data.gamma, data.beta, axis=case.axis, eps=EPS)
        return np.maximum(v if data.residual is None else v + data.residual, 0), saved

    def backward(kept):
        y, saved = kept
        dv = data.dy * (y > 0)
        gradients = nbn.batch_norm_backward(dv, saved)
        return gradients if data.residual is None else (*gradients, dv)

    return steps(forward, backward)


def pytorch(
    case: EpilogueCase, data: Data, wrap: Callable = lambda function: function, in_place: bool = False
) -> Operations:
    import torch

    def fresh(x, gamma, beta, residual=None):
        v = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
        return torch.relu(v if residual is None else v + residual)

    def reusing(x, gamma, beta, residual=None):
        v = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)
        return (v if residual is None else v.add_(residual)).relu_()

    chain = wrap(reusing if in_place else fresh)
    leaves = [tensor(array, case.layout).requires_grad_() for array in _inputs(data)]
    forward, dy = partial(chain, *leaves), tensor(data.dy, case.layout)
    y = forward()
    return {
        FORWARD: forward,
        BACKWARD: lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        BOTH: lambda: torch.autograd.grad(forward(), leaves, dy),
    }


def pytorch_in_place(case: EpilogueCase, data: Data) -> Operations:
    """Return PyTorch's operations with the least memory: addition and ReLU overwrite the norm's result."""
    return pytorch(case, data, in_place=True)


def torch_compile(case: EpilogueCase, data: Data) -> Operations:
    """Return the forward pass, and both passes.

    The backward pass alone is left out: it overwrites what the forward pass kept, so that it takes place
    once. An option of PyTorch forbids this, at the cost of memory.
    """
    import torch

    torch.compiler.reset()  # a function recompiled for too many shapes would silently run eagerly
    operations = pytorch(case, data, partial(torch.compile, dynamic=False))
    return {name: operations[name] for name in (FORWARD, BOTH)}


def jax(case: EpilogueCase, data: Data) -> Operations:
    import jax
    import jax.numpy as jnp

    arguments, dy = [jnp.array(array) for array in _inputs(data)], jnp.array(data.dy)

    def chain(x, gamma, beta, residual=None):
        mean = jnp.mean(x, axis=case.reduced, keepdims=True)
        var = jnp.var(x, axis=case.reduced, keepdims=True)
        v = (x - mean) * jax.lax.rsqrt(var + EPS) * gamma.reshape(case.broadcast)
        v = v + beta.reshape(case.broadcast)
        return jax.nn.relu(v if residual is None else v + residual)

    forward = jax.jit(chain)
    linearise = jax.jit(lambda *arguments: jax.vjp(chain, *arguments))
    pull_back = jax.jit(lambda pull, dy: pull(dy))
    _, kept = linearise(*arguments)

    def both():
        y, pull = linearise(*arguments)
        _, gradients = jax.block_until_ready((y, pull_back(pull, dy)))
        return gradients

    return {
        FORWARD: lambda: jax.block_until_ready(forward(*arguments)),
        BACKWARD: lambda: jax.block_until_ready(pull_back(kept, dy)),
        BOTH: both,
    }


def _inputs(data: Data) -> list[np.ndarray]:
    """Return what has a gradient: x, gamma, beta, and the residual if there is one."""
    inputs = (data.x, data.gamma, data.beta, data.residual)
    return [array for array in inputs if array is not None]


def onednn(case: EpilogueCase, data: Data) -> Operations:
    """Return oneDNN's operations in the layout of the case; with an addition it has none."""
    from benchmarks.onednn_batch_norm import Plain

    return {} if case.residual else onednn_training(data, Plain(case.axis), relu=True)


def onednn_blocked(case: EpilogueCase, data: Data) -> Operations:
    """Return oneDNN's operations in its own blocked layout, for the cases of NCHW."""
    from benchmarks.onednn_batch_norm import Blocked

    if case.residual or case.layout != "NCHW":
        return {}
    return onednn_training(data, Blocked.of_machine(), relu=True)


def copy(case: EpilogueCase, data: Data) -> Operations:
    """Return functions that only move the bytes of the operations."""
    from benchmarks.floor import adder, adder_and_copier, copier

    y, dx = touched(case.shape), touched(case.shape)
    if data.residual is None:
        forward, backward = copier(data.x, y), adder(data.x, data.dy, dx)
    else:
        forward = adder(data.x, data.residual, y)
        backward = adder_and_copier(data.x, data.dy, dx, touched(case.shape))
    return steps(forward, lambda nothing: backward())


PLAIN, PLAIN_OUT, CHAIN = "plain norm", "plain norm out=", "plain norm, NumPy"
PYTORCH, IN_PLACE, COMPILED, JAX = "PyTorch", "PyTorch in place", "torch.compile", "JAX"
LIBRARIES: Mapping[str, Callable[[EpilogueCase, Data], Operations]] = {
    NUMBABN: numbabn,
    OUT: numbabn_out,
    PLAIN: numbabn_plain,
    PLAIN_OUT: numbabn_plain_out,
    CHAIN: numbabn_chain,
    PYTORCH: pytorch,
    IN_PLACE: pytorch_in_place,
    COMPILED: torch_compile,
    JAX: jax,
    ONEDNN: onednn,
    ONEDNN_BLOCKED: onednn_blocked,
    COPY: copy,
}
