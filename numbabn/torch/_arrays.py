"""Tensors as the arrays that numbabn takes, and back: always the same memory, never a copy."""

import functools
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numbabn.arrays import AnyArray, native, of
from numbabn.arrays.memory import empty_like, keeps


def array_of(tensor: Tensor) -> Any:
    """Return a NumPy array over the memory of a tensor on the CPU; of one on a GPU the tensor, detached."""
    plain = tensor.detach()
    if not plain.is_cpu:
        return plain
    if plain.dtype is torch.bfloat16:  # which NumPy has from ml_dtypes alone
        return plain.view(torch.int16).numpy().view(_bfloat16())
    return plain.numpy()


def optional_array(tensor: Tensor | None) -> Any:
    """Return the array of a tensor, and None of None."""
    return None if tensor is None else array_of(tensor)


def recognised(tensor: Tensor) -> AnyArray:
    """Return the array of a tensor as backends take it."""
    return of(array_of(tensor), "tensor")


def tensor_of(array: AnyArray) -> Tensor:
    """Return a tensor over the memory of an array that a backend made."""
    found = native(array)
    if isinstance(found, Tensor):
        return found
    if found.dtype.kind == "V":
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(found)


def result_like(x: Tensor) -> Tensor:
    """Return an uninitialised tensor of the shape, dtype and memory format of x.

    A large one lies in memory of numbabn, which keeps its pages: see `numbabn.arrays.memory`. PyTorch gives
    such memory back to the system whenever a tensor dies. The result is no view, which PyTorch would not let
    one change in place. Its storage cannot be resized, as no other that has been shared with NumPy.
    """
    if not x.is_cpu or not keeps(x.nbytes):
        return torch.empty_like(x)
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return tensor_of(empty_like(array_of(x if dense else torch.empty_like(x))))


@functools.cache
def _bfloat16() -> Any:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
