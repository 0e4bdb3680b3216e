"""What is passed to cuda.core for a launch, as far as it can be seen without a GPU."""

import pytest
from numba import config

if config.ENABLE_CUDASIM or config.DISABLE_JIT:
    pytest.skip("the CUDA simulator launches nothing through cuda.core", allow_module_level=True)
pytest.importorskip("cuda.core", reason="needs numba-cuda")

from cuda.core import Kernel

from numbabn.backends.cuda import gpu


def test_cuda_core_takes_the_stream_without_a_warning():
    """Warnings are errors here. The argument is refused after the stream was taken, before the launch."""
    kernel = Kernel.__new__(Kernel)
    with pytest.raises(TypeError, match="unsupported type"):
        gpu.core.launch(gpu._stream(0, 1234), gpu._config(3), kernel, object())
    assert int(gpu._stream(0, 1234).handle) == 1234
