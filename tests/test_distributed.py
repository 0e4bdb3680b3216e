"""`distributed.moments`: any chunks of a Dask array, refused arguments, and a real cluster."""

import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn import distributed
from tests.support.checks import assert_close, assert_same_bits
from tests.support.jit import JIT
from tests.support.processes import python

dask = pytest.importorskip("dask", reason="needs numbabn[dask]")
da = pytest.importorskip("dask.array", reason="needs numbabn[dask]")

DTYPES = (
    np.bool_, np.uint8, np.int16, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.float64,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """Dask's own threads are in the tests of the cluster; here all is computed where errors are seen."""
    with dask.config.set(scheduler="synchronous"):
        yield


def values(shape, dtype, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape) * 20 + 7
    return (x > 7) if dtype is np.bool_ else np.abs(x).astype(dtype) if dtype is np.uint8 else x.astype(dtype)


def assert_same(moments, expected):
    for name, value in expected.to_dict().items():
        assert_same_bits(moments.to_dict()[name], value, name)


@st.composite
def chunked(draw):
    """An array's shape, chunks along every axis, and some of its axes in any order."""
    chunks = [
        draw(st.lists(st.integers(0 if JIT else 1, 7), min_size=1, max_size=4))
        for _ in range(draw(st.integers(1, 3)))
    ]
    axes = draw(st.permutations(range(len(chunks))))[: draw(st.integers(0, len(chunks)))]
    return tuple(map(tuple, chunks)), tuple(axes)


@pytest.mark.slow
@settings(max_examples=60 if JIT else 30)
@given(chunked(), st.sampled_from(DTYPES))
def test_any_chunks(chunks_and_axis, dtype):
    """However an array is cut, along the channels too, the result is that of the formula in float64."""
    chunks, axis = chunks_and_axis
    x = values(tuple(map(sum, chunks)), dtype)
    moments = distributed.moments(da.from_array(x, chunks=chunks), axis)
    others = tuple(i for i in range(x.ndim) if i not in axis)
    rows = x.astype(np.float64).transpose(*axis, *others)
    shape = tuple(x.shape[i] for i in axis)
    rows = rows.reshape(*shape, x.size // max(1, int(np.prod(shape))) if x.size else 0)
    assert moments.axis == axis
    assert moments.shape == moments.count.shape == shape
    assert moments.count.dtype == np.int64
    assert (moments.count == rows.shape[-1]).all()
    if rows.size == 0:
        assert np.isnan(moments.mean).all()
        return
    # Sums of at most 28**3 values around 30: NumPy's are the less exact.
    assert_close(moments.mean, rows.mean(axis=-1), 1e-12 * 30, "mean")
    assert_close(moments.var(), rows.var(axis=-1), 1e-11 * 20**2, "var")
    assert_same_bits(moments.min, rows.min(axis=-1), "min")
    assert_same_bits(moments.max, rows.max(axis=-1), "max")


@pytest.mark.parametrize("chunks", [(40, 2, 3), (1, 4, 1), (7, 1, 2)])
def test_integers_are_exact(chunks):
    """To the last bit what one array gives, whose results are rational numbers rounded once."""
    x = values((40, 4, 3), np.int16)
    moments = distributed.moments(da.from_array(x, chunks=chunks), (2, 1))
    assert_same(moments, nbn.Moments((2, 1)).update(x))


def test_the_tree_is_that_of_the_blocks():
    """Merged eight at a time in the order of the array: the same bits on every scheduler."""
    x = values((100, 3), np.float64)
    parts = [nbn.Moments().update(x[i : i + 1]) for i in range(100)]
    while len(parts) > 1:
        groups = [parts[i : i + 8] for i in range(0, len(parts), 8)]
        parts = []
        for first, *others in groups:
            for other in others:
                first.merge(other)
            parts.append(first)
    array = da.from_array(x, chunks=(1, 3))
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            assert_same(distributed.moments(array), parts[0])


def test_tasks_leave_their_inputs():
    """Dask may run a task again with the same inputs."""
    blocks = [distributed._block(values((5, 3), np.float64, seed), -1, "propagate") for seed in range(3)]
    before = [block.item().copy() for block in blocks]
    for _ in range(2):
        total = distributed._merged([[block] for block in blocks], axis=0, keepdims=True).item()
        assert (total.count == 15).all()
    for block, expected in zip(blocks, before, strict=True):
        assert_same(block.item(), expected)


def test_unknown_lengths():
    x = values((200, 3), np.float32)
    array = da.from_array(x, chunks=(11, 2))
    moments = distributed.moments(array[array[:, 0] > 7])
    assert_close(moments.mean, x[x[:, 0] > 7].mean(axis=0, dtype=np.float64), 1e-12 * 30, "mean")


def test_lazy():
    """Several results in one computation; nothing runs before."""
    calls = []

    def count(block):
        calls.append(block.shape)
        return block

    x = da.from_array(values((20, 3), np.float32), chunks=(5, 3)).map_blocks(
        count, meta=np.empty((0, 0), "f4")
    )
    first = distributed.moments(x, compute=False)
    second = distributed.moments(x, axis=0, compute=False)
    assert not calls
    first, second = dask.compute(first, second)
    assert first.shape == (3,)
    assert second.shape == (20,)


# NaN, and refused arguments ---------------------------------------------------------------------------------


def test_nan_policies():
    x = values((30, 4), np.float64)
    x[17, 2] = np.nan
    array = da.from_array(x, chunks=(5, 3))
    assert np.isnan(distributed.moments(array).mean).tolist() == [False, False, True, False]
    omitted = distributed.moments(array, nan_policy="omit")
    assert omitted.count.tolist() == [30, 30, 29, 30]
    assert_close(omitted.mean, np.nanmean(x, axis=0), 1e-12 * 30, "mean")
    with pytest.raises(
        ValueError, match=r"^in x\.blocks\[3, 0\]: chunk has a NaN in channel 2, .*chunk\[2, 2\]"
    ):
        distributed.moments(array, nan_policy="raise")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.zeros((3, 2))}, TypeError, r"^x must be a dask\.array\.Array, not numpy\.ndarray; pass"),
        ({"x": da.zeros((3, 2), dtype=complex)}, TypeError, r"^x has complex dtype .*x\.real"),
        ({"x": da.zeros((3, 2), dtype="M8[s]")}, TypeError, "^x has dtype datetime64"),
        ({"axis": 2}, ValueError, "^axis must be from -2 to 1"),
        ({"axis": (0, -2)}, ValueError, "^axis must name every axis once"),
        ({"axis": 1.0}, TypeError, "^axis must be an integer"),
        ({"nan_policy": "drop"}, ValueError, "^nan_policy must be one of"),
    ],
)
def test_refused_before_anything_runs(arguments, error, message):
    with pytest.raises(error, match=message):
        distributed.moments(**{"x": da.zeros((3, 2)), "compute": False, **arguments})


def test_blocks_of_another_library():
    masked = da.ma.masked_array(da.zeros((4, 2), chunks=2), mask=np.eye(4, 2, dtype=bool))
    with pytest.raises(TypeError, match=r"^in x\.blocks\[\d, 0\]: chunk is a masked array"):
        distributed.moments(masked)


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.array", None)
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(ImportError, match=r'needs Dask: pip install "numbabn\[dask\]"$'):
        distributed.moments(np.zeros((3, 2)))


# A real cluster ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cluster(tmp_path):
    """An array larger than a worker may be; a worker that dies half-way changes no bit."""
    pytest.importorskip("distributed", reason="needs numbabn[dask]")
    # What other libraries warn of is no error in this process.
    arguments = ("-W", "default", "-m", "tests.support.dask_program", str(tmp_path))
    program = python(*arguments, NUMBA_NUM_THREADS="1")
    assert program.returncode == 0, program.stdout + program.stderr
    assert program.stdout.endswith("OK\n")
