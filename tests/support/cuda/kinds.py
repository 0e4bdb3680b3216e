"""A library under test, whichever it is, and arrays for it in every memory order."""

from types import SimpleNamespace

import numpy as np

from numbabn.backends.strides import memory_order

F32 = np.float32


class Kind:
    """A library under test: how to make its arrays, and how to look into them."""

    def __init__(self, name, module):
        self.name, self.module, self.current = name, module, module.current

    def array(self, host, device=0):
        """Return a copy of ``host`` with its strides, on a device."""
        before, self.current.device = self.current.device, device
        # The memory around a view comes along, so that strides of any sign and size stay what they are.
        whole = host if host.base is None else host.base
        whole = np.array(whole, order="K")
        offset = host.__array_interface__["data"][0] - _base(host).__array_interface__["data"][0]
        view = np.ndarray(host.shape, host.dtype, _flat(whole), offset, host.strides)
        made = self.over(view, device)
        self.current.device = before
        return made

    def over(self, view, device=0):
        """Return an array over the memory of a NumPy array."""
        if self.name == "torch":
            return self.module.Tensor(view, getattr(self.module, view.dtype.name), self.gpu(device))
        if self.name == "numba":
            return self.module.DeviceNDArrayBase(view)
        whole = SimpleNamespace(data=SimpleNamespace(device_id=device, memory=view))
        return self.module.view(whole, view)

    def gpu(self, device):
        return self.module.device("cuda", device)

    def is_mine(self, native):
        kind = {"cupy": "ndarray", "torch": "Tensor", "numba": "DeviceNDArrayBase"}[self.name]
        return type(native) is getattr(self.module, kind)

    def device_of(self, native):
        if self.name == "torch":
            return native.device.index
        return native.data.device_id if self.name == "cupy" else native.gpu_data.context.device.id


def _base(host):
    return host if host.base is None else host.base


def _flat(whole):
    """Bytes of an array without gaps."""
    return np.ndarray(whole.nbytes, np.uint8, whole.transpose(memory_order(whole.strides)))


def normal(*shape, dtype=F32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


VIEWS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "NHWC": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)).transpose(0, 3, 1, 2),
    "every other": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "every other sample": lambda x: np.repeat(x, 2, axis=0)[1::2],
}
