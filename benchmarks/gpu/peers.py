"""One entry per library: the operations as that library's users write them, on one input on the device.

As on the CPU (`benchmarks.libraries`): training forward keeps the batch statistics, backward starts from what
forward kept, results are fresh arrays from the library's own allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from numba import cuda

from benchmarks import libraries
from benchmarks.libraries import BACKWARD, COPY, EPS, FORWARD, INFERENCE, NUMBABN, OUT, Data, Operations
from tests.support.cases import Case

OPERATIONS = (FORWARD, INFERENCE, BACKWARD)
CUPY, NATIVE, CUDNN, COMPILED = PEERS = ("CuPy", "PyTorch native", "PyTorch cuDNN", "torch.compile")


def numbabn_out(case: Case, data: Data) -> Operations:
    made = libraries.numbabn(case, data)
    return libraries.numbabn(case, data, made[FORWARD]()[0], made[BACKWARD]()[0])


def torch(case: Case, data: Data, cudnn: bool) -> Operations:
    """The calls that autograd makes, with cuDNN (where it has a kernel) or with PyTorch's own kernels."""
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


def torch_compiled(case: Case, data: Data) -> Operations:
    import torch

    torch.set_grad_enabled(False)
    arrays = (_channels_second(data.x, case), _channels_second(data.dy, case))
    wrap = partial(torch.compile, dynamic=False)
    return libraries.torch_operations(*arrays, data.gamma, data.beta, data.mean, data.var, wrap)


def copy(case: Case, data: Data) -> Operations:
    """The floor, the same for every operation: a copy on the device, which reads and writes an array once.

    Numba's copy is a memcpy, as PyTorch's ``copy_`` is; ``cupy.copyto`` runs a kernel.
    """
    target = cuda.device_array(case.shape, data.x.dtype)
    return dict.fromkeys(OPERATIONS, partial(target.copy_to_device, data.x))


def _channels_second(array, case: Case):
    return array.movedim(-1, 1) if case.layout == "NHWC" else array  # channels_last


# Entry and the array libraries that it works on, the best first.
ENTRIES: Mapping[str, tuple[Callable[[Case, Data], Operations], tuple[str, ...]]] = {
    NUMBABN: (libraries.numbabn, ("cupy", "torch", "numba")),
    OUT: (numbabn_out, ("cupy", "torch", "numba")),
    CUPY: (libraries.numpy, ("cupy",)),  # the same formulas: NumPy's functions on CuPy's arrays are CuPy's
    NATIVE: (partial(torch, cudnn=False), ("torch",)),
    CUDNN: (partial(torch, cudnn=True), ("torch",)),
    COMPILED: (torch_compiled, ("torch",)),
    COPY: (copy, ("numba",)),
}
