"""One entry per library: the operations as that library's users write them, on one input on the device.

As on the CPU (`benchmarks.libraries`): training forward keeps the batch statistics, backward starts from what
forward kept, results are fresh arrays from the library's own allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks import libraries
from benchmarks.gpu.arrays import ArrayLibrary
from benchmarks.libraries import BACKWARD, COPY, EPS, FORWARD, INFERENCE, NUMBABN, OUT, Data, Operations
from tests.cases import Case

OPERATIONS = (FORWARD, INFERENCE, BACKWARD)
CUPY, NATIVE, CUDNN, COMPILED = "CuPy", "PyTorch native", "PyTorch cuDNN", "torch.compile"
PEERS = (CUPY, NATIVE, CUDNN, COMPILED)

Entry = Callable[[Case, Data, ArrayLibrary], Operations]


def numbabn(case: Case, data: Data, library: ArrayLibrary) -> Operations:
    return libraries.numbabn(case, data)


def numbabn_out(case: Case, data: Data, library: ArrayLibrary) -> Operations:
    return libraries.numbabn(case, data, library.like(data.x), library.like(data.x))


def cupy(case: Case, data: Data, library: ArrayLibrary) -> Operations:
    return libraries.numpy(case, data)  # the same formulas: NumPy's functions on CuPy's arrays are CuPy's


def torch(case: Case, data: Data, library: ArrayLibrary, cudnn: bool) -> Operations:
    """The calls that autograd makes, with or without cuDNN; PyTorch takes its own kernels where it must."""
    import torch

    torch.set_grad_enabled(False)
    aten = torch.ops.aten
    x, dy = (_channels_second(array, case) for array in (data.x, data.dy))
    gamma, beta, mean, var = data.gamma, data.beta, data.mean, data.var

    def forward():
        return aten._batch_norm_impl_index(x, gamma, beta, None, None, True, 0.0, EPS, cudnn)

    def inference():
        return torch.batch_norm(x, gamma, beta, mean, var, False, 0.0, EPS, cudnn)

    def backward(batch_mean, invstd, reserve, implementation):
        return aten._batch_norm_impl_index_backward(
            implementation, x, dy, gamma, None, None, batch_mean, invstd, True, EPS, [True, True, True],
            reserve,
        )  # fmt: skip

    _, *kept = forward()
    return {FORWARD: forward, INFERENCE: inference, BACKWARD: partial(backward, *kept)}


def torch_compiled(case: Case, data: Data, library: ArrayLibrary) -> Operations:
    import torch

    torch.set_grad_enabled(False)
    arrays = (_channels_second(data.x, case), _channels_second(data.dy, case))
    wrap = partial(torch.compile, dynamic=False)
    return libraries.torch_operations(*arrays, data.gamma, data.beta, data.mean, data.var, wrap)


def copy(case: Case, data: Data, library: ArrayLibrary) -> Operations:
    """The floor: a copy on the device, one read and one write. For every operation: a bandwidth."""
    target = library.like(data.x)
    move = partial(library.copy, target, data.x)
    return dict.fromkeys(OPERATIONS, move)


def _channels_second(array, case: Case):
    return array.movedim(-1, 1) if case.layout == "NHWC" else array  # channels_last


# Entry and the array libraries that it works on, the best first.
ENTRIES: Mapping[str, tuple[Entry, tuple[str, ...]]] = {
    NUMBABN: (numbabn, ("cupy", "torch", "numba")),
    OUT: (numbabn_out, ("cupy", "torch", "numba")),
    CUPY: (cupy, ("cupy",)),
    NATIVE: (partial(torch, cudnn=False), ("torch",)),
    CUDNN: (partial(torch, cudnn=True), ("torch",)),
    COMPILED: (torch_compiled, ("torch",)),
    COPY: (copy, ("torch", "cupy", "numba")),
}
