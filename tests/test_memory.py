"""The memory of large results: used again when, and only when, nobody can see it any more."""

import gc
import tracemalloc

import numpy as np
import pytest

import numbabn as nbn
from numbabn.arrays import memory


@pytest.fixture
def kept(monkeypatch):
    """Small blocks, none kept so far; return the number of blocks kept."""
    if not memory._SUPPORTED:
        pytest.skip("this system has no MADV_FREE")
    blocks: dict[int, list] = {}
    monkeypatch.setattr(memory, "_kept", blocks)
    monkeypatch.setattr(memory, "SMALLEST_BLOCK", 1000)
    return lambda: sum(map(len, blocks.values()))


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


def test_no_more_is_kept_than_allowed(kept, monkeypatch):
    monkeypatch.setattr(memory, "MOST_KEPT", 2 * memory._PAGE)
    results = [nbn.batch_norm_inference(np.ones((64, 32)), np.zeros(32), np.ones(32)) for _ in range(5)]
    del results
    gc.collect()
    assert kept() == 2


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
