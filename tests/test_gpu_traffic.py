"""The byte model of the GPU benchmark: what it counts, and that the kernels move just that."""

import numba
import numpy as np
import pytest

from tests.support.cases import CASES, Case
from tests.support.strategies import JIT

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

pytest.importorskip("numba_cuda", reason='needs numba-cuda: python -m pip install "numbabn[cuda]"')

from benchmarks.gpu import peers, traffic  # noqa: E402
from benchmarks.libraries import BACKWARD, FORWARD, INFERENCE  # noqa: E402
from tests.cuda.simulated_program import run_simulated  # noqa: E402

NCHW = Case((32, 64, 56, 56), "NCHW")
MANY = 10**6  # blocks: everything that can be read once is


@pytest.mark.skipif(SIMULATED, reason="the simulator cuts arrays up for itself")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_of_one_and_of_two_launches(dtype):
    shape = outer, channels, inner = traffic.canonical(NCHW)
    assert shape == (32, 64, 3136)
    whole = outer * channels * inner * np.dtype(dtype).itemsize

    def moved(operation, resident):
        found = traffic.traffic(operation, shape, dtype, resident)
        return found.kernels, found.read, found.written

    kernels, read, written = moved(INFERENCE, 0)
    assert kernels == ("normalize",)
    assert (read, written) == (whole + 4 * 4 * channels, whole)  # mean, var, gamma, beta of float32

    # Besides the arrays, per channel: gamma and beta of float32, statistics and sums of float64, read or
    # written; and 24 bytes for every part of it, written and read.
    for operation, arrays, fused, two, given, made in (
        (FORWARD, 1, ("forward",), ("moments", "normalize"), 4 + 4, 8 + 8),
        (BACKWARD, 2, ("backward",), ("products", "gradient"), 4 + 8 + 8, 4 + 4 + 16),
    ):
        kernels, read, written = moved(operation, MANY)
        assert kernels == fused
        partials = read - arrays * whole - given * channels
        assert partials == written - whole - made * channels
        parts, rest = divmod(partials, 24 * channels)
        assert rest == 0
        assert 2 <= parts <= 64
        kernels, read, written = moved(operation, 0)
        assert kernels == two
        # The second launch reads the parameters, and what the first has written of statistics or sums.
        assert read == 2 * arrays * whole + partials + (given + 16 + (operation == BACKWARD) * 16) * channels
        assert written == whole + partials + made * channels


def test_a_single_part_has_no_partial_sums():
    shape = (2, 3, 5)  # 30 elements: one tile a group
    found = traffic.traffic(FORWARD, shape, np.float32, 0)
    assert found.kernels == ("forward",)
    assert (found.read, found.written) == (30 * 4 + 2 * 3 * 4, 30 * 4 + 2 * 3 * 8)  # parameters, statistics
    found = traffic.traffic(BACKWARD, shape, np.float64, 0)
    assert found.kernels == ("backward",)
    # dy, x, gamma of float32 and two statistics; dx, two gradients of float32 and two sums.
    assert (found.read, found.written) == (2 * 240 + 12 + 48, 240 + 24 + 48)


@pytest.mark.skipif(SIMULATED, reason="the simulator cuts arrays up for itself")
@pytest.mark.parametrize("resident", [0, 132, MANY])
@pytest.mark.parametrize("operation", peers.OPERATIONS)
def test_never_more_than_two_reads_and_one_write(operation, resident):
    arrays = 2 if operation == BACKWARD else 1
    for case in CASES:
        found = traffic.traffic(operation, traffic.canonical(case), np.float32, resident)
        assert len(found.kernels) <= (1 if operation == INFERENCE else 2)
        small = 0.25 * case.nbytes + 64 * case.channels
        assert found.read <= 2 * arrays * case.nbytes + small, case.name
        assert case.nbytes <= found.written <= case.nbytes + small, case.name
        assert found.moved >= traffic.floor(operation, case)


COUNT = """
    import json
    import threading

    import numpy as np

    import numbabn as nbn
    from benchmarks.gpu import traffic
    from benchmarks.libraries import BACKWARD, FORWARD, INFERENCE
    from numba import cuda
    from numbabn.backends.cuda import epilogue, tiles

    lock, moved = threading.Lock(), {"read": 0, "written": 0}

    def counted(function, direction, lanes):
        def call(*arguments):
            with lock:
                moved[direction] += (lanes or int(arguments[-2])) * arguments[-1].itemsize
            return function(*arguments)

        return call

    for module, name, direction, lanes in (
        (tiles, "copy_async", "read", 1), (tiles, "copy_vector", "read", None),
        (epilogue, "array_store", "written", 1), (epilogue, "array_store4", "written", 4),
        (tiles, "array_store", "written", 1), (tiles, "array_store4", "written", 4),
    ):
        setattr(module, name, counted(getattr(module, name), direction, lanes))
    found = []
    for shape, dtype in (((5, 3, 5), np.float32), ((1, 1, 150), np.float64), ((1, 1, 300), np.float16)):
        x = cuda.to_device(np.random.default_rng(0).standard_normal(shape).astype(dtype))
        y, saved = nbn.batch_norm_forward(x)
        calls = {
            FORWARD: lambda: nbn.batch_norm_forward(x),
            INFERENCE: lambda: nbn.batch_norm_inference(x, saved.mean, saved.var),
            BACKWARD: lambda: nbn.batch_norm_backward(x, saved),
        }
        for operation, call in calls.items():
            moved.update(read=0, written=0)
            call()
            model = traffic.traffic(operation, shape, dtype, 0)
            found.append([moved["read"], moved["written"], model.read, model.written, model.kernels])
    print(json.dumps(found))
"""


@pytest.mark.skipif(not JIT, reason="the other run of CI does it")
def test_the_model_is_what_kernels_do():
    found = run_simulated(COUNT)
    assert {len(kernels) for *_, kernels in found} == {1, 2}
    for read, written, model_read, model_written, kernels in found:
        small = 4000  # parameters, statistics and partial sums, which the model has besides the arrays
        assert 0 <= model_read - read <= small, kernels
        assert 0 <= model_written - written <= small, kernels
        assert read >= 5 * 3 * 5 * 4
        assert written >= 5 * 3 * 5 * 4
