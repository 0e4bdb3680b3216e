"""The vector operations that kernels use: LLVM's, or NumPy's where the JIT is off."""

from numba import config

if config.DISABLE_JIT:
    from numbabn.backends.cpu.simd_numpy import *  # noqa: F403
else:
    from numbabn.backends.cpu.simd_bits import *  # noqa: F403
    from numbabn.backends.cpu.simd_memory import *  # noqa: F403
    from numbabn.backends.cpu.simd_vectors import *  # noqa: F403
