"""Threads: PyTorch's number, and one pool for both libraries."""

from pathlib import Path

import pytest

from tests.support.jit import needs_jit
from tests.support.processes import run_python

pytestmark = needs_jit


def test_the_number_of_pytorch_stays():
    """Numba's pool, when it starts, would set it to its own."""
    program = """
import torch
torch.set_num_threads(1)
import numbabn.torch
numbabn.torch.BatchNorm2d(64)(torch.randn(8, 64, 56, 56))
print(torch.get_num_threads())
"""
    assert run_python(program).split()[-1] == "1"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("first", ["torch", "numba"])
def test_one_pool(first):
    """After a parallel call of numbabn, one of PyTorch starts no thread, whichever was imported first."""
    program = f"""
import os
import {first}
if "{first}" == "numba":
    numba.get_num_threads()  # starts the pool
import torch
import numbabn.torch
x = torch.randn(8, 64, 56, 56)
numbabn.torch.BatchNorm2d(64)(x)
before = len(os.listdir("/proc/self/task"))
x.add_(1)
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
"""
    threads, more = map(int, run_python(program).split()[-2:])
    assert threads > 1
    assert more == 0
