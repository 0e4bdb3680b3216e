"""Work for many threads and child processes, digests of its results, and fresh processes to do it in."""

import functools
import gc
import hashlib
import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

import numbabn as nbn
from tests.support.processes import TIMEOUT, run_python

THREADS = 8
HANG = TIMEOUT - 60  # seconds after which a child is given up, in time to say so
CONTEXTS = multiprocessing.get_all_start_methods()

# Shape and channel axis: one launch each, and phases over more than one thread.
SMALL = (((32, 16), 1), ((4, 8, 6, 6), 1), ((6, 5, 5, 3), -1))
LARGE = (((8, 64, 40, 40), 1), ((256, 32, 160), -1))


def run(function, *arguments, **environment):
    """Call a function of any file in a fresh process; return the last line it printed."""
    name = function.__name__
    code = f"from {function.__module__} import {name}; print({name}(*{arguments!r}))"
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
    """Return a digest of inference with the same mean for all channels, and variance 1."""
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
    """Return how many signatures of parallel kernels were compiled or loaded: 0 if none ever ran."""
    kernels = [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, Dispatcher)
        and thing.py_func.__module__.startswith("numbabn")
        and thing.targetoptions.get("parallel", False) is not False
    ]
    assert kernels
    return sum(len(kernel.signatures) for kernel in kernels)


def report_digests():
    """Return one digest of the results of all tasks."""
    return digest(*(np.frombuffer(task().encode(), np.uint8) for task in all_tasks()))


@functools.cache
def ordinary_digest():
    """Return what `report_digests` computes in an ordinary process."""
    return run(report_digests)


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
