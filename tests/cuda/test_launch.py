"""What is passed to cuda.core for a launch, as far as it can be seen without a GPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from numba import config

if config.ENABLE_CUDASIM or config.DISABLE_JIT:
    pytest.skip("the CUDA simulator launches nothing through cuda.core", allow_module_level=True)
pytest.importorskip("cuda.core", reason="needs numba-cuda")

import numpy as np
from cuda.core import Kernel
from numba.cuda.cudadrv.devicearray import MappedNDArray

from benchmarks.gpu import launches
from numbabn.backends.cuda import channels, gpu, kernels, launching, residency, workspaces
from numbabn.backends.cuda.launcher import HostWords, Memory, StreamState
from numbabn.backends.verbs import Affine


def test_cuda_core_takes_the_stream_without_a_warning():
    """Warnings are errors here. The argument is refused after the stream was taken, before the launch."""
    kernel = Kernel.__new__(Kernel)
    with pytest.raises(TypeError, match="unsupported type"):
        launching.core.launch(launching._stream(0, 1234), launching._config(3), kernel, object())
    assert int(launching._stream(0, 1234).handle) == 1234


@pytest.fixture
def waits(monkeypatch):
    """Streams that note which one waits for which: pairs of (device, handle)."""
    found = []

    def stream(*which):
        return SimpleNamespace(which=which, wait=lambda other: found.append((which, other.which)))

    monkeypatch.setattr(launching, "_stream", stream)
    monkeypatch.setattr(launching, "_current", lambda number: nullcontext())
    return found


def test_work_on_one_stream_follows_that_on_another(waits):
    array, other = SimpleNamespace(device=1, stream=7), SimpleNamespace(device=1, stream=8)
    launching.follow(array, other)
    assert waits == [((1, 7), (1, 8))]


def test_nothing_waits_where_streams_are_the_same(waits):
    launching.follow(SimpleNamespace(device=1, stream=7), SimpleNamespace(device=1, stream=7))
    assert not waits


Device = launching.driver.CUdevice
OK, BAD = launching.driver.CUresult.CUDA_SUCCESS, launching.driver.CUresult.CUDA_ERROR_INVALID_HANDLE
STATUS = launching.driver.CUstreamCaptureStatus
IDLE, ACTIVE = STATUS.CU_STREAM_CAPTURE_STATUS_NONE, STATUS.CU_STREAM_CAPTURE_STATUS_ACTIVE
WHOLE, PART = launching.driver.CUgreenCtx(0), launching.driver.CUgreenCtx(64)


def function(answer):
    """A function of the driver that gives an answer for stream 7 alone, or raises it."""

    def asked(stream):
        assert stream == 7
        if isinstance(answer, Exception):
            raise answer
        return answer

    return asked


@pytest.fixture
def driver(monkeypatch):
    """A driver that answers for device 0 and stream 7, which is idle, on the whole of a device of its own."""
    real = launching.driver
    found = SimpleNamespace(
        CUresult=real.CUresult,
        CUdevice_attribute=real.CUdevice_attribute,
        cuStreamIsCapturing=function((OK, IDLE)),
        cuStreamGetGreenCtx=function((OK, WHOLE)),
        cuDeviceGetAttribute=lambda kind, number: (OK, 0),
        cuCtxGetDevice=lambda: (OK, real.CUdevice(0)),
    )
    monkeypatch.setattr(launching, "driver", found)
    launching._is_shared.cache_clear()
    yield found
    launching._is_shared.cache_clear()


@pytest.mark.parametrize(
    ("capturing", "context", "expected"),
    [
        ((OK, IDLE), (OK, WHOLE), (False, False)),
        ((OK, ACTIVE), (OK, WHOLE), (True, False)),
        ((BAD, None), (OK, WHOLE), (True, False)),
        ((OK, IDLE), (OK, PART), (False, True)),
        ((OK, IDLE), (BAD, None), (False, True)),
        ((OK, IDLE), RuntimeError("Function not found"), (False, True)),
    ],
)
def test_state_of_a_stream(capturing, context, expected, driver):
    """What is not known is taken for the worst."""
    driver.cuStreamIsCapturing, driver.cuStreamGetGreenCtx = function(capturing), function(context)
    assert launching.stream_state(SimpleNamespace(device=0, stream=7)) == expected


@pytest.mark.parametrize(("answer", "expected"), [((OK, 1), True), ((OK, 0), False), ((BAD, None), False)])
def test_devices_that_processes_share(answer, expected, driver):
    """They have a part of it."""
    driver.cuDeviceGetAttribute = lambda kind, number: answer
    assert launching.stream_state(SimpleNamespace(device=0, stream=7)) == (False, expected)


def test_a_driver_that_does_not_know_of_sharing(driver):
    driver.CUdevice_attribute = SimpleNamespace()
    assert launching.stream_state(SimpleNamespace(device=0, stream=7)) == (False, False)


@pytest.mark.parametrize(("answer", "expected"), [(0, False), (1, True), (None, True)])
def test_no_context_is_pushed_where_one_of_the_device_is_current(answer, expected, driver, monkeypatch):
    """It may be a green context: the default stream, on which x was made, is one of it then."""
    pushed = nullcontext()
    monkeypatch.setattr(launching, "cuda", SimpleNamespace(gpus=[pushed]))
    device = None if answer is None else Device(answer)
    driver.cuCtxGetDevice = lambda: (BAD if device is None else OK, device)
    assert (launching._current(0) is pushed) is expected


def test_words_in_the_memory_of_the_host():
    """Numba's mapped arrays have a method ``view`` of their own, and another address on the device."""
    mapped = np.ndarray.view(np.full(3, 7, np.int32), type=MappedNDArray)
    mapped.device_setup(SimpleNamespace(device_ctypes_pointer=SimpleNamespace(value=4096)))
    words = HostWords(mapped, launching._address(mapped))
    assert words.address == 4096
    assert type(words.values) is np.ndarray
    np.testing.assert_array_equal(words.values, [0, 0, 0])
    mapped[1] = 5
    assert words.values[1] == 5


class Compiled(SimpleNamespace):
    """A kernel as compiled with some limit: its registers, and the bytes that it spills."""


@pytest.mark.parametrize(
    ("of_limits", "expected"),
    [
        ({None: (60, 0)}, None),
        ({None: (70, 0), 64: (64, 0)}, 64),
        ({None: (70, 0), 64: (64, 8)}, None),
        ({None: (96, 0), 64: (64, 8), 80: (80, 0)}, 80),
        ({None: (96, 0), 64: (64, 8), 80: (80, 8)}, None),
    ],
)
def test_most_blocks_without_spills(of_limits, expected):
    """Kernels are compiled again only where that may let more blocks run."""
    asked = []

    def compiled(limit):
        asked.append(limit)
        registers, spills = of_limits[limit]
        return Compiled(limit=limit, regs_per_thread=registers, local_mem_per_thread=spills)

    assert launching.with_fewest_registers(compiled).limit == expected
    assert asked == list(of_limits)


def test_grids_of_clusters_are_counted_in_clusters(monkeypatch):
    """As cuda.core has it: blocks, where there are no clusters."""
    monkeypatch.setattr(launching, "core", SimpleNamespace(LaunchConfig=lambda **given: given))
    config = launching._config.__wrapped__
    assert config(24) == {"grid": 24, "block": 256}
    assert config(24, 8) == {"grid": 3, "cluster": 8, "block": 256}


@pytest.fixture
def clusters(monkeypatch):
    """A kernel on a device, what it is asked there, and how many clusters may be active."""
    found = SimpleNamespace(asked=[], active=1, capability=(9, 0), state=StreamState(False, False))

    def max_active_clusters(config, *, stream):
        found.asked.append((config, stream))
        if found.active is None:
            raise RuntimeError("CUDA_ERROR_INVALID_CLUSTER_SIZE")
        return found.active

    kernel = launching.Kernel(lambda x: None)
    occupancy = SimpleNamespace(max_active_clusters=max_active_clusters)
    compiled = SimpleNamespace(occupancy=occupancy)
    monkeypatch.setattr(kernel, "_compile", lambda number, arguments: compiled)
    monkeypatch.setattr(launching, "_current", lambda number: nullcontext())
    monkeypatch.setattr(launching, "_capability", lambda number: found.capability)
    monkeypatch.setattr(launching, "_config", lambda *blocks: blocks)
    monkeypatch.setattr(launching, "_stream", lambda *which: which)
    x = SimpleNamespace(device=0, stream=7)
    found.run = lambda blocks: kernel.runs_clusters(x, found.state, blocks, 1.0)
    return found


def test_clusters_need_their_capability(clusters):
    clusters.capability = 8, 9
    assert not clusters.run(4)
    assert not clusters.asked


def test_clusters_of_more_blocks_than_any_device_has(clusters):
    assert clusters.run(8)
    assert not clusters.run(9)
    assert clusters.asked == [((8, 8), (0, 7))]


@pytest.mark.parametrize("active", [None, 0, 1])
def test_the_device_is_asked_once_for_clusters(clusters, active):
    clusters.active = active
    assert [clusters.run(4) for _ in range(3)] == [bool(active)] * 3
    assert len(clusters.asked) == 1


def test_each_stream_on_a_part_of_the_device_is_asked(clusters):
    assert clusters.run(4)
    clusters.state, clusters.active = StreamState(False, True), 0
    assert not clusters.run(4)
    assert not clusters.run(4)
    assert len(clusters.asked) == 3
    clusters.state = StreamState(False, False)
    assert clusters.run(4)


@pytest.fixture
def launched(driver, monkeypatch):
    """What cuda.core is given, on a device of compute capability 9.0 where everything is compiled."""
    found = SimpleNamespace(configs=[], given=[], compiled=set())
    occupancy = SimpleNamespace(max_active_clusters=lambda config, *, stream: 1)
    kernel = SimpleNamespace(occupancy=occupancy)

    def launch(stream, config, kernel, *given):
        found.configs.append(config)
        found.given += given

    def compiled(of, number, arguments):
        found.compiled.add((of, launching._key(arguments)))
        return kernel

    core = SimpleNamespace(
        launch=launch,
        LaunchConfig=lambda **given: given,
        Stream=SimpleNamespace(from_handle=lambda handle: handle),
    )
    driver.cuStreamIsCapturing = driver.cuStreamGetGreenCtx = lambda stream: (OK, 0)
    monkeypatch.setattr(launching, "core", core)
    monkeypatch.setattr(launching, "_capability", lambda number: (9, 0))
    monkeypatch.setattr(launching, "_multiprocessors", lambda number: 132)
    for waiting in (kernels.forward, kernels.backward):
        monkeypatch.setattr(waiting, "_called", set())
        monkeypatch.setattr(waiting, "_clusters", {})
    monkeypatch.setattr(launching.Kernel, "_compile", compiled)
    monkeypatch.setattr(gpu, "device_zeros", lambda number, nbytes: Memory(None, 4096))
    monkeypatch.setattr(gpu, "host_words", lambda number, n: HostWords(np.empty(n, np.int32), 2**20))
    monkeypatch.setattr(workspaces, "_pieces", {})
    monkeypatch.setattr(workspaces, "_slabs", {})
    monkeypatch.setattr(residency, "_holders", {})
    for known in (launching._config, launching._stream):
        known.cache_clear()
    yield found
    for known in (launching._config, launching._stream):
        known.cache_clear()


def pass_of(shape, dtype=np.float32):
    """Make a forward and a backward pass."""
    x, y, dy, dx = (launches.Array(shape, dtype) for _ in range(4))
    view, affine = launches.view_of(shape), Affine((launches.Array(shape[1:2]), None), 1e-5)
    statistics = channels.forward(x, view, affine, y)
    channels.backward(dy, x, view, statistics, affine, dx, (launches.Array(shape[1:2]), None))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 64, 784), [{"grid": 64, "cluster": 8, "block": 256}]),  # 8 blocks of a channel: a cluster
        ((32, 64, 3136), [{"grid": 64 * 16, "block": 256}]),  # 16 blocks wait for each other
        ((128, 64, 12544), [{"grid": 64 * 256, "block": 256}] * 2),  # too many
        ((4, 1024, 196), [{"grid": 1024, "block": 256}]),  # one block
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_a_forward_pass_launches(shape, expected, dtype, launched):
    """From the verb down to cuda.core, which gets numbers alone; here at the second call."""
    if dtype != np.float32:
        expected = None  # they are cut up in another way
    pass_of(shape, dtype)
    launched.configs.clear()
    x, y = launches.Array(shape, dtype), launches.Array(shape, dtype)
    affine = Affine((launches.Array(shape[1:2]), None), 1e-5)
    channels.forward(x, launches.view_of(shape), affine, y)
    assert expected is None or launched.configs == expected
    assert {type(value) for value in launched.given} <= {int, float, np.uint16, np.float32, np.float64}


@pytest.mark.parametrize("shape", [(32, 64, 784), (32, 64, 3136), (128, 64, 12544), (4, 1024, 196)])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_captured_call_compiles_nothing(shape, calls, launched, driver):
    """After one call on any stream: no kernel can be loaded during a capture."""
    for _ in range(calls):
        pass_of(shape)
    before = set(launched.compiled)
    driver.cuStreamIsCapturing = lambda stream: (OK, ACTIVE)
    launched.configs.clear()
    pass_of(shape)
    assert launched.compiled == before
    assert launched.configs
