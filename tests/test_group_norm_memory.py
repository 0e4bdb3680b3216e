"""Group and instance norm: layouts of all arrays, results in place, and what a forward call leaves."""

import copy
import itertools
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support.checks import (
    NAMES,
    assert_result_of,
    assert_same_bits,
    gaps_of,
    unchanged,
)
from tests.support.group_problems import GroupProblem, check_group
from tests.support.jit import JIT
from tests.support.problems import LAYOUTS, WRITABLE
from tests.support.processes import run_python
from tests.support.strategies import group_problems

# (shape, axis, groups): rows, columns, parameters along the values, channels in the middle, one channel.
WHERE = [
    ((5, 4, 4, 6), 1, 2), ((5, 4, 4, 6), 1, None), ((5, 3, 4, 6), -1, 3), ((5, 3, 6, 4), 2, 2),
    ((7, 1, 40), 1, None), ((17, 6), 1, 3),
]  # fmt: skip
every_problem = pytest.mark.parametrize("where", WHERE, ids=str)


def arranged(where, **options):
    shape, axis, groups = where
    return GroupProblem(shape, axis, groups=groups, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_problem
def test_x(where, layout):
    """Whatever the layout, the values are right, x is not changed, and y has the order of memory of x."""
    for dtype in (np.float32, np.float64):
        problem = arranged(where, dtype=dtype, layout=layout, offset=2.0)
        x, dy = problem.x(), problem.dy()
        with unchanged(x, dy):
            results = problem.results(x, dy)
        check_group(results, problem, x, dy)
        assert_result_of(results.y, x, "y")


@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "transposed", "sliced"])
def test_dy(layout, dy_layout):
    for where in WHERE:
        problem = arranged(where, layout=layout, dy_layout=dy_layout)
        x, dy = problem.x(), problem.dy()
        with unchanged(x, dy):
            results = problem.results(x, dy)
        check_group(results, problem, x, dy)


@pytest.mark.parametrize("out_layout", WRITABLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out(layout, out_layout):
    """What lands in out is what a fresh result has, whatever the layouts; the gaps of a sliced out stay."""
    for i, where in enumerate(WHERE):
        problem = arranged(where, dtype=(np.float32, np.float64)[i % 2], layout=layout, dy_layout=layout)
        x, dy, out = problem.x(), problem.dy(), problem.out(out_layout)
        expected, gaps = problem.results(x, dy), gaps_of(out)
        with unchanged(x, dy):
            assert problem.forward(x, problem.gamma(), problem.beta(), out=out)[0] is out
        assert_same_bits(out, expected.y, "y")
        with unchanged(x, dy):
            assert problem.backward(dy, expected.saved, out=out)[0] is out
        assert_same_bits(out, expected.dx, "dx")
        assert gaps_of(out) == gaps, "something was written beside out"


@pytest.mark.parametrize("layout", WRITABLE)
@every_problem
def test_in_place(where, layout):
    """With out=x and out=dy the values of a fresh result replace the input; x is gone then."""
    problem = arranged(where, layout=layout, dy_layout=layout)
    parameters = problem.gamma(), problem.beta()
    y, saved = problem.forward(problem.x(), *parameters)
    dx = problem.backward(problem.dy(), saved)[0]
    x, dy = problem.x(), problem.dy()
    gaps = gaps_of(x), gaps_of(dy)
    again, overwritten = problem.forward(x, *parameters, out=x)
    assert again is x
    assert problem.backward(dy, saved, out=dy)[0] is dy
    assert_same_bits(x, y, "y")
    assert_same_bits(dy, dx, "dx")
    assert (gaps_of(x), gaps_of(dy)) == gaps
    with pytest.raises(ValueError, match=r"^the forward call wrote y over x \(out=x\)"):
        problem.backward(dy, overwritten)


@settings(max_examples=60 if JIT else 30)
@given(
    group_problems(),
    st.sampled_from(WRITABLE),
    st.booleans(),
)
def test_out_of_any_layout(problem, out_layout, in_place):
    x, dy, parameters = problem.x(), problem.dy(), (problem.gamma(), problem.beta())
    expected = problem.results(x, dy)
    out = problem.out(out_layout)
    problem.forward(x, *parameters, out=out)
    assert_same_bits(out, expected.y, "y")
    if in_place and problem.dy_layout in WRITABLE:
        out = dy
    results = problem.backward(dy, expected.saved, out=out)
    assert results[0] is out
    for name, result, value in zip(NAMES, results, expected.gradients, strict=True):
        assert (result is None) == (value is None)
        if result is not None:
            assert np.array_equal(result, value), name  # long doubles have bytes that mean nothing


class Tagged(np.ndarray):
    """An array that is not exactly an ndarray."""


@every_problem
def test_subclass(where):
    """An array of a subclass is read as the array it is, and gives a plain one; as out it is returned."""
    problem = arranged(where)
    expected = problem.results()
    results = problem.results(problem.x().view(Tagged), problem.dy().view(Tagged))
    assert type(results.y) is type(results.dx) is np.ndarray
    assert_same_bits(results.y, expected.y, "y")
    for layout in ("contiguous", "fortran", "sliced"):
        out = problem.out(layout).view(Tagged)
        assert problem.forward(problem.x(), problem.gamma(), problem.beta(), out=out)[0] is out
        assert_same_bits(np.asarray(out), expected.y, "y")
        assert problem.backward(problem.dy(), expected.saved, out=out)[0] is out
        assert_same_bits(np.asarray(out), expected.dx, "dx")


@pytest.mark.parametrize("groups", [2, None])
@pytest.mark.parametrize("start", [1, 6, 40])
def test_partial_overlap_is_refused(start, groups):
    memory = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    x, out = (memory[i : i + 48].reshape(3, 4, 4) for i in (0, start))
    problem = GroupProblem(x.shape, groups=groups)
    _, saved = problem.forward(problem.x())
    with unchanged(memory):
        for other in (out, x[::-1], x.transpose(0, 2, 1)):
            with pytest.raises(ValueError, match=r"^out overlaps x in memory; pass x itself"):
                problem.forward(x, out=other)
            with pytest.raises(ValueError, match=r"^out overlaps dy in memory; pass dy itself"):
                problem.backward(x, saved, out=other)
        _, saved = problem.forward(x)
        with pytest.raises(ValueError, match=r"^out overlaps x in memory"):
            problem.backward(problem.dy(), saved, out=x)


BETWEEN_PAGES = """
import numpy as np
from tests.support.group_problems import GroupProblem
from tests.support.pages import between
from tests.support.strategies import SERIAL_REGIMES, regime
from tests.test_group_norm_bits import PROBLEMS

for problem in PROBLEMS:
    for at_end in (True, False):
        x, dy, out = (between(problem, at_end) for _ in range(3))
        x[...], dy[...] = problem.x(), problem.dy()
        for how in SERIAL_REGIMES:
            with regime(how):
                _, saved = problem.forward(x, problem.gamma(), out=out)
                problem.backward(dy, saved, need_dx=False)
                problem.backward(dy, saved, out=out)
print("untouched")
"""


@pytest.mark.skipif(not JIT, reason="NumPy checks its bounds itself")
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
def test_nothing_beyond_the_arrays_is_touched():
    assert run_python(BETWEEN_PAGES) == "untouched\n"


# Saved ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "sliced"])
@every_problem
def test_saved_can_be_pickled(where, layout):
    problem = arranged(where, layout=layout)
    results = problem.results()
    for restored in (pickle.loads(pickle.dumps(results.saved)), copy.deepcopy(results.saved)):
        assert_same_bits(restored.mean, results.saved.mean, "mean")
        assert_same_bits(restored.var, results.saved.var, "var")
        assert restored.count == results.saved.count
        for name, a, b in zip(
            NAMES, problem.backward(problem.dy(), restored), results.gradients, strict=True
        ):
            assert_same_bits(a, b, name)


def test_saved_shows_its_statistics():
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    _, saved = nbn.group_norm_forward(x, 2)
    assert repr(saved) == "Saved(group_norm, statistics=(2, 2), count=6, training=True)"
    assert saved.mean.tolist() == [[2.5, 8.5], [14.5, 20.5]]
    assert (saved.var == 35 / 12).all()
    for array in (x, np.asfortranarray(x), x.transpose(1, 0, 2).copy().transpose(1, 0, 2)):
        _, saved = nbn.instance_norm_forward(array)
        assert repr(saved) == "Saved(instance_norm, statistics=(2, 4), count=3, training=True)"
        assert saved.mean.tolist() == [[1, 4, 7, 10], [13, 16, 19, 22]]
        np.testing.assert_allclose(saved.var, 2 / 3, rtol=1e-15)


def test_backward_twice():
    """``saved`` is not used up, and a second dy does not see the first."""
    for where in WHERE:
        problem = arranged(where)
        results = problem.results()
        problem.backward(2 * problem.dy(), results.saved)
        for name, a, b in zip(
            NAMES, problem.backward(problem.dy(), results.saved), results.gradients, strict=True
        ):
            assert_same_bits(a, b, name)


def test_y_may_be_changed_before_backward():
    """The backward pass reads x, not y."""
    for where, layout in itertools.product(WHERE, ["contiguous", "fortran"]):
        problem = arranged(where, layout=layout)
        y, saved = problem.forward(problem.x(), problem.gamma(), problem.beta())
        y[...] = np.nan
        for name, a, b in zip(
            NAMES, problem.backward(problem.dy(), saved), problem.results().gradients, strict=True
        ):
            assert_same_bits(a, b, name)
