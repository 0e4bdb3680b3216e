"""What only a GPU can show: arrays of full size, many runs, streams and CUDA graphs.

A check takes a backend of `tests.support.backends`, and raises an AssertionError or returns what is worth
reading. Neither pytest nor hypothesis is imported, so that ``python -m benchmarks.gpu`` runs the checks where
neither is installed; `test_hardware` runs them with pytest.
"""

import numpy as np

import numbabn as nbn
from tests.support import table
from tests.support.backends import BACKENDS, MissingError
from tests.support.cases import CASES
from tests.support.checks import assert_same_bits
from tests.support.problems import Problem

LIBRARIES = ("cupy", "torch", "numba")  # the one that numbabn is timed with first
REPEATS = 20
REPEATED = ("32x64x112x112 NCHW", "32x512x7x7 NCHW", "64x3x224x224 NCHW", "32x56x56x64 NHWC", "32x64 NC")
SHAPE = (32, 64, 56, 56)  # of the arrays on streams
LAUNCHES = 50


def missing(library):
    """Return why a library cannot be checked here, or None where it can."""
    try:
        BACKENDS[library]()
    except MissingError as reason:
        return str(reason)
    return None


# Arrays of full size ----------------------------------------------------------------------------------------


def problem(case):
    return Problem(case.shape, axis=case.axis, offset=3.0)


def whole_cases(cases=CASES):
    """Return the rows that compare cases at their full size with float64, the largest first."""
    largest_first = sorted(cases, key=lambda case: -case.size)
    return [table.Row(case.name, table.values, (problem(case),)) for case in largest_first]


def repeated_cases(cases=CASES):
    """Return the rows that compare the bits of many runs, for some cases of every kind."""
    return [table.Row(case.name, repeat, (case,)) for case in cases if case.name in REPEATED]


def repeat(backend, case):
    """Many runs have the same bits, whatever else the device does meanwhile."""
    numbers = problem(case)
    x, dy = backend.put(numbers.x()), backend.put(numbers.dy())
    gamma, beta = backend.put(numbers.gamma()), backend.put(numbers.beta())
    first = None
    for _ in range(REPEATS):
        y, saved = nbn.batch_norm_forward(x, gamma, beta, axis=case.axis)
        results = (y, saved.mean, saved.var, *nbn.batch_norm_backward(dy, saved))
        bits = [np.asarray(backend.download(result)).tobytes() for result in results]
        first = first or bits
        assert bits == first, "bits differ between runs"


# Streams and CUDA graphs ------------------------------------------------------------------------------------


class CuPyStreams:
    """Streams, events and CUDA graphs of CuPy."""

    # On the stream of a capture, when CuPy cannot allocate: the second finds what the first has freed.
    warm_calls = 2

    def __init__(self, cupy):
        self.cupy = cupy

    def put(self, values):
        return self.cupy.asarray(values)

    def get(self, array):
        return self.cupy.asnumpy(array)

    def copy(self, array):
        return array.copy()

    def synchronize(self):
        self.cupy.cuda.Device().synchronize()

    def stream(self):
        return self.cupy.cuda.Stream(non_blocking=True)

    def on(self, stream):
        """Return a context in which the stream is the current one."""
        return stream

    def occupy(self):
        """Keep the current stream busy for some tens of milliseconds."""
        ballast = self.cupy.ones(2**28, self.cupy.float32)
        for _ in range(40):
            ballast *= self.cupy.float32(1)

    def event(self, stream):
        """Return an event that passes when the stream has done what it was given so far."""
        event = self.cupy.cuda.Event()
        event.record(stream)
        return event

    def passed(self, event):
        return event.done

    def captured(self, stream, function):
        """Capture a function's launches; return what replays them on the stream, and what to keep."""
        with stream:
            stream.begin_capture()
            results = function()
            graph = stream.end_capture()
        return lambda: graph.launch(stream), results


class TorchStreams:
    """Streams, events and CUDA graphs of PyTorch."""

    warm_calls = 0

    def __init__(self, torch):
        self.torch = torch

    def put(self, values):
        return self.torch.from_numpy(values).cuda()

    def get(self, array):
        return array.cpu().numpy()

    def copy(self, array):
        return array.clone()

    def synchronize(self):
        self.torch.cuda.synchronize()

    def stream(self):
        return self.torch.cuda.Stream()

    def on(self, stream):
        """Return a context in which the stream is the current one."""
        return self.torch.cuda.stream(stream)

    def occupy(self):
        """Keep the current stream busy for some tens of milliseconds."""
        self.torch.cuda._sleep(100_000_000)  # cycles: some 50 ms

    def event(self, stream):
        """Return an event that passes when the stream has done what it was given so far."""
        event = self.torch.cuda.Event()
        event.record(stream)
        return event

    def passed(self, event):
        return event.query()

    def captured(self, stream, function):
        """Capture a function's launches; return what replays them on the current stream, and what to keep."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=stream):
            results = function()
        return graph.replay, results


STREAMS = {"cupy": CuPyStreams, "torch": TorchStreams}


def numbers(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE, dtype=np.float32) + np.float32(seed)


def inputs(gpu):
    """Return x, dy and gamma."""
    return gpu.put(numbers(1)), gpu.put(numbers(2)), gpu.put(np.ones(SHAPE[1], np.float32))


def filled(gpu, value):
    """Return an array like x, with one value everywhere."""
    return gpu.put(np.full(SHAPE, value, np.float32))


def step(x, dy, gamma, y=None, dx=None):
    """Return the results of a forward and a backward pass: y, mean, dx and dgamma."""
    y, saved = nbn.batch_norm_forward(x, gamma, out=y)
    return (y, saved.mean, *nbn.batch_norm_backward(dy, saved, out=dx)[:2])


def assert_expected(gpu, results, expected, names=("y", "mean", "dx", "dgamma")):
    """Results have the bits of those that were computed on the default stream."""
    for result, values, name in zip(results, expected, names, strict=True):
        assert_same_bits(gpu.get(result), values, name)


def busy_stream(gpu):
    """A call on a stream that is busy neither waits on the host nor runs early."""
    x, dy, gamma = inputs(gpu)
    expected = [gpu.get(result) for result in step(x, dy, gamma)]
    late, stream, other = filled(gpu, np.nan), gpu.stream(), gpu.stream()
    gpu.synchronize()
    with gpu.on(stream):  # compile, and allocate what the stream needs
        gpu.occupy()
        late[...] = x
        step(late, dy, gamma)
        late[...] = np.nan
    gpu.synchronize()
    with gpu.on(stream):
        gpu.occupy()
        late[...] = x
        results = step(late, dy, gamma)
        done = gpu.event(stream)
    waited = gpu.passed(done)
    other.wait_event(done)
    # Copied as soon as the event has passed: a result that is computed elsewhere would not be there yet.
    with gpu.on(other):
        copies = [gpu.copy(result) for result in results]
    other.synchronize()
    assert_expected(gpu, copies, expected)
    assert not waited, "the host waited for the device"
    return "the host was back before the device was done"


def two_streams(gpu):
    """Launches on two streams at once end, with the bits of one after the other."""
    x, dy, gamma = inputs(gpu)
    expected = [gpu.get(result) for result in step(x, dy, gamma)]
    streams = [gpu.stream() for _ in range(2)]
    gpu.synchronize()
    results = []
    for _ in range(LAUNCHES):
        for stream in streams:
            with gpu.on(stream):
                results.append(step(x, dy, gamma))
    for stream in streams:
        stream.synchronize()
    for made in (*results[:2], *results[-2:]):
        assert_expected(gpu, made, expected)
    return f"{2 * LAUNCHES} passes"


def graph(gpu):
    """A call that was made on another stream is captured in a CUDA graph, and replayed on other numbers."""
    x, dy, gamma = inputs(gpu)
    expected = [gpu.get(result) for result in step(x, dy, gamma)[::2]]
    y, dx, given, stream = filled(gpu, 0), filled(gpu, 0), filled(gpu, 1), gpu.stream()
    gpu.synchronize()
    with gpu.on(stream):
        for _ in range(gpu.warm_calls):
            step(given, dy, gamma, y, dx)
    gpu.synchronize()
    replay, _kept = gpu.captured(stream, lambda: step(given, dy, gamma, y, dx))
    others = []
    with gpu.on(stream):
        given[...] = x
        for _ in range(3):  # what the captured call gave back may be what is allocated now
            others += [gpu.put(np.full((2, SHAPE[1]), np.nan)) for _ in range(8)]
            replay()
    gpu.synchronize()
    assert_expected(gpu, (y, dx), expected, ("y", "dx"))
    for other in others:
        assert np.isnan(gpu.get(other)).all(), "a replay wrote to memory that is another array's"
    return "3 replays"


def layer_graph(gpu):
    """A captured training step of the layer goes on updating its running statistics."""
    x, _, _ = inputs(gpu)
    layer, eager = (nbn.BatchNorm(SHAPE[1], device=x) for _ in range(2))
    given, stream = filled(gpu, 1), gpu.stream()
    for bn in (layer, eager):
        bn(given)
    gpu.synchronize()
    with gpu.on(stream):
        for _ in range(gpu.warm_calls):
            for bn in (layer, eager):
                bn(given)
    gpu.synchronize()
    replay, _kept = gpu.captured(stream, lambda: layer(given))
    with gpu.on(stream):
        given[...] = x
        for _ in range(3):
            replay()
            eager(x)
    gpu.synchronize()
    found, expected = layer.state_dict(), eager.state_dict()
    for name in ("running_mean", "running_var"):
        assert_same_bits(found[name], expected[name], name)
    return "3 replays"


STREAM_CHECKS = (busy_stream, two_streams, graph, layer_graph)


def on_streams(backend, check):
    """Run a check with the streams of the backend's library."""
    return check(STREAMS[backend.name](getattr(backend, backend.name)))


def stream_rows():
    """Return the rows that check streams and CUDA graphs, for backends of the libraries in `STREAMS`."""
    return [table.Row(check.__doc__.rstrip("."), on_streams, (check,)) for check in STREAM_CHECKS]
