"""Child processes, and PyTorch in the same process: the same bits as alone, no crash, no hang.

Everything here runs in subprocesses, because what it guards against kills or blocks a process. A test names
a function of this file; the process imports the file and calls it.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numba
import pytest

from tests.support.concurrency import (
    CONTEXTS,
    LARGE,
    Task,
    all_tasks,
    digest,
    in_child,
    inference,
    ordinary_digest,
    parallel_signatures,
    report_digests,
    run,
)
from tests.support.jit import needs_jit

pytestmark = needs_jit

needs_fork = pytest.mark.skipif("fork" not in CONTEXTS, reason="needs fork")


@pytest.mark.parametrize("method", CONTEXTS)
def test_child_after_use(method):
    assert run(child_after_use, method, NUMBA_NUM_THREADS="2") == ordinary_digest()


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
def test_child_of_a_child():
    assert run(grandchild) == ordinary_digest()


def grandchild():
    before = report_digests()
    assert in_child("fork", in_child, "fork", report_digests) == before
    assert in_child("fork", in_child, "spawn", report_digests) == before
    return before


@needs_fork
def test_child_before_use():
    assert run(child_before_use) == ordinary_digest()


def child_before_use():
    return in_child("fork", report_digests)


@needs_fork
def test_children_of_a_parent_whose_threads_are_at_work():
    assert run(fork_in_a_storm) == ordinary_digest()


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


@pytest.mark.slow
@needs_torch
def test_pytorch_in_the_same_process():
    assert run(alternate_with_torch) == ordinary_digest()


def alternate_with_torch():
    before, of_torch = report_digests(), use_torch()
    for _ in range(5):
        assert report_digests() == before
        assert use_torch() == of_torch
    return before


@pytest.mark.slow
@needs_fork
@needs_torch
def test_child_of_a_parent_that_used_pytorch():
    """PyTorch's OpenMP threads do not survive a fork either, whether or not Numba's were started."""
    assert run(child_after_torch) == ordinary_digest()


def child_after_torch():
    use_torch()
    child = in_child("fork", report_digests)
    assert report_digests() == child
    return child
