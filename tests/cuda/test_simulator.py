"""The simulator finds what it says it finds: kernels with one mistake each, beside the right ones."""

import gc

import numba
import numpy as np
import pytest

if not numba.config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from numba import cuda as numba_cuda

from numbabn.backends.cuda import memory_simulated, plan, simulated
from numbabn.backends.cuda.gpu import (
    Kernel,
    any_thread,
    array_store4,
    atomic_add,
    atomic_add_release,
    copy_async,
    copy_wait,
    cuda,
    exchange,
    load,
    load_acquire,
    peek,
    shared_load,
    shared_store,
    store,
)
from tests.support.cuda import simulator
from tests.support.cuda.weak_memory import SimulationError

THREADS = plan.THREADS
SEEDS = range(8)
ZERO, FLAG = np.float32(0), np.int32(0)


class Array:
    """An array as kernels get it."""

    def __init__(self, host):
        self.native = numba_cuda.to_device(host)
        self.values = self.native._ary
        self.address = self.values.ctypes.data


def floats(n):
    return Array(np.zeros(n, np.float32))


def launch(kernel, blocks, *arguments, seed=0):
    with simulator.seeded(seed):
        kernel.launch(None, blocks, *[getattr(a, "address", a) for a in arguments])


def finds(kernel, blocks, message, *arrays, seeds=SEEDS):
    """Return for how many orders the mistake is found, in a message that names it."""
    caught = 0
    for seed in seeds:
        for array in arrays:
            array.values[...] = 0
        error = outcome(kernel, blocks, *arrays, seed=seed)
        if error is not None:
            assert message in str(error), error
            assert f"seed {seed}, launch 1" in error.__notes__[-1]
            caught += 1
    return caught


def outcome(*arguments, seed):
    """Return the error that a launch raises, or None."""
    try:
        launch(*arguments, seed=seed)
    except SimulationError as error:
        return error


# Order ------------------------------------------------------------------------------------------------------


@Kernel
def _order(tickets, order, unused):
    t = int(cuda.threadIdx.x)
    ticket = atomic_add(tickets, 0, np.int32(1))
    store(order, int(cuda.blockIdx.x) * THREADS + t, np.float32(ticket))


def test_orders_differ_and_repeat():
    """Threads and blocks come in an order that the seed decides."""
    found = {}
    for seed in (*SEEDS, *SEEDS):
        tickets, order = Array(np.zeros(1, np.int32)), floats(5 * THREADS)
        launch(_order, 5, tickets, order, 0, seed=seed)
        assert sorted(order.values) == list(range(5 * THREADS))
        assert found.setdefault(seed, order.values.tobytes()) == order.values.tobytes()
    assert len(set(found.values())) == len(SEEDS)


def test_launches_differ():
    """Each launch after the same seed has an order of its own."""
    with simulator.seeded(0):
        orders = []
        for _ in range(2):
            tickets, order = Array(np.zeros(1, np.int32)), floats(THREADS)
            _order.launch(None, 1, tickets.address, order.address, 0)
            orders.append(order.values.tobytes())
    assert orders[0] != orders[1]


# Barriers ---------------------------------------------------------------------------------------------------


@Kernel
def _shift(out, barrier):
    t = int(cuda.threadIdx.x)
    shared_store(0, t, np.float32(t))
    if barrier:
        cuda.syncthreads()
    store(out, t, shared_load(0, (t + 1) % THREADS, ZERO))


def test_missing_barrier():
    out = floats(THREADS)
    launch(_shift, 1, out, 1)
    assert (out.values == np.roll(np.arange(THREADS), -1)).all()
    for seed in SEEDS:
        with pytest.raises(SimulationError, match=r"before it is written|no barrier between|used since"):
            launch(_shift, 1, out, 0, seed=seed)


@Kernel
def _overwrite(out, barrier):
    t = int(cuda.threadIdx.x)
    shared_store(0, t, np.float32(t))
    cuda.syncthreads()
    value = shared_load(0, (t + 1) % THREADS, ZERO)
    if barrier:
        cuda.syncthreads()
    shared_store(0, t, value)
    store(out, t, value)


def test_missing_barrier_before_a_write():
    out = floats(THREADS)
    launch(_overwrite, 1, out, 1)
    for seed in SEEDS:
        with pytest.raises(SimulationError, match=r"used since the last barrier|with no barrier between"):
            launch(_overwrite, 1, out, 0, seed=seed)


@Kernel
def _same_place(out):
    shared_store(0, 0, np.float32(cuda.threadIdx.x))


def test_two_writers():
    assert finds(_same_place, 1, "used since the last barrier", floats(1)) == len(SEEDS)


@Kernel
def _some_threads(out):
    if cuda.threadIdx.x < 7:
        cuda.syncthreads()


@Kernel
def _two_barriers(out):
    if cuda.threadIdx.x < 7:
        cuda.syncthreads()
    else:
        cuda.syncthreads()


@Kernel
def _votes(out):
    t = int(cuda.threadIdx.x)
    one, none = any_thread(t == 3), any_thread(t > THREADS)
    store(out, t, np.float32(one and not none))


def test_barriers_of_some():
    out = floats(THREADS)
    assert finds(_some_threads, 1, "ended", out) == len(SEEDS)
    assert finds(_two_barriers, 1, "barriers meet", out) == len(SEEDS)
    launch(_votes, 1, out)
    assert (out.values == 1).all()


# Copies and shared memory -----------------------------------------------------------------------------------


@Kernel
def _copied(x, out, wait, barrier):
    t = int(cuda.threadIdx.x)
    copy_async(0, t, x, t, ZERO)
    if wait:
        copy_wait()
    if barrier:
        cuda.syncthreads()
    store(out, t, shared_load(0, (t + 1) % THREADS, ZERO))


def test_copies():
    x, out = Array(np.arange(THREADS, dtype=np.float32)), floats(THREADS)
    launch(_copied, 1, x, out, 1, 1)
    assert (out.values == np.roll(x.values, -1)).all()
    for seed in SEEDS:
        with pytest.raises(SimulationError, match="before it is written"):
            launch(_copied, 1, x, out, 0, 1, seed=seed)
        with pytest.raises(SimulationError, match=r"before it is written|no barrier|used since"):
            launch(_copied, 1, x, out, 1, 0, seed=seed)


@Kernel
def _forgotten_copy(x):
    copy_async(0, int(cuda.threadIdx.x), x, 0, ZERO)


@Kernel
def _beyond_shared(out):
    shared_store(plan.SHARED_BYTES - 4, int(cuda.threadIdx.x), ZERO)


@Kernel
def _uninitialised(out):
    shared_load(0, 0, ZERO)


def test_shared_memory():
    out = floats(THREADS)
    assert finds(_forgotten_copy, 1, "not waited", out) == len(SEEDS)
    assert finds(_beyond_shared, 1, "there is no float32 at byte", out) == len(SEEDS)
    assert finds(_uninitialised, 1, "read before it is written", out) == len(SEEDS)


# Device memory ----------------------------------------------------------------------------------------------


@Kernel
def _at(x, index):
    load(x, index, ZERO)


@Kernel
def _at_four(x, index):
    array_store4(x, index, ZERO, ZERO, ZERO, ZERO, ZERO)


def test_bounds():
    x = floats(12)
    launch(_at, 1, x, 11)
    for index in (12, -1):
        with pytest.raises(SimulationError, match=f"element {index} from"):
            launch(_at, 1, x, index)
    with pytest.raises(ValueError, match="misaligned"):
        launch(_at, 1, x.address + 2, 0)
    launch(_at_four, 1, x.address + -x.address % 16, 0)
    with pytest.raises(ValueError, match="misaligned"):
        launch(_at_four, 1, x.address + -x.address % 16, 1)


def test_memory_that_is_gone():
    x = floats(1_000_003)
    address = x.address
    launch(_at, 1, address, 0)
    del x
    gc.collect()
    with pytest.raises(IndexError, match="no array lies"):
        launch(_at, 1, address, 0)


def test_views_share_their_memory():
    """A pointer into an array may go where the whole of it is."""
    x = floats(8)
    launch(_at, 1, x.native[3:]._ary.ctypes.data, -3)


# Blocks -----------------------------------------------------------------------------------------------------


@Kernel
def _message(data, flags, out, release, wait, acquire):
    """Block 0, whichever that is, tells the others a number."""
    if cuda.threadIdx.x == 0:
        if atomic_add(flags, 0, np.int32(1)) == 0:
            store(data, 0, np.float32(5))
            if release:
                atomic_add_release(flags, 1, np.int32(1))
            else:
                atomic_add(flags, 1, np.int32(1))
        else:
            while wait and peek(flags, 1, FLAG) == 0:
                cuda.nanosleep(np.uint32(32))
            if acquire:
                load_acquire(flags, 1, FLAG)
            store(out, int(cuda.blockIdx.x), peek(data, 0, ZERO))


@pytest.mark.parametrize("part", ["release", "wait", "acquire"])
def test_message_between_blocks(part):
    """Each part of it is needed, and each is missed in some order at the latest by its result."""
    steps = {"release": 1, "wait": 1, "acquire": 1}
    caught = 0
    for broken in (False, True):
        for seed in range(20):
            data, flags, out = floats(1), Array(np.zeros(2, np.int32)), floats(4)
            arguments = steps | ({part: 0} if broken else {})
            error = outcome(_message, 4, data, flags, out, *arguments.values(), seed=seed)
            assert error is None or "nothing says that this was before" in str(error)
            wrong = error is not None or sorted(out.values) != [0, 5, 5, 5]
            assert broken or not wrong
            caught += wrong
    assert caught >= 5


@Kernel
def _exchange(out):
    """Threads write what the thread of their warp has whose number differs in a bit."""
    t = int(cuda.threadIdx.x)
    store(out, t, exchange(np.float32(t), 2))


@Kernel
def _exchange_without_one(out):
    t = int(cuda.threadIdx.x)
    if t != 3:
        store(out, t, exchange(np.float32(t), 2))


def test_exchange_in_a_warp():
    for seed in SEEDS:
        out = floats(THREADS)
        assert outcome(_exchange, 1, out, seed=seed) is None
        np.testing.assert_array_equal(out.values, np.arange(THREADS) ^ 2)


def test_all_threads_of_a_warp_must_exchange():
    assert finds(_exchange_without_one, 1, "wait for others of their warps", floats(THREADS)) == len(SEEDS)


@Kernel
def _wait_for_the_next(flags):
    """Block b waits for block b + 1: with few blocks at once, it may never come."""
    if cuda.threadIdx.x == 0:
        b = int(cuda.blockIdx.x)
        store(flags, b, np.int32(1))
        while b + 1 < cuda.gridDim.x and peek(flags, b + 1, FLAG) == 0:
            cuda.nanosleep(np.uint32(32))


def test_deadlock(monkeypatch):
    flags = Array(np.zeros(8, np.int32))
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", 2)
    assert finds(_wait_for_the_next, 8, "no thread can go on", flags) >= 5
    monkeypatch.setattr(plan, "RESIDENT_SIMULATED", 8)
    for seed in SEEDS:
        flags.values[...] = 0
        launch(_wait_for_the_next, 8, flags, seed=seed)


@Kernel
def _both_write(out):
    store(out, 0, np.float32(cuda.blockIdx.x))


def test_two_blocks_write_one_place():
    assert finds(_both_write, 2, "overwrites", floats(1)) >= 5


# The library's own simulator --------------------------------------------------------------------------------


@Kernel
def _plain(x, out, tickets):
    t = int(cuda.threadIdx.x)
    copy_async(0, t, x, t, ZERO)
    copy_wait()
    cuda.syncthreads()
    store(out, t, shared_load(0, (t + 1) % THREADS, ZERO) + peek(x, 0, ZERO))
    atomic_add(tickets, 0, np.int32(1))


def test_without_this_simulator(monkeypatch):
    """The kernels run in `simulated`, too: without a check, and one block after the other."""
    monkeypatch.setattr(simulated, "launch", simulator.plain_launch)
    monkeypatch.setattr(memory_simulated, "machine", memory_simulated.Machine())
    x, out, tickets = (
        Array(np.arange(1, THREADS + 1, dtype=np.float32)),
        floats(THREADS),
        np.zeros(1, np.int32),
    )
    launch(_plain, 2, x, out, tickets.ctypes.data)
    assert (out.values == np.roll(x.values, -1) + 1).all()
    assert tickets[0] == 2 * THREADS
