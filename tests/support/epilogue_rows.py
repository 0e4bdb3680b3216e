"""What every backend promises of y = activation(norm(x) + residual), as rows; see `tests.support.table`.

Needs neither pytest nor hypothesis, as `table`, and its arrays are small enough for the simulator.

The derivative of an activation is not continuous: where v is within rounding of a kink, float64 and float32
are on different sides of it, and no error would be small enough to tell right from wrong. So y is compared
with the formula, of which no kink is steeper than 1, and the derivative with that on the side where y is. For
this the oracle needs a slope above 0, so that y is above 0 where v is.
"""

import itertools
from typing import NamedTuple

import numpy as np

import numbabn as nbn
from tests.support import groups, reference, sample_rows, samples
from tests.support.checks import assert_close, assert_same_bits
from tests.support.group_problems import GroupProblem
from tests.support.problems import Problem, arrange

SLOPE = 0.3
ACTIVATIONS = "relu", "relu6", "leaky_relu", None
NAMES = "dx", "dgamma", "dbeta", "dresidual"


class Batch(NamedTuple):
    """Batch norm of one problem, with the statistics of x, or with known ones."""

    problem: Problem
    known: bool = False

    def __str__(self):
        kind = "batch norm, known statistics" if self.known else "batch norm"
        return f"{kind}, {_text(self.problem)}"

    def arrays(self):
        """Return x, dy, gamma and beta."""
        return self.problem.x(), self.problem.dy(), self.problem.gamma(), self.problem.beta()

    def statistics(self):
        """Return the options of a forward call that are arrays."""
        return dict(zip(("mean", "var"), self.problem.given(), strict=True)) if self.known else {}

    def forward(self, x, gamma, beta, **options):
        options |= self.problem.options
        return nbn.batch_norm_forward(x, gamma, beta, **options)

    def backward(self, dy, saved, **options):
        return nbn.batch_norm_backward(dy, saved, **options)

    def expected(self, x, gamma, beta):
        """Return the normalised values, and the error allowed to them."""
        options = self.statistics() | self.problem.options
        return (
            reference.forward(x, gamma, beta, **options),
            reference.forward_error(x, gamma, beta, **options),
        )

    def gradients(self, g, x, gamma, beta):
        """Return (dx, dgamma, dbeta) for a gradient g of the normalised values, and the errors allowed."""
        options = self.statistics() | self.problem.options
        return (
            reference.backward(g, x, gamma, **options),
            reference.backward_error(g, x, gamma, beta, **options),
        )


class Group(NamedTuple):
    """Group or instance norm; the methods are those of `Batch`."""

    problem: GroupProblem

    def __str__(self):
        kind = "instance norm" if self.problem.groups is None else f"{self.problem.groups} groups"
        return f"{kind}, {_text(self.problem)}"

    def arrays(self):
        return self.problem.x(), self.problem.dy(), self.problem.gamma(), self.problem.beta()

    def statistics(self):
        return {}

    def forward(self, x, gamma, beta, **options):
        return self.problem.forward(x, gamma, beta, **options)

    def backward(self, dy, saved, **options):
        return self.problem.backward(dy, saved, **options)

    def expected(self, x, gamma, beta):
        given = x, gamma, beta, *self.problem.reading, self.problem.eps
        return groups.forward(*given), groups.forward_error(*given)

    def gradients(self, g, x, gamma, beta):
        rest = *self.problem.reading, self.problem.eps
        return groups.backward(g, x, gamma, *rest), groups.backward_error(g, x, gamma, beta, *rest)


class Sample(NamedTuple):
    """Layer norm or RMS norm over the last axis; the methods are those of `Batch`."""

    norm: sample_rows.Norm
    shape: tuple[int, ...]
    dtype: type = np.float32

    def __str__(self):
        return f"{self.norm.name}, {'x'.join(map(str, self.shape))}, {self.dtype.__name__}"

    def arrays(self):
        return self.norm.problem(self.shape, (-1,), self.dtype)

    def statistics(self):
        return {}

    def forward(self, x, gamma, beta, **options):
        if self.norm.centered:
            return nbn.layer_norm_forward(x, gamma, beta, eps=sample_rows.EPS, **options)
        return nbn.rms_norm_forward(x, gamma, eps=sample_rows.EPS, **options)

    def backward(self, dy, saved, **options):
        if self.norm.centered:
            return nbn.layer_norm_backward(dy, saved, **options)
        dx, dgamma, *rest = nbn.rms_norm_backward(dy, saved, **options)
        return dx, dgamma, None, *rest

    def expected(self, x, gamma, beta):
        given = x, gamma, beta, (-1,), sample_rows.EPS, self.norm.centered
        return samples.forward(*given), samples.forward_error(*given)

    def gradients(self, g, x, gamma, beta):
        given = g, x, gamma, (-1,), sample_rows.EPS, self.norm.centered
        expected, (of_dx, *errors) = samples.backward(*given), samples.backward_error(*given)
        rounded = (
            error + reference.last_rounding(np.abs(value), parameter)
            for error, value, parameter in zip(errors, expected[1:], (gamma, beta), strict=True)
        )
        return expected, (of_dx, *rounded)


def _text(problem):
    shape = "x".join(map(str, problem.shape))
    layout = "" if problem.layout == "contiguous" else f", {problem.layout}"
    return f"{shape} on {problem.axis}, {problem.dtype.__name__}{layout}"


# The checks ------------------------------------------------------------------------------------------------


def residual_of(x, layout="contiguous"):
    """Return a residual about as large as what is normalised, in one of the `problems.LAYOUTS`."""
    rng = np.random.default_rng(6)
    return arrange((2 * rng.standard_normal(x.shape) + 1).astype(x.dtype), layout, rng)


def gradient_of(dy, y, activation):
    """Return dy times the derivative on the side of the kinks where y is, as dtypes round it."""
    at = np.where(y >= dy.dtype.type(6), np.inf, y)
    factor = reference.derivative(at, activation, dy.dtype.type(SLOPE)).astype(dy.dtype)
    return np.where(factor == 0, dy.dtype.type(0), dy * factor)


def both(backend, case, activation, residual, arrays=None):
    """Return y and the gradients of a forward and a backward call, as NumPy arrays."""
    x, dy, gamma, beta = case.arrays() if arrays is None else arrays
    options = {"activation": activation, "negative_slope": SLOPE}
    if residual is not None:
        options["residual"] = residual
    options |= case.statistics()
    y, saved = backend.call(case.forward, x, gamma, beta, **options)
    return y, saved, backend.call(case.backward, dy, saved)


def values(backend, case, activation, with_residual):
    """Results agree with the formulas, and the gradient of the residual to the last bit."""
    x, dy, gamma, beta = case.arrays()
    residual = residual_of(x) if with_residual else None
    y, _, results = both(backend, case, activation, residual)
    v, error = case.expected(x, gamma, beta)
    if with_residual:
        v = v + residual
    # The addition of the residual and the multiplication by the slope round once each, at half an eps.
    error = error + np.finfo(x.dtype).eps * np.abs(v)
    assert_close(y, reference.activated(v, activation, SLOPE), error, "y")
    g = gradient_of(dy, y, activation)
    expected, errors = case.gradients(g, x, gamma, beta)
    assert len(results) == (4 if with_residual else 3)
    three = zip(NAMES[:3], results[:3], expected, errors, (x, gamma, beta), strict=True)
    for name, result, value, allowed, like in three:
        assert (result is None) == (like is None), name
        if result is not None:
            assert result.dtype == like.dtype, name
            assert_close(result, value, allowed, name)
    if with_residual:
        assert_same_bits(results[3], g, "dresidual")


def in_place(backend, case, activation):
    """Results in the memory of an input have the bits of fresh ones."""
    x, dy, gamma, beta = case.arrays()
    residual = residual_of(x)
    y, saved, results = both(backend, case, activation, residual)
    options = {"activation": activation, "negative_slope": SLOPE}
    for over in ("x", "residual"):
        natives = {"x": backend.put(x), "residual": backend.put(residual)}
        given = natives["x"], backend.put(gamma), backend.put(beta)
        found, _ = case.forward(*given, residual=natives["residual"], out=natives[over], **options)
        assert found is natives[over]
        assert_same_bits(backend.look(found), y, f"y over {over}")
    for over in ("out", "dresidual_out"):
        native = backend.put(dy)
        found = case.backward(native, saved.native, **{over: native})
        assert native is found[0 if over == "out" else 3]
        for name, result, value in zip(NAMES, found, results, strict=True):
            if value is not None:
                assert_same_bits(backend.look(result), value, f"{name} with dy as {over}")


def addresses(backend, case, activation):
    """Where arrays lie in memory changes no bit, also not whether their addresses are those of vectors."""
    x, dy, gamma, beta = case.arrays()
    y, _, expected = both(backend, case, activation, residual_of(x))
    rng = np.random.default_rng(0)
    for shifted in ("x", "residual", "dy", "gamma"):
        arrays = [
            arrange(array, "offset", rng) if name == shifted and array is not None else array
            for name, array in zip(("x", "dy", "gamma", "gamma"), (x, dy, gamma, beta), strict=True)
        ]
        residual = residual_of(x, "offset" if shifted == "residual" else "contiguous")
        again, _, results = both(backend, case, activation, residual, arrays)
        assert_same_bits(again, y, f"y, {shifted} unaligned")
        for name, result, value in zip(NAMES, results, expected, strict=True):
            if value is not None:
                assert_same_bits(result, value, f"{name}, {shifted} unaligned")


def nothing(backend, case, activation):
    """At v = 0, where gamma and beta are 0, the derivative is the one from below."""
    x, dy, gamma, beta = case.arrays()
    zeros = [None if p is None else np.zeros_like(p) for p in (gamma, beta)]
    y, _, results = both(backend, case, activation, None, (x, dy, *zeros))
    assert not y.any()
    expected = gradient_of(dy, y, activation)
    axes = tuple(a for a in range(x.ndim) if x.shape[a] != gamma.size)
    if beta is not None:  # a sum of some values, each rounded once and added
        total = expected.astype(np.float64).sum(axis=axes)
        error = 8 * np.finfo(x.dtype).eps * np.abs(expected).sum(axis=axes)
        assert_close(results[2], total, error, "dbeta")
    assert not results[0].any()  # dx = gamma * ...


SPECIAL = np.nan, np.inf, -np.inf, 0.0, -0.0, 6.0, 5.9999995, 6.0000005, -1.5, 1e-42, -1e-42, 2.5
INCOMING = 1.0, -2.0, 0.0, np.inf, -np.inf, np.nan


def specials(backend, channels, layout, dtype, activation, slope):
    """NaN, infinity and kinks: every element is what the formula says, in y and in dresidual.

    What is normalised is 0 throughout, so that v is the residual.
    """
    values = np.array(list(itertools.product(SPECIAL, INCOMING)), dtype)
    count = -(-len(values) // channels) + 1
    residual, dy = np.resize(values[:, 0], (count, channels)), np.resize(values[:, 1], (count, channels))
    x = arrange(np.zeros((count, channels), dtype), layout, np.random.default_rng(0))
    options = {"activation": activation, "negative_slope": slope, "residual": residual, "eps": 1.0}
    known = {"mean": np.zeros(channels), "var": np.zeros(channels)}
    with np.errstate(all="ignore"):
        y, saved = backend.call(nbn.batch_norm_forward, x, **known, **options)
        *_, dresidual = backend.call(nbn.batch_norm_backward, dy, saved)
        expected = reference.activated(residual, activation, dtype(slope)).astype(dtype)
        factor = reference.derivative(residual, activation, dtype(slope)).astype(dtype)
        g = np.where(factor == 0, dtype(0), dy * factor)
    np.testing.assert_array_equal(y, expected, strict=True)
    np.testing.assert_array_equal(dresidual, g, strict=True)


def inference(backend, case, activation):
    """Where there is no backward pass y has the same bits."""
    x, _, gamma, beta = case.arrays()
    residual = residual_of(x)
    y, _, _ = both(backend, case, activation, residual)
    mean, var = case.problem.given()
    options = {"activation": activation, "negative_slope": SLOPE, "residual": residual}
    again = backend.call(
        nbn.batch_norm_inference, x, mean, var, gamma, beta, **case.problem.options, **options
    )
    assert_same_bits(again, y, "y")


# The table -------------------------------------------------------------------------------------------------

# The comments say what is new in a case where CUDA is simulated.
CASES = (
    Batch(Problem((4, 2, 5, 8), 1)),  # four elements share a byte; blocks wait for each other
    Batch(Problem((3, 5, 7, 7), 1)),  # a byte for each element, and tails
    Batch(Problem((3, 4, 7, 7), 1), known=True),  # four channels in a row, four elements a byte
    Batch(Problem((3, 4, 5, 6), -1), known=True),
    Batch(Problem((2, 3, 300), 0)),  # too many tiles for one launch
    Group(GroupProblem((3, 4, 4, 4), 1, groups=2)),
    Group(GroupProblem((3, 4, 5, 6), -1, groups=3)),
    Group(GroupProblem((4, 2, 5, 8), 1, groups=None)),
    Group(GroupProblem((5, 12, 2, 1), 1, groups=3)),  # along rows, two elements with one gamma
    Sample(sample_rows.NORMS[0], (5, 40)),
    Sample(sample_rows.NORMS[0], (2, 132)),  # rows in pieces
    Sample(sample_rows.NORMS[1], (3, 70)),  # no whole vectors
)
LONG = 4  # the case that takes the simulator longest
PLACES = CASES[0], CASES[1], CASES[5], CASES[7], CASES[9], CASES[10]


def checks():
    """Yield (check, arguments, whether it is one of the few that stand for all)."""
    for i, case in enumerate(CASES):
        for j, (activation, with_residual) in enumerate(itertools.product(ACTIVATIONS, (True, False))):
            if (activation is not None or with_residual) and (i != LONG or j == 4):
                yield values, (case, activation, with_residual), i == 9 and j == 4
    for i, case in enumerate(PLACES):
        yield in_place, (case, "leaky_relu"), False
        yield addresses, (case, ("relu6", "leaky_relu")[i % 2]), False
    for case in (CASES[0], CASES[3], CASES[9]):
        for activation in ("relu", "leaky_relu"):
            yield nothing, (case, activation), False
    for (channels, layout), dtype in itertools.product(
        ((4, "contiguous"), (3, "contiguous"), (5, "offset")), (np.float32, np.float64)
    ):
        for activation, slope in (("relu", 0.5), ("relu6", 0.5), ("leaky_relu", 0.5), ("leaky_relu", 0.0)):
            yield specials, (channels, layout, dtype, activation, slope), False
    for case in (CASES[2], CASES[3]):
        yield inference, (case, "relu6"), False
    yield values, (Batch(Problem((3, 4, 7, 7), 1, np.float64)), "leaky_relu", True), False
    yield values, (Sample(sample_rows.NORMS[0], (5, 40), np.float64), "leaky_relu", True), False
