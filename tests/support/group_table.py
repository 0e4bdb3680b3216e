"""What every backend promises of group and instance norm: rows like those of `table`, which is of batch norm.

Needs neither pytest nor hypothesis, as `table`, and its arrays are small enough for the simulator.
"""

import itertools

import numpy as np

import numbabn as nbn
from tests.support import groups, reference
from tests.support.checks import NAMES, assert_same_bits
from tests.support.group_problems import GroupProblem, check_group, check_group_backward
from tests.support.problems import WRITABLE
from tests.support.table import Row, refused

# (shape, channel axis, groups); None is instance norm.
SMALL = (
    ((5, 12), 1, 3),
    ((40, 8), 1, 1),
    ((6, 33), 1, 11),
    ((5, 8), 1, 8),  # one value a group
    ((2, 9, 3), 1, None),
    ((7, 6, 2, 2), 1, 2),
    ((4, 2, 5, 8), 1, None),
    ((3, 6, 7, 7), 1, 2),
    ((2, 4, 130), 1, 2),
    ((1, 2, 300), 1, 1),
    ((2, 1, 40), 1, None),
    ((3, 4, 5, 6), -1, 3),
    ((3, 4, 5, 6), -1, None),
    ((3, 2, 4, 5, 3), 2, 2),
    ((2, 5, 4, 20), 2, None),
)
DTYPES = (np.float32, np.float64)
LAYOUT_PLACES = (((5, 4, 4, 6), 1, 2), ((5, 3, 4, 6), -1, None), ((17, 6), 1, 3))


def values(backend, problem):
    """Results agree with the formulas, also where dx is not needed."""
    x, dy = problem.x(), problem.dy()
    results = problem.results(x, dy, backend.call)
    check_group(results, problem, x, dy)
    _, *sums = problem.backward(dy, results.saved, backend.call, need_dx=False)
    check_group_backward((None, *sums), problem, x, dy)


def batch_invariance(backend, problem):
    """A sample's results have the same bits alone, in any batch, at any place, and beside NaN."""
    x, dy = problem.x(), problem.dy()
    whole = problem.results(x, dy, backend.call)
    last = len(x) - 1
    x_beside, dy_beside = x.copy(), dy.copy()
    x_beside[:last] = dy_beside[:last] = np.nan
    for chosen in ([0], [last], [last, 0, last], [*range(last, -1, -1)] * 5):
        part = problem.results(x[chosen], dy[chosen], backend.call)
        assert_same_bits(part.y, whole.y[chosen], f"y of {chosen}")
        assert_same_bits(part.dx, whole.dx[chosen], f"dx of {chosen}")
    with np.errstate(all="ignore"):  # with the JIT off, NumPy computes, and warns
        beside = problem.results(x_beside, dy_beside, backend.call)
    assert_same_bits(beside.y[last], whole.y[last], "y beside NaN")
    assert_same_bits(beside.dx[last], whole.dx[last], "dx beside NaN")


def constants(backend, problem):
    """A constant group is exactly beta, with variance 0; its dx is finite."""
    beta = np.broadcast_to(reference.along(problem.beta(), len(problem.shape), problem.axis), problem.shape)
    for value in (0.1, -1e4 / 3, 1e-30, 3e30):
        results = problem.results(np.full(problem.shape, value, problem.dtype), None, backend.call)
        assert_same_bits(results.y, np.ascontiguousarray(beta.astype(problem.dtype)), "y")
        assert (results.saved.var == 0).all()
        assert (results.saved.mean == float(problem.dtype(value))).all()
        assert np.isfinite(results.dx).all()


def accuracy(backend, problem):
    """At offset 1e4 and a spread about 1, y is within 1e-6 of its largest value."""
    x = problem.x()
    y, _ = problem.forward(x, call=backend.call)
    exact = groups.forward(x, None, None, *problem.reading, problem.eps)
    assert np.abs(y - exact).max() <= 1e-6 * np.abs(exact).max()


def empty(backend, problem):
    """An empty batch has an empty result, no statistics, and gradients of 0."""
    results = problem.results(call=backend.call)
    assert results.y.shape == results.dx.shape == problem.shape
    assert results.saved.count == 0
    assert results.saved.mean.shape == (problem.shape[0], problem.number)
    assert_same_bits(results.dgamma, np.zeros_like(problem.gamma()), "dgamma")
    assert_same_bits(results.dbeta, np.zeros_like(problem.beta()), "dbeta")


def layouts(backend, problem, out_layout):
    """For any strides values are right, a result in ``out`` has the same bits, and so has one in place."""
    if {problem.layout, out_layout} - set(backend.layouts):
        return
    x, dy, parameters = problem.x(), problem.dy(), (problem.gamma(), problem.beta())
    results = problem.results(x, dy, backend.call)
    check_group(results, problem, x, dy)
    y, _ = problem.forward(x, *parameters, call=backend.call, out=problem.out(out_layout))
    assert_same_bits(y, results.y, "y")
    gradients = problem.backward(dy, results.saved, backend.call, out=problem.out(out_layout))
    for name, result, value in zip(NAMES, gradients, results.gradients, strict=True):
        assert_same_bits(result, value, name)
    if problem.layout in WRITABLE:
        y, overwritten = problem.forward(x, *parameters, call=backend.call, out=0)
        assert_same_bits(y, results.y, "y in place")
        with refused(ValueError, "out=x"):
            problem.backward(dy, overwritten, backend.call)
        assert_same_bits(
            problem.backward(dy, results.saved, backend.call, out=0)[0], results.dx, "dx in place"
        )


def layer(backend, problem):
    """A layer computes what the functions do, with parameters of its own."""
    options = {"axis": problem.axis, "device": backend.put(np.zeros(1, np.float32))}
    if problem.groups is None:
        made = nbn.InstanceNorm(problem.channels, scale=True, center=True, **options)
    else:
        made = nbn.GroupNorm(problem.groups, problem.channels, **options)
    made.load_state_dict({"gamma": problem.gamma(), "beta": problem.beta()})
    results = problem.results(call=backend.call)
    assert_same_bits(backend.call(made, problem.x()), results.y, "y")
    assert_same_bits(backend.call(made.backward, problem.dy()), results.dx, "dx")
    assert_same_bits(backend.get(made.grads["gamma"]), results.dgamma, "dgamma")
    assert_same_bits(backend.get(made.grads["beta"]), results.dbeta, "dbeta")


def tracking(backend, dtype):
    """A layer keeps averages of the means and unbiased variances of its samples, and evaluates with them."""
    device = backend.put(np.zeros(1, np.float32))
    made = nbn.InstanceNorm(3, track_running_stats=True, momentum=0.25, device=device)
    mean, var = np.zeros(3), np.ones(3)
    for seed, samples in enumerate((4, 1, 7)):
        x = GroupProblem((samples, 3, 5), dtype=dtype, seed=seed, offset=2.0).x()
        backend.call(made, x)
        wide = x.astype(np.float64)
        mean = 0.75 * mean + 0.25 * wide.mean(axis=2).mean(axis=0)
        var = 0.75 * var + 0.25 * wide.var(axis=2, ddof=1).mean(axis=0)
    # Rounded to float32 once or twice in each of three steps.
    np.testing.assert_allclose(backend.get(made.running_mean), mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(backend.get(made.running_var), var, rtol=1e-6)
    state = made.state_dict()
    known = {"mean": state["running_mean"], "var": state["running_var"]}
    expected, _ = backend.call(nbn.instance_norm_forward, x, **known)
    assert_same_bits(backend.call(made.eval(), x), expected, "y in evaluation mode")


def rows():
    """Return all rows."""
    found = []

    def add(check, problem, *more, name=""):
        shape = "x".join(map(str, problem.shape))
        kind = "instances" if problem.groups is None else f"{problem.groups} groups"
        text = f"{check.__name__}: {shape} on {problem.axis}, {kind}, {problem.dtype.__name__}{name}"
        found.append(Row(text, check, (problem, *more)))

    for (shape, axis, number), dtype in itertools.product(SMALL, DTYPES):
        add(values, GroupProblem(shape, axis, dtype, offset=3.0, groups=number))
    for shape, axis, number in SMALL:
        dtype = np.float64 if shape == SMALL[0][0] else np.float32  # what decides is the same for both
        add(batch_invariance, GroupProblem(shape, axis, dtype, groups=number))
        add(constants, GroupProblem(shape, axis, dtype, beta_dtype=dtype, groups=number))
        add(accuracy, GroupProblem(shape, axis, offset=1e4, groups=number))
        add(layer, GroupProblem(shape, axis, groups=number))
        for kinds in ((None, None), (np.float64, None), (None, np.float16)):
            problem = GroupProblem(shape, axis, gamma_dtype=kinds[0], beta_dtype=kinds[1], groups=number)
            names = (getattr(kind, "__name__", "none") for kind in kinds)
            add(values, problem, name=f", gamma and beta of {', '.join(names)}")
    for shape, number in itertools.product(((0, 4, 5), (3, 4, 0), (0, 4)), (2, None)):
        add(empty, GroupProblem(shape, groups=number))
    some = ("contiguous", "fortran", "transposed", "sliced", "negative", "broadcast", "loose", "offset")
    writable = [name for name in some if name in WRITABLE]
    for i, (layout, out_layout) in enumerate(itertools.product(some, writable)):
        shape, axis, number = LAYOUT_PLACES[i % 3]
        problem = GroupProblem(shape, axis, DTYPES[i % 2], layout, layout, groups=number)
        add(layouts, problem, out_layout, name=f", {layout}, {out_layout}")
    found += [Row(f"tracking: {dtype.__name__}", tracking, (dtype,)) for dtype in DTYPES]
    return found
