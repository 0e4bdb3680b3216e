"""What is passed to cuda.core for a launch, as far as it can be seen without a GPU."""

from contextlib import nullcontext
from types import SimpleNamespace

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


@pytest.fixture
def waits(monkeypatch):
    """Streams that note which one waits for which: pairs of (device, handle)."""
    found = []

    def stream(*which):
        return SimpleNamespace(which=which, wait=lambda other: found.append((which, other.which)))

    monkeypatch.setattr(gpu, "_stream", stream)
    monkeypatch.setattr(gpu, "cuda", SimpleNamespace(gpus=[nullcontext(), nullcontext()]))
    return found


def test_work_on_one_stream_follows_that_on_another(waits):
    array, other = SimpleNamespace(device=1, stream=7), SimpleNamespace(device=1, stream=8)
    gpu.follow(array, other)
    assert waits == [((1, 7), (1, 8))]


def test_nothing_waits_where_streams_are_the_same(waits):
    gpu.follow(SimpleNamespace(device=1, stream=7), SimpleNamespace(device=1, stream=7))
    assert not waits
