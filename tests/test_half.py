"""float16 and bfloat16 as storage, in NumPy: arithmetic in float32, and one rounding at the end."""

import copy
import json
import pickle
import platform
import subprocess
import sys
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

import numbabn as nbn
from numbabn.arrays import memory
from numbabn.backends.cpu import jit
from tests.support import groups, half, half_program, reference, samples
from tests.support.checks import assert_result_of, assert_same_bits, unchanged
from tests.support.group_problems import GroupProblem
from tests.support.half import DTYPES, assert_rounded, check_backward, check_forward, stored
from tests.support.jit import JIT, needs_jit
from tests.support.problems import Problem, guarded
from tests.support.processes import environment
from tests.support.strategies import (
    LARGE_PATHS,
    SERIAL_REGIMES,
    SMALL_PATHS,
    STARTS,
    STREAMING_PATHS,
    regime,
)

BF16 = ml_dtypes.bfloat16
both = pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
# Every kernel of batch norm takes seconds to compile, for each of the dtypes. Those of layer norm take less,
# and have the same loads and stores: what is fast is tested with them.
compiles = pytest.mark.slow if JIT else lambda test: test


# Layer norm and RMS norm, of which the kernels compile fast -------------------------------------------------


def rows(dtype, shape=(5, 37), spread=3.0, offset=2.0, layout="contiguous"):
    """Return x, dy, gamma and beta of a layer norm."""
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal(shape) * spread + offset, rng.standard_normal(shape)
    gamma, beta = rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])
    return (
        stored(x, dtype, layout),
        stored(dy, dtype, layout),
        gamma.astype(np.float32),
        beta.astype(np.float32),
    )


def check_rows(x, dy, gamma, beta, y, gradients, dtype, centered=True, eps=1e-5):
    wide, wide_dy = half.exactly(x), half.exactly(dy)
    reading = (-1,), eps, centered
    exact = samples.forward(wide, gamma, beta, *reading)
    assert y.dtype == dtype, "y"
    assert_rounded(y, exact, samples.forward_error(wide, gamma, beta, *reading), "y")
    expected = samples.backward(wide_dy, wide, gamma, *reading)
    half.check_gradients(gradients, expected, samples.backward_error(wide_dy, wide, gamma, *reading), dtype)


@both
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 48, 63, 200])
def test_layer_norm(dtype, length):
    """y is the exact result rounded, to one ulp; tails of every parity are loaded and stored."""
    x, dy, gamma, beta = rows(dtype, (5, length))
    with unchanged(x, dy):
        y, saved = nbn.layer_norm_forward(x, gamma, beta)
        gradients = nbn.layer_norm_backward(dy, saved)
    assert_result_of(y, x, "y")
    check_rows(x, dy, gamma, beta, y, gradients, dtype)
    assert saved.mean.dtype == saved.var.dtype == np.float64


@both
def test_rms_norm(dtype):
    """Without an eps it is that of float32, in which half floats are computed, as in PyTorch."""
    x, dy, gamma, _ = rows(dtype, spread=1e-3, offset=0.0)
    y, saved = nbn.rms_norm_forward(x, gamma)
    dx, dgamma = nbn.rms_norm_backward(dy, saved)
    eps = float(np.finfo(np.float32).eps)
    check_rows(x, dy, gamma, None, y, (dx, dgamma, None), dtype, centered=False, eps=eps)
    layer = nbn.RMSNorm(37)
    layer.params["gamma"][...] = gamma
    assert_same_bits(layer(x), y, "y of the layer")
    assert_same_bits(layer.backward(dy), dx, "dx of the layer")


@both
@pytest.mark.parametrize(
    "layout",
    ["fortran", "transposed", "sliced", "negative", "read_only", "misaligned", "offset", "swapped"],
)
def test_layouts(dtype, layout):
    """Any strides, addresses and byte orders give the same bits, and so does any ``out``."""
    x, dy, gamma, beta = rows(dtype, (6, 5, 33))
    y, saved = nbn.layer_norm_forward(x, gamma, beta)
    dx, dgamma, _ = nbn.layer_norm_backward(dy, saved)
    other = stored(half.exactly(x), dtype, layout)
    found, saved = nbn.layer_norm_forward(other, gamma, beta)
    other_dy = stored(half.exactly(dy), dtype, layout)
    found_dx, found_dgamma, _ = nbn.layer_norm_backward(other_dy, saved)
    assert_result_of(found, other, "y")
    assert_same_bits(found, y, "y")
    assert_same_bits(found_dx, dx, "dx")
    # Samples are added in the order of memory, in float32.
    np.testing.assert_allclose(found_dgamma, dgamma, rtol=1e-5, atol=1e-5)
    if layout in ("read_only", "swapped"):
        return
    out = stored(np.zeros(x.shape, np.float32), dtype, layout)
    assert nbn.layer_norm_forward(x, gamma, beta, out=out)[0] is out
    assert_same_bits(out, y, "y in out")


@both
def test_in_place(dtype):
    x, dy, gamma, beta = rows(dtype)
    y, saved = nbn.layer_norm_forward(x, gamma, beta)
    dx, *_ = nbn.layer_norm_backward(dy, saved)
    assert_same_bits(nbn.layer_norm_backward(dy, saved, out=dy)[0], dx, "dx")
    assert_same_bits(nbn.layer_norm_forward(x, gamma, beta, out=x)[0], y, "y")


@both
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_stays_in_its_sample(dtype, value):
    x, _, gamma, beta = rows(dtype)
    clean, _ = nbn.layer_norm_forward(x, gamma, beta)
    x[2, 35] = value
    with np.errstate(all="ignore"):  # with the JIT off, NumPy computes, and warns
        y, _ = nbn.layer_norm_forward(x, gamma, beta)
    assert np.isnan(y[2].astype(np.float32)).all()
    others = np.arange(5) != 2
    assert_same_bits(y[others], clean[others], "the others")


@pytest.mark.parametrize("bits", [0x7FFF, 0xFFFF, 0x7F81, 0xFF81], ids=hex)
def test_any_nan_of_bfloat16_stays_nan(bits):
    """Rounding, which adds to the bits, carries none into exponent and sign."""
    x, _, gamma, beta = rows(BF16)
    x.view(np.uint16)[1, 3] = bits
    gamma.view(np.uint32)[5] = bits << 16 | 0xFFFF
    with np.errstate(all="ignore"):
        y, _ = nbn.layer_norm_forward(x, gamma, beta)
    nan = np.isnan(y.astype(np.float32))
    assert nan[1].all()
    assert nan[:, 5].all()
    assert nan.sum() == 37 + 4


@both
def test_constant_samples_are_beta(dtype):
    """Exactly: beta is rounded once."""
    _, _, gamma, beta = rows(dtype)
    for value in (0.1, -3e4, 6e-8, 1.0):
        x = np.full((3, 37), value, np.float32).astype(dtype)
        y, saved = nbn.layer_norm_forward(x, gamma, beta)
        assert_same_bits(y, np.ascontiguousarray(np.broadcast_to(beta.astype(dtype), y.shape)), "y")
        assert (saved.var == 0).all()


@both
def test_no_overflow_inside(dtype):
    """Squares of float16 numbers around 1e4 are far beyond its range, and y is not."""
    x, dy, gamma, beta = rows(dtype, spread=1e4, offset=0.0)
    y, saved = nbn.layer_norm_forward(x, gamma, beta)
    check_rows(x, dy, gamma, beta, y, nbn.layer_norm_backward(dy, saved), dtype)
    # dy at the end of the range, whose sums are beyond it.
    large = stored(np.sign(half.exactly(dy)) * 6e4, dtype)
    check_rows(x, large, gamma, beta, y, nbn.layer_norm_backward(large, saved), dtype)


def test_beyond_the_range_is_infinite():
    """y is rounded as any number: 65504 is the largest of float16, and 65520 the first that is infinite."""
    x = np.array([[-1, 1]], np.float16)
    for beta, expected in ((65504.0, 65504.0), (65519.0, 65504.0), (65520.0, np.inf)):
        y, _ = nbn.layer_norm_forward(x, np.zeros(2), np.full(2, beta))
        assert (y == expected).all()


@both
def test_samples_do_not_depend_on_the_batch(dtype):
    x, dy, gamma, beta = rows(dtype, (9, 50))
    y, saved = nbn.layer_norm_forward(x, gamma, beta)
    dx, *_ = nbn.layer_norm_backward(dy, saved)
    alone, saved = nbn.layer_norm_forward(x[4:5], gamma, beta)
    assert_same_bits(alone, y[4:5], "y")
    assert_same_bits(nbn.layer_norm_backward(dy[4:5], saved)[0], dx[4:5], "dx")


@both
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda saved: pickle.loads(pickle.dumps(saved))])
def test_saved_is_copied(dtype, copied):
    x, dy, gamma, beta = rows(dtype, layout="fortran")
    _, saved = nbn.layer_norm_forward(x, gamma, beta)
    for a, b in zip(
        nbn.layer_norm_backward(dy, copied(saved)), nbn.layer_norm_backward(dy, saved), strict=True
    ):
        assert_same_bits(a, b, "a gradient")


@pytest.mark.parametrize("kind", [np.float16, BF16, np.float64])
def test_parameters_of_any_dtype(kind):
    """gamma and beta may be half floats too, and their gradients are like them."""
    x, dy, gamma, beta = rows(BF16)
    gamma, beta = gamma.astype(kind), beta.astype(kind)
    y, saved = nbn.layer_norm_forward(x, gamma, beta)
    expected, _ = nbn.layer_norm_forward(x, gamma.astype(np.float32), beta.astype(np.float32))
    assert_same_bits(y, expected, "y")
    _, dgamma, dbeta = nbn.layer_norm_backward(dy, saved)
    assert dgamma.dtype == dbeta.dtype == kind


def test_layer_of_bfloat16():
    """Its state goes into another one, and keeps its dtype."""
    layer, other = nbn.LayerNorm(37, dtype=BF16), nbn.LayerNorm(37, dtype=BF16)
    x, dy, gamma, beta = rows(BF16)
    layer.params["gamma"][...], layer.params["beta"][...] = gamma, beta
    assert layer(x).dtype == BF16
    layer.backward(dy)
    assert layer.grads["gamma"].dtype == BF16
    other.load_state_dict(layer.state_dict())
    assert_same_bits(other(x), layer(x), "y")
    assert "dtype=bfloat16" in repr(layer)


def test_running_statistics_of_bfloat16():
    state = nbn.BatchNorm(3, dtype=BF16).state_dict()
    assert state["running_mean"].dtype == BF16
    state["running_var"] = np.array([1, 2, 3], BF16)
    layer = nbn.BatchNorm(3, dtype=BF16)
    layer.load_state_dict(state)
    assert_same_bits(layer.running_var, state["running_var"], "running_var")


@pytest.mark.parametrize("here", [np.float16, BF16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("there", [np.float16, BF16, np.float32, np.float64], ids=str)
def test_states_go_between_layers_of_any_dtype(here, there):
    """Values that both dtypes have arrive as they are, in the dtype of the layer."""
    one, other = nbn.BatchNorm(3, dtype=here), nbn.BatchNorm(3, dtype=there)
    one.params["gamma"][:], one.running_var[:] = [0.5, 2, -3], [1, 0.25, 4]
    other.load_state_dict(one.state_dict())
    assert_same_bits(other.params["gamma"], np.array([0.5, 2, -3], there), "gamma")
    assert_same_bits(other.running_var, np.array([1, 0.25, 4], there), "running_var")


def test_a_state_of_bfloat16_is_saved_by_numpy(tmp_path):
    """As bytes without a name, which are taken for what they are."""
    layer, other = nbn.LayerNorm(3, dtype=BF16), nbn.LayerNorm(3, dtype=BF16)
    layer.params["gamma"][:] = [0.5, 2, -3]
    np.savez(tmp_path / "state.npz", **layer.state_dict())
    with np.load(tmp_path / "state.npz") as state:
        other.load_state_dict(state)
        x = state["gamma"]
    assert_same_bits(other.params["gamma"], layer.params["gamma"], "gamma")
    with pytest.raises(TypeError, match=r"^x has dtype \|V2, .* pass x.view\(ml_dtypes.bfloat16\)"):
        nbn.layer_norm_forward(x)


@both
def test_dtypes_must_agree(dtype):
    x, dy, gamma, beta = rows(dtype)
    _, saved = nbn.layer_norm_forward(x, gamma, beta)
    with pytest.raises(
        TypeError,
        match=r"^dy has dtype float32, but x had .*float16; pass dy.astype\((numpy.|ml_dtypes.b)float16\)",
    ):
        nbn.layer_norm_backward(half.exactly(dy), saved)
    with pytest.raises(TypeError, match=r"^out has dtype float32; it must be that of the result, .*float16"):
        nbn.layer_norm_forward(x, out=half.exactly(x))
    with pytest.raises(TypeError, match=r"^dtype is float32, but x has dtype .*float16"):
        nbn.batch_norm_inference(x, gamma, beta**2, dtype=np.float32)


def test_kept_memory_of_bfloat16():
    """Results of more than 4 MiB lie in kept memory, which has the dtype of x."""
    x = np.empty((17, 1 << 20), BF16)
    for array in (x, x.T):
        y = memory.empty_like(array)
        assert y.dtype == BF16
        assert y.strides == array.strides
        assert y.flags.writeable


# Conversions ------------------------------------------------------------------------------------------------


RIGHT = {"widened": 0, "narrowed": 0, "parts": 0}


@both
def test_every_number_is_converted_as_numpy_does(dtype):
    assert half_program.differences(dtype) == RIGHT


@needs_jit
def test_conversions_without_instructions():
    """As on a machine that has none for float16."""
    printed = subprocess.run(
        [sys.executable, "-m", "tests.support.half_program"],
        env=environment(NUMBA_CPU_FEATURES="-f16c"), check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    instructions, found = json.loads(printed)
    assert found == RIGHT
    assert not instructions or platform.machine().lower() in ("arm64", "aarch64")  # which always has them


# Batch norm -------------------------------------------------------------------------------------------------


def check_batch_norm(problem, dtype):
    """All results of a batch norm are right."""
    x, dy = stored(problem.x(), dtype), stored(problem.dy(), dtype)
    parameters, known = (problem.gamma(), problem.beta()), problem.given()
    with unchanged(x, dy):
        y, saved = nbn.batch_norm_forward(x, *parameters, **problem.options)
        check_forward(y, problem, x, dtype)
        check_backward(nbn.batch_norm_backward(dy, saved), problem, x, dy, dtype)
        check_backward(nbn.batch_norm_backward(dy, saved, need_dx=False), problem, x, dy, dtype)
        y = nbn.batch_norm_inference(x, *known, *parameters, **problem.options)
        check_forward(y, problem, x, dtype, known)
        mean, var = known
        _, frozen = nbn.batch_norm_forward(x, *parameters, mean=mean, var=var, **problem.options)
        check_backward(nbn.batch_norm_backward(dy, frozen), problem, x, dy, dtype, known)
    count, mean, m2 = nbn.moments(x, axis=problem.axis)
    exact = reference.moments(half.exactly(x), problem.axis)
    errors = reference.moments_error(half.exactly(x), problem.axis)
    assert count == exact[0]
    assert (np.abs(mean - exact[1]) <= errors[0]).all()
    assert (np.abs(m2 - exact[2]) <= errors[1]).all()


@compiles
@both
@pytest.mark.parametrize("how", ["as planned", "phases, streaming", "blocks, streaming"])
def test_batch_norm(dtype, how):
    """Of every path: rows, columns, blocks and phases, also written past the caches."""
    paths = SMALL_PATHS if JIT else SMALL_PATHS[::4]
    for shape, axis in paths:
        with regime(how):
            check_batch_norm(Problem(shape, axis, offset=1.0), dtype)


@needs_jit
@pytest.mark.slow
@both
@pytest.mark.parametrize(("shape", "axis"), [*LARGE_PATHS, *STREAMING_PATHS], ids=str)
def test_large_arrays(dtype, shape, axis):
    check_batch_norm(Problem(shape, axis), dtype)


@compiles
@both
@pytest.mark.parametrize("how", SERIAL_REGIMES)
def test_results_at_every_address(dtype, how):
    """``out`` may begin anywhere in a cache line, and nothing beside it is written."""
    for where in (((3, 33, 5, 7), 1), ((37, 3), 1), ((40, 272), 1)) if JIT else (((3, 5, 5, 7), 1),):
        problem = Problem(*where, dtype=dtype)
        x, dy = (stored(array, dtype) for array in (Problem(*where).x(), Problem(*where).dy()))
        parameters = problem.gamma(), problem.beta()
        expected, saved = nbn.batch_norm_forward(x, *parameters, **problem.options)
        expected_dx, *_ = nbn.batch_norm_backward(dy, saved)
        with regime(how):
            y, saved = nbn.batch_norm_forward(x, *parameters, **problem.options)
            dx, *_ = nbn.batch_norm_backward(dy, saved)
            for start in (*STARTS, *(STARTS if not JIT else range(18, 34))):
                out, check = guarded(problem, start)
                nbn.batch_norm_forward(x, *parameters, out=out, **problem.options)
                assert_same_bits(out, y, "y")
                check()
                out, check = guarded(problem, start)
                nbn.batch_norm_backward(dy, saved, out=out)
                assert_same_bits(out, dx, "dx")
                check()
        assert np.abs(half.position(y) - half.position(expected)).max() <= 1
        assert np.abs(half.exactly(dx) - half.exactly(expected_dx)).max() <= 0.02


@needs_jit
@pytest.mark.slow
@both
def test_same_bits_for_any_number_of_threads(dtype):
    """The tasks are those of the serial kernels, in any order."""
    for where in (((32, 64, 28, 28), 1), ((128, 64, 5, 5), 1), ((32, 28, 28, 64), -1)):
        problem = Problem(*where)
        x, dy = stored(problem.x(), dtype), stored(problem.dy(), dtype)

        def results(x=x, dy=dy, problem=problem):
            y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
            return y, saved.mean, *nbn.batch_norm_backward(dy, saved)

        with mock.patch.object(jit, "use_threads", return_value=False):
            serial = results()
        for a, b in zip(results(), serial, strict=True):
            assert_same_bits(a, b, str(where))


@compiles
@both
@pytest.mark.parametrize("axis", [1, -1])
def test_nan_stays_in_its_channel(dtype, axis):
    problem = Problem((4, 3, 5, 20) if axis == 1 else (4, 5, 20, 3), axis)
    x = stored(problem.x(), dtype)
    clean, _ = nbn.batch_norm_forward(x, axis=axis)
    np.moveaxis(x, axis, 0)[1].flat[7] = np.nan
    with np.errstate(all="ignore"):
        y, _ = nbn.batch_norm_forward(x, axis=axis)
    y, clean = np.moveaxis(y, axis, 0), np.moveaxis(clean, axis, 0)
    assert np.isnan(y[1].astype(np.float32)).all()
    assert_same_bits(y[[0, 2]], clean[[0, 2]], "the others")


@compiles
@both
def test_layer(dtype):
    """Running statistics of half floats have the dtype of the layer."""
    problem = Problem((6, 3, 4, 5), 1)
    layer, x = nbn.BatchNorm(3), stored(problem.x(), dtype)
    layer(x)
    count, mean, m2 = reference.moments(half.exactly(x), 1)
    assert layer.running_mean.dtype == layer.running_var.dtype == np.float32
    # Sums of a segment and the statistics are float32.
    np.testing.assert_allclose(layer.running_mean, 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * m2 / (count - 1), rtol=1e-5)
    assert layer.backward(stored(problem.dy(), dtype)).dtype == dtype
    assert layer.eval()(x).dtype == dtype


# Group and instance norm ------------------------------------------------------------------------------------

GROUP_PATHS = (
    ((3, 6, 5, 7), 1, 2),
    ((3, 6, 5, 7), 1, None),
    ((2, 8, 3, 3), 1, 4),
    ((3, 4, 5, 6), -1, 3),
    ((2, 9, 4, 8), -1, None),
    ((5, 12), 1, 3),
    ((2, 4, 40, 40), 1, 2),
)


@compiles
@both
@pytest.mark.parametrize("how", ["as planned", "phases, streaming", "blocks"])
def test_group_norm(dtype, how):
    for shape, axis, number in GROUP_PATHS:
        problem = GroupProblem(shape, axis, groups=number)
        x, dy = stored(problem.x(), dtype), stored(problem.dy(), dtype)
        gamma, beta = problem.gamma(), problem.beta()
        with regime(how):
            y, saved = problem.forward(x, gamma, beta)
            gradients = problem.backward(dy, saved)
        wide, wide_dy = half.exactly(x), half.exactly(dy)
        reading = *problem.reading, problem.eps
        exact = groups.forward(wide, gamma, beta, *reading)
        assert y.dtype == dtype, "y"
        assert_rounded(y, exact, groups.forward_error(wide, gamma, beta, *reading), "y")
        expected = groups.backward(wide_dy, wide, gamma, *reading)
        errors = groups.backward_error(wide_dy, wide, gamma, beta, *reading)
        half.check_gradients(gradients, expected, errors, dtype)
