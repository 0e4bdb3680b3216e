"""The four operations of batch normalisation in each library, written as the users of the library write them.

`LIBRARIES` has one entry per library. Every entry gets the same numbers and does the same work: training
forward returns y and keeps the batch statistics, without an update of running averages; backward starts from
what forward kept and returns dx, dgamma and dbeta. Each entry holds its inputs in memory of its own library,
so that none is slowed by the alignment of another library's memory.

A framework is imported by its own entry only, because the report gives each entry a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.cases import Case

if TYPE_CHECKING:
    from benchmarks.onednn_batch_norm import Layout

FORWARD, INFERENCE, BACKWARD, BOTH = "train forward", "inference", "backward", "forward+backward"
OPERATIONS = (FORWARD, INFERENCE, BACKWARD, BOTH)
EPS = 1e-5
LAYER_BYTES = 1_000_000  # with larger arrays the layer's own cost per call is too small to be seen

Operations = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Data:
    """The inputs of one case, the same for every library."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray

    @classmethod
    def of(cls, case: Case, seed: int = 0) -> Data:
        """Return float32 data for a case; a million normal numbers are repeated to fill large arrays."""
        rng = np.random.default_rng(seed)
        fill = partial(rng.standard_normal, dtype=np.float32)
        x, dy = (np.resize(fill(min(case.size, 1_000_003)), case.shape) for _ in range(2))
        gamma, beta, mean = (fill(case.channels) for _ in range(3))
        return cls(x, dy, gamma, beta, mean, rng.uniform(0.5, 2, case.channels).astype(np.float32))


def steps(forward: Callable[[], Any], backward: Callable[[Any], object]) -> Operations:
    """Return the operations of a forward pass, and a backward pass of what the forward pass returns."""
    kept = forward()
    return {FORWARD: forward, BACKWARD: partial(backward, kept), BOTH: lambda: backward(forward())}


def touched(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros in pages that exist; those of np.zeros would come into being in the timed call."""
    return np.full(shape, 0, np.float32)


def numbabn(case: Case, data: Data, y: np.ndarray | None = None, dx: np.ndarray | None = None) -> Operations:
    import numbabn as nbn

    forward = partial(nbn.batch_norm_forward, data.x, data.gamma, data.beta, axis=case.axis, eps=EPS, out=y)
    inference = partial(
        nbn.batch_norm_inference, data.x, data.mean, data.var, data.gamma, data.beta,
        axis=case.axis, eps=EPS, out=y,
    )  # fmt: skip
    _, kept = forward()

    def both():
        result, saved = forward()
        return result, nbn.batch_norm_backward(data.dy, saved, out=dx)

    backward = partial(nbn.batch_norm_backward, data.dy, kept, out=dx)
    return {FORWARD: forward, INFERENCE: inference, BACKWARD: backward, BOTH: both}


def numbabn_out(case: Case, data: Data) -> Operations:
    return numbabn(case, data, touched(case.shape), touched(case.shape))


def numbabn_layer(case: Case, data: Data) -> Operations:
    import numbabn as nbn

    if case.nbytes > LAYER_BYTES:
        return {}
    training, evaluating = (nbn.BatchNorm(case.channels, axis=case.axis) for _ in range(2))
    evaluating.eval()
    training(data.x)

    def both():
        return training(data.x), training.backward(data.dy)

    return {
        FORWARD: partial(training, data.x),
        INFERENCE: partial(evaluating, data.x),
        BACKWARD: partial(training.backward, data.dy),
        BOTH: both,
    }


def numpy(case: Case, data: Data) -> Operations:
    x, dy, axes, m = data.x, data.dy, case.reduced, case.count
    gamma, beta, mean, var = (a.reshape(case.broadcast) for a in (data.gamma, data.beta, data.mean, data.var))

    def forward():
        batch_mean = x.mean(axis=axes, keepdims=True)
        std = np.sqrt(x.var(axis=axes, keepdims=True) + EPS)
        xhat = (x - batch_mean) / std
        return gamma * xhat + beta, xhat, std

    def inference():
        return (x - mean) / np.sqrt(var + EPS) * gamma + beta

    def backward(xhat, std):
        dgamma = (dy * xhat).sum(axis=axes, keepdims=True)
        dbeta = dy.sum(axis=axes, keepdims=True)
        dx = gamma / std / m * (m * dy - dbeta - xhat * dgamma)
        return dx, dgamma, dbeta

    def both():
        y, xhat, std = forward()
        return y, backward(xhat, std)

    _, *kept = forward()
    return {FORWARD: forward, INFERENCE: inference, BACKWARD: partial(backward, *kept), BOTH: both}


def pytorch(case: Case, data: Data, wrap: Callable = lambda function: function) -> Operations:
    """Return PyTorch's cheapest operations: the calls that autograd makes, without its bookkeeping."""
    import torch

    torch.set_grad_enabled(False)

    arrays = (data.x, data.dy, data.gamma, data.beta, data.mean, data.var)
    return torch_operations(*(tensor(array, case.layout) for array in arrays), wrap=wrap)


def tensor(array: np.ndarray, layout: str) -> Any:
    """Return a copy as a tensor of PyTorch, an array of NHWC as NCHW in PyTorch's channels_last."""
    import torch

    own = torch.from_numpy(array).clone()  # clone() makes PyTorch align the memory to 64 bytes
    return own.movedim(-1, 1) if array.ndim == 4 and layout == "NHWC" else own


def torch_operations(x, dy, gamma, beta, mean, var, wrap: Callable = lambda function: function) -> Operations:
    """Return PyTorch's operations on tensors of any device; ``wrap`` is applied to their functions."""
    import torch

    @wrap
    def forward(x, gamma, beta):
        return torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)

    @wrap
    def inference(x, mean, var, gamma, beta):
        return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, eps=EPS)

    @wrap
    def backward(dy, x, gamma, batch_mean, invstd):
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, batch_mean, invstd, True, EPS, [True, True, True]
        )

    def both():
        y, batch_mean, invstd = forward(x, gamma, beta)
        return y, backward(dy, x, gamma, batch_mean, invstd)

    _, *kept = forward(x, gamma, beta)
    return {
        FORWARD: partial(forward, x, gamma, beta),
        INFERENCE: partial(inference, x, mean, var, gamma, beta),
        BACKWARD: partial(backward, dy, x, gamma, *kept),
        BOTH: both,
    }


def torch_compile(case: Case, data: Data) -> Operations:
    import torch

    torch.compiler.reset()  # a function recompiled for too many shapes would silently run eagerly
    return pytorch(case, data, partial(torch.compile, dynamic=False))


def jax(case: Case, data: Data) -> Operations:
    import jax
    import jax.numpy as jnp

    x, dy = jnp.array(data.x), jnp.array(data.dy)
    gamma, beta, mean, var = (
        jnp.array(a.reshape(case.broadcast)) for a in (data.gamma, data.beta, data.mean, data.var)
    )

    def normalise(x, mean, var, gamma, beta):
        return (x - mean) * jax.lax.rsqrt(var + EPS) * gamma + beta

    def train(x, gamma, beta):
        batch_mean = jnp.mean(x, axis=case.reduced, keepdims=True)
        batch_var = jnp.var(x, axis=case.reduced, keepdims=True)
        return normalise(x, batch_mean, batch_var, gamma, beta), (batch_mean, batch_var)

    forward = jax.jit(train)
    evaluate = jax.jit(normalise)
    linearise = jax.jit(lambda *arguments: jax.vjp(train, *arguments, has_aux=True))
    pull_back = jax.jit(lambda pull, dy: pull(dy))
    _, kept, _ = linearise(x, gamma, beta)

    def both():
        y, pull, _ = linearise(x, gamma, beta)
        return jax.block_until_ready((y, pull_back(pull, dy)))

    return {
        FORWARD: lambda: jax.block_until_ready(forward(x, gamma, beta)),
        INFERENCE: lambda: jax.block_until_ready(evaluate(x, mean, var, gamma, beta)),
        BACKWARD: lambda: jax.block_until_ready(pull_back(kept, dy)),
        BOTH: both,
    }


def onednn(case: Case, data: Data) -> Operations:
    """Return oneDNN's operations in the layout of the case."""
    from benchmarks.onednn_batch_norm import Plain

    return onednn_training(data, Plain(case.axis))


def onednn_blocked(case: Case, data: Data) -> Operations:
    """Return oneDNN's operations in its own layout, for the cases of NCHW whose channels fill its blocks."""
    from benchmarks.onednn_batch_norm import Blocked

    layout = Blocked.of_machine()
    if case.layout != "NCHW" or case.channels % layout.block:
        return {}
    return onednn_training(data, layout)


def onednn_training(data: Any, layout: Layout, relu: bool = False) -> Operations:
    """Return oneDNN's operations of training in a layout; they write into the same memory at every call.

    ``data`` has x, dy, gamma and beta.
    """
    from benchmarks.onednn_batch_norm import BatchNorm, Options

    norm = BatchNorm(data.x, data.dy, data.gamma, data.beta, Options(layout, EPS, relu))
    return steps(norm.forward, lambda y: norm.backward())


def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()


def copy(case: Case, data: Data) -> Operations:
    from benchmarks.floor import adder, copier

    forward = copier(data.x, touched(case.shape))
    backward = adder(data.x, data.dy, touched(case.shape))
    return _floor(forward, backward)


def numpy_copy(case: Case, data: Data) -> Operations:
    forward = partial(np.copyto, touched(case.shape), data.x)
    backward = partial(np.add, data.x, data.dy, out=touched(case.shape))
    return _floor(forward, backward)


def _floor(forward: Callable[[], object], backward: Callable[[], object]) -> Operations:
    both = partial(_in_turn, forward, backward)
    return {FORWARD: forward, INFERENCE: forward, BACKWARD: backward, BOTH: both}


NUMBABN, OUT, LAYER, COPY = "numbabn", "numbabn out=", "numbabn layer", "copy"
ONEDNN, ONEDNN_BLOCKED = "oneDNN", "oneDNN blocked"
PEERS = ("NumPy", "PyTorch", "torch.compile", "JAX")
LIBRARIES: Mapping[str, Callable[[Case, Data], Operations]] = {
    NUMBABN: numbabn,
    OUT: numbabn_out,
    LAYER: numbabn_layer,
    "NumPy": numpy,
    "PyTorch": pytorch,
    "torch.compile": torch_compile,
    "JAX": jax,
    ONEDNN: onednn,
    ONEDNN_BLOCKED: onednn_blocked,
    COPY: copy,
    "NumPy copy": numpy_copy,
}
