"""Forward and inference: values against the reference, for every path, parameter, dtype and shape."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbabn as nbn
from tests.support import reference
from tests.support.cases import CASES
from tests.support.checks import (
    assert_apart,
    assert_close,
    assert_result_of,
    assert_same_bits,
    check_forward,
    check_inference,
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


@given(problems())
def test_forward(problem):
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    with unchanged(x, gamma, beta):
        y, saved = nbn.batch_norm_forward(x, gamma, beta, **problem.options)
    check_forward(y, saved, problem, x)
    assert_result_of(y, x, "y")
    assert_apart(y, x, gamma, beta, saved.mean, saved.var)
    assert saved.mean.dtype == saved.var.dtype == np.float64


@given(problems(training=False), st.sampled_from([np.float16, np.float32, np.float64, np.longdouble]))
def test_inference(problem, kind):
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    mean, var = (statistic.astype(kind) for statistic in problem.given())
    var = np.maximum(var, np.finfo(kind).tiny)
    with unchanged(x, gamma, beta, mean, var):
        y = nbn.batch_norm_inference(x, mean, var, gamma, beta, **problem.options)
        again, saved = nbn.batch_norm_forward(x, gamma, beta, mean=mean, var=var, **problem.options)
    check_inference(y, problem, x, mean, var)
    assert_result_of(y, x, "y")
    assert_apart(y, x, gamma, beta, mean, var)
    assert_same_bits(again, y, "y of batch_norm_forward with statistics")
    assert not saved.training
    assert_same_bits(saved.mean, mean.astype(np.float64), "saved.mean")
    assert_same_bits(saved.var, var.astype(np.float64), "saved.var")


@pytest.mark.parametrize(("shape", "axis", "how"), PATH_PARAMETERS, ids=PATH_NAMES)
def test_forward_paths(shape, axis, how):
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype, offset=3.0)
        x = problem.x()
        with regime(how), unchanged(x):
            y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
        check_forward(y, saved, problem, x)


@pytest.mark.parametrize(("shape", "axis", "how"), PATH_PARAMETERS, ids=PATH_NAMES)
def test_inference_paths(shape, axis, how):
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype, offset=3.0)
        x, (mean, var) = problem.x(), problem.given()
        with regime(how), unchanged(x):
            y = nbn.batch_norm_inference(x, mean, var, problem.gamma(), problem.beta(), **problem.options)
        check_inference(y, problem, x, mean, var)


@pytest.mark.skipif(not JIT, reason="a million elements a case")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_practical_shapes(case):
    case = case.with_batch(min(case.shape[0], 64 if len(case.shape) == 2 else 2))
    problem = Problem(case.shape, case.axis)
    x = problem.x()
    y, saved = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), **problem.options)
    check_forward(y, saved, problem, x)


@pytest.mark.parametrize("how", SERIAL_REGIMES)
@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_out_anywhere(shape, axis, how):
    """The bits do not depend on addresses, and nothing is written outside of out."""
    for dtype in (np.float32, np.float64):
        problem = Problem(shape, axis, dtype)
        parameters = problem.gamma(), problem.beta()
        mean, var = problem.given()
        values = problem.x()
        with regime(how):
            y, saved = nbn.batch_norm_forward(values, *parameters, **problem.options)
            inference = nbn.batch_norm_inference(values, mean, var, *parameters, **problem.options)
            for start in STARTS:
                x, _ = guarded(problem, (5 * start) % 16)
                x[...] = values
                out, check = guarded(problem, start)
                result, again = nbn.batch_norm_forward(x, *parameters, out=out, **problem.options)
                check()
                assert result is out
                assert_same_bits(out, y, "y")
                assert_same_bits(again.mean, saved.mean, "saved.mean")
                assert_same_bits(again.var, saved.var, "saved.var")
                out, check = guarded(problem, start)
                nbn.batch_norm_inference(x, mean, var, *parameters, out=out, **problem.options)
                check()
                assert_same_bits(out, inference, "y of inference")


@pytest.mark.parametrize("how", ["as planned", "phases, streaming", "blocks, streaming"])
@pytest.mark.parametrize(("shape", "axis"), SMALL_PATHS)
def test_in_place(shape, axis, how):
    problem = Problem(shape, axis)
    mean, var = problem.given()
    with regime(how):
        y, saved = nbn.batch_norm_forward(problem.x(), problem.gamma(), problem.beta(), **problem.options)
        x, check = guarded(problem, 3)
        x[...] = problem.x()
        result, again = nbn.batch_norm_forward(x, problem.gamma(), problem.beta(), out=x, **problem.options)
        check()
        assert result is x
        assert_same_bits(x, y, "y")
        assert_same_bits(again.mean, saved.mean, "saved.mean")
        assert_same_bits(again.var, saved.var, "saved.var")
        x[...] = problem.x()
        y = nbn.batch_norm_inference(problem.x(), mean, var, **problem.options)
        assert nbn.batch_norm_inference(x, mean, var, out=x, **problem.options) is x
        assert_same_bits(x, y, "y of inference")


@given(empty_problems())
def test_empty(problem):
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    y, saved = nbn.batch_norm_forward(x, gamma, beta, **problem.options)
    assert_result_of(y, x, "y")
    assert saved.count == 0
    assert saved.mean.shape == saved.var.shape == (problem.channels,)
    assert np.isnan(saved.mean).all()
    assert np.isnan(saved.var).all()
    out = problem.out()
    assert nbn.batch_norm_forward(x, gamma, beta, out=out, **problem.options)[0] is out
    y = nbn.batch_norm_inference(x, *problem.given(), gamma, beta, **problem.options)
    assert_result_of(y, x, "y")


@given(problems(training=False))
def test_one_value_per_channel(problem):
    """One value is refused in training, where the variance would be 0, and fine with known statistics."""
    shape = [1] * len(problem.shape)
    shape[problem.axis] = problem.channels
    problem = Problem(tuple(shape), problem.axis, problem.dtype)
    x, (mean, var) = problem.x(), problem.given()
    out = problem.out()
    with unchanged(x, out), pytest.raises(ValueError, match="one value per channel"):
        nbn.batch_norm_forward(x, out=out, **problem.options)
    y = nbn.batch_norm_inference(x, mean, var, problem.gamma(), problem.beta(), **problem.options)
    check_inference(y, problem, x, mean, var)


def test_defaults():
    x = Problem((4, 3, 5)).x()
    for function in (nbn.batch_norm_forward, nbn.batch_norm_inference):
        parameters = inspect.signature(function).parameters
        assert parameters["axis"].default == 1
        assert parameters["eps"].default == 1e-5
    y, _ = nbn.batch_norm_forward(x)
    assert_same_bits(y, nbn.batch_norm_forward(x, np.ones(3), np.zeros(3), axis=-2, eps=1e-5)[0], "y")


def test_parameters_are_read_once():
    """Gamma and beta may change between forward and backward: the gradient is that of the forward call."""
    problem = Problem((6, 5, 4))
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    _, saved = nbn.batch_norm_forward(x, gamma, beta)
    before = nbn.batch_norm_backward(problem.dy(), saved)
    gamma[:], beta[:] = 0, 0
    after = nbn.batch_norm_backward(problem.dy(), saved)
    for name, a, b in zip(("dx", "dgamma", "dbeta"), after, before, strict=True):
        assert_same_bits(a, b, name)


def test_strided_parameters():
    """Any array of one float per channel will do: sliced, reversed, byte-swapped, read-only."""
    problem = Problem((6, 5, 4))
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    y, _ = nbn.batch_norm_forward(x, gamma, beta)
    sliced = np.repeat(gamma, 3)[::3]
    backwards = np.ascontiguousarray(beta[::-1])[::-1].astype(">f4")
    backwards.flags.writeable = False
    assert_same_bits(nbn.batch_norm_forward(x, sliced, backwards)[0], y, "y")


def test_eps_zero():
    x = Problem((50, 3)).x()
    y, saved = nbn.batch_norm_forward(x, eps=0.0)
    assert_close(y, reference.forward(x, eps=0.0), reference.forward_error(x, eps=0.0), "y")
    assert saved.count == 50
