"""Bits of group and instance norm: a sample's are its own, and threads, addresses and calls change none."""

from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbabn.backends.cpu import jit, plan
from tests.support.checks import NAMES, assert_same_bits
from tests.support.group_problems import GroupProblem
from tests.support.jit import JIT, needs_jit
from tests.support.problems import guarded
from tests.support.strategies import SERIAL_REGIMES, STARTS, divisors, group_problems, regime, shapes

# Batch invariance -------------------------------------------------------------------------------------------


def samples_of(x, chosen):
    """Return samples of x in the memory order of x, on which the order of summation depends."""
    part = np.empty_like(x, shape=(len(chosen), *x.shape[1:]))
    part[...] = x[chosen]
    return part


def check_invariance(problem, x, dy, batches):
    """The samples of every batch, numbers of samples of x, have the bits that they have in x."""
    with np.errstate(all="ignore"):  # of NaN in kernels that are plain Python
        whole = problem.results(x, dy)
        for chosen in batches:
            part = problem.results(samples_of(x, chosen), samples_of(dy, chosen))
            for name, a, b in (
                ("y", part.y, whole.y),
                ("dx", part.dx, whole.dx),
                ("mean", part.saved.mean, whole.saved.mean),
                ("var", part.saved.var, whole.saved.var),
            ):
                assert_same_bits(
                    np.ascontiguousarray(a), np.ascontiguousarray(b[chosen]), f"{name} of {chosen}"
                )


@pytest.mark.slow
@settings(max_examples=60 if JIT else 30)
@given(
    st.integers(1, 5).flatmap(lambda n: group_problems(shapes(3_000).map(lambda shape: (n, *shape[1:])))),
    st.sampled_from(["as planned", "phases", "blocks"]),
    st.data(),
)
def test_a_sample_alone_and_in_any_batch(problem, how, data):
    samples = problem.shape[0]
    batches = [[n] for n in range(samples)]
    batches.append(data.draw(st.permutations(range(samples))))
    batches.append(data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=9)))
    with regime(how):
        check_invariance(problem, problem.x(), problem.dy(), batches)


# Sizes of a sample around those of `numbabn.backends.cpu.plan`: below 512 KB, of x forward and of x and dy
# backward, a sample is one task, and a larger one where there are as many samples as threads; 16 blocks keep
# many cores busy.
AROUND = [
    ((3, 15, 66, 66), 1), ((3, 15, 67, 67), 1), ((3, 15, 93, 93), 1), ((3, 15, 97, 97), 1),  # 15 groups
    ((3, 16, 64, 64), 1), ((3, 16, 91, 90), 1), ((3, 16, 91, 91), 1), ((3, 34, 47, 47), 1),
    ((3, 4, 128, 127), 1), ((3, 4, 182, 182), 1), ((3, 2, 300, 300), 1),
    ((3, 63, 65, 16), -1), ((3, 64, 64, 16), -1), ((3, 127, 64, 16), -1), ((3, 128, 64, 16), -1),
    ((3, 100, 100, 32), -1),
    ((3, 20, 4, 800), 2), ((3, 20, 4, 830), 2), ((3, 20, 4, 1700), 2), ((3, 200, 40, 9), 2),
    ((3, 400, 40, 9), 2), ((3, 70_000), 1), ((3, 140_000), 1),
    ((70, 96), 1), ((7, 512, 7, 7), 1), ((7, 512, 3, 3), 1),
]  # fmt: skip


def some_groups(shape, axis):
    """Return one group, about the square root of the channels, as many as channels, and instance norm."""
    numbers = divisors(shape[axis])
    return {1, numbers[len(numbers) // 2], numbers[-1]} | ({None} if len(shape) > 2 else set())


@needs_jit
@pytest.mark.parametrize(("shape", "axis"), AROUND)
def test_a_large_sample_alone_and_in_any_batch(shape, axis):
    for groups in some_groups(shape, axis):
        problem = GroupProblem(shape, axis, offset=1.0, groups=groups)
        last = shape[0] - 1
        check_invariance(problem, problem.x(), problem.dy(), [[0], [last], [last, 0, 0, 1, last]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 12), 1), ((5, 6, 3), 1), ((5, 6, 40), 1), ((5, 5, 4, 6), -1), ((5, 5, 6, 20), 2)],
)
def test_neighbours_of_nan(shape, axis, bad):
    for groups in some_groups(shape, axis):
        problem = GroupProblem(shape, axis, groups=groups)
        for how in ("as planned", "phases", "blocks"):
            x, dy = problem.x(), problem.dy()
            x[[0, 3]], dy[[3, 4]] = bad, bad
            with regime(how):
                check_invariance(problem, x, dy, [[1], [2], [2, 1]])


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)], ids=str)
def test_samples_that_do_not_lie_one_after_the_other(order):
    """A sample taken out of an array in another order of its axes, as a view and as a copy."""
    for groups in (None, 1, 2):
        problem = GroupProblem((4, 6, 5, 3), groups=groups)
        back = np.argsort(order)
        x, dy = (
            np.ascontiguousarray(a.transpose(order)).transpose(back) for a in (problem.x(), problem.dy())
        )
        whole = problem.results(x, dy)
        check_invariance(problem, x, dy, [[0], [3, 1]])
        for n in range(4):
            alone = problem.results(x[n : n + 1], dy[n : n + 1])
            assert_same_bits(alone.y.copy("C"), whole.y[n : n + 1].copy("C"), "y")
            assert_same_bits(alone.dx.copy("C"), whole.dx[n : n + 1].copy("C"), "dx")


# Threads, addresses, calls ----------------------------------------------------------------------------------

PROBLEMS = [
    GroupProblem((40, 24), groups=6),
    GroupProblem((9, 6, 5), groups=2),
    GroupProblem((9, 6, 5)),
    GroupProblem((7, 12, 3, 14), groups=4),
    GroupProblem((7, 12, 3, 14)),
    GroupProblem((6, 5, 7, 12), -1, groups=3),
    GroupProblem((3, 9, 6, 20), 2, groups=2),
    GroupProblem((3, 9, 6, 20), 2),
]


def bits_of(problem):
    results = problem.results()
    _, *sums = problem.backward(problem.dy(), results.saved, need_dx=False)
    arrays = (results.y, results.saved.mean, results.saved.var, *results.gradients, *sums)
    return [array.tobytes() for array in arrays]


def test_same_bits_where_threads_share_a_sample():
    """A large sample of columns is one task, or several in phases, by the number of threads."""
    large = [GroupProblem((3, 20, 20, 12), -1, groups=groups) for groups in (None, 1, 4)]
    large.append(GroupProblem((3, 50, 272), -1))  # columns in few rows
    for problem in (*PROBLEMS, *large):
        with regime("phases"):
            expected = bits_of(problem)
            with mock.patch.object(plan, "thread_count", return_value=1):
                assert bits_of(problem) == expected, problem


@needs_jit
@pytest.mark.parametrize("how", ["as planned", "phases in parallel", "blocks in parallel, streaming"])
def test_same_bits_for_any_number_of_threads(how, monkeypatch):
    threads = numba.get_num_threads()
    with regime(how):
        monkeypatch.setattr(jit, "PARALLEL_BYTES", 0)
        for problem in PROBLEMS:
            with mock.patch.object(jit, "use_threads", return_value=False):
                expected = bits_of(problem)
            try:
                for number in range(1, threads + 1):
                    numba.set_num_threads(number)
                    assert bits_of(problem) == expected, (problem, number)
            finally:
                numba.set_num_threads(threads)


def test_same_bits_again():
    """The bits do not depend on what memory held before."""
    for problem in PROBLEMS:
        first = bits_of(problem)
        assert bits_of(problem) == first
        assert bits_of(problem) == first


@pytest.mark.parametrize("how", SERIAL_REGIMES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: f"{problem.shape}, {problem.groups}")
def test_out_anywhere(problem, how):
    """The bits do not depend on addresses, and nothing is written outside of out, which may be x or dy."""
    with regime(how):
        expected = problem.results()
        for start in STARTS:
            x, check_x = guarded(problem, (3 * start) % 16)
            dy, check_dy = guarded(problem, (5 * start) % 16)
            out, check = guarded(problem, start)
            x[...], dy[...] = problem.x(), problem.dy()
            y, saved = problem.forward(x, problem.gamma(), problem.beta(), out=out)
            check()
            assert y is out
            assert_same_bits(y, expected.y, "y")
            for target in (out, dy):
                results = problem.backward(dy, saved, out=target)
                check(), check_dy()
                assert results[0] is target
                for name, a, b in zip(NAMES, results, expected.gradients, strict=True):
                    assert_same_bits(a, b, name)
            problem.forward(x, problem.gamma(), problem.beta(), out=x)
            check_x()
            assert_same_bits(x, expected.y, "y in place")
