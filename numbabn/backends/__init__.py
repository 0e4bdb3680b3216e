"""The backends. Arrays in the memory of the host are worked on by ``cpu``, those of a GPU by ``cuda``.

The latter is imported when the first array on a GPU is met, because numba-cuda may not be installed.
"""

import functools
import importlib
from types import ModuleType

INSTALL = 'python -m pip install "numbabn[cuda]"'


@functools.cache
def cuda_module(name: str) -> ModuleType:
    """Return a module of the GPU backend, once it is known to work here.

    Raises
    ------
    ImportError
        If numba-cuda is not installed.
    RuntimeError
        If there is no driver, or no GPU.
    """
    try:
        gpu = importlib.import_module("numbabn.backends.cuda.gpu")
    except ImportError as error:
        raise ImportError(f"arrays on a GPU need numba-cuda, which cannot be imported: {INSTALL}") from error
    if not gpu.SIMULATED and not gpu.cuda.is_available():
        raise RuntimeError(
            f"numba-cuda finds no GPU that it can use ({gpu.cuda.cuda_error() or 'no device'}); "
            f'it needs an NVIDIA driver, and {INSTALL}, or "numbabn[cuda12]" for drivers older than 580'
        )
    return importlib.import_module(f"numbabn.backends.cuda.{name}" if name else "numbabn.backends.cuda")
