"""Times on the device, taken with CUDA events, and times that the host takes to enqueue a call."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter, perf_counter_ns

import numpy as np
from numba import cuda

BURST = 10  # calls between two waits
PLUG_BYTES = 256_000_000
HEAD_START = 1.5  # times the host's own time for a burst

Calls = Sequence[Callable[[], object]]


class Clock:
    """CUDA events on the default stream, where every library launches unless told otherwise.

    A burst of calls is enqueued behind copies that keep the device busy until the host has enqueued them all.
    The events then measure the device alone.
    """

    def __init__(self):
        self._from, self._to = (cuda.device_array(PLUG_BYTES, np.uint8) for _ in range(2))
        self._plug_seconds = self._calibrate()

    def burst(self, calls: Calls) -> list[float]:
        """Return the milliseconds of each call."""
        start = perf_counter()
        for call in calls:  # also to warm up
            call()
        host_seconds = perf_counter() - start
        cuda.synchronize()
        pairs = [(cuda.event(), cuda.event()) for _ in calls]
        self._plug(math.ceil(HEAD_START * host_seconds / self._plug_seconds))
        for call, (begin, end) in zip(calls, pairs, strict=True):
            begin.record()
            call()
            end.record()
        pairs[-1][1].synchronize()
        return [cuda.event_elapsed_time(begin, end) for begin, end in pairs]

    def nothing(self) -> float:
        """Return the milliseconds between two events with nothing in between."""
        return statistics.median(self.burst([lambda: None] * BURST))

    def wait(self) -> None:
        """Wait for the device."""
        cuda.synchronize()

    def _plug(self, times: int) -> None:
        for _ in range(times):
            self._to.copy_to_device(self._from)

    def _calibrate(self) -> float:
        self._plug(2)
        cuda.synchronize()
        start = perf_counter()
        self._plug(10)
        cuda.synchronize()
        return (perf_counter() - start) / 10


def device_times(calls: Calls, clock: Clock, seconds: float, fewest: int) -> list[float]:
    """Return milliseconds of calls made in turn, burst by burst, until there are enough."""
    times: list[float] = []
    end, position = perf_counter() + seconds, 0
    while len(times) < fewest or perf_counter() < end:
        chosen = [calls[(position + k) % len(calls)] for k in range(BURST)]
        times += clock.burst(chosen)
        position += BURST
    return times


def host_times(call: Callable[[], object], clock: Clock, bursts: int = 30, calls: int = 50) -> list[float]:
    """Return the milliseconds per call that the host takes where it waits for nothing, one for each burst."""
    times = []
    for burst in range(bursts + 2):
        clock.wait()
        start = perf_counter_ns()
        for _ in range(calls):
            call()
        elapsed = perf_counter_ns() - start
        if burst >= 2:  # the first two compile, allocate and warm up
            times.append(elapsed / calls / 1e6)
    clock.wait()
    return times
