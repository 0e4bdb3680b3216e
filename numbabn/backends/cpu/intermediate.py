"""How a kernel is compiled with all that it calls: to intermediate code, then to machine code as a whole.

Numba optimises every function with all that it calls, makes machine code of it, and does the same again for
each of its callers: an addition of sixteen values, which is called at the bottom of five levels, is optimised
five times before it is part of a kernel, and the loops of a ``prange`` three times after it. Nothing but the
kernel is ever run. With the lowering here, the first training step with an empty cache takes 0.7 of the time
for 32x64x56x56 and 0.45 for 8192x512 (two cores of AMD Zen 3), and the kernels are as fast.

Leaving out the passes of Numba that these functions have no use for, fourteen of 27, saved another tenth. It
is not done: then a new version of Numba may compile something else than what it compiles elsewhere.
"""

from typing import ClassVar

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NativeParforLowering


class _IntermediateCode(JITCodeLibrary):
    """The code of functions, to be linked into that of a kernel: neither optimised nor loaded."""

    def _optimize_final_module(self):
        """Leave it to the kernel."""

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _IntermediateCodegen:
    """Numba's code generator, but for what it makes."""

    def __init__(self, codegen):
        self._codegen = codegen

    def __getattr__(self, name):
        return getattr(self._codegen, name)

    def create_library(self, name):
        return _IntermediateCode(self, name)

    def set_env(self, env_name, env):
        """Do nothing: what is not loaded reads no environment."""


_internal_functions: dict[object, object] = {}  # what Numba makes for its own use


def _lowered(lowering, state, loaded):
    """Lower a function; only where it is to be loaded is its code other than intermediate."""
    context = state.targetctx
    codegen = _IntermediateCodegen(context.codegen())
    state.library = (context.codegen() if loaded else codegen).create_library(state.func_id.func_qualname)
    state.library.enable_object_caching()
    state.targetctx = context.subtarget(_internal_codegen=codegen)
    state.targetctx.cached_internal_func = _internal_functions
    try:
        return lowering.run_pass(state)
    finally:
        state.targetctx = context


@register_pass(mutates_CFG=True, analysis_only=False)
class _HelperLowering(NativeLowering):
    _name = "numbabn_helper_lowering"

    def run_pass(self, state):
        return _lowered(super(), state, loaded=False)


@register_pass(mutates_CFG=True, analysis_only=False)
class _KernelLowering(NativeLowering):
    _name = "numbabn_kernel_lowering"

    def run_pass(self, state):
        return _lowered(super(), state, loaded=True)


@register_pass(mutates_CFG=True, analysis_only=False)
class _ParallelKernelLowering(NativeParforLowering):
    _name = "numbabn_parallel_kernel_lowering"

    def run_pass(self, state):
        return _lowered(super(), state, loaded=True)


class _Compiler(CompilerBase):
    """Numba's compiler with other passes in the place of some, as ``replaced`` says."""

    replaced: ClassVar[dict[type, type]] = {}

    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(self.replaced.get(step, step), text) for step, text in passes.passes]
        passes.finalize()
        return [passes]


class HelperCompiler(_Compiler):
    """For functions that only kernels call."""

    replaced: ClassVar[dict[type, type]] = {NativeLowering: _HelperLowering}


class KernelCompiler(_Compiler):
    """For kernels."""

    replaced: ClassVar[dict[type, type]] = {
        NativeLowering: _KernelLowering,
        NativeParforLowering: _ParallelKernelLowering,
    }
