"""How every CPU kernel is compiled, cached and run: the one place for Numba's options.

Kernels compile on their first call, never at import.
"""

import contextlib
import os
from time import perf_counter

import numba
from numba import config, njit, types
from numba.core.caching import FunctionCache, NullCache

from numbabn.backends.compilation import LOGGER, Compilation
from numbabn.backends.cpu.intermediate import HelperCompiler, KernelCompiler
from numbabn.backends.stamp import StampedCache

# contract: fused multiply-adds. Not reassoc, which would turn (x - hi) - lo into x - (hi + lo); not "fast",
# which deletes isnan; not arcp, which makes 1 / sqrt(0) a NaN.
OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

# Below this many bytes of x one thread is faster: entering a parallel region costs 2 to 20 us.
PARALLEL_BYTES = 512 * 1024


class _PackageCache(StampedCache, FunctionCache):
    """The files of kernels, serial or parallel."""


class _LoggedCache(NullCache):
    """A cache that logs what is compiled.

    Numba looks into the cache of a function before it compiles, and saves afterwards, both under one lock. A
    call of a kernel that is compiled already does not come here.
    """

    def __init__(self, function, parallel, cache):
        self._kernel = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._parallel = parallel
        self._cache = cache
        self._start = 0.0

    @property
    def cache_path(self):
        return self._cache.cache_path

    def flush(self):
        self._cache.flush()

    def load_overload(self, sig, target_context):
        found = self._cache.load_overload(sig, target_context)
        if found is not None:
            LOGGER.debug("loaded %s for %s from %s", self._kernel, _dtype(sig), self.cache_path)
        self._start = perf_counter()
        return found

    def save_overload(self, sig, data):
        seconds = perf_counter() - self._start
        folder, reason = self.cache_path, "no folder can be written to"
        try:
            self._cache.save_overload(sig, data)
        except Exception as error:
            folder, reason = None, str(error)
        LOGGER.info(Compilation(self._kernel, _dtype(sig), seconds, self._parallel, folder, reason))


_HALVES = {"uint16": "float16 or uint16", "int16": "bfloat16 or int16"}


def _dtype(signature):
    """Return the name of the narrowest dtype among the arrays: that of x, or float64 where there is no x.

    Bools are left out, which are masks beside x. Kernels take float16 and bfloat16 as integers of 16 bits.
    """
    dtypes = [argument.dtype for argument in signature if isinstance(argument, types.Array)]
    numbers = [dtype for dtype in dtypes if isinstance(dtype, types.Number)]
    name = str(min(numbers, key=lambda dtype: dtype.bitwidth)) if numbers else "bool"
    return _HALVES.get(name, name)


def helper(function):
    """Compile a function that only kernels call, and that has no entry points for Python and C."""
    compiler = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=HelperCompiler, **OPTIONS)
    return compiler(function)


class Kernel:
    """A function whose outer loop is a ``prange`` over independent tasks: a serial and a parallel version.

    The bits are the same for both, since the tasks are. Call it with the number of bytes it works on, which
    decides between them, and its arguments.
    """

    def __init__(self, function):
        self.serial = _compiled(function, parallel=False)
        self.parallel = _compiled(function, parallel=True)

    def __call__(self, nbytes, *arguments):
        (self.parallel if use_threads(nbytes) else self.serial)(*arguments)


def small_kernel(function):
    """Compile a function for work that is never worth a second thread."""
    return _compiled(function, parallel=False)


def _compiled(function, parallel):
    compiler = njit(parallel=parallel, no_cfunc_wrapper=True, pipeline_class=KernelCompiler, **OPTIONS)
    dispatcher = compiler(function)
    if not config.DISABLE_JIT:
        # Where no cache folder can be written to: compile in every process rather than fail the import.
        cache = NullCache()
        with contextlib.suppress(RuntimeError):
            cache = _PackageCache(function, "parallel" if parallel else "serial")
        dispatcher._cache = _LoggedCache(function, parallel, cache)
    return dispatcher


_forked = False


def _note_fork():
    """In a forked child: OpenMP's threads did not survive, and entering a parallel region hangs or kills it.

    Whether they ran in the parent cannot be known: PyTorch's OpenMP may be the one that Numba uses.
    """
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def use_threads(nbytes: int) -> bool:
    """Whether work of this size is worth a parallel region, and a parallel region is safe here."""
    return nbytes >= PARALLEL_BYTES and thread_count() > 1


def thread_count() -> int:
    """Return how many threads kernels run on: 1 where a parallel region is not safe.

    Numba's workqueue layer aborts the process when two threads enter it at once, so it is never entered.
    """
    if _forked or config.DISABLE_JIT:
        return 1
    # get_num_threads starts the pool, and only a started pool has a layer.
    threads = numba.get_num_threads()
    return threads if threads > 1 and numba.threading_layer() in ("omp", "tbb") else 1


def cache_folder() -> str | None:
    """Return the folder of compiled kernels, or None where no folder can be written to."""
    try:
        return FunctionCache(cache_folder).cache_path
    except RuntimeError:
        return None
