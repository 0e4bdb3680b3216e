"""What every backend promises, as a table of checks: functions of a backend and of a case.

`tests.test_table` runs it with pytest. The table itself needs neither pytest nor hypothesis, since the
benchmark of GPUs runs it, too. Its arrays are small enough for the simulator, whose tiles are small as well:
some hundreds of elements are cut into several tiles, blocks and groups. On a GPU larger arrays are added.
"""

import contextlib
import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import numbabn as nbn
from tests.support import reference, sample_rows
from tests.support.checks import (
    NAMES,
    assert_close,
    assert_same_bits,
    check_backward,
    check_forward,
    check_inference,
    check_moments,
    known_statistics,
)
from tests.support.problems import WRITABLE, Problem

# (shape, channel axis). The comments say what is new in a shape where CUDA is simulated, for float32.
SMALL = (
    ((5, 3), 1),  # pixels side by side in a row, and some left over
    ((40, 8), 1),  # a group of several blocks
    ((6, 33), 1),  # groups of channels, and a channel left over
    ((2, 9, 3), 1),  # two groups whose rows are no whole vectors
    ((7, 6, 2, 2), 1),
    ((4, 2, 5, 8), 1),  # whole vectors
    ((3, 5, 7, 7), 1),
    ((2, 2, 130), 1),  # rows cut into pieces
    ((2, 3, 300), 0),
    ((300, 1), 1),  # one channel, several tiles for each block in float64
    ((700, 1), 1),  # and in float32
    ((150, 3), 1),
    ((3, 4, 5, 6), -1),
    ((3, 2, 4, 5, 3), 2),
    ((2, 3, 1, 1), 1),  # two values a channel
)
LARGE = (
    ((32, 64, 28, 28), 1),
    ((128, 64, 7, 7), 1),
    ((4, 3, 513, 511), 1),
    ((32, 28, 28, 64), -1),
    ((8, 30, 31, 29), -1),
    ((4096, 32), 1),
    ((16, 4097), 1),
    ((300_001, 1), 1),
    ((100_001, 3), 1),
    ((1, 2, 3_000_017), 1),
    ((70_000, 40, 1, 3), 1),  # more blocks than 65535
)
DTYPES = (np.float32, np.float64)
# Spreads of x from one end to the other of what `batch_norm_backward` promises.
RANGES = (
    (np.float32, 1e-30), (np.float32, 1e20), (np.float32, 1e30), (np.float64, 1e-150), (np.float64, 1e150),
)  # fmt: skip
LAYOUT_SHAPES = (((5, 3, 4, 6), 1), ((5, 3, 4, 6), -1), ((17, 6), 0))


class Row(NamedTuple):
    """A check by name, and its arguments after the first, which is the backend."""

    name: str
    check: object
    arguments: tuple


def parameters(problem):
    return problem.gamma(), problem.beta()


# Values -----------------------------------------------------------------------------------------------------


def values(backend, problem):
    """Every function agrees with the reference."""
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    y, saved = backend.forward(x, *parameters(problem), **problem.options)
    check_forward(y, saved, problem, x)
    check_moments(backend.moments(x, axis=problem.axis), x, problem.axis)
    y = backend.inference(x, mean, var, *parameters(problem), **problem.options)
    check_inference(y, problem, x, mean, var)
    check_backward(backend.backward(dy, saved), problem, False, x, dy)
    _, *sums = backend.backward(dy, saved, need_dx=False)
    check_backward((None, *sums), problem, False, x, dy)
    again, frozen = backend.forward(x, *parameters(problem), mean=mean, var=var, **problem.options)
    assert_same_bits(again, y, "y of batch_norm_forward with statistics")
    assert not frozen.training
    check_backward(backend.backward(dy, frozen), problem, True, x, dy)


def skipped_gradients(backend, shape, frozen, dtypes):
    """What is not asked for is None, and what is asked for is right without it."""
    problem = Problem(shape, 1, gamma_dtype=dtypes[0], beta_dtype=dtypes[1])
    x, dy = problem.x(), problem.dy()
    known = known_statistics(problem, frozen)
    _, saved = backend.forward(x, *parameters(problem), **problem.options, **known)
    present = True, dtypes[0] is not None, dtypes[1] is not None
    for need in itertools.product([False, True], repeat=3):
        options = dict(zip(("need_dx", "need_dgamma", "need_dbeta"), need, strict=True))
        results = backend.backward(dy, saved, **options)
        check_backward(results, problem, frozen, x, dy)
        for name, result, wanted, there in zip(NAMES, results, need, present, strict=True):
            assert (result is not None) == (wanted and there), name


def empty(backend, shape, axis):
    """An empty batch has an empty result, no statistics, and gradients of 0."""
    problem = Problem(shape, axis, gamma_dtype=np.float16, beta_dtype=np.float64)
    y, saved = backend.forward(problem.x(), *parameters(problem), **problem.options)
    assert y.shape == shape
    assert saved.count == 0
    assert np.isnan(saved.mean).all()
    assert np.isnan(saved.var).all()
    assert backend.inference(problem.x(), *problem.given(), **problem.options).shape == shape
    count, mean, m2 = backend.moments(problem.x(), axis=axis)
    assert count == 0
    assert np.isnan(mean).all()
    assert (m2 == 0).all()
    dx, dgamma, dbeta = backend.backward(problem.dy(), saved)
    assert dx.shape == shape
    assert_same_bits(dgamma, np.zeros(problem.channels, np.float16), "dgamma")
    assert_same_bits(dbeta, np.zeros(problem.channels), "dbeta")


def poison(backend, shape, axis, dtype, value):
    """NaN or infinity in one channel of x or dy changes no bit of any other channel."""
    problem = Problem(shape, axis, dtype)
    channel = problem.channels // 2

    def results(x, dy):
        y, saved = backend.forward(x, *parameters(problem), **problem.options)
        _, mean, m2 = backend.moments(x, axis=axis)
        dx, *sums = backend.backward(dy, saved)
        return [np.moveaxis(y, axis, 0), saved.mean, saved.var, mean, m2, np.moveaxis(dx, axis, 0), *sums]

    clean = results(problem.x(), problem.dy())
    for of_x in (True, False):
        x, dy = problem.x(), problem.dy()
        np.moveaxis(x if of_x else dy, axis, 0)[channel].flat[1] = value
        with np.errstate(all="ignore"):  # with the JIT off, NumPy computes, and warns of infinity
            found = results(x, dy)
        for i, (result, expected) in enumerate(zip(found, clean, strict=True)):
            others = np.arange(problem.channels) != channel
            assert_same_bits(result[others], expected[others], f"result {i}")
        poisoned = found if of_x else found[5:]
        assert not any(np.isfinite(result[channel]).any() for result in poisoned[:-1])


def constants(backend, shape, axis, dtype):
    """A constant channel is exactly beta, with variance 0; its dx is finite."""
    problem = Problem(shape, axis, dtype, beta_dtype=dtype)
    for value in (0.1, -1e4 / 3, 1e-30, 3e30):
        x = np.full(shape, value, dtype)
        y, saved = backend.forward(x, *parameters(problem), **problem.options)
        _, mean, m2 = backend.moments(x, axis=axis)
        expected = np.broadcast_to(reference.along(problem.beta(), x.ndim, axis), shape)
        assert_same_bits(y, np.ascontiguousarray(expected), "y")
        assert (m2 == 0).all()
        assert (saved.var == 0).all()
        assert (saved.mean == float(dtype(value))).all()
        assert (mean == float(dtype(value))).all()
        assert np.isfinite(backend.backward(problem.dy(), saved)[0]).all()


def accuracy(backend, shape, axis):
    """At offset 1e4 and spread 1 the variance and y are right to 1e-6, the mean to 1e-9, and m2 to 1e-12."""
    problem = Problem(shape, axis, offset=1e4)
    x = problem.x()
    y, saved = backend.forward(x, axis=axis, eps=0.0)
    count, mean, m2 = reference.moments(x, axis)
    exact = reference.forward(x, axis=axis, eps=0.0)
    assert np.abs(saved.var / (m2 / count) - 1).max() <= 1e-6
    assert np.abs(saved.mean / mean - 1).max() <= 1e-9
    assert np.abs(y - exact).max() <= 1e-6 * np.abs(exact).max()
    _, _, found = backend.moments(x, axis=axis)
    assert np.abs(found / m2 - 1).max() <= 1e-12


def ranges(backend, shape, axis, dtype, spread):
    """Large and small x cost no digit of any result."""
    with np.errstate(over="ignore"):  # with the JIT off, NumPy computes, and warns
        values(backend, Problem(shape, axis, dtype, offset=spread, spread=spread, eps=0.0))


def zero_gamma(backend, shape, axis):
    """Where gamma is 0, so is dx, also where dy / std is above the largest float32."""
    problem = Problem(shape, axis, spread=1e-39)
    _, saved = backend.forward(problem.x(), np.zeros(problem.channels), axis=axis, eps=0.0)
    dx, *_ = backend.backward(problem.dy(), saved)
    assert (dx == 0).all()


def everything(backend, problem):
    """Return all results by name, for comparison to the last bit."""
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    y, saved = backend.forward(x, *parameters(problem), **problem.options)
    found = {"y": y, "saved.mean": saved.mean, "saved.var": saved.var}
    found |= dict(zip(NAMES, backend.backward(dy, saved), strict=True))
    found |= dict(zip(("count", "mean", "m2"), backend.moments(x, axis=problem.axis), strict=True))
    found["y of inference"] = backend.inference(x, mean, var, *parameters(problem), **problem.options)
    return {name: np.asarray(value) for name, value in found.items()}


def same_bits(backend, problem):
    """The same call gives the same bits again."""
    first = everything(backend, problem)
    for _ in range(5):
        for name, value in everything(backend, problem).items():
            assert_same_bits(value, first[name], name)


# Layouts ----------------------------------------------------------------------------------------------------


def lists(backend, where):
    """Lists and tuples of numbers are what arrays of float64 with the same values are."""
    problem = Problem(*where, gamma_dtype=np.float64, beta_dtype=np.float64)
    x, gamma, beta = problem.x(), problem.gamma(), problem.beta()
    mean, var = problem.given()
    y, saved = backend.forward(x, gamma, beta, axis=problem.axis)
    listed, saved_of_lists = backend.forward(x, gamma.tolist(), tuple(beta), axis=problem.axis)
    assert_same_bits(listed, y, "y")
    gradients = backend.backward(problem.dy(), saved)
    for name, a, b in zip(NAMES, backend.backward(problem.dy(), saved_of_lists), gradients, strict=True):
        assert_same_bits(a, b, name)
    y = backend.inference(x, mean, var, gamma, axis=problem.axis)
    listed = backend.inference(x, tuple(mean), var.tolist(), list(gamma), axis=problem.axis)
    assert_same_bits(listed, y, "y of known statistics")


def layouts(backend, where, dtype, layout, dy_layout):
    """For any strides of x and dy the values are right, and results have the memory order of x."""
    if {layout, dy_layout} - set(backend.layouts):
        return
    problem = Problem(*where, dtype=dtype, layout=layout, dy_layout=dy_layout, offset=2.0)
    x, dy = problem.x(), problem.dy()
    y, saved = backend.forward(x, *parameters(problem), **problem.options)
    check_forward(y, saved, problem, x)
    dx, *sums = backend.backward(dy, saved)
    check_backward((dx, *sums), problem, False, x, dy)
    for name, result in (("y", y), ("dx", dx)):
        strides = zip(result.strides, np.empty_like(x).strides, x.shape, strict=True)
        assert all(a == b for a, b, n in strides if n > 1), f"{name} has strides {result.strides}"


def outs(backend, where, dtype, layout, out_layout):
    """A result in ``out`` has the bits of a fresh one, and nothing beside it is written."""
    if {layout, out_layout} - set(backend.layouts):
        return
    problem = Problem(*where, dtype=dtype, layout=layout, dy_layout=layout)
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    y, saved = backend.forward(x, *parameters(problem), **problem.options)
    again, _ = backend.forward(x, *parameters(problem), out=problem.out(out_layout), **problem.options)
    assert_same_bits(again, y, "y")
    arguments = x, mean, var, *parameters(problem)
    y = backend.inference(*arguments, **problem.options)
    again = backend.inference(*arguments, out=problem.out(out_layout), **problem.options)
    assert_same_bits(again, y, "y of inference")
    expected = backend.backward(dy, saved)
    results = backend.backward(dy, saved, out=problem.out(out_layout))
    for name, result, value in zip(NAMES, results, expected, strict=True):
        assert_same_bits(result, value, name)


def in_place(backend, where, dtype, layout):
    """With out=x and out=dy a result has the bits of a fresh one; backward refuses an x that is gone."""
    if layout not in backend.layouts:
        return
    problem = Problem(*where, dtype=dtype, layout=layout, dy_layout=layout)
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    y, saved = backend.forward(x, *parameters(problem), **problem.options)
    again, overwritten = backend.forward(x, *parameters(problem), out=0, **problem.options)
    assert_same_bits(again, y, "y")
    with refused(ValueError, "out=x"):
        backend.backward(dy, overwritten)
    y = backend.inference(x, mean, var, **problem.options)
    assert_same_bits(backend.inference(x, mean, var, out=0, **problem.options), y, "y of inference")
    for a, b in zip(backend.backward(dy, saved, out=0), backend.backward(dy, saved), strict=True):
        assert_same_bits(a, b, "a gradient in place")


# Layers -----------------------------------------------------------------------------------------------------


def layer(backend, **options):
    """Return a layer with arrays of the backend's library."""
    return nbn.BatchNorm(3, device=backend.put(np.zeros(1, np.float32)), **options)


def trained(backend):
    """Return a layer after one call, which can go backward."""
    bn = layer(backend)
    bn(backend.put(np.arange(12, dtype=np.float32).reshape(4, 3)))
    return bn


def batches(dtype=np.float32):
    rng = np.random.default_rng(0)
    sizes = (4, 9, 2, 7)
    return [(rng.standard_normal((n, 3, 4)) * (1 + i) + 5 * i).astype(dtype) for i, n in enumerate(sizes)]


def running_statistics(backend, momentum, dtype, x_dtype):
    """A layer keeps moving averages of its batches, or for momentum=None the statistics of all of them."""
    bn = layer(backend, momentum=momentum, dtype=dtype)
    mean, var, seen = np.zeros(3), np.ones(3), []
    assert_same_bits(backend.get(bn.running_mean), mean.astype(dtype), "running_mean")
    assert_same_bits(backend.get(bn.running_var), var.astype(dtype), "running_var")
    for x in batches(x_dtype):
        y = backend.call(bn, x)
        problem = SimpleNamespace(gamma=lambda: None, beta=lambda: None, options={})
        exact, *known = reference.moments(x, 1)
        check_inference(y, problem, x, known[0], known[1] / exact)
        seen.append(x)
        count, batch_mean, m2 = reference.moments(np.concatenate(seen) if momentum is None else x, 1)
        weight = 1 if momentum is None else momentum
        mean = (1 - weight) * mean + weight * batch_mean
        var = (1 - weight) * var + weight * m2 / (count - 1)
        assert bn.num_batches_tracked == len(seen)
        # Rounded to the layer's dtype once or twice in every step, and float32 sums in those of the batch.
        error = 4 * len(seen) * max(np.finfo(dtype).eps, np.finfo(x_dtype).eps)
        found_mean, found_var = backend.get(bn.running_mean), backend.get(bn.running_var)
        assert found_mean.dtype == found_var.dtype == dtype
        assert_close(found_mean, mean, error * (np.abs(mean) + 1), "running_mean")
        assert_close(found_var, var, error * (var + 1), "running_var")
    before = bn.state_dict()
    with bn.frozen_stats():
        backend.call(bn, seen[0])
    backend.call(bn.eval(), seen[0])
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name], name)


def layer_is_the_functions(backend, training, dtype):
    """A layer computes what the functions do, with its own parameters and statistics."""
    problem = Problem((9, 3, 4), gamma_dtype=dtype, beta_dtype=dtype)
    gamma, beta = parameters(problem)
    bn = layer(backend, dtype=dtype)
    backend.call(bn, problem.x())
    bn.load_state_dict({**bn.state_dict(), "gamma": gamma, "beta": beta})
    bn.training = training
    state = bn.state_dict()
    known = {} if training else {"mean": state["running_mean"], "var": state["running_var"]}
    x, dy = problem.x(), problem.dy()
    y, saved = backend.forward(x, gamma, beta, **known)
    assert_same_bits(backend.call(bn, x), y, "y")
    gradients = backend.backward(dy, saved)
    assert_same_bits(backend.call(bn.backward, dy), gradients[0], "dx")
    for name, gradient in zip(("gamma", "beta"), gradients[1:], strict=True):
        assert_same_bits(backend.get(bn.grads[name]), gradient, name)
    out = backend.call(bn, x, out=problem.out("sliced"))
    assert_same_bits(out, y if training else backend.call(bn, x), "y in out")


# Refusals ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused(error, *fragments):
    """Within the block, the error is raised, and its message has all fragments."""
    try:
        yield
    except error as raised:
        message = str(raised)
    else:
        raise AssertionError(f"no {error.__name__} was raised")
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{missing} not in {message!r}"


ONE = np.ones((4, 3), np.float32)
REFUSALS = {
    # name: (call, error, fragments of the message)
    "x of rank 1": (lambda b: b.forward(ONE[0]), ValueError, "x | (3,) | batch axis | channel axis"),
    "x of int": (lambda b: b.forward(ONE.astype(np.int32)), TypeError, "x | int32 | float32"),
    "x of complex": (lambda b: b.moments(ONE.astype(np.complex64)), TypeError, "x | complex64 | x.real"),
    "axis": (lambda b: b.forward(ONE, axis=2), ValueError, "axis | rank 2 | not 2"),
    "eps": (lambda b: b.forward(ONE, eps=-1.0), ValueError, "eps | >= 0 | -1.0"),
    "gamma's length": (lambda b: b.forward(ONE, np.ones(4)), ValueError, "gamma | (4,) | (3,)"),
    "gamma's rank": (lambda b: b.forward(ONE, np.ones((1, 3))), ValueError, "gamma | (1, 3) | (3,)"),
    "beta of int": (lambda b: b.forward(ONE, None, np.ones(3, int)), TypeError, "beta | int64 | floating"),
    "mean alone": (lambda b: b.forward(ONE, mean=np.ones(3)), ValueError, "mean | without var | both"),
    "one sample": (lambda b: b.forward(ONE[:1]), ValueError, "x | (1, 3) | one value per channel | batch"),
    "no var": (lambda b: b.inference(ONE, np.ones(3), None), TypeError, "var | None | per channel"),
    "out's shape": (
        lambda b: b.forward(ONE, out=np.zeros((3, 4), np.float32)), ValueError, "out | (3, 4) | (4, 3)",
    ),
    "out's dtype": (lambda b: b.forward(ONE, out=np.zeros((4, 3))), TypeError, "out | float64 | float32"),
    "out broadcast": (
        lambda b: b.forward(ONE, out=np.broadcast_to(np.zeros(3, np.float32), (4, 3))),
        ValueError,
        "out | broadcast",
    ),
    "dy's shape": (
        lambda b: b.backward(ONE[:3].copy(), b.forward(ONE)[1]), ValueError, "dy | (3, 3) | (4, 3)",
    ),
    "dy's dtype": (
        lambda b: b.backward(np.ones((4, 3)), b.forward(ONE)[1]), TypeError, "dy | float64 | float32",
    ),
    "out without dx": (
        lambda b: b.backward(ONE, b.forward(ONE)[1], out=np.zeros_like(ONE), need_dx=False),
        ValueError,
        "out | need_dx",
    ),
    "gamma's list": (lambda b: b.forward(ONE, [1.0] * 4), ValueError, "gamma | (4,) | (3,)"),
    "saved": (lambda b: b.backward(ONE, ONE), TypeError, "saved | batch_norm_forward"),
    "layer's channels": (
        lambda b: b.call(layer(b), np.ones((4, 2), np.float32)), ValueError, "x | (4, 2) | num_channels=3",
    ),
    "layer, one sample": (lambda b: b.call(layer(b), ONE[:1]), ValueError, "one value | bn.eval()"),
    "layer's axis": (
        lambda b: b.call(layer(b), np.ones((2, 4, 4, 3), np.float32)), ValueError, "with axis=-1",
    ),
    "layer's dy": (
        lambda b: trained(b).backward(b.put(ONE[:3].copy())), ValueError, "dy | (3, 3) | (4, 3) | returned",
    ),
    "layer's gamma": (lambda b: layer(b).gamma, AttributeError, 'params["gamma"]'),
    "layer before forward": (lambda b: b.call(layer(b).backward, ONE), RuntimeError, "y = layer(x)"),
}  # fmt: skip


def refusals(backend, name):
    """A bad call is refused with a message that says what is wrong, and changes nothing."""
    call, error, fragments = REFUSALS[name]
    with refused(error, *fragments.split(" | ")):
        call(backend)


def overlaps(backend, start):
    """An ``out`` that begins within x, or within dy, is refused."""
    memory = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    whole = backend.put(memory)
    x, out = (backend.part(whole, i, (4, 3)) for i in (0, start))
    _, saved = nbn.batch_norm_forward(backend.put(ONE))
    with refused(ValueError, "out", "overlaps x"):
        nbn.batch_norm_forward(x, out=out)
    with refused(ValueError, "out", "overlaps dy"):
        nbn.batch_norm_backward(x, saved, out=out)
    assert_same_bits(backend.look(whole), memory, "memory")


# The table --------------------------------------------------------------------------------------------------


def _name(*parts):
    return ", ".join(getattr(part, "__name__", str(part)) for part in parts)


def rows(large):
    """Return all rows, with or without those of large arrays."""
    found = []

    def add(check, *arguments, name=None):
        found.append(Row(f"{check.__name__}: {name or _name(*arguments)}", check, arguments))

    for (shape, axis), dtype in itertools.product(SMALL + LARGE if large else SMALL, DTYPES):
        name = f"{'x'.join(map(str, shape))} on {axis}, {dtype.__name__}"
        add(values, Problem(shape, axis, dtype, offset=3.0), name=name)
        if dtype is np.float32:
            add(values, Problem(shape, axis, dtype, "offset", "offset"), name=f"{name}, unaligned")
        if large:  # in the simulator, `tests.cuda.test_schedules` checks it for several orders of threads
            add(same_bits, Problem(shape, axis, dtype), name=name)
    for kinds in itertools.product([None, np.float16, np.float32, np.float64], repeat=2):
        problem = Problem((40, 3), 1, gamma_dtype=kinds[0], beta_dtype=kinds[1])
        add(values, problem, name=f"gamma and beta of {_name(*kinds)}")
    for shape, frozen in itertools.product([(4, 3, 20), (40, 3)], [False, True]):
        for kinds in (*itertools.product([None, np.float64], repeat=2), (None, np.float32)):
            kind = "frozen" if frozen else "training"
            name = f"{'x'.join(map(str, shape))}, {kind}, gamma and beta of {_name(*kinds)}"
            add(skipped_gradients, shape, frozen, kinds, name=name)
    for shape, axis in (((0, 3), 1), ((2, 3, 0), 1), ((0, 3), 0), ((4, 0), 1)):
        add(empty, shape, axis)
    for (shape, axis), dtype in itertools.product((((40, 8), 1), ((3, 2, 130), 1), ((6, 9), 1)), DTYPES):
        for value in (np.nan, np.inf):
            add(poison, shape, axis, dtype, value)
        add(constants, shape, axis, dtype)
    for shape, axis in (((40, 8), 1), ((3, 2, 130), 1), ((300, 1), 1), ((4, 5, 7, 7), 1), ((5, 3, 4, 6), -1)):
        add(accuracy, shape, axis)
    for where in (((40, 8), 1), ((3, 2, 130), 1)):
        add(lists, where)
    for (shape, axis), (dtype, spread) in itertools.product((((40, 8), 1), ((3, 2, 130), 1)), RANGES):
        add(ranges, shape, axis, dtype, spread)
    for shape, axis in (((40, 8), 1), ((3, 2, 130), 1)):
        add(zero_gamma, shape, axis)
    some = ("contiguous", "fortran", "transposed", "sliced", "negative", "broadcast", "loose")
    for i, (layout, dy_layout) in enumerate(itertools.product(some, some)):
        add(layouts, LAYOUT_SHAPES[i % 3], DTYPES[i % 2], layout, dy_layout)
    for dtype in DTYPES:  # two axes of length 1, whose strides mean nothing
        add(layouts, ((5, 4, 1, 1), 1), dtype, "loose", "loose")
    writable = [name for name in some if name in WRITABLE]
    for i, (layout, out_layout) in enumerate(itertools.product(some, writable)):
        if large or (i + i // len(writable)) % 2:  # half of them: each layout with some others
            add(outs, LAYOUT_SHAPES[i % 3], DTYPES[i // 2 % 2], layout, out_layout)
    for i, layout in enumerate((*writable, "offset", *writable)):
        add(in_place, LAYOUT_SHAPES[i % 3], DTYPES[i % 2], layout)
    momenta = (0, 0.1, 0.25, 1.0, None)
    for momentum, dtype, x_dtype in itertools.product(momenta, (np.float16, *DTYPES), DTYPES):
        add(running_statistics, momentum, dtype, x_dtype)
    for training, dtype in itertools.product([True, False], (np.float16, *DTYPES)):
        add(layer_is_the_functions, training, dtype)
    for name in REFUSALS:
        add(refusals, name)
    for start in (1, 6, 11):
        add(overlaps, start)
    for check, *arguments in sample_rows.checks(large):
        norm, *rest = (getattr(argument, "name", argument) for argument in arguments)
        add(check, *arguments, name=f"samples, {_name(norm, *rest)}")
    return found
