"""Results depend neither on the order of blocks and threads, nor on how many run at once."""

import numba
import numpy as np
import pytest

if not numba.config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from hypothesis import given, settings
from hypothesis import strategies as st

from numbabn.backends.cuda import kernels, plan
from tests.support import sample_rows
from tests.support.backends import Numba
from tests.support.checks import assert_same_bits
from tests.support.cuda import simulator
from tests.support.problems import Problem
from tests.support.strategies import problems, shapes
from tests.support.table import everything, values

# One part a group; several; several groups; several tiles a part, which two kernels do.
CASES = [((5, 3), 1), ((24, 8), 1), ((2, 2, 70), 1), ((1, 520), 0)]
# One kernel for any group, for groups of two parts or fewer, of one part.
RESIDENT = (4, 2, 0)


def count_launches(monkeypatch, kernel):
    """Return a list that grows with every launch of the kernel."""
    launches, launch = [], kernel.launch

    def counted(*arguments):
        launches.append(arguments)
        launch(*arguments)

    monkeypatch.setattr(kernel, "launch", counted)
    return launches


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_same_bits(shape, axis, dtype, monkeypatch):
    """The bits are the same for any seed, and whether x is read once or twice."""
    problem, backend, expected = Problem(shape, axis, dtype, offset=3.0), Numba(), None
    for resident in RESIDENT:
        monkeypatch.setattr(plan, "RESIDENT_SIMULATED", resident)
        for seed in range(2):
            with simulator.seeded(seed):
                found = everything(backend, problem)
            expected = expected or found
            for name, value in found.items():
                assert_same_bits(value, expected[name], f"{name}, {resident} resident blocks, seed {seed}")


@pytest.mark.parametrize("shape", [(70, 5), (7, 40), (2, 132)], ids=str)
@pytest.mark.parametrize("norm", sample_rows.NORMS, ids=lambda norm: norm.name)
def test_same_bits_of_samples(norm, shape):
    """Those of layer and RMS norm are the same for any seed."""
    x, dy, *parameters = norm.problem(shape, (-1,))
    expected = None
    for seed in range(3):
        with simulator.seeded(seed):
            found = sample_rows.everything(Numba(), norm, x, dy, parameters, (-1,))
        expected = expected or found
        for name, value in found.items():
            assert_same_bits(value, expected[name], f"{name}, seed {seed}")


def test_launches_of_samples():
    """Layer norm reads x once; dx, partial sums and gradients are a launch each, and no more are made."""
    norm, backend = sample_rows.NORMS[0], Numba()
    x, dy, *parameters = norm.problem((7, 40), (-1,))
    before = simulator.simulator.launches
    _, saved = norm.forward(backend, x, *parameters, (-1,))
    assert simulator.simulator.launches == before + 1
    norm.backward(backend, dy, saved)
    assert simulator.simulator.launches == before + 4
    norm.backward(backend, dy, saved, need_dgamma=False, need_dbeta=False)
    assert simulator.simulator.launches == before + 5


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_one_kernel_or_two(name, monkeypatch):
    """The residents decide, as the test above supposes."""
    for (shape, axis), resident, expected in (
        (CASES[0], RESIDENT[2], 1),
        (CASES[1], RESIDENT[0], 1),
        (CASES[1], RESIDENT[2], 0),
        (CASES[3], RESIDENT[0], 0),
    ):
        monkeypatch.setattr(plan, "RESIDENT_SIMULATED", resident)
        with monkeypatch.context() as patch:
            launches = count_launches(patch, getattr(kernels, name))
            everything(Numba(), Problem(shape, axis))
        assert len(launches) == expected, (shape, resident)


def test_launches_of_a_small_array(monkeypatch):
    """Forward and backward of (32, 64) are one launch each; statistics and parameters are not copied."""
    backend, problem = Numba(), Problem((32, 64))
    x, dy = problem.x(), problem.dy()
    before = simulator.simulator.launches
    _, saved = backend.forward(x, problem.gamma(), problem.beta())
    assert simulator.simulator.launches == before + 1
    backend.backward(dy, saved)
    assert simulator.simulator.launches == before + 2


@settings(max_examples=20)
@given(problems(shapes(elements=260), layouts=Numba.layouts, kinds=Numba.dtypes))
def test_any_problem(problem):
    """Of any rank, in any layout that is on GPUs."""
    values(Numba(), problem)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_any_order(seed):
    """Groups of several parts, that is, with blocks that wait for each other."""
    with simulator.seeded(seed):
        values(Numba(), Problem((40, 8), 1))
