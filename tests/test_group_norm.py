"""Group norm, and instance norm, which is as many groups as channels: the values of all results."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

import numbabn as nbn
from tests.support import groups
from tests.support.checks import (
    NAMES,
    assert_apart,
    assert_close,
    assert_result_of,
    assert_same_bits,
    unchanged,
)
from tests.support.group_problems import GroupProblem, check_group, check_group_backward
from tests.support.jit import JIT, needs_jit
from tests.support.strategies import REGIMES, divisors, group_problems, regime


def problems(where, **options):
    """Problems of these (shape, axis) for every number of groups, and instance norm where it is defined."""
    for shape, axis in where:
        numbers = divisors(shape[axis])
        if np.prod(shape) > shape[0] * shape[axis]:
            numbers.append(None)
        yield from (GroupProblem(shape, axis, groups=number, **options) for number in numbers)


def name_of(problem):
    shape = "x".join(map(str, problem.shape))
    norm = "instances" if problem.groups is None else f"{problem.groups} groups"
    return f"{shape} on {problem.axis}, {norm}, {problem.dtype.__name__}"


# Formulas ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=150 if JIT else 40)
@given(group_problems())
def test_formulas(problem):
    x, dy = problem.x(), problem.dy()
    with unchanged(x, dy):
        results = problem.results(x, dy)
    check_group(results, problem, x, dy)
    assert_result_of(results.y, x, "y")
    for result in (results.y, *results.gradients):
        if result is not None:
            assert_apart(result, x, dy, results.saved.mean, results.saved.var)


# Every family of kernels: rows (16 values and more of a channel side by side), columns, and parameters along
# the values. Comments say what is new in a shape.
SHAPES = (
    ((5, 12), 1),  # along
    ((4, 96), 1),
    ((3, 12, 1, 1), 1),
    ((1, 12), 1),
    ((3, 6, 4), 1),  # along, a channel having several values; for instance norm columns
    ((3, 12, 2, 2), 1),
    ((2, 4, 3, 3), 1),
    ((5, 1, 15), 1),
    ((3, 6, 4, 4), 1),  # rows of one vector
    ((2, 6, 7, 7), 1),
    ((1, 4, 40), 1),
    ((4, 1, 50), 1),
    ((2, 4, 600), 1),  # more than a segment
    ((2, 2, 5000), 1),  # more than is summed about one shift
    ((2, 6, 2, 3, 4), 1),
    ((3, 5, 4, 6), -1),  # columns
    ((2, 9, 7, 3), -1),  # pixels left over
    ((1, 5, 4, 6), -1),
    ((2, 40, 5, 20), -1),
    ((3, 5, 6, 4), 2),  # channels in the middle: columns
    ((3, 5, 6, 4), -2),
    ((2, 5, 6, 17), 2),  # and rows
    ((1, 5, 6, 17), 2),
    ((2, 3, 5, 4, 40), 3),
)


# Parallel kernels are compiled apart.
HOW = [pytest.param(name, marks=pytest.mark.slow) if "parallel" in name else name for name in REGIMES]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("where", SHAPES, ids=lambda where: f"{'x'.join(map(str, where[0]))} on {where[1]}")
def test_paths(where, how):
    """Every number of groups takes every path of the kernels of its shape."""
    for dtype in (np.float32, np.float64):
        for problem in problems([where], dtype=dtype, offset=3.0, gamma_dtype=dtype):
            x, dy = problem.x(), problem.dy()
            with regime(how), unchanged(x, dy):
                results = problem.results(x, dy)
                _, *sums = problem.backward(dy, results.saved, need_dx=False)
            check_group(results, problem, x, dy)
            check_group_backward((None, *sums), problem, x, dy)


LARGE = [
    GroupProblem((2, 16, 56, 56), groups=4),
    pytest.param(GroupProblem((2, 16, 56, 56), groups=None), marks=pytest.mark.slow),
    GroupProblem((2, 32, 120, 121), groups=8),  # 1.8 MB a sample
    GroupProblem((2, 4, 300, 301), groups=2),  # fewer groups than tasks: cut inside of them
    pytest.param(GroupProblem((2, 4, 300, 301), groups=None), marks=pytest.mark.slow),
    GroupProblem((1, 3, 300, 401), groups=1),
    pytest.param(GroupProblem((2, 80, 80, 48), -1, groups=12), marks=pytest.mark.slow),
    pytest.param(GroupProblem((2, 80, 80, 48), -1, groups=None), marks=pytest.mark.slow),
    GroupProblem((2, 50, 64, 100), 2, groups=16),
    pytest.param(GroupProblem((2, 50, 64, 100), 2, groups=None), marks=pytest.mark.slow),
    GroupProblem((64, 512, 7, 7), groups=32),
    GroupProblem((3000, 96), groups=32),
    GroupProblem((3, 400_000), groups=50),
    GroupProblem((24, 64, 64, 48), groups=32),  # 38 MB with y: written past the caches
]


@pytest.mark.skipif(not JIT, reason="a million elements a problem")
@pytest.mark.parametrize("problem", LARGE, ids=name_of)
def test_large(problem):
    x, dy = problem.x(), problem.dy()
    results = problem.results(x, dy)
    check_group(results, problem, x, dy)
    _, *sums = problem.backward(dy, results.saved, need_dx=False)
    check_group_backward((None, *sums), problem, x, dy)


@pytest.mark.parametrize("problem", list(problems([((3, 6, 4), 1), ((2, 3, 4, 6), -1)])), ids=name_of)
def test_oracle_has_the_derivatives_of_its_formula(problem):
    """By complex step: the gradients of sum(dy * y) with respect to x, gamma and beta."""
    arguments = [a.astype(np.float64) for a in (problem.x(), problem.gamma(), problem.beta())]
    dy, reading = problem.dy().astype(np.float64), problem.reading
    gradients = groups.backward(dy, *arguments[:2], *reading, 1e-5)
    for i, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            moved = [*arguments]
            moved[i] = arguments[i].astype(np.complex128)
            moved[i][index] += 1e-30j
            derivative = (dy * groups.forward(*moved, *reading, 1e-5)).sum().imag / 1e-30
            assert abs(derivative - gradient[index]) < 1e-12 * (1 + abs(gradient).max())


@pytest.mark.parametrize("shape", [(3, 6, 4), (2, 6, 40), (3, 6, 2, 2)], ids=str)
def test_instance_norm_is_group_norm_of_as_many_groups_as_channels(shape):
    problem, grouped = GroupProblem(shape), GroupProblem(shape, groups=6)
    for a, b in zip(problem.results(), grouped.results(), strict=True):
        if isinstance(a, np.ndarray):
            assert_same_bits(a, b, "a result")
        else:
            assert_same_bits(a.mean, b.mean, "mean")


# Accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "number"),
    [
        ((4, 192), 1, 2), ((4, 16, 2, 3), 1, 4), ((2, 12, 40), 1, 3), ((2, 6, 4, 9), -1, 3),
        ((2, 12, 33), 1, None), ((2, 30, 9), -1, None), ((2, 5, 6, 7), 2, 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("offset", [1e2, 1e3, 1e4])
def test_accuracy_at_an_offset(shape, axis, number, offset):
    """Within 1e-6 where sd is 1, and gradients within 2e-6 of the largest."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    problem = GroupProblem(shape, axis, groups=number)
    ones, zeros, reading = np.ones(problem.channels), np.zeros(problem.channels), problem.reading
    y, saved = problem.forward(x, ones, zeros)
    expected = groups.forward(x, None, None, *reading, problem.eps)
    # One unit in the last place of 4 is 4.8e-7, half of what is allowed: so larger y are allowed more.
    assert abs(y - expected).max() < 1e-6 * max(1, abs(expected).max() / 4)
    found = problem.backward(dy, saved)
    exact = groups.backward(dy, x, None, *reading, problem.eps)
    for name, result, value in zip(NAMES, found, exact, strict=True):
        assert abs(result - value).max() < 2e-6 * abs(value).max(), name


@pytest.mark.parametrize("value", [0.1, -1e4 / 3, 1e-30, 3e30, 3e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_groups_are_exactly_beta(dtype, value):
    """Their variance is 0, and dx is finite; also where each group has a constant of its own."""
    where = [((3, 12), 1), ((2, 6, 3), 1), ((2, 6, 40), 1), ((2, 3, 4, 6), -1), ((2, 3, 4, 20), 2)]
    for problem in problems(where, dtype=dtype, beta_dtype=dtype):
        constants = value * (1 + np.arange(problem.shape[0] * problem.number) / 100)
        x = np.empty(problem.shape, dtype)
        if value == 3e38 and dtype == np.float32:
            constants[:] = value
        x[...] = groups.spread(constants, x, *problem.reading)
        y, saved = problem.forward(x, problem.gamma(), problem.beta())
        beta = groups.along(problem.beta(), x.ndim, problem.axis)
        assert_same_bits(y, np.ascontiguousarray(np.broadcast_to(beta, x.shape)), "y")
        assert (saved.var == 0).all()
        assert_same_bits(saved.mean.reshape(-1), constants.astype(dtype).astype(np.float64), "mean")
        dx, dgamma, _ = problem.backward(problem.dy(), saved)
        assert np.isfinite(dx).all()
        assert (dgamma == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1, 1), (1, 7, 1)], ids=str)
def test_one_value_per_group_is_exactly_beta(shape, dtype):
    """Which group norm allows, as PyTorch's function does. The gradient is 0 but for roundings."""
    problem = GroupProblem(shape, dtype=dtype, beta_dtype=dtype, groups=shape[1])
    results = problem.results()
    beta = groups.along(problem.beta(), len(shape), 1)
    assert_same_bits(results.y, np.ascontiguousarray(np.broadcast_to(beta, shape)), "y")
    assert results.saved.count == 1
    assert (results.saved.var == 0).all()
    assert (results.dgamma == 0).all()
    check_group(results, problem, problem.x(), problem.dy())


@pytest.mark.slow
def test_sums_over_many_samples():
    """Gradients of parameters are added up in float64 between samples: sums of ones are exact."""
    samples = 100_000 if JIT else 300
    for shape, number in (((samples, 2, 2), None), ((samples, 4), 2), ((samples // 10, 4, 16), 2)):
        x = np.tile(np.float32([-1, 1]), (*shape[:-1], shape[-1] // 2))
        problem = GroupProblem(shape, groups=number, eps=0.0)
        y, saved = problem.forward(x, np.ones(shape[1]), np.zeros(shape[1]))
        assert_same_bits(y, x, "y")
        _, dgamma, dbeta = problem.backward(np.ones_like(x), saved)
        assert dbeta.tolist() == [x.size // shape[1]] * shape[1]
        expected = x.sum(axis=(0, *range(2, x.ndim)), dtype=np.float64)
        assert dgamma.tolist() == expected.tolist()


# NaN, infinity, and the ends of the ranges ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of_x", [True, False])
def test_poison_stays_in_its_group(of_x, bad):
    """In x or dy: no bit of another group of any sample changes, nor a gradient of another group's channels.

    And where the poison is in dy, dgamma and dbeta of the other channels of its group keep their bits, too.
    """
    where = [((4, 12), 1), ((3, 6, 3), 1), ((3, 6, 40), 1), ((3, 5, 4, 6), -1), ((3, 5, 6, 20), 2)]
    for problem in problems(where):
        clean = problem.results()
        x, dy = problem.x(), problem.dy()
        channel = problem.channels // 2
        poisoned = np.moveaxis(x if of_x else dy, problem.axis, 1)
        poisoned[(1, channel) + (0,) * (x.ndim - 2)] = bad
        with np.errstate(all="ignore"):  # of kernels that are plain Python
            found = problem.results(x, dy)
        hit = np.zeros((x.shape[0], problem.number))
        hit[1, channel * problem.number // problem.channels] = 1
        hit = np.broadcast_to(groups.spread(hit, x, *problem.reading) > 0, x.shape)
        assert_same_bits(found.y[~hit], clean.y[~hit], "y")
        assert_same_bits(found.dx[~hit], clean.dx[~hit], "dx")
        assert not np.isfinite(found.dx[hit]).any()
        assert not of_x or not np.isfinite(found.y[hit]).any()
        of_group = hit.any(axis=tuple(a for a in range(x.ndim) if a != problem.axis % x.ndim))
        reached = of_group if of_x else np.arange(problem.channels) == channel
        assert_same_bits(found.dgamma[~reached], clean.dgamma[~reached], "dgamma")
        assert not np.isfinite(found.dgamma[reached]).any()
        hit_by_dy = np.zeros_like(reached) if of_x else reached
        assert_same_bits(found.dbeta[~hit_by_dy], clean.dbeta[~hit_by_dy], "dbeta")


RANGES = [(np.float32, 1e-30), (np.float32, 1e30), (np.float64, 1e-150), (np.float64, 1e150)]
BOTH = [((4, 12), 1), ((3, 6, 3), 1), ((2, 6, 40), 1), ((2, 3, 4, 6), -1), ((2, 3, 4, 20), 2)]


@needs_jit  # without it, kernels are NumPy's arithmetic, which warns
@pytest.mark.parametrize(("dtype", "size"), RANGES)
def test_ranges(dtype, size):
    """Large and small x cost no digit of any result, and no floating-point error is raised."""
    for how in ("as planned", "phases"):
        for problem in problems(BOTH, dtype=dtype, offset=size, spread=size, eps=0.0):
            if problem.shape[1:] == (problem.number,):
                continue  # one value, whose variance of 0 is divided by
            x, dy = problem.x(), problem.dy()
            with np.errstate(all="raise"), regime(how):
                results = problem.results(x, dy)
                problem.backward(dy, results.saved, need_dx=False)
            check_group(results, problem, x, dy)


@needs_jit
def test_float32_at_both_ends_of_its_range():
    for problem in problems([((3, 12), 1), ((2, 6, 4), 1), ((2, 6, 40), 1), ((2, 4, 4, 6), -1)]):
        x = np.full(problem.shape, 3e38, np.float32)
        np.moveaxis(x, problem.axis, 1).reshape(x.shape[0], -1)[:, ::2] *= -1
        x.reshape(-1)[::2] *= -1
        _, mean, m2 = groups.reference.moments(groups.by_group(x, *problem.reading), 0)
        _, saved = problem.forward(x)
        # Deviations of float64, squares of 1e77: a few roundings each.
        np.testing.assert_allclose(saved.mean.reshape(-1), mean, rtol=0, atol=3e38 * 1e-13)
        np.testing.assert_allclose(saved.var.reshape(-1) * saved.count, m2, rtol=1e-12)


@needs_jit
@pytest.mark.parametrize("how", ["as planned", "phases", "blocks"])
def test_parameters_beyond_the_dtype_of_x(how):
    """They become infinity and 0 there, and nobody is warned, whatever numpy.seterr says.

    A signalling NaN among them is a NaN of its channel.
    """
    signalling = np.array([0x7FA00000], np.uint32).view(np.float32)
    for problem in problems(BOTH):
        gamma = np.ones(problem.channels)
        gamma[:3] = 1e300, 1e-300, np.nan
        beta = np.zeros(problem.channels, np.float32)
        beta[3:4] = signalling
        with np.errstate(all="raise"), regime(how):
            y, saved = problem.forward(problem.x(), gamma, beta)
            _, dgamma, dbeta = problem.backward(problem.dy(), saved)
        y = np.moveaxis(y, problem.axis, 0)
        if problem.number < np.prod(problem.shape[1:]):  # else xhat is 0, and y is beta
            assert not np.isfinite(y[0]).any()
        assert (y[1] == 0).all()
        assert np.isnan(y[2:4]).all()
        assert np.isfinite(y[4:]).all()
        assert np.isfinite(dgamma).all()
        assert np.isfinite(dbeta).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_instances_whose_gamma_is_0_have_a_dx_of_0(dtype):
    """Also where dy / std is above the largest float32."""
    for shape, axis in (((2, 6, 3), 1), ((2, 6, 40), 1), ((2, 3, 4, 6), -1), ((2, 3, 4, 20), 2)):
        problem = GroupProblem(shape, axis, dtype, spread=1e-39, eps=0.0)
        _, saved = problem.forward(problem.x(), np.zeros(problem.channels))
        with np.errstate(all="ignore"):
            dx, *_ = problem.backward(problem.dy(), saved)
        assert (dx == 0).all()


def test_dx_of_one_channel_of_a_group_reaches_the_others_of_gamma_0():
    """dx of a channel with a gamma of 0 is not 0: its x changes the statistics of the others."""
    for shape in ((2, 2), (2, 2, 3), (2, 2, 40)):
        problem = GroupProblem(shape, groups=1)
        x, dy = problem.x(), problem.dy()
        _, saved = problem.forward(x, [0.0, 1.0])
        dx, *_ = problem.backward(dy, saved)
        expected = groups.backward(dy, x, np.array([0.0, 1.0]), *problem.reading, problem.eps)[0]
        error = groups.backward_error(dy, x, np.array([0.0, 1.0]), None, *problem.reading, problem.eps)[0]
        assert_close(dx, expected, error, "dx")
        assert len(shape) == 2 or (dx[:, 0] != 0).all()


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=3)), ids=str)
@pytest.mark.parametrize("kinds", [(np.float32, np.float64), (None, np.float64), (np.float16, None)], ids=str)
def test_skipped_gradients(kinds, needs):
    """What is not asked for is None, and what is asked for is right without it."""
    names = "need_dx", "need_dgamma", "need_dbeta"
    present = True, kinds[0] is not None, kinds[1] is not None
    for problem in problems(BOTH, gamma_dtype=kinds[0], beta_dtype=kinds[1]):
        x, dy = problem.x(), problem.dy()
        _, saved = problem.forward(x, problem.gamma(), problem.beta())
        some = problem.backward(dy, saved, **dict(zip(names, needs, strict=True)))
        assert [result is not None for result in some] == [
            a and b for a, b in zip(needs, present, strict=True)
        ]
        check_group_backward(some, problem, x, dy)


def test_lists_of_parameters():
    for problem in problems(BOTH, gamma_dtype=np.float64, beta_dtype=np.float64):
        x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
        expected, saved = problem.forward(x, gamma, beta)
        listed, saved_of_lists = problem.forward(x, gamma.tolist(), tuple(beta))
        assert_same_bits(listed, expected, "y")
        gradients = problem.backward(problem.dy(), saved)
        for name, a, b in zip(NAMES, problem.backward(problem.dy(), saved_of_lists), gradients, strict=True):
            assert_same_bits(a, b, name)


@pytest.mark.parametrize(
    "shape", [(0, 4), (0, 4, 5), (3, 4, 0), (0, 4, 0), (3, 0, 5), (0, 0), (2, 4, 0, 3)], ids=str
)
def test_empty(shape):
    for number in (None, 1, 2, 4):
        problem = GroupProblem(shape, groups=number, gamma_dtype=np.float16, beta_dtype=np.float64)
        y, saved, dx, dgamma, dbeta = problem.results()
        assert y.shape == dx.shape == shape
        assert saved.count == 0
        assert saved.mean.shape == saved.var.shape == (shape[0], problem.number)
        assert np.isnan(saved.mean).all()
        assert np.isnan(saved.var).all()
        assert_same_bits(dgamma, np.zeros(shape[1], np.float16), "dgamma")
        assert_same_bits(dbeta, np.zeros(shape[1]), "dbeta")
        out = problem.out()
        assert problem.backward(problem.dy(), saved, out=out)[0] is out


def test_numpy_integers_are_group_counts():
    x = GroupProblem((2, 4, 3)).x()
    y, _ = nbn.group_norm_forward(x, 2)
    assert_same_bits(nbn.group_norm_forward(x, np.int8(2))[0], y, "y")
