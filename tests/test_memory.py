"""The memory of large results: used again when, and only when, nobody can see it any more."""

import gc
import os
import sys
import tracemalloc

import numpy as np
import pytest

import numbabn as nbn
from numbabn.arrays import memory
from tests.support.processes import run_python


@pytest.fixture
def kept(monkeypatch):
    """Small blocks, treated as large ones, none kept so far; count those that are kept and in no array."""
    if not memory._SUPPORTED:
        pytest.skip("this system has no MADV_FREE")
    pool = memory._Pool(limit=1 << 30)
    monkeypatch.setattr(memory, "_pool", pool)
    monkeypatch.setattr(memory, "SMALLEST_BLOCK", 1000)
    monkeypatch.setattr(memory, "LARGEST_RESIDENT", 0)
    return lambda: sum(kept() is None for kept in pool._kept.values())


def infer(x):
    """Return a fresh result of x's size."""
    return nbn.batch_norm_inference(x, np.zeros(x.shape[1]), np.ones(x.shape[1]))


def address(array):
    return array.__array_interface__["data"][0]


def test_block_is_used_again_after_the_last_view_died(kept):
    x = np.ones((64, 32), np.float32)
    y = nbn.batch_norm_inference(x, np.zeros(32), np.ones(32))
    first, view = address(y), y[3:5].T
    before = view.copy()
    del y
    gc.collect()
    assert kept() == 0, "a view is alive"
    other = nbn.batch_norm_inference(5 * x, np.zeros(32), np.ones(32))
    assert address(other) != first
    np.testing.assert_array_equal(view, before)
    del view
    gc.collect()
    assert kept() == 1
    assert address(nbn.batch_norm_inference(x, np.zeros(32), np.ones(32))) == first


@pytest.mark.parametrize("order", ["C", "F"])
def test_result_from_kept_memory_has_the_values_and_the_layout_of_any_other(kept, order):
    x = np.asarray(np.random.default_rng(0).standard_normal((7, 33, 5)), order=order)
    for _ in range(2):
        y, saved = nbn.batch_norm_forward(x)
        dx, *_ = nbn.batch_norm_backward(x, saved)
        assert y.strides == dx.strides == np.empty_like(x).strides
        assert y.flags.writeable
        expected = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
        # Ten roundings of float64 in the oracle and as many here.
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)
        del y, dx
        gc.collect()
    assert kept() == 2, "y and dx"


def test_no_more_is_kept_than_allowed(kept):
    nbn.set_pool_limit(2 * memory._PAGE)
    results = [infer(np.ones((64, 32))) for _ in range(5)]
    del results
    gc.collect()
    assert kept() == 2
    nbn.set_pool_limit(memory._PAGE)
    assert kept() == 1
    nbn.set_pool_limit(0)
    assert kept() == 0
    infer(np.ones((64, 32)))
    assert kept() == 0


def test_the_least_recently_used_goes_first(kept):
    """Several sizes against the limit: new sizes are kept, old ones make room."""
    nbn.set_pool_limit(4 * memory._PAGE)
    one, two, three = (np.ones((n * memory._PAGE // 64 - 1, 8)) for n in (1, 2, 3))
    first = address(infer(one))
    infer(two)
    assert address(infer(one)) == first, "one and two fit"
    infer(three)  # and one, which was used after two
    assert kept() == 2
    assert address(infer(one)) == first


def test_a_limit_below_one_block_keeps_nothing(kept):
    nbn.set_pool_limit(memory._PAGE - 1)
    y = infer(np.ones((64, 32)))
    assert (y == infer(np.ones((64, 32)))).all()
    del y
    assert kept() == 0


def test_blocks_that_are_not_marked_free_go_at_the_next_result_beyond_a_limit(kept, monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_RESIDENT", 10 * memory._PAGE)
    monkeypatch.setattr(memory, "RESIDENT_LIMIT", 2 * memory._PAGE)
    x = np.ones((64, 32))
    results = [infer(x) for _ in range(5)]
    assert [record.__callback__ for record in memory._pool._kept.values()] == [None] * 5
    newest = address(results[-1])
    del results
    gc.collect()
    assert kept() == 5
    y = infer(x)
    assert address(y) == newest
    assert kept() == 2
    z = infer(np.ones((memory._PAGE // 8, 11)))  # of 11 pages, which are marked free
    assert memory._pool._kept.popitem()[1].__callback__ is not None
    assert z[-1, -1] == y[-1, -1]


def test_memory_that_cannot_be_marked_free_is_kept_all_the_same(kept, monkeypatch):
    """The system is older than the headers that Python was compiled with, and refuses the number."""
    monkeypatch.setattr(memory.mmap, "MADV_FREE", 12345)
    monkeypatch.setattr(memory, "_frees", memory._frees.__wrapped__)  # which remembers nothing
    first = address(infer(np.ones((64, 32))))
    assert kept() == 1
    assert address(infer(np.ones((64, 32)))) == first


@pytest.mark.parametrize("missing", ["MADV_FREE", "MADV_HUGEPAGE"])
def test_systems_that_cannot_mark_memory_free_keep_nothing(missing):
    code = f"""
        import mmap
        if hasattr(mmap, "{missing}"):
            del mmap.{missing}
        import numpy as np
        import numbabn as nbn
        from numbabn.arrays import memory

        memory.SMALLEST_BLOCK, memory.LARGEST_RESIDENT = 1000, 0
        for _ in range(2):
            y = nbn.batch_norm_inference(np.ones((64, 32)), np.zeros(32), np.ones(32), eps=0.0)
            assert (y == 1).all()
        print(y.base, len(memory._pool._kept))
        nbn.set_pool_limit(0)
    """
    assert run_python(code) == "None 0\n"


@pytest.mark.parametrize("depth", [1, 2])
def test_memory_that_somebody_refers_to_is_not_used_again(kept, depth):
    """Whoever holds what an array is a view of has its memory, too."""
    y = infer(np.ones((64, 32)))
    first, owner = address(y), y[1:]
    for _ in range(depth):
        owner = owner.base
    del y
    gc.collect()
    assert kept() == 0
    again = infer(np.ones((64, 32)))
    assert address(again) != first
    del owner
    assert kept() == 1


@pytest.mark.parametrize(
    ("nbytes", "error", "message"),
    [(-1, ValueError, "nbytes must be at least 0, not -1"), ("1 GB", TypeError, "nbytes must be an integer")],
)
def test_bad_limits(nbytes, error, message):
    with pytest.raises(error, match=message):
        nbn.set_pool_limit(nbytes)


@pytest.mark.parametrize("dtype", ["np.float32", "np.uint8"])
def test_kept_memory_is_given_back_before_there_is_too_little(dtype):
    """Address space for three blocks: two kept ones make room for a larger one; then MemoryError, and on."""
    code = f"""
        import resource
        import numpy as np
        import numbabn as nbn

        x = np.ones((1 << 14, 1024), np.float32)  # 64 MiB
        large = np.ones((1 << 15, 1024), {dtype})
        mean, var = np.zeros(1024), np.ones(1024)
        nbn.batch_norm_inference(large, mean, var, out=np.empty(large.shape, np.float32), dtype=np.float32)
        results = [nbn.batch_norm_inference(x, mean, var) for _ in range(2)]
        del results
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
        print(nbn.batch_norm_inference(large, mean, var, dtype=np.float32).sum())
        mean, var = np.zeros(3), np.ones(3)
        try:
            nbn.batch_norm_inference(np.broadcast_to(np.float32(1), (1 << 30, 3)), mean, var)
        except MemoryError:
            print("MemoryError")
        print(nbn.batch_norm_inference(x[:4, :3], mean, var).sum())
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("needs the limits of Linux")
    first, second, third = run_python(code).split()
    assert float(first) > 0
    assert second == "MemoryError"
    assert abs(float(third) - 12 / np.sqrt(1 + 1e-5)) < 12 * np.finfo(np.float32).eps


def test_signals_are_not_lost():
    """A signal that arrives anywhere in a call with a large result raises what its handler raises."""
    code = """
        import random, signal, time
        import numpy as np
        import numbabn as nbn

        x = np.ones((2500, 4000), np.float32)  # 40 MB
        mean, var = np.zeros(4000), np.ones(4000)
        nbn.batch_norm_inference(x, mean, var)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        random.seed(0)
        lost = 0
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 0.02))
                end = time.monotonic() + 0.5
                while time.monotonic() < end:
                    nbn.batch_norm_inference(x, mean, var)
                lost += 1
            except KeyboardInterrupt:
                pass
        print(lost)
    """
    assert run_python(code, NUMBA_NUM_THREADS="1").strip() == "0"


def test_a_signal_handler_may_make_results_too():
    """In the middle of making one, where the pool is looked through."""
    code = """
        import signal, time
        import numpy as np
        from numbabn.arrays import memory

        memory.SMALLEST_BLOCK, memory.LARGEST_RESIDENT = 1000, 0
        x = np.empty(3000)
        held = [memory.empty_like(np.empty(3000 + 300_000 * (i % 5))) for i in range(100)]
        made = []

        def handler(*_):
            made.append(memory.empty_like(x).shape)
            signal.setitimer(signal.ITIMER_REAL, 1e-3)  # only now: no handler interrupts another

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            memory.empty_like(x)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(made) > 50)
    """
    assert run_python(code) == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_makes_results_whatever_other_threads_did_at_the_fork():
    code = """
        import os, signal, threading
        import numpy as np
        from numbabn.arrays import memory

        memory.SMALLEST_BLOCK, memory.LARGEST_RESIDENT = 1000, 0
        x, stop = np.empty(3000), threading.Event()

        def work():
            while not stop.is_set():
                memory.empty_like(x)

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(50):
            child = os.fork()
            if not child:
                signal.alarm(20)  # ends a child that waits for a lock that nobody will release
                memory.empty_like(x)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        print("done")
    """
    assert run_python(code) == "done\n"


def test_out_allocates_no_array_and_a_fresh_result_exactly_one():
    x = np.ones((256, 1000), np.float32)
    y = np.empty_like(x)

    def peak(**options):
        nbn.batch_norm_forward(x, **options)  # compile, and fill the caches of shapes
        tracemalloc.start()
        nbn.batch_norm_forward(x, **options)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    # What is left is arrays of one value per channel, of float64: some forty here.
    small = 40 * 1000 * 8
    assert peak(out=y) < small
    assert x.nbytes <= peak() < x.nbytes + small
