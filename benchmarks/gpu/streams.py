"""What users of streams rely on: calls go to the current one, wait for nothing, and fit into a CUDA graph.

Each check takes the library's module, and raises an AssertionError or returns what is worth reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import numpy as np

import numbabn as nbn

SHAPE = (32, 64, 56, 56)
LAUNCHES = 50


def _numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32) + np.float32(seed)


def _same(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert actual.tobytes() == expected.tobytes(), f"{name}: bits differ from those on the default stream"


def _pass(x, dy, gamma, y=None, dx=None):
    """A forward and a backward pass; all results."""
    y, saved = nbn.batch_norm_forward(x, gamma, out=y)
    return (y, saved.mean, *nbn.batch_norm_backward(dy, saved, out=dx)[:2])


# CuPy -------------------------------------------------------------------------------------------------------


def _cupy_inputs(cupy: ModuleType):
    x, dy = cupy.asarray(_numbers(1)), cupy.asarray(_numbers(2))
    return x, dy, cupy.ones(SHAPE[1], cupy.float32)


def cupy_stream(cupy: ModuleType) -> str:
    """A call on a stream that is busy neither waits on the host nor runs early."""
    x, dy, gamma = _cupy_inputs(cupy)
    expected = [cupy.asnumpy(result) for result in _pass(x, dy, gamma)]
    late, busy = cupy.full_like(x, cupy.nan), cupy.ones(2**28, cupy.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:  # compile, and allocate what the stream needs
        busy *= cupy.float32(1)
        late[...] = x
        _pass(x, dy, gamma)
        late.fill(cupy.nan)
    cupy.cuda.Device().synchronize()
    with stream:
        for _ in range(40):
            busy *= cupy.float32(1)
        late[...] = x
        results = _pass(late, dy, gamma)
        done = cupy.cuda.Event()
        done.record(stream)
    waited = done.done
    other = cupy.cuda.Stream(non_blocking=True)
    other.wait_event(done)
    with other:
        copies = [result.copy() for result in results]
    other.synchronize()
    for k, (copy, value) in enumerate(zip(copies, expected, strict=True)):
        _same(cupy.asnumpy(copy), value, f"result {k}")
    assert not waited, "the host waited for the device"
    return "the host was back before the device was done"


def cupy_two_streams(cupy: ModuleType) -> str:
    """Launches on two streams at once end, with the bits of one after the other."""
    x, dy, gamma = _cupy_inputs(cupy)
    expected = [cupy.asnumpy(result) for result in _pass(x, dy, gamma)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    results = []
    for _ in range(LAUNCHES):
        for stream in streams:
            with stream:
                results.append(_pass(x, dy, gamma))
    for stream in streams:
        stream.synchronize()
    for made in (*results[:2], *results[-2:]):
        for k, (result, value) in enumerate(zip(made, expected, strict=True)):
            _same(cupy.asnumpy(result), value, f"result {k}")
    return f"{2 * LAUNCHES} passes"


def cupy_graph(cupy: ModuleType) -> str:
    """A call with out= and a warm workspace is captured in a CUDA graph, and replayed on other numbers."""
    x, dy, gamma = _cupy_inputs(cupy)
    expected = [cupy.asnumpy(result) for result in _pass(x, dy, gamma)[::2]]
    y, dx, input_ = cupy.empty_like(x), cupy.empty_like(x), cupy.ones_like(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(2):
            kept = _pass(input_, dy, gamma, y, dx)
        stream.synchronize()
        stream.begin_capture()
        kept = _pass(input_, dy, gamma, y, dx)
        graph = stream.end_capture()
        input_[...] = x
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
    for result, value, name in zip((kept[0], kept[2]), expected, ("y", "dx"), strict=True):
        _same(cupy.asnumpy(result), value, name)
    return "3 replays"


# PyTorch ----------------------------------------------------------------------------------------------------


def _torch_inputs(torch: ModuleType):
    torch.set_grad_enabled(False)
    x, dy = (torch.from_numpy(_numbers(seed)).cuda() for seed in (1, 2))
    return x, dy, torch.ones(SHAPE[1], device="cuda")


def torch_stream(torch: ModuleType) -> str:
    """A call on a stream that is busy neither waits on the host nor runs early."""
    x, dy, gamma = _torch_inputs(torch)
    expected = [result.cpu().numpy() for result in _pass(x, dy, gamma)]
    late = torch.full_like(x, float("nan"))
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _pass(x, dy, gamma)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles: some 50 ms
        late.copy_(x)
        results = _pass(late, dy, gamma)
        done.record(stream)
    waited = done.query()
    other.wait_event(done)
    with torch.cuda.stream(other):
        copies = [result.clone() for result in results]
    other.synchronize()
    for k, (copy, value) in enumerate(zip(copies, expected, strict=True)):
        _same(copy.cpu().numpy(), value, f"result {k}")
    assert not waited, "the host waited for the device"
    return "the host was back before the device was done"


def torch_graph(torch: ModuleType) -> str:
    """A call with out= and a warm workspace is captured in a CUDA graph, and replayed on other numbers."""
    x, dy, gamma = _torch_inputs(torch)
    expected = [result.cpu().numpy() for result in _pass(x, dy, gamma)[::2]]
    y, dx, given = torch.empty_like(x), torch.empty_like(x), torch.ones_like(x)
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(2):
            _pass(given, dy, gamma, y, dx)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        kept = _pass(given, dy, gamma, y, dx)
    given.copy_(x)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for result, value, name in zip((kept[0], kept[2]), expected, ("y", "dx"), strict=True):
        _same(result.cpu().numpy(), value, name)
    return "3 replays"


def torch_layer_graph(torch: ModuleType) -> str:
    """A captured training step of the layer goes on updating its running statistics."""
    x, _, _ = _torch_inputs(torch)
    layer, eager = (nbn.BatchNorm(SHAPE[1], device=x) for _ in range(2))
    given = torch.ones_like(x)
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for bn in (layer, eager):
            bn(given)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        layer(given)
    given.copy_(x)
    for _ in range(3):
        graph.replay()
        eager(x)
    torch.cuda.synchronize()
    for name in ("running_mean", "running_var"):
        _same(layer.state_dict()[name], eager.state_dict()[name], name)
    return "3 replays"


CHECKS: Mapping[str, tuple[Callable[[ModuleType], str], ...]] = {
    "cupy": (cupy_stream, cupy_two_streams, cupy_graph),
    "torch": (torch_stream, torch_graph, torch_layer_graph),
}
