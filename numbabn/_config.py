"""What a bug report needs."""

import importlib.metadata
import os
import platform
from ctypes.util import find_library

import numba
from llvmlite import binding

from numbabn._cpu.jit import cache_folder


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
    from numbabn import __version__  # at import it is not there yet

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
        "cuda packages": ", ".join(
            f"{n} {_version(n)}" for n in ("numba-cuda", "cupy", "torch") if _version(n)
        )
        or "none",
        "cuda driver": find_library("cuda") or "not found",
    }


def _kernel_cache() -> str:
    if numba.config.DISABLE_JIT:
        return "not used: the JIT is off"
    return cache_folder() or "none: no writable folder, kernels compile in every process"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
