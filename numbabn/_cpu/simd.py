"""The vector operations that kernels use: LLVM's, or NumPy's where the JIT is off."""

from numba import config

from numbabn._cpu.simd_llvm import LANES

if config.DISABLE_JIT:
    from numbabn._cpu.simd_numpy import (
        add,
        blend,
        convert,
        fence,
        fma,
        load,
        load_part,
        prefetch,
        splat,
        store,
        store_part,
        stream,
        sub,
        total,
        unaligned,
        widen,
        zeros,
    )
else:
    from numbabn._cpu.simd_llvm import (
        add,
        blend,
        convert,
        fence,
        fma,
        load,
        load_part,
        prefetch,
        splat,
        store,
        store_part,
        stream,
        sub,
        total,
        unaligned,
        widen,
        zeros,
    )

__all__ = [
    "LANES",
    "add",
    "blend",
    "convert",
    "fence",
    "fma",
    "load",
    "load_part",
    "prefetch",
    "splat",
    "store",
    "store_part",
    "stream",
    "sub",
    "total",
    "unaligned",
    "widen",
    "zeros",
]
