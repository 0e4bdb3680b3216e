"""Threads, any number of them and on any layer, and Ctrl-C: the same bits as alone, no crash, no hang.

Everything here runs in subprocesses, because what it guards against kills or blocks a process. A test names
a function of this file; the process imports the file and calls it.
"""

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

import numbabn as nbn
from tests.support.concurrency import (
    CONTEXTS,
    LARGE,
    SMALL,
    THREADS,
    all_tasks,
    digest,
    in_child,
    in_threads,
    inference,
    ordinary_digest,
    parallel_signatures,
    report_digests,
    run,
    with_one_thread,
)
from tests.support.jit import needs_jit

pytestmark = needs_jit

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
    if training:
        # A call replaces the statistics that it found when it began by its own, so that those of calls at the
        # same moment may be lost, of several if it is slow; of one thread alone none is.
        together = layer.num_batches_tracked - tracked
        assert 1 <= together <= 63 * THREADS
        work(0)
        assert layer.num_batches_tracked - tracked == together + 63
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


def test_one_thread_for_the_process():
    assert run(report_digests, NUMBA_NUM_THREADS="1") == ordinary_digest()


def test_four_threads_for_the_process():
    assert run(report_digests, NUMBA_NUM_THREADS="4") == ordinary_digest()


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


def test_workqueue_layer():
    """As on a machine without OpenMP and TBB: Numba's own layer aborts when two threads enter it at once."""
    assert run(storm_on_workqueue, NUMBA_THREADING_LAYER="workqueue") == ordinary_digest()


def storm_on_workqueue():
    storm(threads=4, small_rounds=40)
    assert numba.threading_layer() == "workqueue"
    assert parallel_signatures() == 0
    return report_digests()


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
