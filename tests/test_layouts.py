"""Memory layouts: every layout of every argument gives the values of a plain array, and is written right."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.types import Array

import numbabn as nbn
from numbabn.backends.cpu import column_kernels, row_kernels
from tests.support.checks import (
    assert_result_of,
    assert_same_bits,
    check_backward,
    check_forward,
    check_inference,
    check_moments,
    gaps_of,
    saved_of,
    unchanged,
)
from tests.support.jit import JIT, needs_jit
from tests.support.problems import LAYOUTS, WRITABLE, Problem, arrange
from tests.support.processes import run_python
from tests.support.strategies import problems

SHAPES = [((5, 3, 4, 6), 1), ((5, 3, 4, 6), -1), ((7, 1, 40), 1), ((2, 40, 1, 3), 2), ((17, 6), 0)]
OPTIONS = list(itertools.product(SHAPES, [np.float32, np.float64]))
OPTION_IDS = [f"{'x'.join(map(str, shape))} on {axis}, {dtype.__name__}" for (shape, axis), dtype in OPTIONS]

both_shapes_and_dtypes = pytest.mark.parametrize(("where", "dtype"), OPTIONS, ids=OPTION_IDS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generator(layout):
    """The layouts are what they are called, or the tests of them would test nothing."""
    flags = {
        "fortran": lambda x: x.flags.f_contiguous and not x.flags.c_contiguous,
        "sliced": lambda x: not x.flags.forc,
        "negative": lambda x: min(x.strides) < 0,
        "broadcast": lambda x: 0 in x.strides,
        "read_only": lambda x: not x.flags.writeable,
        "misaligned": lambda x: not x.flags.aligned,
        "offset": lambda x: x.flags.aligned and x.ctypes.data % 64,
        "swapped": lambda x: not x.dtype.isnative,
        "loose": lambda x: x.strides != Problem(x.shape).x().strides and x.flags.c_contiguous,
    }
    for seed in range(5):
        x = Problem((3, 1, 4), layout=layout, seed=seed).x()
        assert flags.get(layout, lambda x: True)(x)
        if layout != "broadcast":
            assert np.array_equal(x, Problem((3, 1, 4), seed=seed).x())


@pytest.mark.parametrize("layout", LAYOUTS)
@both_shapes_and_dtypes
def test_x(where, dtype, layout):
    problem = Problem(*where, dtype=dtype, layout=layout, offset=2.0)
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    with unchanged(x, dy):
        y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
        moments = nbn.moments(x, axis=problem.axis)
        inference = nbn.batch_norm_inference(x, mean, var, problem.gamma(), problem.beta(), **problem.options)
        gradients = nbn.batch_norm_backward(dy, saved)
    check_forward(y, saved, problem, x)
    check_moments(moments, x, problem.axis)
    check_inference(inference, problem, x, mean, var)
    check_backward(gradients, problem, False, x, dy)
    for name, result in (("y", y), ("y of inference", inference), ("dx", gradients[0])):
        assert_result_of(result, x, name)


@needs_jit
@pytest.mark.parametrize("order", "CF")
def test_kernels_are_not_compiled_anew_for_read_only_arrays(order):
    x, dy = (array.copy(order) for array in (Problem((7, 3)).x(), Problem((7, 3)).dy()))
    x.flags.writeable = dy.flags.writeable = False
    _, saved = nbn.batch_norm_forward(x)
    nbn.batch_norm_backward(dy, saved)
    small = column_kernels.forward_small, column_kernels.backward_small
    kernels = small if order == "C" else (row_kernels.forward.serial, row_kernels.backward.serial)
    for kernel in kernels:
        arrays = [each for signature in kernel.signatures for each in signature if isinstance(each, Array)]
        assert arrays
        assert all(array.mutable for array in arrays)


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "transposed", "sliced"])
def test_dy(layout, dy_layout, frozen):
    """The memory layout of dy may differ from that of x; dx has the layout of x."""
    for shape, axis in SHAPES:
        problem = Problem(shape, axis, layout=layout, dy_layout=dy_layout)
        x, dy = problem.x(), problem.dy()
        saved = saved_of(problem, frozen, x)
        with unchanged(x, dy):
            gradients = nbn.batch_norm_backward(dy, saved)
        check_backward(gradients, problem, frozen, x, dy)
        assert_result_of(gradients[0], x, "dx")


@pytest.mark.parametrize("out_layout", WRITABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
@both_shapes_and_dtypes
def test_out(where, dtype, layout, out_layout):
    """What lands in out is what a fresh result has, whatever the layouts; the gaps of a sliced out stay."""
    problem = Problem(*where, dtype=dtype, layout=layout, dy_layout=layout)
    x, dy, parameters = problem.x(), problem.dy(), (problem.gamma(), problem.beta())
    mean, var = problem.given()
    y, saved = nbn.batch_norm_forward(x, *parameters, **problem.options)
    inference = nbn.batch_norm_inference(x, mean, var, *parameters, **problem.options)
    dx = nbn.batch_norm_backward(dy, saved)[0]
    calls = {
        "y": (y, lambda out: nbn.batch_norm_forward(x, *parameters, out=out, **problem.options)[0]),
        "y of inference": (
            inference,
            lambda out: nbn.batch_norm_inference(x, mean, var, *parameters, out=out, **problem.options),
        ),
        "dx": (dx, lambda out: nbn.batch_norm_backward(dy, saved, out=out)[0]),
    }
    for name, (expected, call) in calls.items():
        out = problem.out(out_layout)
        gaps = gaps_of(out)
        with unchanged(x, dy):
            assert call(out) is out, name
        assert_same_bits(out, expected, name)
        assert gaps_of(out) == gaps, f"{name} was written beside out"


@pytest.mark.parametrize("layout", WRITABLE)
@both_shapes_and_dtypes
def test_in_place(where, dtype, layout):
    """With out=x and out=dy the values of a fresh result replace the input."""
    problem = Problem(*where, dtype=dtype, layout=layout, dy_layout=layout)
    parameters, (mean, var) = (problem.gamma(), problem.beta()), problem.given()
    y, saved = nbn.batch_norm_forward(problem.x(), *parameters, **problem.options)
    inference = nbn.batch_norm_inference(problem.x(), mean, var, *parameters, **problem.options)
    dx = nbn.batch_norm_backward(problem.dy(), saved)[0]
    x, again, dy = problem.x(), problem.x(), problem.dy()
    gaps = [gaps_of(x), gaps_of(again), gaps_of(dy)]
    assert nbn.batch_norm_forward(x, *parameters, out=x, **problem.options)[0] is x
    assert nbn.batch_norm_inference(again, mean, var, *parameters, out=again, **problem.options) is again
    assert nbn.batch_norm_backward(dy, saved, out=dy)[0] is dy
    assert_same_bits(x, y, "y")
    assert_same_bits(again, inference, "y of inference")
    assert_same_bits(dy, dx, "dx")
    assert [gaps_of(x), gaps_of(again), gaps_of(dy)] == gaps


@pytest.mark.parametrize("shape", [(1, 1, 200_000), (3, 2, 150_000)])
def test_in_place_where_tasks_end_inside_a_row(shape):
    """No task writes what the next one reads: rows are longer than a task, and the whole is cut up."""
    problem = Problem(shape if JIT else (*shape[:2], shape[2] // 2), spread=3.0)
    x, again, dy, (mean, var) = problem.x(), problem.x(), problem.dy(), problem.given()
    y, saved = nbn.batch_norm_forward(problem.x())
    inference, dx = nbn.batch_norm_inference(x, mean, var), nbn.batch_norm_backward(dy, saved)[0]
    nbn.batch_norm_forward(x, out=x)
    nbn.batch_norm_inference(again, mean, var, out=again)
    nbn.batch_norm_backward(dy, saved, out=dy)
    assert_same_bits(x, y, "y")
    assert_same_bits(again, inference, "y of inference")
    assert_same_bits(dy, dx, "dx")


def test_in_place_through_another_view():
    """Two arrays over the same elements are the same: out=x[:] works as out=x does."""
    problem = Problem((6, 5, 7))
    x = problem.x()
    y, _ = nbn.batch_norm_forward(problem.x())
    nbn.batch_norm_forward(x, out=x[:])
    assert_same_bits(x, y, "y")


@given(problems(), st.sampled_from(WRITABLE), st.booleans())
def test_out_of_any_layout(problem, out_layout, in_place):
    x, dy = problem.x(), problem.dy()
    y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
    expected = nbn.batch_norm_backward(dy, saved)
    out = problem.out(out_layout)
    nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), out=out, **problem.options)
    assert_same_bits(out, y, "y")
    if in_place and problem.dy_layout in WRITABLE:
        out = dy
    results = nbn.batch_norm_backward(dy, saved, out=out)
    assert results[0] is out
    assert_same_bits(out, expected[0], "dx")
    for name, result, value in zip(("dgamma", "dbeta"), results[1:], expected[1:], strict=True):
        assert np.array_equal(result, value), name


@given(problems(), st.randoms(use_true_random=False))
def test_axis_names_the_channels(problem, random):
    """Moving the axes, and ``axis`` with them, moves the result: the statistics are of the same values."""
    x = np.ascontiguousarray(problem.x()).astype(np.float64)
    order = list(range(x.ndim))
    random.shuffle(order)
    axis = order.index(problem.axis % x.ndim)
    y, _ = nbn.batch_norm_forward(x, axis=problem.axis, eps=problem.eps)
    moved, _ = nbn.batch_norm_forward(x.transpose(order), axis=axis, eps=problem.eps)
    assert_same_bits(moved, np.ascontiguousarray(y.transpose(order)), "y")
    copied, _ = nbn.batch_norm_forward(np.ascontiguousarray(x.transpose(order)), axis=axis, eps=problem.eps)
    # The order of summation may differ, and the rounding of a mean with an offset with it.
    assert np.allclose(copied, moved, rtol=1e-6, atol=1e-6)


BETWEEN_PAGES = """
import numpy as np
import numbabn as nbn
from tests.support.exact import DTYPES, values
from tests.support.pages import between
from tests.support.problems import Problem
from tests.support.strategies import SERIAL_REGIMES, SMALL_PATHS, regime

for shape, axis in SMALL_PATHS:
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype)
        for at_end in (True, False):
            x, dy, out = (between(problem, at_end) for _ in range(3))
            x[...], dy[...] = problem.x(), problem.dy()
            for how in SERIAL_REGIMES:
                with regime(how):
                    nbn.moments(x, axis=axis)
                    nbn.batch_norm_inference(x, *problem.given(), axis=axis, out=out)
                    _, saved = nbn.batch_norm_forward(x, problem.gamma(), axis=axis, out=out)
                    nbn.batch_norm_backward(dy, saved, need_dx=False)
                    nbn.batch_norm_backward(dy, saved, out=out)
    for dtype in DTYPES:
        for at_end in (True, False):
            x = between(Problem(shape, axis, dtype), at_end)
            x[...] = values(shape, dtype)
            for how in ("as planned", "phases"):
                with regime(how):
                    nbn.Moments(axis).update(x)
print("untouched")
"""


@pytest.mark.slow
@pytest.mark.skipif(not JIT, reason="NumPy checks its bounds itself")
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
def test_nothing_beyond_the_arrays_is_touched():
    assert run_python(BETWEEN_PAGES) == "untouched\n"


# Vectors are written past the caches at addresses of whole lines, which no element of such an array has.
MISALIGNED = """
import numpy as np
import numbabn as nbn
from tests.support.problems import Problem
from tests.support.strategies import regime

for shape in ((40, 8), (3, 2, 40), (2, 1, 4000)):
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, dtype=dtype)
        x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
        with regime("streaming"):
            y, saved = nbn.batch_norm_forward(x)
            inference, (dx, *_) = nbn.batch_norm_inference(x, mean, var), nbn.batch_norm_backward(dy, saved)
            outs = [problem.out("misaligned") for _ in range(3)]
            nbn.batch_norm_forward(x, out=outs[0])
            nbn.batch_norm_inference(x, mean, var, out=outs[1])
            nbn.batch_norm_backward(dy, saved, out=outs[2])
        for out, expected in zip(outs, (y, inference, dx), strict=True):
            assert not out.flags.aligned and out.tobytes() == expected.tobytes()
print("the same")
"""


@pytest.mark.skipif(not JIT, reason="NumPy writes to any address")
def test_misaligned_out_of_results_that_are_written_past_the_caches():
    assert run_python(MISALIGNED) == "the same\n"


def test_subclass():
    """An array of a subclass is read as the array it is, and gives a plain one."""

    class Tagged(np.ndarray):
        pass

    problem = Problem((6, 5, 7))
    x = problem.x().view(Tagged)
    y, _ = nbn.batch_norm_forward(x)
    assert type(y) is np.ndarray
    assert_same_bits(y, nbn.batch_norm_forward(problem.x())[0], "y")
    out = arrange(np.empty_like(problem.x()), "contiguous", None).view(Tagged)
    nbn.batch_norm_forward(problem.x(), out=out)
    assert_same_bits(np.asarray(out), y, "y")


def test_memory_map(tmp_path):
    """A file larger than memory is normalised as any array: no copy of a contiguous one is made."""
    problem = Problem((6, 5, 7))
    np.save(tmp_path / "x.npy", problem.x())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    y, _ = nbn.batch_norm_forward(x)
    assert_same_bits(y, nbn.batch_norm_forward(problem.x())[0], "y")
