"""Layer, RMS, group and instance norm in each library, written as the users of the library write them.

As `benchmarks.libraries`, which has the operations of batch norm: the same numbers and the same work for all,
each in a process of its own. PyTorch's backward passes are the calls that autograd makes, without its
bookkeeping; where autograd makes no single call, for RMS and instance norm, they go through it. oneDNN has
layer norm alone and writes into the same results at every call, as numbabn does with ``out=``.
"""

from __future__ import annotations

import math
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
    LAYER,
    LAYER_BYTES,
    NUMBABN,
    ONEDNN,
    OUT,
    Operations,
    steps,
    tensor,
    touched,
)
from benchmarks.libraries import copy as copied
from tests.support.cases import FLOAT32_BYTES

GROUPS = 32


@dataclass(frozen=True)
class FamilyCase:
    """One array and a norm: layer and RMS norm over the last axis, group and instance norm with a layout."""

    norm: str  # as the functions are called: layer, rms, group, instance
    shape: tuple[int, ...]
    layout: str = "rows"

    @property
    def name(self) -> str:
        """Return one label, such as ``layer 32x768`` or ``group 32x64x56x56 NCHW``."""
        label = f"{self.norm} {'x'.join(map(str, self.shape))}"
        return label if self.layout == "rows" else f"{label} {self.layout}"

    @property
    def axis(self) -> int:
        """Return the axis of the parameters."""
        return -1 if self.layout == "rows" else self.layout.index("C")

    @property
    def parameters(self) -> int:
        """Return the number of values of gamma."""
        return self.shape[self.axis]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size of the array in bytes when it holds float32."""
        return FLOAT32_BYTES * self.size


@dataclass(frozen=True)
class Data:
    """The inputs of one case, the same for every library."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray

    @classmethod
    def of(cls, case: FamilyCase, seed: int = 0) -> Data:
        """Return float32 data for a case; a million normal numbers are repeated to fill large arrays."""
        rng = np.random.default_rng(seed)
        fill = partial(rng.standard_normal, dtype=np.float32)
        x, dy = (np.resize(fill(min(case.size, 1_000_003)), case.shape) for _ in range(2))
        return cls(x, dy, fill(case.parameters), fill(case.parameters))


def numbabn(
    case: FamilyCase, data: Data, y: np.ndarray | None = None, dx: np.ndarray | None = None
) -> Operations:
    import numbabn as nbn

    groups = (GROUPS,) if case.norm == "group" else ()
    beta = () if case.norm == "rms" else (data.beta,)
    forward = getattr(nbn, f"{case.norm}_norm_forward")
    backward = getattr(nbn, f"{case.norm}_norm_backward")
    return steps(
        partial(forward, data.x, *groups, data.gamma, *beta, axis=case.axis, eps=EPS, out=y),
        lambda kept: backward(data.dy, kept[1], out=dx),
    )


def numbabn_out(case: FamilyCase, data: Data) -> Operations:
    return numbabn(case, data, touched(case.shape), touched(case.shape))


def numbabn_layer(case: FamilyCase, data: Data) -> Operations:
    import numbabn as nbn

    if case.nbytes > LAYER_BYTES:
        return {}
    layer = {
        "layer": lambda: nbn.LayerNorm(case.parameters),
        "rms": lambda: nbn.RMSNorm(case.parameters),
        "group": lambda: nbn.GroupNorm(GROUPS, case.parameters, axis=case.axis),
        "instance": lambda: nbn.InstanceNorm(case.parameters, axis=case.axis, scale=True, center=True),
    }[case.norm]()
    return steps(partial(layer, data.x), lambda y: layer.backward(data.dy))


def pytorch(case: FamilyCase, data: Data, wrap: Callable = lambda function: function) -> Operations:
    import torch

    arrays = (data.x, data.dy, data.gamma, data.beta)
    x, dy, gamma, beta = (tensor(array, case.layout) for array in arrays)
    single = case.norm in ("layer", "group")
    torch.set_grad_enabled(not single)
    if single:
        return _torch_calls(case, x, dy, gamma, beta, wrap)
    return _torch_autograd(case, x, dy, gamma, beta, wrap)


def _torch_calls(case: FamilyCase, x, dy, gamma, beta, wrap) -> Operations:
    """Return the operations of layer and group norm, which are one call each."""
    import torch

    calls, everything = torch.ops.aten, [True, True, True]
    shape, n, c = list(case.shape[-1:]), x.shape[0], x.shape[1]
    pixels = math.prod(x.shape[2:])

    @wrap
    def forward(x, gamma, beta):
        if case.norm == "layer":
            return torch.native_layer_norm(x, shape, gamma, beta, EPS)
        return calls.native_group_norm(x, gamma, beta, n, c, pixels, GROUPS, EPS)

    @wrap
    def backward(dy, x, mean, invstd, gamma, beta):
        if case.norm == "layer":
            return calls.native_layer_norm_backward(dy, x, shape, mean, invstd, gamma, beta, everything)
        return calls.native_group_norm_backward(dy, x, mean, invstd, gamma, n, c, pixels, GROUPS, everything)

    return steps(partial(forward, x, gamma, beta), lambda kept: backward(dy, x, *kept[1:], gamma, beta))


def _torch_autograd(case: FamilyCase, x, dy, gamma, beta, wrap) -> Operations:
    """Return the operations of RMS and instance norm, which are several calls each."""
    import torch

    rms = case.norm == "rms"
    inputs = (x, gamma) if rms else (x, gamma, beta)
    functional = torch.nn.functional

    @wrap
    def norm(x, gamma, beta=None):
        if rms:
            return functional.rms_norm(x, x.shape[-1:], gamma, EPS)
        return functional.instance_norm(x, weight=gamma, bias=beta, eps=EPS)

    def forward():
        with torch.no_grad():
            return norm(*inputs)

    leaves = [leaf.requires_grad_() for leaf in inputs]
    y = norm(*leaves)
    return {
        FORWARD: forward,
        BACKWARD: lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
        BOTH: lambda: torch.autograd.grad(norm(*leaves), leaves, dy),
    }


def torch_compile(case: FamilyCase, data: Data) -> Operations:
    import torch

    torch.compiler.reset()  # a function recompiled for too many shapes would silently run eagerly
    return pytorch(case, data, partial(torch.compile, dynamic=False))


def jax(case: FamilyCase, data: Data) -> Operations:
    import jax
    import jax.numpy as jnp

    x, dy, gamma, beta = map(jnp.array, (data.x, data.dy, data.gamma, data.beta))
    parameter = [1] * len(case.shape)
    parameter[case.axis] = case.parameters

    def normalised(x):
        if case.norm == "rms":
            return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)
        shape, axes = _grouped(case)
        values = x.reshape(shape)
        mean = jnp.mean(values, axis=axes, keepdims=True)
        var = jnp.var(values, axis=axes, keepdims=True)
        return ((values - mean) * jax.lax.rsqrt(var + EPS)).reshape(x.shape)

    def norm(x, gamma, beta):
        y = normalised(x) * gamma.reshape(parameter)
        return y if case.norm == "rms" else y + beta.reshape(parameter)

    forward = jax.jit(norm)
    linearise = jax.jit(lambda *arguments: jax.vjp(norm, *arguments))
    pull_back = jax.jit(lambda pull, dy: pull(dy))
    _, kept = linearise(x, gamma, beta)

    def both():
        y, pull = linearise(x, gamma, beta)
        return jax.block_until_ready((y, pull_back(pull, dy)))

    return {
        FORWARD: lambda: jax.block_until_ready(forward(x, gamma, beta)),
        BACKWARD: lambda: jax.block_until_ready(pull_back(kept, dy)),
        BOTH: both,
    }


def _grouped(case: FamilyCase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return x's shape with an axis of groups, and the axes that one statistic is taken over."""
    if case.norm == "layer":
        return case.shape, (-1,)
    groups = GROUPS if case.norm == "group" else case.parameters
    members = case.parameters // groups
    shape = (*case.shape[: case.axis], groups, members, *case.shape[case.axis + 1 :])
    return shape, tuple(axis for axis in range(1, len(shape)) if axis != case.axis)


def onednn(case: FamilyCase, data: Data) -> Operations:
    """Return the operations of layer norm, the one of these norms that oneDNN 3.2 has.

    Group norm is left out: it came with oneDNN 3.3, whose wheels need the runtimes of SYCL and TBB; none of
    them is built with GNU OpenMP.
    """
    from benchmarks.onednn_layer_norm import LayerNorm

    if case.norm != "layer":
        return {}
    norm = LayerNorm(data.x, data.dy, data.gamma, data.beta, EPS)
    return steps(norm.forward, lambda y: norm.backward())


def copy(case: FamilyCase, data: Data) -> Operations:
    operations = copied(case, data)
    return {name: operations[name] for name in (FORWARD, BACKWARD, BOTH)}


LIBRARIES: Mapping[str, Callable[[FamilyCase, Data], Operations]] = {
    NUMBABN: numbabn,
    OUT: numbabn_out,
    LAYER: numbabn_layer,
    "PyTorch": pytorch,
    "torch.compile": torch_compile,
    "JAX": jax,
    ONEDNN: onednn,
    COPY: copy,
}
