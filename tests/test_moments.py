"""Moments: count, mean and m2 against rational arithmetic, fsum, and the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import numbabn as nbn
from tests.support import reference
from tests.support.cases import CASES
from tests.support.checks import assert_apart, assert_close, assert_same_bits, check_moments, unchanged
from tests.support.jit import JIT
from tests.support.problems import Problem, guarded
from tests.support.strategies import (
    PATH_NAMES,
    PATHS,
    SMALL_PATHS,
    STARTS,
    empty_problems,
    problems,
    regime,
    shapes,
)


@given(problems(training=False))
def test_moments(problem):
    x = problem.x()
    with unchanged(x):
        result = nbn.moments(x, axis=problem.axis)
    check_moments(result, x, problem.axis)
    assert_apart(result[1], x, result[2])


@settings(max_examples=50)
@given(problems(shapes(elements=2000), training=False))
def test_moments_exactly(problem):
    x = problem.x()
    check_moments(nbn.moments(x, axis=problem.axis), x, problem.axis, reference.exact_moments)


@pytest.mark.parametrize(("shape", "axis", "how"), PATHS, ids=PATH_NAMES)
def test_moments_paths(shape, axis, how):
    for dtype in (np.float32, np.float64):
        x = Problem(shape, axis, dtype, offset=3.0).x()
        with regime(how), unchanged(x):
            result = nbn.moments(x, axis=axis)
        check_moments(result, x, axis)


@pytest.mark.skipif(not JIT, reason="a million elements a case")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_practical_shapes(case):
    case = case.with_batch(min(case.shape[0], 64 if len(case.shape) == 2 else 2))
    x = Problem(case.shape, case.axis).x()
    check_moments(nbn.moments(x, axis=case.axis), x, case.axis)


@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_anywhere(shape, axis):
    """The bits do not depend on where x lies."""
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype)
        _, mean, m2 = nbn.moments(problem.x(), axis=axis)
        for start in STARTS:
            x, _ = guarded(problem, start)
            x[...] = problem.x()
            _, again, m2_again = nbn.moments(x, axis=axis)
            assert_same_bits(again, mean, "mean")
            assert_same_bits(m2_again, m2, "m2")


@given(empty_problems())
def test_empty(problem):
    count, mean, m2 = nbn.moments(problem.x(), axis=problem.axis)
    assert count == 0
    assert mean.shape == m2.shape == (problem.channels,)
    assert np.isnan(mean).all()
    assert (m2 == 0).all()


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=24),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
def test_any_values(x):
    """For any values m2 is never negative, and 0 just where all are equal or squares underflow."""
    _, mean, m2 = nbn.moments(x)
    rows = reference.by_channel(x.astype(np.float64), 1)
    size = np.abs(rows).max(axis=1)
    assert (m2 >= 0).all()
    assert (mean >= rows.min(axis=1) - 1e-14 * size).all()
    assert (mean <= rows.max(axis=1) + 1e-14 * size).all()
    constant = (rows == rows[:, :1]).all(axis=1)
    assert (m2[constant] == 0).all()
    assert (mean[constant] == rows[constant, 0]).all()
    spread = rows.max(axis=1) - rows.min(axis=1)
    assert (m2[spread > 1e-7 * size + 1e-140] > 0).all()


@given(problems(shapes(elements=4000), training=False))
def test_agrees_with_forward(problem):
    """`moments` and the statistics of a forward call are the same but for float32 sums within segments."""
    x = problem.x()
    if x.size == problem.channels:
        return
    _, saved = nbn.batch_norm_forward(x, axis=problem.axis)
    count, mean, m2 = nbn.moments(x, axis=problem.axis)
    tiny, error = reference.roundings(x.dtype), reference.moments_error(x, problem.axis)
    farthest = np.abs(reference.by_channel(x, problem.axis) - mean[:, None]).max(axis=1)
    assert saved.count == count
    assert_close(saved.mean, mean, tiny * np.sqrt(m2 / count) + error[0], "mean")
    assert_close(saved.var, m2 / count, tiny * (m2 / count + farthest**2 / 4) + error[1] / count, "var")
