"""Threads, forks, other OpenMP users, Ctrl-C: the same bits as alone, no crash, no hang.

Everything here runs in subprocesses, because what it guards against kills or blocks a process. A test names
a function of this file; the process imports the file and calls it.
"""

import gc
import hashlib
import multiprocessing
import os
import random
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import numbabn as nbn

from .test_environment import TIMEOUT, needs_jit, run_python

pytestmark = needs_jit

THREADS = 8
HANG = TIMEOUT - 60  # seconds after which a child is given up, in time to say so

# Shape and channel axis: one launch each, and phases over more than one thread.
SMALL = (((32, 16), 1), ((4, 8, 6, 6), 1), ((6, 5, 5, 3), -1))
LARGE = (((8, 64, 40, 40), 1), ((256, 32, 160), -1))


def run(function, *arguments, **environment):
    """Call a function of this file in a fresh process; return the last line it printed."""
    name = function.__name__
    code = f"from {__name__} import {name}; print({name}(*{arguments!r}))"
    return run_python(code, **environment).splitlines()[-1]


class Task:
    """Forward and backward of one array; calling it returns a digest of every result."""

    def __init__(self, shape, axis, seed=0):
        rng = np.random.default_rng([seed, *shape])
        self.axis = axis
        self.x, self.dy = rng.standard_normal((2, *shape)).astype(np.float32)
        self.gamma, self.beta = rng.standard_normal((2, shape[axis]))

    def results(self):
        y, saved = nbn.batch_norm_forward(self.x, self.gamma, self.beta, axis=self.axis)
        return y, saved.mean, saved.var, *nbn.batch_norm_backward(self.dy, saved)

    def __call__(self):
        return digest(*self.results())


def digest(*arrays):
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def inference(x, mean):
    """Inference with the same mean for all channels, and variance 1."""
    channels = x.shape[1]
    return digest(nbn.batch_norm_inference(x, np.full(channels, float(mean)), np.ones(channels)))


def all_tasks(seed=0):
    return [Task(shape, axis, seed) for shape, axis in SMALL + LARGE]


def with_one_thread(function):
    """Call a function while Numba is limited to one thread: what everything is compared with."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        return function()
    finally:
        numba.set_num_threads(before)


def in_threads(function, count=THREADS):
    """Call function(number of the thread) in threads that start together; return the results in order."""
    barrier = threading.Barrier(count)

    def wait_and_call(number):
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_call, range(count)))


def parallel_signatures():
    """How many signatures of parallel kernels were compiled or loaded: 0 if none ever ran."""
    kernels = [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, Dispatcher)
        and thing.py_func.__module__.startswith("numbabn")
        and thing.targetoptions.get("parallel", False) is not False
    ]
    assert kernels
    return sum(len(kernel.signatures) for kernel in kernels)


# --- threads -----------------------------------------------------------------------------------------------


def storm(threads=THREADS, small_rounds=150, large_rounds=20):
    """Let many threads work at once, from the first call of the process on; return how many were right."""
    tasks = [all_tasks(seed) for seed in range(threads)]  # the same shapes, but other values for each

    def work(number):
        found = []
        for i in range(small_rounds):
            chosen = tasks[number][: len(SMALL)] if i else tasks[number]
            if i % 2:  # all threads with the same shape, and each with another
                chosen = chosen[number % len(chosen) :] + chosen[: number % len(chosen)]
            found += [(task, task()) for task in chosen]
        return found

    found = [item for items in in_threads(work, threads) for item in items]
    expected = {task: with_one_thread(task.results) for of_thread in tasks for task in of_thread}
    assert all(result == digest(*expected[task]) for task, result in found)
    assert {task for task, _ in found} == expected.keys()

    def work_on_large(number):
        for task in tasks[number][len(SMALL) :]:
            for _ in range(large_rounds):  # compared, which takes less time than digests, and collides more
                assert all(map(np.array_equal, task.results(), expected[task]))

    in_threads(work_on_large, threads)
    return len(found) + threads * large_rounds * len(LARGE)


def test_threads():
    calls = 2 * int(run(storm))
    assert calls > 5000


def test_threads_of_a_users_pool():
    assert run(users_pool) == "done"


def users_pool():
    tasks = all_tasks()
    expected = [with_one_thread(task) for task in tasks]
    for workers in (1, 2, 5):
        with ThreadPoolExecutor(workers) as pool:
            for _ in range(10):
                assert [future.result() for future in [pool.submit(task) for task in tasks]] == expected
    return "done"


def test_one_layer_in_evaluation_mode_for_all_threads():
    assert run(shared_layer, False) == "done"


def test_one_layer_in_training_mode_gives_every_thread_its_own_result():
    assert run(shared_layer, True) == "done"


def shared_layer(training):
    rng = np.random.default_rng(0)
    batches = rng.standard_normal((THREADS, 16, 8, 5, 5)).astype(np.float32)
    large = rng.standard_normal((64, 8, 40, 40)).astype(np.float32)
    layer = nbn.BatchNorm(8)
    for batch in batches:
        layer(batch + 1)
    layer.training = training
    tracked, state = layer.num_batches_tracked, layer.state_dict()
    with layer.frozen_stats():
        expected = [digest(layer(batch)) for batch in (*batches, large)]

    def work(number):
        for _ in range(60):
            assert digest(layer(batches[number])) == expected[number]
        for _ in range(3):
            assert digest(layer(large)) == expected[-1]

    in_threads(work)
    after = layer.state_dict()
    assert np.isfinite(after["running_mean"]).all()
    if training:  # of calls at the same moment just one need be counted
        assert 63 <= layer.num_batches_tracked - tracked <= 63 * THREADS
    else:
        assert all(np.array_equal(after[name], state[name]) for name in state)
    return "done"


def test_memory_of_large_results():
    assert run(hold_parts_of_large_results) == "done"


def hold_parts_of_large_results():
    """A result that is alive, or any view of it, shares no memory with the next result."""
    x = np.random.default_rng(0).standard_normal((9, 16, 256, 256)).astype(np.float32)
    assert x.nbytes > 32 << 20  # the library keeps blocks above this
    expected = [inference(x, k) for k in range(4)]

    def work(number):
        held = []
        for i in range(4):
            k = (i + number) % 4
            y = nbn.batch_norm_inference(x, np.full(16, float(k)), np.ones(16))
            held = [*held[-1:], (k, y.reshape(-1)[::-1])]
            del y
            for of, view in held:
                assert digest(np.ascontiguousarray(view[::-1])) == expected[of]

    in_threads(work, 3)
    child = in_child("fork" if "fork" in CONTEXTS else "spawn", inference, x, 3)
    assert child == expected[3] == inference(x, 3)
    return "done"


# --- how many threads, and which layer ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def digests():
    """What an ordinary process computes."""
    return run(report_digests)


def report_digests():
    return digest(*(np.frombuffer(task().encode(), np.uint8) for task in all_tasks()))


def test_one_thread_for_the_process(digests):
    assert run(report_digests, NUMBA_NUM_THREADS="1") == digests


def test_four_threads_for_the_process(digests):
    assert run(report_digests, NUMBA_NUM_THREADS="4") == digests


def test_set_num_threads_is_respected():
    assert run(respects_set_num_threads, NUMBA_NUM_THREADS="2") == "done"


def respects_set_num_threads():
    tasks = all_tasks()
    numba.set_num_threads(1)
    expected = [task() for task in tasks]
    assert parallel_signatures() == 0
    assert numba.get_num_threads() == 1
    numba.set_num_threads(2)
    assert [task() for task in tasks] == expected
    assert numba.get_num_threads() == 2
    if numba.threading_layer() != "workqueue":
        assert parallel_signatures() > 0
    return "done"


def test_workqueue_layer(digests):
    """As on a machine without OpenMP and TBB: Numba's own layer aborts when two threads enter it at once."""
    assert run(storm_on_workqueue, NUMBA_THREADING_LAYER="workqueue") == digests


def storm_on_workqueue():
    storm(threads=4, small_rounds=40)
    assert numba.threading_layer() == "workqueue"
    assert parallel_signatures() == 0
    return report_digests()


# --- forks -------------------------------------------------------------------------------------------------

CONTEXTS = multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif("fork" not in CONTEXTS, reason="needs fork")


def in_child(method, function, *arguments):
    """Call a function in a child process; return what it returns. A child that dies or hangs is an error."""
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=report_to, args=(send, function, *arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads and fork
        child.start()
    send.close()  # the child has its own end: without it, receiving ends when the child does
    try:
        assert receive.poll(HANG), "the child hangs"
        return receive.recv()
    except EOFError:
        child.join()
        raise AssertionError(f"the child ended with exit code {child.exitcode}") from None
    finally:
        child.kill()  # or it would outlive the test
        child.join()


def report_to(connection, function, *arguments):
    connection.send(function(*arguments))
    connection.close()


@pytest.mark.parametrize("method", CONTEXTS)
def test_child_after_use(method, digests):
    assert run(child_after_use, method, NUMBA_NUM_THREADS="2") == digests


def child_after_use(method):
    before = report_digests()
    if numba.threading_layer() != "workqueue":
        assert parallel_signatures() > 0
    assert in_child(method, report_digests) == before
    assert report_digests() == before
    if method == "fork":
        assert in_child(method, report_digests) == before
        # Kernels that the parent never used are compiled or loaded in the child, where Numba starts threads.
        x = Task(*LARGE[0]).x
        assert in_child(method, inference, x, 3) == inference(x, 3)
    return before


@needs_fork
def test_child_of_a_child(digests):
    assert run(grandchild) == digests


def grandchild():
    before = report_digests()
    assert in_child("fork", in_child, "fork", report_digests) == before
    assert in_child("fork", in_child, "spawn", report_digests) == before
    return before


@needs_fork
def test_child_before_use(digests):
    assert run(child_before_use) == digests


def child_before_use():
    return in_child("fork", report_digests)


@needs_fork
def test_children_of_a_parent_whose_threads_are_at_work(digests):
    assert run(fork_in_a_storm) == digests


def fork_in_a_storm():
    tasks = all_tasks()
    before = report_digests()
    stop = threading.Event()

    def work(number):
        while not stop.is_set():
            tasks[number].results()  # no digest: the locks of OpenSSL do not survive a fork

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, number) for number in (0, 3)]
        try:
            children = [in_child("fork", report_digests) for _ in range(5)]
        finally:
            stop.set()
        for future in futures:
            future.result()
    assert children == [before] * 5
    return before


# --- PyTorch in the same process ---------------------------------------------------------------------------

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")


def use_torch():
    """Work that PyTorch does with OpenMP threads."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(2)
    images, kernel = torch.randn(8, 16, 40, 40), torch.randn(16, 16, 3, 3)
    result = torch.nn.functional.conv2d(images, kernel, padding=1)
    result = torch.nn.functional.batch_norm(result, None, None, training=True)
    return digest(result.numpy())


@needs_torch
def test_pytorch_in_the_same_process(digests):
    assert run(alternate_with_torch) == digests


def alternate_with_torch():
    before, of_torch = report_digests(), use_torch()
    for _ in range(5):
        assert report_digests() == before
        assert use_torch() == of_torch
    return before


@needs_fork
@needs_torch
def test_child_of_a_parent_that_used_pytorch(digests):
    """PyTorch's OpenMP threads do not survive a fork either, whether or not Numba's were started."""
    assert run(child_after_torch) == digests


def child_after_torch():
    use_torch()
    child = in_child("fork", report_digests)
    assert report_digests() == child
    return child


# --- Ctrl-C ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="needs signals between threads")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_keyboard_interrupt_during_training(momentum):
    interrupts, steps = map(int, run(interrupted_training, momentum).split())
    assert interrupts == 60
    assert steps > interrupts // 2


def interrupted_training(momentum):
    """After every interrupt, the layer is where some whole number of steps leaves a layer of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    delays = random.Random(0)
    rng = np.random.default_rng(0)
    batches = rng.standard_normal((4, 16, 8, 10, 10)).astype(np.float32) + 5
    dy = rng.standard_normal(batches[0].shape).astype(np.float32)
    layer, twin = nbn.BatchNorm(8, momentum=momentum), nbn.BatchNorm(8, momentum=momentum)

    def step(trained):
        trained(batches[trained.num_batches_tracked % 4])
        return trained.backward(dy)

    step(nbn.BatchNorm(8))  # compile before: an interrupted compiler is Numba's affair
    interrupts = 0
    while interrupts < 60:
        timer = threading.Timer(delays.uniform(0, 0.005), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(100_000):  # and no more: an interrupt within a callback of Python's is lost
                step(layer)
        except KeyboardInterrupt:
            interrupts += 1
        while twin.num_batches_tracked < layer.num_batches_tracked:
            step(twin)
        state, expected = layer.state_dict(), twin.state_dict()
        assert all(np.array_equal(state[name], expected[name]) for name in expected)
        probe = batches[0] * 2
        with layer.frozen_stats(), twin.frozen_stats():
            assert np.array_equal(layer(probe), twin(probe))
        assert np.array_equal(layer.backward(dy), twin.backward(dy))
        assert all(np.array_equal(layer.grads[name], twin.grads[name]) for name in twin.grads)
    return f"{interrupts} {layer.num_batches_tracked}"
