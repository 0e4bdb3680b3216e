"""The benchmarks' batch norm by oneDNN computes batch norm, in every layout, with and without ReLU."""

from importlib import metadata

import numpy as np
import pytest

import numbabn as nbn
from benchmarks import onednn_batch_norm, onednn_session
from benchmarks.onednn_batch_norm import BatchNorm, Blocked, Options, Plain
from tests.support.checks import NAMES

EPS = 1e-5
SHAPE = (4, 32, 5, 3)
TOLERANCE = 1e-5  # both sum the 60 values of a channel in another order; their errors are some 1e-7

needs_onednn = pytest.mark.skipif(
    not any(metadata.distributions(name=onednn_session.DISTRIBUTION)), reason="needs oneDNN's wheel"
)


def layouts():
    return {"nchw": Plain(1), "nhwc": Plain(-1), "blocked": Blocked.of_machine()}


def inputs(axis):
    """Return x, dy, gamma and beta, with the channels of x and dy on this axis.

    x has a variance of 1e-4, so that eps, which is a tenth of it, is seen.
    """
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *SHAPE), dtype=np.float32)
    gamma, beta = rng.standard_normal((2, SHAPE[1]), dtype=np.float32)
    return *(np.ascontiguousarray(np.moveaxis(a, 1, axis)) for a in (x * np.float32(0.01), dy)), gamma, beta


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", ["nchw", "nhwc", "blocked"])
def test_values_are_those_of_numbabn(name, relu):
    layout = layouts()[name]
    axis = -1 if name == "nhwc" else 1
    x, dy, gamma, beta = inputs(axis)
    norm = BatchNorm(x, dy, gamma, beta, Options(layout, EPS, relu))
    y, saved = nbn.batch_norm_forward(x, gamma, beta, axis=axis, eps=EPS, activation="relu" if relu else None)
    np.testing.assert_allclose(layout.restored(norm.forward()), y, rtol=0, atol=TOLERANCE * np.abs(y).max())
    dx, *gradients = norm.backward()
    expected = nbn.batch_norm_backward(dy, saved)
    for what, result, value in zip(NAMES, (layout.restored(dx), *gradients), expected, strict=True):
        atol = TOLERANCE * np.abs(value).max()
        np.testing.assert_allclose(result, value, rtol=0, atol=atol, err_msg=what)


@needs_onednn
@pytest.mark.parametrize("block", onednn_batch_norm.TAGS)
def test_blocks_are_those_of_onednn(block):
    """Between a plain and a blocked layout, the same channels have the same statistics and results."""
    x, dy, gamma, beta = inputs(1)
    plain, blocked = (
        BatchNorm(x, dy, gamma, beta, Options(layout, EPS)) for layout in (Plain(1), Blocked(block))
    )
    y, stored = plain.forward(), blocked.forward()
    assert stored.shape == (4, 32 // block, 5, 3, block)
    np.testing.assert_allclose(Blocked(block).restored(stored), y, rtol=0, atol=TOLERANCE * np.abs(y).max())


@needs_onednn
def test_the_blocked_layout_has_machine_code():
    x, dy, gamma, beta = inputs(1)
    norm = BatchNorm(x, dy, gamma, beta, Options(Blocked.of_machine(), EPS, relu=True))
    assert all("jit" in name for name in norm.implementations), norm.implementations


@needs_onednn
def test_arrays_start_at_cache_lines():
    x, dy, gamma, beta = inputs(1)
    norm = BatchNorm(x, dy, gamma, beta, Options(Plain(1), EPS))
    for array in (norm.forward(), *norm.backward()):
        assert array.ctypes.data % onednn_session.ALIGNMENT == 0


@needs_onednn
@pytest.mark.parametrize("name", ["nchw", "nhwc", "blocked"])
def test_onednn_has_no_addition_on_a_cpu(name, monkeypatch):
    monkeypatch.setattr(onednn_batch_norm, "FUSE_RELU", onednn_batch_norm.FUSE_ADD_RELU)
    x, dy, gamma, beta = inputs(-1 if name == "nhwc" else 1)
    with pytest.raises(RuntimeError, match="forward_primitive_desc_create: unimplemented"):
        BatchNorm(x, dy, gamma, beta, Options(layouts()[name], EPS, relu=True))


def test_channels_fill_their_blocks():
    with pytest.raises(ValueError, match="nChw8c takes a multiple of 8 channels, not 12"):
        Blocked(8).stored(np.zeros((1, 12, 1, 1), np.float32))


def test_without_the_wheel_the_library_is_missing(monkeypatch):
    monkeypatch.setattr(onednn_session, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(ImportError, match="no-such-distribution"):
        Blocked.of_machine()
