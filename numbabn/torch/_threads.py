"""The threads of a call: those that PyTorch has, in the pool that PyTorch has.

Both libraries run on OpenMP, and both on one copy of it. Where PyTorch is imported first, its libgomp is
loaded for everybody (``RTLD_GLOBAL``), and what Numba's pool asks of OpenMP is bound to it: the system's
libgomp, which that pool is linked to, is loaded as well, and never runs a thread. Where Numba is first, its
libgomp has the name that PyTorch asks for, so that no second one is loaded. Two parallel operations of
PyTorch and numbabn in turn start one worker on two cores, in either order; no worker spins on a core that the
other library needs.

What is left is the number of threads. When Numba's pool starts, it sets OpenMP's number for the whole thread,
which is PyTorch's, too: so it is started here, and the number put back.
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
