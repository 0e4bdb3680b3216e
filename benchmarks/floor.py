"""Lower bounds of the times: functions that only move the bytes of an operation, with every thread.

The stores are plain ones. Each thread walks through one contiguous part of the arrays. The outputs are
reused, so that only the first call touches pages for the first time.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange


@njit(nogil=True)
def _copy_part(x, y):
    for i in range(x.size):
        y[i] = x[i]


@njit(nogil=True)
def _add_part(x, dy, dx):
    for i in range(x.size):
        dx[i] = x[i] + dy[i]


@njit(nogil=True)
def _add_and_copy_part(x, dy, dx, dz):
    for i in range(x.size):
        dx[i] = x[i] + dy[i]
        dz[i] = dy[i]


@njit(nogil=True)
def _read_part(words):
    total = np.uint64(0)
    for i in range(words.size):
        total += words[i]
    return total


@njit(parallel=True, nogil=True)
def _read_parts(words, edges, totals):
    for part in prange(edges.size - 1):
        totals[part] = _read_part(words[edges[part] : edges[part + 1]])


@njit(parallel=True, nogil=True)
def _copy_parts(x, y, edges):
    for part in prange(edges.size - 1):
        lo, hi = edges[part], edges[part + 1]
        _copy_part(x[lo:hi], y[lo:hi])


@njit(parallel=True, nogil=True)
def _add_parts(x, dy, dx, edges):
    for part in prange(edges.size - 1):
        lo, hi = edges[part], edges[part + 1]
        _add_part(x[lo:hi], dy[lo:hi], dx[lo:hi])


@njit(parallel=True, nogil=True)
def _add_and_copy_parts(x, dy, dx, dz, edges):
    for part in prange(edges.size - 1):
        lo, hi = edges[part], edges[part + 1]
        _add_and_copy_part(x[lo:hi], dy[lo:hi], dx[lo:hi], dz[lo:hi])


def _edges(size: int) -> np.ndarray:
    return np.linspace(0, size, numba.get_num_threads() + 1).astype(np.int64)


def reader(x: np.ndarray):
    """Return a function that sums the memory of x as integers: one read, as statistics need."""
    words = x.reshape(-1).view(np.uint64)
    edges, totals = _edges(words.size), np.zeros(numba.get_num_threads(), np.uint64)
    return lambda: _read_parts(words, edges, totals)


def copier(x: np.ndarray, y: np.ndarray):
    """Return a function that copies x to y: one read and one write, as a forward pass needs."""
    x, y, edges = x.reshape(-1), y.reshape(-1), _edges(x.size)
    return lambda: _copy_parts(x, y, edges)


def adder(x: np.ndarray, dy: np.ndarray, dx: np.ndarray):
    """Return a function that adds x and dy into dx: two reads and one write, as a backward pass needs."""
    x, dy, dx, edges = x.reshape(-1), dy.reshape(-1), dx.reshape(-1), _edges(x.size)
    return lambda: _add_parts(x, dy, dx, edges)


def adder_and_copier(x: np.ndarray, dy: np.ndarray, dx: np.ndarray, dz: np.ndarray):
    """Return a function that adds x and dy into dx and copies dy to dz: two reads and two writes."""
    x, dy, dx, dz, edges = *(array.reshape(-1) for array in (x, dy, dx, dz)), _edges(x.size)
    return lambda: _add_and_copy_parts(x, dy, dx, dz, edges)
