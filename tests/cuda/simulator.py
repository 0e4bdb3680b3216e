"""A CUDA simulator for kernels whose blocks wait for each other, which looks for what a GPU would not show.

Numba's own runs one block after the other. Here all resident blocks run at once, every thread a greenlet, and
who runs next is drawn from a seeded generator; blocks begin in any order, and some are much slower than others.
Threads may be interrupted at barriers, fences, atomics, flags and sleep. A test passes for all orders or not at
all, as far as the orders drawn can tell; and whatever order is drawn, these are errors:

- two threads of a block touch one address of shared memory without a barrier between, one of them writing;
- shared memory is read that nobody has written, or an asynchronous copy that nobody has waited for;
- a block reads or overwrites what another has written, and no flag, atomic or fence says that it may;
- an access leaves its array, by however little, or is misaligned;
- a barrier is not reached by all threads of a block, or is not the same for all;
- nobody can go on.

Memory is weak: what a thread writes is seen by its block after a barrier, and by other blocks after a fence, or
perhaps at once, or only when the block has ended, as drawn. Values of type int32 are taken for flags and
counters, by which blocks tell each other what they have done; everything else is data.
"""

import contextlib
import functools
import os
import random
import sys
import threading

import numpy as np
from greenlet import greenlet

from numbabn._cuda import gpu, memory_simulated, plan
from tests.cuda.allocations import Allocations

ALL = -1  # threads
allocations = Allocations()


class SimulationError(Exception):
    """What would be undefined, or hang, on a GPU."""


class Dim3:
    """As numba.cuda has it."""

    __slots__ = ("x", "y", "z")

    def __init__(self, x, y=1, z=1):
        self.x, self.y, self.z = x, y, z


class Thread:
    """A thread, what it has written and nobody else has seen yet, and what it knows of others."""

    __slots__ = (
        "acquired", "at", "block", "copies", "greenlet", "index", "lazy", "number", "seen", "spins", "stores",
        "vote",
    )  # fmt: skip

    def __init__(self, block, number):
        self.block = block
        self.number = number
        self.index = Dim3(number, 0, 0)
        self.at = None  # the barrier where it waits
        self.vote = 0
        self.spins = False  # it has slept
        self.lazy = False  # its stores wait for a fence
        self.stores = {}
        self.copies = []  # begun and not waited for
        self.seen = 0  # the time of the latest flag that it has read
        self.acquired = 0  # writes of other blocks before this time may be read


class Block:
    """A block and its shared memory."""

    def __init__(self, number, threads, pace):
        self.index = Dim3(number, 0, 0)
        self.number = number
        self.threads = [Thread(self, t) for t in range(threads)]
        self.ready = list(self.threads)
        self.waiting = []
        self.ended = 0
        self.pace = pace
        self.stores = {}  # of all its threads, before the last barrier
        self.epoch = 0  # barriers so far
        memory = np.full(plan.SHARED_BYTES, 0xFF, np.uint8)
        self.views = {kind: memory.view(kind) for kind in (np.float32, np.float64, np.int32)}
        words = plan.SHARED_BYTES // 4
        self.written_at, self.written_by = [-1] * words, [0] * words
        self.read_at, self.read_by = [-1] * words, [0] * words


class Machine:
    """A launch: what kernels call ``cuda``, and the machine of `memory_simulated`."""

    def __init__(self, blocks, threads, seed):
        self.random = random.Random(seed)
        self.gridDim, self.blockDim = Dim3(blocks), Dim3(threads)
        self.thread = self.threadIdx = self.blockIdx = None
        self._views = {}
        self._written = {}  # address: (block, time) of its last write that others can see
        self._time = 0
        self._hub = greenlet.getcurrent()
        order = list(range(blocks))
        self.random.shuffle(order)
        paces = (1.0, 1.0, 0.3, 0.01)
        self._pending = [Block(b, threads, self.random.choice(paces)) for b in order]
        self._resident = []

    # Who runs ------------------------------------------------------------------------------------------------

    def run(self, function, arguments, resident):
        """Run all blocks, at most ``resident`` of them at once."""
        self._target = functools.partial(self._run_thread, function, arguments)
        while self._pending or self._resident:
            while self._pending and len(self._resident) < resident:
                self._resident.append(self._pending.pop())
            block = self._choose()
            ready = block.ready
            i = int(self.random.random() * len(ready))
            thread = ready[i]
            ready[i] = ready[-1]
            ready.pop()
            self._resume(thread)
        if self._views:
            self._publish_all()

    def _choose(self):
        candidates = [block for block in self._resident if block.ready]
        if not candidates:
            raise SimulationError("no thread can go on: " + self._where())
        if all(thread.spins for block in candidates for thread in block.ready) and not self._publish_all():
            raise SimulationError("all wait for each other: " + self._where())
        while True:
            block = candidates[int(self.random.random() * len(candidates))]
            if self.random.random() < block.pace:
                return block

    def _where(self):
        return (
            "; ".join(
                f"of block {block.number}, {len(block.ready)} threads spin and {len(block.waiting)} are at a barrier"
                for block in self._resident
            )
            + f"; {len(self._pending)} blocks have not begun"
        )

    def _resume(self, thread):
        self.thread, self.threadIdx, self.blockIdx = thread, thread.index, thread.block.index
        thread.lazy = self.random.random() < 0.5
        if not hasattr(thread, "greenlet"):
            thread.greenlet = greenlet(self._target, self._hub)
        try:
            thread.greenlet.switch()
        except Exception as error:
            error.add_note(f"in thread {thread.number} of block {thread.block.number}")
            raise
        if thread.greenlet.dead:
            self._end(thread)

    def _run_thread(self, function, arguments):
        with np.errstate(all="ignore"):
            function(*arguments)

    def _end(self, thread):
        block = thread.block
        if thread.copies:
            raise SimulationError("a thread has ended and not waited for its copies")
        block.stores.update(thread.stores)
        block.ended += 1
        self._progress()
        if block.waiting:
            raise SimulationError(f"a thread has ended while others wait at {block.waiting[0].at[0]}")
        if block.ended == len(block.threads):
            self._publish(block)
            self._resident.remove(block)

    def _pause(self, thread):
        """Let others run."""
        thread.block.ready.append(thread)
        self._hub.switch()

    def _progress(self):
        """Whoever waits for a flag may now find it."""
        for block in self._resident:
            for thread in block.ready:
                thread.spins = False

    # What kernels call ---------------------------------------------------------------------------------------

    def syncthreads(self):
        """Wait for the block."""
        self._barrier(0)

    def syncthreads_or(self, vote):
        """Wait for the block; tell whether any vote is not 0."""
        return self._barrier(vote)

    def _barrier(self, vote):
        thread = self.thread
        block = thread.block
        caller = sys._getframe(2)
        thread.at = f"{caller.f_code.co_name}, line {caller.f_lineno}", caller.f_back.f_lineno
        thread.vote = vote
        if block.ended:
            raise SimulationError(f"some threads have ended before the barrier in {thread.at[0]}")
        if block.waiting and block.waiting[0].at != thread.at:
            raise SimulationError(f"barriers meet: {thread.at[0]} and {block.waiting[0].at[0]}")
        block.waiting.append(thread)
        if len(block.waiting) == len(block.threads):
            self._release(block)
        self._hub.switch()
        return thread.vote

    def _release(self, block):
        result = int(any(thread.vote for thread in block.waiting))
        acquired = max(thread.acquired for thread in block.waiting)
        for thread in block.waiting:
            block.stores.update(thread.stores)
            thread.stores.clear()
            thread.vote, thread.acquired = result, acquired
        block.ready, block.waiting = block.waiting, []
        block.epoch += 1
        self._progress()

    def nanosleep(self, nanoseconds):
        """Let others run, and say that this one only waits."""
        thread = self.thread
        thread.spins = True
        self._pause(thread)

    def threadfence(self):
        """Publish what this thread has written or could read, and acquire what the flags it has read stand for."""
        thread = self.thread
        self._pause(thread)
        self._write_out(thread.block, thread.block.stores)
        self._write_out(thread.block, thread.stores)
        thread.acquired = max(thread.acquired, thread.seen)

    # Device memory -------------------------------------------------------------------------------------------

    def load(self, base, index, kind):
        """Read data that nobody writes, or this block has."""
        view, position, address = self._place(base, index, kind)
        thread = self.thread
        for stores in (thread.stores, thread.block.stores):
            if stores:
                value = stores.get(address)
                if value is not None:
                    return value
        self._check(address, "reads")
        return view[position]

    def peek(self, base, index, kind):
        """Read data as `load` does, or a flag."""
        if kind is not np.int32:
            return self.load(base, index, kind)
        thread = self.thread
        self._pause(thread)
        view, position, address = self._place(base, index, kind)
        self._see(address)
        return view[position]

    def store(self, base, index, value):
        """Write, for others to see now or after a fence."""
        _, _, address = self._place(base, index, type(value))
        self._check(address, "overwrites")
        thread = self.thread
        thread.stores[address] = value
        if not thread.lazy:
            self._write_out(thread.block, thread.stores)

    def atomic_add(self, base, index, value):
        """Add to a counter: all see it at once."""
        thread = self.thread
        self._pause(thread)
        view, position, address = self._place(base, index, np.int32)
        self._see(address)
        old = view[position]
        view[position] = old + value
        self._note(address, thread.block)
        self._progress()
        return old

    def _place(self, base, index, kind):
        found = self._views.get((base, kind))
        if found is None:
            found = self._views[base, kind] = *allocations.view(int(base), kind), kind().itemsize
        view, first, itemsize = found
        position = first + index
        if not 0 <= position < len(view):
            raise SimulationError(
                f"element {index} from {int(base):#x} on, a {kind.__name__}, is outside of its array, "
                f"which has {first} such elements before and {len(view) - first} from there on"
            )
        return view, position, base + index * itemsize

    def _check(self, address, does):
        written = self._written.get(address)
        if written is not None and written[0] is not self.thread.block and written[1] > self.thread.acquired:
            raise SimulationError(
                f"block {self.thread.block.number} {does} {int(address):#x}, which block {written[0].number} "
                "has written; nothing says that this was before"
            )

    def _see(self, address):
        written = self._written.get(address)
        if written is not None:
            self.thread.seen = max(self.thread.seen, written[1])

    def _note(self, address, block):
        self._time += 1
        self._written[address] = block, self._time

    def _write_out(self, block, stores):
        for address, value in stores.items():
            view, position, _ = self._place(address, 0, type(value))
            view[position] = value
            self._note(address, block)
        if stores:
            stores.clear()
            self._progress()

    def _publish(self, block):
        """Write what the block has not yet; tell whether there was anything."""
        found = False
        for stores in (block.stores, *(thread.stores for thread in block.threads)):
            found = found or bool(stores)
            self._write_out(block, stores)
        return found

    def _publish_all(self):
        return any([self._publish(block) for block in self._resident])

    # Shared memory -------------------------------------------------------------------------------------------

    def shared_load(self, offset, index, kind):
        """Read, if no other thread writes there before the next barrier."""
        thread = self.thread
        block = thread.block
        view, position, words = self._shared_place(block, offset, index, kind)
        for word in words:
            at = block.written_at[word]
            if at < 0:
                raise SimulationError(f"shared memory at byte {4 * word} is read before it is written")
            if at == block.epoch and block.written_by[word] != thread.number:
                raise SimulationError(
                    f"threads {block.written_by[word]} and {thread.number} write and read shared memory at "
                    f"byte {4 * word} with no barrier between"
                )
            if block.read_at[word] != block.epoch:
                block.read_at[word], block.read_by[word] = block.epoch, thread.number
            elif block.read_by[word] != thread.number:
                block.read_by[word] = ALL
        return view[position]

    def shared_store(self, offset, index, value):
        """Write, if no other thread reads or writes there before the next barrier."""
        thread = self.thread
        view, position, words = self._shared_place(thread.block, offset, index, type(value))
        self._claim(thread, words)
        view[position] = value

    def _shared_place(self, block, offset, index, kind):
        itemsize = kind().itemsize
        start = int(offset + index * itemsize)
        if start % itemsize or not 0 <= start <= plan.SHARED_BYTES - itemsize:
            raise SimulationError(f"there is no {kind.__name__} at byte {start} of shared memory")
        return block.views[kind], start // itemsize, range(start // 4, (start + itemsize) // 4)

    def _claim(self, thread, words):
        block = thread.block
        for word in words:
            for at, by in ((block.written_at, block.written_by), (block.read_at, block.read_by)):
                if at[word] == block.epoch and by[word] != thread.number:
                    raise SimulationError(
                        f"thread {thread.number} writes shared memory at byte {4 * word}, which "
                        f"{'others have' if by[word] == ALL else f'thread {by[word]} has'} used since the last "
                        "barrier"
                    )
            block.written_at[word], block.written_by[word] = block.epoch, thread.number

    def copy(self, offset, index, base, position, kind):
        """Begin a copy: it lands when it is waited for, and the place is taken from now on."""
        value = self.load(base, position, kind)
        thread = self.thread
        _, _, words = self._shared_place(thread.block, offset, index, kind)
        self._claim(thread, words)
        for word in words:
            thread.block.written_at[word] = -1
        thread.copies.append((offset, index, value))

    def copy_wait(self):
        """Let this thread's copies land."""
        thread = self.thread
        for offset, index, value in thread.copies:
            self.shared_store(offset, index, value)
        thread.copies.clear()


class Simulator:
    """What takes the place of Numba's launches: the seed, and how many launches there were."""

    def __init__(self):
        self.seed = 0
        self.launches = 0
        self.machine = None
        self._lock = threading.Lock()

    def launch(self, function, blocks, threads, arguments):
        """Run a kernel."""
        arguments = [np.float64(value) if type(value) is float else value for value in arguments]
        with self._lock:
            self.launches += 1
            machine = Machine(blocks, threads, f"{self.seed} {self.launches}")
            modules = [module for name, module in sys.modules.items() if name.startswith("numbabn._cuda")]
            scopes = [vars(module) for module in modules if getattr(module, "cuda", None) is gpu.cuda]
            plain, self.machine, memory_simulated.machine = memory_simulated.machine, machine, machine
            original = gpu.cuda
            for scope in scopes:
                scope["cuda"] = machine
            try:
                machine.run(function, arguments, max(1, plan.RESIDENT_SIMULATED // plan.CONCURRENT_LAUNCHES))
            except Exception as error:
                error.add_note(
                    f"{function.__name__} of {blocks} blocks, seed {self.seed}, launch {self.launches}"
                )
                raise
            finally:
                for scope in scopes:
                    scope["cuda"] = original
                self.machine, memory_simulated.machine = None, plain


simulator = Simulator()


@contextlib.contextmanager
def seeded(seed):
    """Within the block, the order of threads is drawn from this seed."""
    before = simulator.seed, simulator.launches
    simulator.seed, simulator.launches = os.environ.get("NUMBABN_SIMULATOR_SEED", seed), 0
    try:
        yield simulator
    finally:
        simulator.seed, simulator.launches = before


@contextlib.contextmanager
def installed():
    """Within the block, this simulator takes the place of Numba's."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    def call(kernel, *arguments):
        if simulator.machine is not None:
            return kernel.fn(*arguments)
        (blocks, *_), (threads, *_) = kernel.grid_dim, kernel.block_dim
        return simulator.launch(kernel.fn, blocks, threads, arguments)

    def remember(array, *arguments, **options):
        initialise(array, *arguments, **options)
        allocations.add(array._ary)

    def remember_memory(memory, array):
        initialise_memory(memory, array)
        allocations.add(array)

    launch, initialise, initialise_memory = (
        FakeCUDAKernel.__call__,
        FakeCUDAArray.__init__,
        gpu.Memory.__init__,
    )
    FakeCUDAKernel.__call__, FakeCUDAArray.__init__, gpu.Memory.__init__ = call, remember, remember_memory
    try:
        yield
    finally:
        FakeCUDAKernel.__call__, FakeCUDAArray.__init__, gpu.Memory.__init__ = (
            launch,
            initialise,
            initialise_memory,
        )
