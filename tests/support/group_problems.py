"""Group and instance norms in a few numbers, their calls, and checks of all that a call returns.

Without hypothesis and pytest, as `problems`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import numbabn as nbn
from tests.support import groups, reference
from tests.support.checks import NAMES, assert_close
from tests.support.problems import Problem


def plainly(function, *arguments, **options):
    """Call a function with NumPy arrays, as a backend's ``call`` does with its own."""
    return function(*arguments, **options)


class Results(NamedTuple):
    """All that a forward call and its backward call return."""

    y: np.ndarray
    saved: nbn.Saved
    dx: np.ndarray
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None

    @property
    def gradients(self):
        return self[2:]


@dataclass(frozen=True)
class GroupProblem(Problem):
    """A group norm, or with groups=None an instance norm."""

    groups: int | None = None

    @property
    def number(self):
        """How many groups there are."""
        return self.channels if self.groups is None else self.groups

    @property
    def reading(self):
        """What the oracle is told."""
        return self.axis % len(self.shape), self.number

    def gamma(self):
        """As of any problem, but every third channel from the second on has a gamma of 0."""
        values = super().gamma()
        if values is not None:
            values[1::3] = 0
        return values

    def forward(self, x, *parameters, call=plainly, **options):
        """Return what the forward function returns."""
        options = {**self.options, **options}
        if self.groups is None:
            return call(nbn.instance_norm_forward, x, *parameters, **options)
        return call(nbn.group_norm_forward, x, self.groups, *parameters, **options)

    def backward(self, dy, saved, call=plainly, **options):
        """Return what the backward function returns."""
        function = nbn.instance_norm_backward if self.groups is None else nbn.group_norm_backward
        return call(function, dy, saved, **options)

    def results(self, x=None, dy=None, call=plainly):
        """Return what both functions return for x and dy, or those of the problem."""
        x, dy = self.x() if x is None else x, self.dy() if dy is None else dy
        y, saved = self.forward(x, self.gamma(), self.beta(), call=call)
        return Results(y, saved, *self.backward(dy, saved, call=call))


def check_group_forward(y, saved, problem, x):
    """The result and the saved statistics are near those of the formula."""
    parameters, reading = (problem.gamma(), problem.beta()), problem.reading
    expected = groups.forward(x, *parameters, *reading, problem.eps)
    assert_close(y, expected, groups.forward_error(x, *parameters, *reading, problem.eps), "y")
    rows = groups.by_group(x, *reading)
    count, mean, m2 = reference.moments(rows, 0)
    shape = x.shape[0], problem.number
    of_mean, of_var = (error.reshape(shape) for error in reference.saved_error(rows, 0))
    assert saved.count == count
    assert saved.training
    assert saved.mean.dtype == saved.var.dtype == np.float64
    assert_close(saved.mean, mean.reshape(shape), of_mean, "saved.mean")
    assert_close(saved.var, (m2 / count).reshape(shape), of_var, "saved.var")
    assert (saved.var >= 0).all()


def check_group_backward(results, problem, x, dy):
    """Those gradients that are not None are near those of the formula."""
    gamma, beta, reading = problem.gamma(), problem.beta(), problem.reading
    expected = groups.backward(dy, x, gamma, *reading, problem.eps)
    errors = groups.backward_error(dy, x, gamma, beta, *reading, problem.eps)
    for name, result, value, error, parameter in zip(
        NAMES, results, expected, errors, (x, gamma, beta), strict=True
    ):
        if parameter is None:
            assert result is None, name
        elif result is not None:
            assert result.dtype == parameter.dtype.newbyteorder("="), name
            assert_close(result, value, error, name)


def check_group(results, problem, x, dy):
    """All that both functions returned is near the formulas."""
    check_group_forward(results.y, results.saved, problem, x)
    check_group_backward(results.gradients, problem, x, dy)
