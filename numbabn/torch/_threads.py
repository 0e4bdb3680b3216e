"""The threads of a call: as many as PyTorch has, in the pool that PyTorch has.

Both libraries run on OpenMP, and both on one copy of it, though two may be loaded. Where PyTorch is imported
first, its libgomp is there for everybody (``RTLD_GLOBAL``), and what Numba's pool asks of OpenMP is bound to
it; the system's libgomp, which that pool names, is loaded as well, and never runs a thread. Where Numba is
first, its libgomp has the name that PyTorch asks for, and no second one is loaded. A PyTorch that names a
libgomp of its own, and is imported after Numba's pool has started, has a pool of its own: nothing here
changes that.

That matters: a training step of a network of seven 3x3 convolutions with batch norms, 16x3x64x64 on 2 cores,
takes 78 ms with numbabn's modules in either order of imports, and 158 ms where Numba is made to keep its own
libgomp (``RTLD_DEEPBIND``), because workers of one pool spin on the core that the other one needs. A
multiplication of PyTorch and a norm of numbabn in turn, of 2 MB each, take 0.2 ms, and 9 to 19 ms. So nothing
is done about pools here: another threading layer, and workers that do not spin, were not needed.

What is left is the number of threads. When Numba's pool starts, it sets OpenMP's number for the calling
thread, which is PyTorch's, too: so the pool is started here, and the number put back.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba
import torch

P = ParamSpec("P")
R = TypeVar("R")


def on_threads(work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call ``work``, whose kernels take no more threads than PyTorch has."""
    _start()
    own, allowed = numba.get_num_threads(), torch.get_num_threads()
    if own <= allowed:
        return work(*arguments, **options)
    numba.set_num_threads(allowed)
    try:
        return work(*arguments, **options)
    finally:
        numba.set_num_threads(own)


@functools.cache
def _start() -> None:
    threads = torch.get_num_threads()
    numba.get_num_threads()  # starts the pool
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
