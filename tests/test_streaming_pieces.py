"""How Moments cuts arrays into pieces, chunks and tasks: the same results however it does."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.backends.cpu import jit
from numbabn.backends.cpu.streaming import statistics
from numbabn.statistics import _pieces
from tests.support.checks import assert_same_bits
from tests.support.exact import DTYPES, check, values
from tests.support.jit import JIT

PATHS = (
    ((700, 3), (-1,)), ((5, 3), (-1,)), ((130, 300), (-1,)), ((40, 1201), (-1,)), ((3, 4, 49), (1,)),
    ((2, 3, 700), (1,)), ((3, 2, 5000), (1,)), ((9000,), ()), ((6, 7, 8, 9), (1, 3)), ((6, 7, 8, 9), (3, 1)),
)  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch):
    """Small pieces, chunks and blocks: what only arrays of many megabytes meet."""
    monkeypatch.setattr(_pieces, "VIEW_ELEMENTS", 2000)
    monkeypatch.setattr(_pieces, "COPY_ELEMENTS", 300)
    monkeypatch.setattr(statistics.plan, "CHUNK_BYTES", 500)
    monkeypatch.setattr(statistics, "_BLOCK", 64)
    monkeypatch.setattr(statistics, "_ROW", 128)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paths(dtype, small_pieces):
    for shape, axis in PATHS if JIT else PATHS[:6:2]:
        x = values(shape, dtype)
        check(nbn.Moments(axis).update(x), x, [a % x.ndim for a in axis])


@pytest.mark.skipif(not JIT, reason="there is one kernel only")
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4"])
def test_same_bits_in_parallel(dtype, small_pieces, monkeypatch):
    """Tasks come from the shape alone, and are merged in order, whoever ran them."""
    for shape, axis in PATHS:
        x = values(shape, np.dtype(dtype))
        alone = nbn.Moments(axis).update(x).to_dict()
        with monkeypatch.context() as patch:
            patch.setattr(jit, "PARALLEL_BYTES", 0)
            for name, value in nbn.Moments(axis).update(x).to_dict().items():
                assert_same_bits(value, alone[name], name)


@given(
    st.lists(st.integers(0, 5), max_size=4).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))
    ),
    st.integers(1, 8),
    st.integers(1, 200),
)
def test_cut(problem, itemsize, most):
    """Pieces cover an array just once, and none is larger than it may be."""
    shape, order = problem
    seen = np.zeros(shape, int)
    for index in _pieces.cut(shape, order, itemsize, most):
        seen[index] += 1
        size = math.prod(part.stop - part.start for part in index)
        assert size * itemsize <= max(most, itemsize)
    assert (seen == 1).all()
