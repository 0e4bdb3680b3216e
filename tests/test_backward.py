"""Backward, through the statistics or with frozen ones: against formula, complex step, finite differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support import reference
from tests.support.cases import CASES
from tests.support.checks import (
    NAMES,
    assert_apart,
    assert_close,
    assert_result_of,
    assert_same_bits,
    check_backward,
    known_statistics,
    saved_of,
    unchanged,
)
from tests.support.jit import JIT
from tests.support.problems import Problem, guarded
from tests.support.strategies import (
    PATH_NAMES,
    PATH_PARAMETERS,
    SERIAL_REGIMES,
    SMALL_PATHS,
    STARTS,
    empty_problems,
    problems,
    regime,
)


@given(problems(), st.booleans())
def test_backward(problem, frozen):
    x, dy = problem.x(), problem.dy()
    with unchanged(x, dy):
        saved = saved_of(problem, frozen, x)
        dx, dgamma, dbeta = nbn.batch_norm_backward(dy, saved)
    check_backward((dx, dgamma, dbeta), problem, frozen, x, dy)
    assert_result_of(dx, x, "dx")
    for result in (dx, dgamma, dbeta):
        if result is not None:
            assert_apart(result, x, dy, saved.mean, saved.var)


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize(("shape", "axis", "how"), PATH_PARAMETERS, ids=PATH_NAMES)
def test_backward_paths(shape, axis, how, frozen):
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype, offset=3.0, gamma_dtype=dtype, beta_dtype=dtype)
        x, dy = problem.x(), problem.dy()
        with regime(how), unchanged(x, dy):
            saved = saved_of(problem, frozen, x)
            gradients = nbn.batch_norm_backward(dy, saved)
            _, *parameters = nbn.batch_norm_backward(dy, saved, need_dx=False)
        check_backward(gradients, problem, frozen, x, dy)
        check_backward((None, *parameters), problem, frozen, x, dy)


@pytest.mark.skipif(not JIT, reason="a million elements a case")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_practical_shapes(case):
    case = case.with_batch(min(case.shape[0], 64 if len(case.shape) == 2 else 2))
    problem = Problem(case.shape, case.axis)
    gradients = nbn.batch_norm_backward(problem.dy(), saved_of(problem, frozen=False))
    check_backward(gradients, problem, False, problem.x(), problem.dy())


@pytest.mark.parametrize("frozen", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("how", SERIAL_REGIMES)
@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_out_anywhere(shape, axis, how, frozen):
    """The bits do not depend on addresses, and nothing is written outside of out, which may be dy."""
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype)
        with regime(how):
            saved = saved_of(problem, frozen)
            gradient = problem.dy()
            expected = nbn.batch_norm_backward(gradient, saved)
            for start in STARTS:
                dy, check_dy = guarded(problem, (5 * start) % 16)
                dy[...] = gradient
                out, check = guarded(problem, start)
                results = nbn.batch_norm_backward(dy, saved, out=out)
                check()
                assert results[0] is out
                for name, a, b in zip(NAMES, results, expected, strict=True):
                    assert_same_bits(a, b, name)
                results = nbn.batch_norm_backward(dy, saved, out=dy)
                check_dy()
                assert results[0] is dy
                for name, a, b in zip(NAMES, results, expected, strict=True):
                    assert_same_bits(a, b, name)


def test_backward_twice():
    """``saved`` is not used up, and a second dy does not see the first."""
    problem, other = Problem((6, 5, 7)), Problem((6, 5, 7), seed=1)
    saved = saved_of(problem, frozen=False)
    first = nbn.batch_norm_backward(problem.dy(), saved)
    nbn.batch_norm_backward(other.dy(), saved)
    again = nbn.batch_norm_backward(problem.dy(), saved)
    for name, a, b in zip(NAMES, again, first, strict=True):
        assert_same_bits(a, b, name)


def test_backward_after_forward_into_out():
    """With out= that is not x, x is still there to go backward from."""
    problem = Problem((6, 5, 7))
    x, dy = problem.x(), problem.dy()
    _, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), out=problem.out())
    check_backward(nbn.batch_norm_backward(dy, saved), problem, False, x, dy)


def test_no_backward_after_forward_in_place():
    """A misaligned x is gone, too; the table of all backends has the layouts that GPUs take as well."""
    problem = Problem((6, 5, 7), layout="misaligned")
    x = problem.x()
    _, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), out=x)
    with pytest.raises(ValueError, match="out=x"):
        nbn.batch_norm_backward(problem.dy(), saved)


def test_no_backward_after_forward_in_place_of_an_empty_batch():
    x = np.empty((0, 3), np.float32)
    _, saved = nbn.batch_norm_forward(x, out=x)
    with pytest.raises(ValueError, match="out=x"):
        nbn.batch_norm_backward(x, saved)


@given(empty_problems(), st.booleans())
def test_empty(problem, frozen):
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    _, saved = nbn.batch_norm_forward(x, gamma, beta, **problem.options, **known_statistics(problem, frozen))
    dx, dgamma, dbeta = nbn.batch_norm_backward(problem.dy(), saved)
    assert_result_of(dx, x, "dx")
    for gradient, parameter in ((dgamma, gamma), (dbeta, beta)):
        if parameter is None:
            assert gradient is None
        else:
            assert gradient.dtype == parameter.dtype
            assert np.array_equal(gradient, np.zeros(problem.channels))
    out = problem.out()
    assert nbn.batch_norm_backward(problem.dy(), saved, out=out)[0] is out


# Derivatives from elsewhere than the formula ----------------------------------------------------------------


def complex_step(problem, frozen, x, dy):
    """Derivatives of sum(dy * y) of the reference, exact to the last bits: a step into the imaginary."""
    step = 1e-30
    arguments = [x, problem.gamma(), problem.beta()]
    options = {**problem.options, **known_statistics(problem, frozen)}
    gradients = []
    for i, argument in enumerate(arguments):
        gradient = np.empty(argument.shape)
        for index in np.ndindex(argument.shape):
            moved = [*arguments]
            moved[i] = argument.astype(np.complex128)
            moved[i][index] += 1j * step
            gradient[index] = (dy * reference.forward(*moved, **options)).sum().imag / step
        gradients.append(gradient)
    return gradients


small_problems = st.builds(
    Problem,
    st.sampled_from([(5, 2), (2, 3, 4), (3, 2, 17), (2, 2, 2, 3), (1, 2, 1, 18), (2, 1, 2, 2, 2), (4, 20)]),
    axis=st.sampled_from([0, 1, -1]),
    dtype=st.just(np.float64),
    layout=st.sampled_from(["contiguous", "fortran"]),
    gamma_dtype=st.just(np.float64),
    beta_dtype=st.just(np.float64),
    offset=st.sampled_from([0.0, 3.0]),
    eps=st.sampled_from([1e-5, 0.1]),
    seed=st.integers(0, 1000),
)


def at_least_two(problem):
    return np.prod(problem.shape) > problem.channels


@settings(max_examples=40)
@given(small_problems.filter(at_least_two), st.booleans())
def test_complex_step(problem, frozen):
    """Neither the reference's formula nor the library's is taken on trust."""
    x, dy = problem.x(), problem.dy()
    expected = complex_step(problem, frozen, x, dy)
    results = nbn.batch_norm_backward(dy, saved_of(problem, frozen, x))
    options = {**problem.options, **known_statistics(problem, frozen)}
    formula = reference.backward(dy, x, problem.gamma(), **options)
    # Two values of a channel may be close: 1 / sqrt(var + eps) then amplifies what float64 rounds.
    for name, result, value, exact in zip(NAMES, results, formula, expected, strict=True):
        error = 1e-11 * (1 + np.abs(exact).max())
        assert_close(value, exact, error, f"{name} of the reference")
        assert_close(result, exact, error, name)


@settings(max_examples=20)
@given(small_problems.filter(at_least_two), st.booleans())
def test_finite_differences(problem, frozen):
    """The library's backward is the derivative of the library's own forward."""
    x, dy, gamma, beta = problem.x(), problem.dy(), problem.gamma(), problem.beta()
    # A small variance with a small eps would need small steps.
    options = {**problem.options, **known_statistics(problem, frozen), "eps": 0.1}
    results = nbn.batch_norm_backward(dy, nbn.batch_norm_forward(x, gamma, beta, **options)[1])
    step = 1e-5
    for name, result, argument in zip(NAMES, results, (x, gamma, beta), strict=True):
        difference = np.empty(argument.shape)
        for index in np.ndindex(argument.shape):
            value = argument[index]
            argument[index] = value + step
            above = (dy * nbn.batch_norm_forward(x, gamma, beta, **options)[0]).sum()
            argument[index] = value - step
            below = (dy * nbn.batch_norm_forward(x, gamma, beta, **options)[0]).sum()
            argument[index] = value
            difference[index] = (above - below) / (2 * step)
        # Truncation step**2 times a third derivative, and rounding eps / step: both about 1e-10 of the sizes.
        assert_close(result, difference, 1e-7 * (1 + np.abs(difference).max()), name)
