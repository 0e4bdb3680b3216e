"""Whether kernels are compiled: with NUMBA_DISABLE_JIT=1 they are plain Python, a thousand times slower."""

import numba
import pytest

JIT = not numba.config.DISABLE_JIT
needs_jit = pytest.mark.skipif(not JIT, reason="needs the JIT")
