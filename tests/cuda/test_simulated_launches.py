"""The library where CUDA is simulated in a user's process, without the simulator of the tests."""

import pytest

from tests.support.processes import run_python

VALUES = """
    import numpy as np

    from numbabn.backends.cuda import plan
    from numbabn.backends.verbs import View
    from tests.support.backends import BACKENDS
    from tests.support.problems import Problem
    from tests.support.table import layer_is_the_functions, values

    backend, parts = BACKENDS["numba"](), []
    for shape, axis in (((40, 8), 1), ((2, 9, 3), 1), ((2, 2, 130), 1), ((700, 1), 1), ((3, 4, 5, 6), -1)):
        values(backend, Problem(shape, axis, offset=3.0))
        outer, channels = np.prod(shape[:axis], dtype=int), shape[axis]
        view = View(1, int(outer), channels, 1, int(np.prod(shape) // outer // channels))
        parts.append(plan.geometry(view, 4, 1).parts)
    layer_is_the_functions(backend, True, np.float32)
    print(max(parts))
"""


@pytest.mark.slow
def test_values():
    """Numba's simulator fails here where a group has several blocks, and sometimes corrupts memory."""
    assert int(run_python(VALUES, NUMBA_ENABLE_CUDASIM="1")) > 1


THREADS = """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from numba import cuda

    import numbabn as nbn

    x = np.random.default_rng(0).standard_normal((4, 40, 8)).astype(np.float32)
    alone = [nbn.batch_norm_forward(cuda.to_device(a))[0].copy_to_host() for a in x]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda a: nbn.batch_norm_forward(cuda.to_device(a))[0].copy_to_host(), x))
    assert all((a == b).all() for a, b in zip(alone, together))
"""


def test_launches_of_several_threads():
    run_python(THREADS, NUMBA_ENABLE_CUDASIM="1")


FAILURES = """
    import signal
    import threading

    import numpy as np

    from numbabn.backends.cuda import plan
    from numbabn.backends.cuda.gpu import Kernel, cuda

    @Kernel
    def fails():
        if cuda.threadIdx.x == 3 and cuda.blockIdx.x == 1:
            raise LookupError("in a thread")
        cuda.syncthreads()

    @Kernel
    def interrupts():
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for _ in range(100):  # not for ever: a signal just before a wait is handled after it
            cuda.syncthreads()

    @Kernel
    def counts(total):
        total[cuda.syncthreads_or(cuda.threadIdx.x == 31)] += 1

    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell begin without it
    for kernel, expected in ((fails, LookupError), (interrupts, KeyboardInterrupt)):
        try:
            kernel.launch(None, 3)
        except expected:
            assert threading.active_count() == 1, "a thread goes on after its launch"
        else:
            raise AssertionError("no error was raised")
    total = [0, 0]
    counts.launch(None, 2, total)
    assert total == [0, 2 * plan.THREADS]
"""


def test_no_thread_goes_on_after_its_launch():
    """It would write to memory that nobody keeps, for example after Ctrl-C."""
    run_python(FAILURES, NUMBA_ENABLE_CUDASIM="1")


REAL_GPU = """
    import sys
    from types import ModuleType, SimpleNamespace

    import numpy as np

    import numbabn as nbn

    NOWHERE = 1 << 50  # an address that no process can read


    class ndarray:
        __module__ = "cupy"
        dtype, data = np.dtype(np.float32), SimpleNamespace(ptr=NOWHERE, device_id=0)

        def __init__(self, *shape):
            self.shape, self.strides = shape, np.empty(shape, np.float32).strides


    class Tensor:
        __module__ = "torch"
        dtype, layout, requires_grad = "torch.float32", "strided", False
        device = SimpleNamespace(type="cuda", index=0)
        data_ptr, element_size, is_neg = lambda self: NOWHERE, lambda self: 4, lambda self: False

        def __init__(self, *shape):
            self.shape, self.stride = shape, lambda: tuple(n // 4 for n in np.empty(shape, "f4").strides)


    sys.modules["torch"] = ModuleType("torch")
    sys.modules["torch"].strided = "strided"
    for kind in (ndarray, Tensor):
        x, mean, var = kind(4, 3), kind(3), kind(3)
        for call in (
            lambda: nbn.batch_norm_inference(x, mean, var, out=x),
            lambda: nbn.batch_norm_forward(x),
            lambda: nbn.moments(x),
            lambda: nbn.BatchNorm(3, device="cuda")(x),
        ):
            try:
                call()
            except TypeError as error:
                text = str(error)
            else:
                raise AssertionError("it was not refused")
            name = f"{kind.__module__}.{kind.__name__}"
            assert text.startswith(f"x is a {name} on a GPU, but CUDA is simulated in this process"), text
            assert "NUMBA_ENABLE_CUDASIM is set; unset it, or pass numba.cuda.to_device" in text
"""


def test_arrays_on_a_real_gpu_are_refused():
    """The simulator would take the address of their memory, which is the device's, for one of the host."""
    run_python(REAL_GPU, NUMBA_ENABLE_CUDASIM="1")
