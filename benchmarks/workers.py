"""Worker processes, one per library, which time its operations when they are asked to.

Two frameworks in one process disturb each other, because each brings an OpenMP pool whose threads spin for a
while after every call. A worker process holds one framework, stays alive, and sleeps between its bursts: the
threads of GNU OpenMP spin for some milliseconds and then wait in the kernel. (OMP_WAIT_POLICY=passive would
prevent even this spinning, but it doubles the time of every small call, and users do not set it.)

Threads are bound to cores, in every OpenMP program alike, because an unbound thread that wakes on the core of
another thread can stay there, and every call then takes a multiple of the scheduler's 4 ms.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import Any

WARM_UP_NS = 3_000_000
MINIMUM_WARM_UP_CALLS = 2
MOST_CALLS = 2000


class UnavailableError(Exception):
    """The library is not installed."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment that gives every framework the same number of threads, each on its own core."""
    n = str(threads)
    return {
        "OMP_NUM_THREADS": n,
        "OMP_PROC_BIND": "true",
        "OMP_PLACES": "cores",
        "MKL_NUM_THREADS": n,
        "NUMBA_NUM_THREADS": n,
        "NPROC": n,  # the size of XLA's thread pool
        "JAX_PLATFORMS": "cpu",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compile in the worker: no pool of compiler processes
    }


def bind_threads(module: str) -> None:
    """Start a program again with its threads bound to cores, unless the user has said where they are.

    OpenMP reads this when a process starts. Numba is told how many cores there are: it counts those that the
    thread may run on that imports it, and where PyTorch was imported before, that thread is bound to one.
    """
    if "OMP_PROC_BIND" not in os.environ:
        arguments = [sys.executable, "-m", module, *sys.argv[1:]]
        cores = {"NUMBA_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        os.execve(sys.executable, arguments, {**cores, **os.environ, "OMP_PROC_BIND": "true"})


def in_new_process(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own, which has the `environment`."""
    os.environ.update(environment(threads))  # the child inherits these, and its framework reads them
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def warm_up(function: Callable[[], object]) -> None:
    """Call a function at least twice and for some milliseconds."""
    start, calls = perf_counter_ns(), 0
    while calls < MINIMUM_WARM_UP_CALLS or perf_counter_ns() - start < WARM_UP_NS:
        function()
        calls += 1


def timed(function: Callable[[], object], seconds: float, fewest: int) -> list[int]:
    """Return the nanoseconds of each call; calls are made back to back for some seconds."""
    times: list[int] = []
    end = perf_counter_ns() + seconds * 1e9
    while len(times) < fewest or (perf_counter_ns() < end and len(times) < MOST_CALLS):
        start = perf_counter_ns()
        function()
        times.append(perf_counter_ns() - start)
    return times


def burst(function: Callable[[], object], seconds: float, fewest: int) -> list[int]:
    """Return the nanoseconds of each call after a warm-up."""
    warm_up(function)
    return timed(function, seconds, fewest)


class _Server:
    """The side of the child process: the prepared operations of one library on one case."""

    def __init__(self, table: str, library: str):
        self.table = importlib.import_module(table)
        self.library = library
        self.operations: dict[str, Callable[[], object]] = {}

    def prepare(self, case: Any) -> list[str]:
        self.operations = {}  # free the last case before the next one takes memory
        self.operations = dict(self.table.LIBRARIES[self.library](case, self.table.Data.of(case)))
        for function in self.operations.values():
            function()
        return list(self.operations)

    def release(self) -> None:
        self.operations = {}

    def burst(self, operation: str, seconds: float, fewest: int) -> list[int]:
        return burst(self.operations[operation], seconds, fewest)

    def timed(self, operation: str, seconds: float, fewest: int) -> list[int]:
        return timed(self.operations[operation], seconds, fewest)


class _Relay(logging.Handler):
    """Sends what numbabn logs, which is what it compiles, to the parent's side, before the answer."""

    def __init__(self, connection: Connection):
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(record.getMessage())


def _serve(connection: Connection, table: str, library: str) -> None:
    log = logging.getLogger("numbabn")
    log.setLevel(logging.INFO)
    log.addHandler(_Relay(connection))
    server = _Server(table, library)
    while (message := connection.recv()) is not None:
        verb, *arguments = message
        try:
            connection.send((None, getattr(server, verb)(*arguments)))
        except ImportError as error:
            connection.send((UnavailableError(str(error)), None))
        except Exception:  # the parent must not wait for an answer that never comes
            connection.send((RuntimeError(f"{library}: {message}\n{traceback.format_exc()}"), None))


class Worker:
    """The parent's side of one worker process, which holds one library of the module ``table``.

    The module has the operations of every library by its name, ``LIBRARIES``, and the class of their inputs,
    ``Data``.
    """

    def __init__(self, library: str, threads: int, table: str = "benchmarks.libraries"):
        self.library = library
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        os.environ.update(environment(threads))  # the child inherits these, and its framework reads them
        self._process = context.Process(target=_serve, args=(theirs, table, library), daemon=True)
        self._process.start()

    def send(self, verb: str, *arguments: object) -> None:
        """Give the worker something to do without waiting for it."""
        self._connection.send((verb, *arguments))

    def receive(self):
        """Wait for the answer to the last ``send``; print what is logged meanwhile."""
        while isinstance(message := self._connection.recv(), str):
            _show(f"{self.library}: {message}")
        error, answer = message
        if error is not None:
            raise error
        return answer

    def ask(self, verb: str, *arguments: object):
        """Give the worker something to do and wait for the answer."""
        self.send(verb, *arguments)
        return self.receive()

    def close(self) -> None:
        """End the process and wait until it has ended."""
        with suppress(OSError):  # the process may have ended already
            self._connection.send(None)
        self._process.join()


def _show(line: str) -> None:
    """Print a line: above the progress bar in a program that has one. GPU machines may have no tqdm."""
    bars = sys.modules.get("tqdm")
    if bars is None:
        print(line, file=sys.stderr)
    else:
        bars.tqdm.write(line, file=sys.stderr)
