"""PyTorch: CUDA tensors."""

import functools
from typing import Any

import numpy as np

from numbabn.arrays.device import BFLOAT16, Description
from numbabn.arrays.device_library import DeviceLibrary, load
from numbabn.backends.verbs import Array


class Torch(DeviceLibrary):
    """PyTorch. Its strides count elements, and its dtypes are its own; it knows bfloat16."""

    name = module = "torch"
    kind, maker = "Tensor", "torch.empty"

    def describe(self, native: Any, name: str) -> Description:
        device = native.device
        if not self.on_gpu(native):
            given = f"{name}.detach()" if native.requires_grad else name
            if native.dtype is load(self.module).bfloat16:  # which NumPy does not know
                given += ".float()"
            raise TypeError(
                f"{name} must be a NumPy array or on a GPU, not a torch.Tensor on {device}; "
                f"pass {given}.numpy(), or {given}.cuda(); numbabn.torch takes tensors anywhere"
            )
        if native.requires_grad:
            raise TypeError(
                f"{name} is a torch.Tensor that requires grad, of which autograd would lose track; "
                f"pass {name}.detach(), and its gradient through numbabn's backward yourself"
            )
        if native.layout is not load(self.module).strided:
            raise TypeError(f"{name} is a torch.Tensor of layout {native.layout}; pass {name}.to_dense()")
        if native.is_neg():
            raise TypeError(f"{name} is a torch.Tensor with a pending negation; pass {name}.resolve_neg()")
        size = native.element_size()
        return Description(
            native.data_ptr(),
            tuple(native.shape),
            tuple([size * step for step in native.stride()]),
            _from_torch(native.dtype, name),
            device.index,
        )

    def pointer(self, native: Any) -> int:
        return int(native.data_ptr())

    def on_gpu(self, native: Any) -> bool:
        return bool(native.device.type == "cuda")

    def stream(self, native: Any, device: int) -> int:
        return int(load(self.module).cuda.current_stream(device).cuda_stream)

    def empty(
        self, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, device: int, like: Any
    ) -> Any:
        torch = load(self.module)
        options = {"dtype": getattr(torch, dtype.name), "device": torch.device("cuda", device)}
        if strides is None:
            return torch.empty(shape, **options)
        return torch.empty_strided(shape, [step // dtype.itemsize for step in strides], **options)

    def upload(self, host: Array, device: int) -> Any:
        torch = load(self.module)
        return torch.from_numpy(host).to(torch.device("cuda", device))

    def download(self, native: Any) -> Array:
        tensor = native.float() if native.dtype is load(self.module).bfloat16 else native
        result: Array = tensor.cpu().numpy()
        return result

    def current(self) -> int:
        return int(load(self.module).cuda.current_device())

    def count(self) -> int:
        return int(load(self.module).cuda.device_count())

    def cast_text(self, name: str, dtype: str) -> str:
        return f"{name}.to(torch.{dtype})"


@functools.lru_cache(64)
def _from_torch(dtype: Any, name: str) -> Any:
    kind = str(dtype).removeprefix("torch.")
    if kind == "bfloat16":
        return BFLOAT16
    known = getattr(np, kind, None)  # not np.dtype(kind), which may know more once ml_dtypes is imported
    if known is None:
        raise TypeError(f"{name} has dtype {dtype}; pass {name}.to(torch.float32)")
    return np.dtype(known)
