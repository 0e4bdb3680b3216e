"""A CUDA simulator for kernels whose blocks wait for each other, which looks for what a GPU would not show.

`numbabn.backends.cuda.simulated` runs one block after the other. Here all resident blocks run at once, every
thread a greenlet, and who runs next is drawn from a seeded generator; blocks begin in any order, and some are
much slower than others. Threads are interrupted at barriers, atomics, flags and sleep. In any order,
these are errors:

- two threads of a block touch one address of shared memory without a barrier between, one of them writing;
- shared memory is read that nobody has written, or an asynchronous copy that nobody has waited for;
- a block reads or overwrites what another has written, and no flag or counter says that it may;
- an access leaves its array, by however little, or is misaligned;
- a barrier is not reached by all threads of a block, or is not the same for all;
- nobody can go on.
"""

import contextlib
import functools
import operator
import os
import sys
import threading
from unittest import mock

import numpy as np
from greenlet import greenlet
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

from numbabn.backends.cuda import gpu, launcher, memory_simulated, plan, simulated, workspaces
from tests.support.cuda.allocations import allocations
from tests.support.cuda.weak_memory import Block, Cluster, Dim3, Memory, SimulationError

RESIDENT = 16  # blocks that the simulated device runs at once
PACES = (1.0, 1.0, 0.3, 0.01)  # of blocks
_clock = operator.attrgetter("clock")


class Machine(Memory):
    """A launch: what kernels call ``cuda``, and who runs when."""

    def __init__(self, blocks, threads, seed, size=1):
        super().__init__(seed)
        self.gridDim, self.blockDim = Dim3(blocks), Dim3(threads)
        self.threadIdx = self.blockIdx = None
        self._hub = greenlet.getcurrent()
        self._now = 0.0
        if blocks % size:
            raise SimulationError(f"{blocks} blocks are no whole clusters of {size}")
        order = list(range(0, blocks, size))
        self.random.shuffle(order)
        self._pending = [
            Cluster([Block(b + k, threads, self.random.choice(PACES)) for k in range(size)]) for b in order
        ]
        self._resident = []

    # Who runs -----------------------------------------------------------------------------------------------

    def run(self, function, arguments, resident):
        """Run all blocks, at most ``resident`` of them at once; those of a cluster begin together."""
        self._target = functools.partial(self._run_thread, function, arguments)
        draw = self.random.random
        while self._pending or self._resident:
            while self._pending and len(self._resident) + len(self._pending[-1].blocks) <= resident:
                self._resident += self._pending.pop().blocks
            block = self._choose()
            ready = block.ready
            for _ in range(1 + int(draw() * len(ready))):
                i = int(draw() * len(ready))
                ready[i], ready[-1] = ready[-1], ready[i]
                self._resume(ready.pop())
                ready = block.ready
                if not ready:
                    break

    def _choose(self):
        """Return the block whose clock is first: clocks have paces of their own, and some jitter."""
        candidates = [block for block in self._resident if block.ready]
        if not candidates:
            if self.sleeping and any(self._publish(block) for block in self._resident):
                return self._choose()
            raise SimulationError(f"no thread can go on: {self._where()}")
        block = min(candidates, key=_clock)
        self._now = max(self._now, block.clock)
        block.clock = self._now + self.random.random() / block.pace
        return block

    def _where(self):
        blocks = [
            f"of block {block.number}, {len(block.waiting)} threads are at a barrier, "
            f"{sum(map(len, block.warps))} wait for others of their warps, "
            f"{sum(thread.block is block for thread in block.cluster.waiting)} for their cluster and "
            f"{sum(thread.block is block for thread in self.sleeping)} wait for a flag"
            for block in self._resident
        ]
        return "; ".join([*blocks, f"{len(self._pending)} blocks have not begun"])

    def _resume(self, thread):
        self.thread, self.threadIdx, self.blockIdx = thread, thread.index, thread.block.index
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
        if thread.arrived > thread.phase:
            raise SimulationError("a thread has ended and not waited for its cluster")
        block.stores.update(thread.stores)
        block.ended += 1
        if block.waiting:
            raise SimulationError(f"a thread has ended while others wait at {block.waiting[0].at[0]}")
        if block.ended == len(block.threads):
            self._publish(block)
            self._resident.remove(block)

    def _pause(self, thread):
        """Let others run."""
        thread.block.ready.append(thread)
        self._hub.switch()

    # What kernels call --------------------------------------------------------------------------------------

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

    def shfl_xor_sync(self, mask, value, distance):
        """Exchange values between the threads of a warp, none of which may be missing."""
        thread = self.thread
        warp = thread.block.warps[thread.number // plan.WARP]
        thread.offer = value
        warp.append(thread)
        if len(warp) == plan.WARP:
            offers = {each.number: each.offer for each in warp}
            for each in warp:
                each.offer = offers[each.number ^ int(distance)]
            thread.block.ready += warp
            warp.clear()
        self._hub.switch()
        return thread.offer

    def cluster_arrive(self):
        """Arrive at the barrier of the cluster; the last of all threads lets go those that wait there."""
        thread = self.thread
        cluster = thread.block.cluster
        if thread.arrived > cluster.phase:
            raise SimulationError("a thread arrives twice at the barrier of its cluster")
        thread.arrived = cluster.phase + 1
        cluster.arrived += 1
        if cluster.arrived == sum(len(block.threads) for block in cluster.blocks):
            cluster.phase, cluster.arrived = cluster.phase + 1, 0
            for block in cluster.blocks:  # where all wait, or the last one is about to, it is the block's too
                waiting = sum(each.block is block for each in cluster.waiting) + (block is thread.block)
                block.epoch += waiting == len(block.threads)
            for each in cluster.waiting:
                each.block.ready.append(each)
            cluster.waiting = []

    def cluster_wait(self):
        """Wait until all threads of the cluster have arrived."""
        thread = self.thread
        cluster = thread.block.cluster
        if thread.arrived == thread.phase:
            raise SimulationError("a thread waits for its cluster before it has arrived")
        if thread.arrived > cluster.phase:
            cluster.waiting.append(thread)
            self._hub.switch()
        thread.phase = thread.arrived

    def nanosleep(self, nanoseconds):
        """Wait until something is written that this thread may wait for."""
        self.sleeping.append(self.thread)
        self._hub.switch()


class Simulator:
    """Launches in place of those of `simulated`, with the seed, and how many there were."""

    def __init__(self):
        self.seed = 0
        self.launches = 0
        self._lock = threading.Lock()

    def launch(self, function, blocks, arguments, cluster=1):
        """Run a kernel."""
        threads = plan.THREADS
        arguments = [np.float64(value) if type(value) is float else value for value in arguments]
        with self._lock:
            self.launches += 1
            machine = Machine(blocks, threads, f"{self.seed} {self.launches}", cluster)
            modules = [
                vars(module)
                for name, module in sys.modules.items()
                if name.startswith("numbabn.backends.cuda")
            ]
            original = gpu.cuda
            scopes = [s for s in (*modules, function.__globals__) if s.get("cuda") is original]
            plain, memory_simulated.machine = memory_simulated.machine, machine
            for scope in scopes:
                scope["cuda"] = machine
            try:
                resident = max(cluster, plan.RESIDENT_SIMULATED)
                machine.run(function, arguments, resident)
            except Exception as error:
                error.add_note(
                    f"{function.__name__} of {blocks} blocks, seed {self.seed}, launch {self.launches}"
                )
                raise
            finally:
                for scope in scopes:
                    scope["cuda"] = original
                memory_simulated.machine = plain


simulator = Simulator()
plain_launch, plain_cut = simulated.launch, workspaces._cut


def cut_alone(array, nbytes):
    """Return a piece of a slab that is an array of its own, whose bounds are checked."""
    slab = workspaces._Slab(gpu.device_zeros(array.device, nbytes), nbytes)
    workspaces._slabs.setdefault(array.device, []).append(slab)
    return slab.cut(nbytes)


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
    """Within the block, this simulator takes the place of `simulated`."""

    def remembering(initialise):
        def remember(self, array, *arguments, **options):
            initialise(self, array, *arguments, **options)
            allocations.add(array)

        return remember

    with contextlib.ExitStack() as stack:
        for place, name, replacement in (
            (simulated, "launch", simulator.launch),
            (plan, "RESIDENT_SIMULATED", RESIDENT),
            (workspaces, "_cut", cut_alone),
            (FakeCUDAArray, "__init__", remembering(FakeCUDAArray.__init__)),
            (launcher.Memory, "__init__", remembering(launcher.Memory.__init__)),
        ):
            stack.enter_context(mock.patch.object(place, name, replacement))
        yield
