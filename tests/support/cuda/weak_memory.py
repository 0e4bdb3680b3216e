"""The memory that simulated threads see: what they may read, and when others see what they write.

Memory is weak: what a thread writes is seen by its block after a barrier, and by other blocks after it was
released, or perhaps at once, or only when the block has ended, as drawn. Values of type int32 are taken for
flags and counters, by which blocks tell each other what they have done; everything else is data.
"""

import random

import numpy as np

from numbabn.backends.cuda import plan
from tests.support.cuda.allocations import allocations

ALL = -1  # threads
WORD = 2  # bytes of the smallest element in shared memory, by which its reads and writes are noted


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
        "acquired", "arrived", "at", "block", "copies", "greenlet", "index", "number", "offer", "phase",
        "seen", "stores", "vote",
    )  # fmt: skip

    def __init__(self, block, number):
        self.block = block
        self.number = number
        self.index = Dim3(number, 0, 0)
        self.at = None  # the barrier where it waits
        self.vote = 0
        self.offer = None  # what it exchanges with another thread of its warp
        self.stores = {}
        self.copies = []  # begun and not waited for
        self.seen = 0  # the time of the latest flag that it has read
        self.acquired = 0  # writes of other blocks before this time may be read
        self.arrived = self.phase = 0  # barriers of the cluster at which it has arrived, and has waited


class Block:
    """A block and its shared memory."""

    def __init__(self, number, threads, pace):
        self.index = Dim3(number, 0, 0)
        self.number = number
        self.threads = [Thread(self, t) for t in range(threads)]
        self.ready = list(self.threads)
        self.waiting = []
        self.warps = [[] for _ in range(threads // plan.WARP)]  # threads that wait for an exchange
        self.ended = 0
        self.pace, self.clock = pace, 0.0
        self.stores = {}  # of all its threads, before the last barrier
        self.epoch = 0  # barriers so far
        memory = np.full(plan.SHARED_BYTES, 0xFF, np.uint8)
        self.views = {kind: memory.view(kind) for kind in (np.float32, np.float64, np.int32, np.uint16)}
        words = plan.SHARED_BYTES // WORD
        self.cluster = None
        self.left = {}  # what other blocks of the cluster may read: (value, thread, phase)
        self.written_at, self.written_by = [-1] * words, [0] * words
        self.read_at, self.read_by = [-1] * words, [0] * words


class Cluster:
    """Blocks that run at the same time, and their barrier."""

    def __init__(self, blocks):
        self.blocks, self.waiting = blocks, []
        self.phase = self.arrived = 0  # barriers that all have reached, and threads at the next one
        for block in blocks:
            block.cluster = self


class Memory:
    """The machine of `memory_simulated`, for the threads that `simulator.Machine` runs."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.thread = None  # the one that runs
        self.sleeping = []  # threads that wait for a flag
        self._views = {}
        self._written = {}  # address: (block, time) of its last write that others can see
        self._time = 0

    # Device memory ------------------------------------------------------------------------------------------

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
        """Write, for others to see now or when it is released."""
        _, _, address = self._place(base, index, type(value))
        self._check(address, "overwrites")
        thread = self.thread
        if self.random.random() < 0.5:
            thread.stores.pop(address, None)
            self._write_out(thread.block, {address: value})
        else:
            thread.stores[address] = value

    def atomic_add(self, base, index, value):
        """Add to a counter: all see it at once."""
        thread = self.thread
        self._pause(thread)
        view, position, address = self._place(base, index, np.int32)
        self._see(address)
        old = view[position]
        view[position] = old + value
        self._note(address, thread.block)
        self._wake()
        return old

    def load_acquire(self, base, index, kind):
        """Read a flag, and what was released before it was written."""
        value = self.peek(base, index, kind)
        self.thread.acquired = max(self.thread.acquired, self.thread.seen)
        return value

    def atomic_add_release(self, base, index, value):
        """Add to a counter, after what this thread has written or could read."""
        thread = self.thread
        self._pause(thread)
        self._write_out(thread.block, thread.block.stores)
        self._write_out(thread.block, thread.stores)
        return self.atomic_add(base, index, value)

    def atomic_add_acq_rel(self, base, index, value):
        """Do that, and acquire what the counter was added to for."""
        old = self.atomic_add_release(base, index, value)
        self.thread.acquired = max(self.thread.acquired, self.thread.seen)
        return old

    def _place(self, base, index, kind):
        base, index = int(base), int(index)  # NumPy's sum of an address and an int32 would be an int32
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
        """Note when a flag or counter was last written; others see what this block has written to it."""
        block = self.thread.block
        for stores in (block.stores, self.thread.stores):
            if address in stores:
                self._write_out(block, stores)
        written = self._written.get(address)
        if written is not None:
            self.thread.seen = max(self.thread.seen, written[1])

    def _note(self, address, block):
        self._time += 1
        self._written[address] = block, self._time

    def _write_out(self, block, stores):
        if not stores:
            return
        for address, value in stores.items():
            view, position, _ = self._place(address, 0, type(value))
            view[position] = value
            self._note(address, block)
            if stores is not block.stores:
                block.stores.pop(address, None)
        stores.clear()
        self._wake()

    def _wake(self):
        """Whoever waits for a flag may now find it."""
        for thread in self.sleeping:
            thread.block.ready.append(thread)
        self.sleeping.clear()

    def _publish(self, block):
        """Write what the block has not yet; tell whether there was anything."""
        pending = [stores for stores in (block.stores, *(t.stores for t in block.threads)) if stores]
        for stores in pending:
            self._write_out(block, stores)
        return bool(pending)

    # Shared memory ------------------------------------------------------------------------------------------

    def shared_load(self, offset, index, kind):
        """Read, if no other thread writes there before the next barrier."""
        thread = self.thread
        block = thread.block
        view, position, words = self._shared_place(block, offset, index, kind)
        for word in words:
            at = block.written_at[word]
            if at < 0:
                raise SimulationError(f"shared memory at byte {WORD * word} is read before it is written")
            if at == block.epoch and block.written_by[word] != thread.number:
                raise SimulationError(
                    f"threads {block.written_by[word]} and {thread.number} write and read shared memory at "
                    f"byte {WORD * word} with no barrier between"
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
        return block.views[kind], start // itemsize, range(start // WORD, (start + itemsize) // WORD)

    def _claim(self, thread, words):
        block = thread.block
        for word in words:
            for at, by in ((block.written_at, block.written_by), (block.read_at, block.read_by)):
                if at[word] == block.epoch and by[word] != thread.number:
                    others = "others have" if by[word] == ALL else f"thread {by[word]} has"
                    raise SimulationError(
                        f"thread {thread.number} writes shared memory at byte {WORD * word}, which {others} "
                        "used since the last barrier"
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

    # Shared memory of a cluster -----------------------------------------------------------------------------

    def cluster_store(self, index, value):
        """Write what other blocks of the cluster may read after its next barrier."""
        if not 0 <= index < 3 * plan.CLUSTER_CHANNELS:
            raise SimulationError(f"there is no number {index} in the memory of a cluster")
        thread = self.thread
        thread.block.left[index] = value, thread, thread.arrived

    def cluster_load(self, rank, index):
        """Read what a block of the cluster has left before a barrier that this thread has waited for."""
        thread = self.thread
        block = thread.block.cluster.blocks[rank]
        if block.ended == len(block.threads):
            raise SimulationError(f"the memory of block {block.number} is read, which has ended")
        value, writer, phase = block.left.get(index, (None, None, 0))
        if writer is None:
            raise SimulationError(f"number {index} of block {block.number} is read before it is written")
        if writer is not thread and phase >= thread.phase:
            raise SimulationError(
                f"block {thread.block.number} reads number {index} of block {block.number}; nothing says "
                "that this was written before"
            )
        return value
