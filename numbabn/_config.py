"""`show_config`: the facts about a machine and its packages that a bug report needs."""

import ctypes
import importlib.metadata
import os
import platform

import numba
from llvmlite import binding

from numbabn.backends import INSTALL
from numbabn.backends.cpu.jit import cache_folder

_CUDA_PACKAGES = ("numba-cuda", "cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "torch")
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


def show_config() -> None:
    """Print versions, processor, threads, cache folder and CUDA state, for a bug report.

    Nothing is compiled and no GPU is touched; Numba's thread pool is started.

    Examples
    --------
    >>> import numbabn as nbn
    >>> nbn.show_config()  # doctest: +ELLIPSIS
    numbabn ...
    """
    for name, value in _facts().items():
        print(f"{name:<18} {value}")


def _facts() -> dict[str, str]:
    from numbabn import __version__  # here, because the package defines it after it imports this module

    features = binding.get_host_cpu_features()
    vectors = [name for name in ("avx2", "avx512f", "fma", "f16c", "neon", "sve") if features.get(name)]
    threads = numba.get_num_threads()
    layer = numba.threading_layer()
    parallel = "parallel" if layer in ("omp", "tbb") else "not safe for parallel kernels: serial"
    return {
        "numbabn": __version__,
        "python": f"{platform.python_version()} {platform.python_implementation()}",
        "platform": platform.platform(),
        **{name: _version(name) for name in ("numpy", "numba", "llvmlite")},
        "processor": f"{binding.get_host_cpu_name()}: {' '.join(vectors)}, {os.cpu_count()} cores",
        "threads": f"{threads} of {numba.config.NUMBA_NUM_THREADS}",
        "threading layer": f"{layer} ({parallel})",
        "jit": "off (NUMBA_DISABLE_JIT)" if numba.config.DISABLE_JIT else "on",
        "kernel cache": _kernel_cache(),
        "cuda packages": ", ".join(f"{n} {_version(n)}" for n in _CUDA_PACKAGES if _version(n)) or "none",
        "cuda": _cuda(),
    }


def _cuda() -> str:
    """Return whether arrays on a GPU can be used, as far as this can be known without starting CUDA."""
    if numba.config.ENABLE_CUDASIM:
        return "the simulator (NUMBA_ENABLE_CUDASIM)"
    if not _version("numba-cuda"):
        return f"not usable without numba-cuda: {INSTALL}"
    version = _driver_version()
    return f"driver for CUDA {version}" if version else "not usable without an NVIDIA driver"


def _driver_version() -> str:
    for name in _DRIVERS:
        try:
            number = ctypes.c_int()
            ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number))  # needs no cuInit
        except (AttributeError, OSError):
            continue
        return f"{number.value // 1000}.{number.value % 1000 // 10}"
    return ""


def _kernel_cache() -> str:
    if numba.config.DISABLE_JIT:
        return "not used: the JIT is off"
    return cache_folder() or "none: no writable folder, kernels compile in every process"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
