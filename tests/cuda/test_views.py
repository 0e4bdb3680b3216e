"""The verbs of the GPU backend over views of all kinds: group and instance norm in every layout, and more."""

import itertools

import numpy as np
import pytest

from numbabn import arrays
from numbabn.backends.verbs import Affine, View
from tests.support import views
from tests.support.backends import SIMULATED, MissingError, Numba
from tests.support.checks import NAMES, assert_close, assert_same_bits

EPS = 1e-5
# The comments say what is new in a view where CUDA is simulated, for float32.
VIEWS = {
    "instance NCHW": View(3, 1, 5, 1, 12),
    "instance NCHW of small maps": View(3, 1, 5, 1, 3),  # several channels a group, some left over
    "instance NCHW of large maps": View(2, 1, 2, 1, 330),  # several parts
    "instance NCHW, one channel": View(3, 1, 1, 1, 20),
    "instance NHWC": View(3, 6, 5, 1, 1),
    "instance NHWC of many channels": View(2, 20, 12, 1, 1),
    "group NCHW": View(3, 1, 2, 3, 16),
    "group NCHW of 7x7": View(2, 1, 3, 2, 49),
    "group NCHW of large maps": View(2, 1, 2, 2, 260),  # several parts of a channel and of a group
    "group NCHW, one group": View(2, 1, 1, 6, 20),
    "group NCHW of 3x3": View(3, 1, 2, 4, 9),  # parameters along rows, one for nine elements
    "group NHWC": View(3, 9, 2, 4, 1),
    "group NHWC of odd channels": View(3, 10, 3, 3, 1),
    "group NHWC of many channels": View(2, 18, 2, 12, 1),  # a group of the kernel is part of one of the norm
    "group NC": View(9, 1, 3, 4, 1),
    "group NC of odd channels": View(4, 1, 2, 5, 1),
    "group of the middle axis": View(2, 3, 2, 3, 8),
    "instance of the middle axis": View(3, 4, 3, 1, 6),
    "layer": View(6, 1, 1, 24, 1),
    "one sample": View(1, 1, 3, 4, 20),
}
LARGE = {
    "instance NCHW 32x64x56x56": View(32, 1, 64, 1, 3136),
    "instance NCHW 2x3x1000x1000": View(2, 1, 3, 1, 1_000_000),
    "instance NHWC 32x28x28x128": View(32, 784, 128, 1, 1),
    "group NCHW 32x256x28x28": View(32, 1, 32, 8, 784),
    "group NCHW 32x512x7x7": View(32, 1, 32, 16, 49),
    "group NHWC 32x28x28x256": View(32, 784, 32, 8, 1),
    "group NC 4096x512": View(4096, 1, 32, 16, 1),
}
ALL = VIEWS if SIMULATED else VIEWS | LARGE
SOME = "instance NCHW of large maps", "instance NHWC", "group NCHW", "group NHWC", "group NC"
DTYPES = np.float32, np.float64
every_view = pytest.mark.parametrize("view", ALL.values(), ids=ALL)
some_views = pytest.mark.parametrize("view", [VIEWS[name] for name in SOME], ids=SOME)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


class Device:
    """The verbs with NumPy arrays in and out."""

    def __init__(self):
        self._numba = Numba()

    def put(self, array):
        return None if array is None else arrays.of(self._numba.upload(np.ascontiguousarray(array)), "x")

    def get(self, array):
        return None if array is None else self._numba.download(array.native)

    def values(self, scratch, like):
        """Return the values of scratch memory."""
        made = like.empty(scratch.shape, scratch.dtype)
        like.library.assign(made, scratch)
        return self.get(made)

    def run(self, view, x, dy, gamma, beta, like=(None, None)):
        """Return (y, mean, var, dx, dgamma, dbeta), and the sums where only these are asked for.

        Gradients are made like ``like``.
        """
        x, dy, gamma, beta = map(self.put, (x, dy, gamma, beta))
        backend, affine = x.library.backend.samples, Affine((gamma, beta), EPS)
        y, dx = x.empty(x.shape, x.dtype), x.empty(x.shape, x.dtype)
        statistics = backend.forward(x, view, affine, y)
        gradients, alone = (tuple(self.put(kind) for kind in like) for _ in range(2))
        backend.backward(dy, x, view, statistics, affine, dx, gradients)
        sums = backend.backward_reduce(dy, x, view, statistics, EPS, alone)
        return [*map(self.get, (y, *statistics, dx, *gradients, *alone)), self.values(sums, x)]


@pytest.fixture(scope="module")
def device():
    try:
        return Device()
    except MissingError as reason:
        pytest.skip(str(reason))


def problem(view, dtype, offset=0.0):
    """(x, dy, gamma, beta); some gamma are 0."""
    rng = np.random.default_rng(sum(view))
    size, places = int(np.prod(view)), view.groups * view.members
    x, dy = rng.standard_normal((2, size)) + np.array([[offset], [0.0]])
    gamma, beta = rng.standard_normal((2, places))
    gamma[:: max(2, view.members)] = 0
    return tuple(a.astype(dtype) for a in (x, dy, gamma, beta))


def check(device, view, x, dy, gamma, beta, kinds):
    """All results agree with the formulas; gradients have these dtypes, or are left out."""
    like = [None if kind is None else np.zeros(view.groups * view.members, kind) for kind in kinds]
    y, mean, var, *gradients, sums = device.run(view, x, dy, gamma, beta, like)
    expected, error = views.forward(x, view, gamma, beta, EPS)
    assert_close(y, expected, error, "y")
    exact_mean, exact_var = views.statistics(x, view)
    # Sums of a tile have the dtype of x: some roundings of the mean square about a value near the mean.
    near = 8 * np.finfo(x.dtype).eps
    np.testing.assert_allclose(var, exact_var.ravel(), rtol=near, atol=1e-30)
    np.testing.assert_allclose(mean, exact_mean.ravel(), rtol=near, atol=near)
    expected, errors = views.backward(dy, x, view, gamma, EPS)
    for name, result, value, allowed in zip(
        (*NAMES, *NAMES[1:]), gradients, (*expected, *expected[1:]), (*errors, *errors[1:]), strict=True
    ):
        if result is not None:
            rounding = np.finfo(result.dtype)
            assert_close(result, value, allowed + rounding.eps * np.abs(value), name)
    assert [g is None for g in gradients[1:]] == [kind is None for kind in kinds] * 2
    for result, value, allowed in zip(sums, expected[:0:-1], errors[:0:-1], strict=True):
        assert_close(result, value, allowed, "sums")


@every_dtype
@every_view
def test_formulas(device, view, dtype):
    check(device, view, *problem(view, dtype, offset=3.0), (dtype, dtype))


@pytest.mark.parametrize("kinds", list(itertools.product([None, np.float16, np.float64], repeat=2)), ids=str)
@pytest.mark.parametrize("name", ["instance NCHW", "group NCHW", "group NHWC", "group NC"])
def test_parameters_and_gradients_of_any_dtype(device, name, kinds):
    view = VIEWS[name]
    x, dy, gamma, beta = problem(view, np.float32)
    given = [None if kind is None else p.astype(kind) for p, kind in zip((gamma, beta), kinds, strict=True)]
    check(device, view, x, dy, *given, kinds)


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("name", ["instance NCHW", "group NCHW", "group NHWC", "layer"])
def test_any_address(device, name, start):
    """Arrays that begin at no multiple of 16 bytes give the same bits."""
    view = VIEWS[name]
    x, dy, gamma, beta = problem(view, np.float32)
    expected = device.run(view, x, dy, gamma, beta, (gamma, beta))
    backend, size = device.put(x).library.backend.samples, x.size

    def put(array):
        whole = device.put(np.concatenate([np.zeros(start, array.dtype), array]))
        part = whole.empty((array.size,), array.dtype)
        part.native, part.address = whole.native, whole.address + start * array.itemsize
        return part

    x, dy, gamma, beta, y, dx = map(put, (x, dy, gamma, beta, np.zeros_like(x), np.zeros_like(x)))
    affine, gradients = Affine((gamma, beta), EPS), (None, None)
    statistics = backend.forward(x, view, affine, y)
    backend.backward(dy, x, view, statistics, affine, dx, gradients)
    assert_same_bits(device.get(y)[start : start + size], expected[0], "y")
    assert_same_bits(device.get(dx)[start : start + size], expected[3], "dx")


@every_view
def test_batch_invariance(device, view):
    """The bits of a sample's y and dx depend neither on the other samples nor on its place among them."""
    x, dy, gamma, beta = problem(view, np.float32, offset=3.0)
    x, dy = x.reshape(view.batch, -1), dy.reshape(view.batch, -1)
    names, places = ("y", "mean", "var", "dx"), view.batch
    expected = [r.reshape(places, -1) for r in device.run(view, x.ravel(), dy.ravel(), gamma, beta)[:4]]
    order = np.random.default_rng(0).permutation(view.batch)
    for chosen in ([0], [view.batch - 1], [*order, *order]):
        of_these = view._replace(batch=len(chosen))
        found = device.run(of_these, x[chosen].ravel(), dy[chosen].ravel(), gamma, beta)[:4]
        for name, result, value in zip(names, found, expected, strict=True):
            assert_same_bits(result.reshape(len(chosen), -1), value[chosen], name)


@some_views
def test_nan_stays_in_its_statistic(device, view):
    x, dy, gamma, beta = problem(view, np.float32)
    clean = device.run(view, x, dy, gamma, beta)[:4]
    x.reshape(view)[-1, 0, -1, -1, -1] = np.nan
    others = np.ones(view, bool)
    others[-1, :, -1] = False
    rest = np.ones(view.batch * view.groups, bool)
    rest[-1] = False
    found = device.run(view, x, dy, gamma, beta)[:4]
    for result, value, which in zip(found, clean, (others.ravel(), rest, rest, others.ravel()), strict=True):
        assert_same_bits(result[which], value[which], "another statistic")
        assert np.isnan(result[~which]).all()


@some_views
def test_constant_groups(device, view):
    """They give exactly beta, with variance 0, and a finite dx."""
    _, dy, gamma, beta = problem(view, np.float32)
    of_groups = np.random.default_rng(0).standard_normal((view.batch, 1, view.groups, 1, 1)) * 1e4
    x = np.broadcast_to(of_groups, view).astype(np.float32).ravel()
    y, mean, var, dx, *_ = device.run(view, x, dy, gamma, beta)
    expected = np.broadcast_to(beta.reshape(1, 1, view.groups, view.members, 1), view)
    assert (y == expected.ravel()).all()
    assert (var == 0).all()
    assert (mean == of_groups.astype(np.float32).ravel()).all()
    assert np.isfinite(dx).all()


@some_views
def test_accuracy_at_an_offset(device, view):
    """At offset 1e4 and spread 1, y is right to 1e-6 of its largest value."""
    x, dy, _, _ = problem(view, np.float32, offset=1e4)
    y = device.run(view, x, dy, None, None)[0]
    expected, _ = views.forward(x, view, None, None, EPS)
    assert np.abs(y - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


@pytest.mark.skipif(not SIMULATED, reason="needs NUMBA_ENABLE_CUDASIM=1, which draws the order of threads")
@pytest.mark.parametrize("name", ["instance NCHW of large maps", "group NCHW of large maps", "group NHWC"])
def test_same_bits_in_any_order(device, name, monkeypatch):
    """For any seed, and whether the blocks of a group may wait for each other or not."""
    from numbabn.backends.cuda import plan
    from tests.support.cuda import simulator

    view, expected = VIEWS[name], None
    x, dy, gamma, beta = problem(view, np.float32)
    for resident, seed in itertools.product((0, 4), range(2)):
        monkeypatch.setattr(plan, "RESIDENT_SIMULATED", resident)
        with simulator.seeded(seed):
            found = device.run(view, x, dy, gamma, beta, (gamma, beta))
        expected = expected or found
        for result, value in zip(found, expected, strict=True):
            assert_same_bits(result, value, f"{resident} resident blocks, seed {seed}")


@pytest.mark.parametrize("spread", [1e-30, 1e30])
@pytest.mark.parametrize("name", ["instance NCHW", "group NCHW", "group NHWC", "group NC"])
def test_large_and_small_values(device, name, spread):
    """They cost no digit of y; eps is 1e-5, beside which a small variance is nothing."""
    view = VIEWS[name]
    x, dy, gamma, beta = problem(view, np.float32)
    x *= np.float32(spread)
    y, _, var, dx, *_ = device.run(view, x, dy, gamma, beta)
    expected, error = views.forward(x, view, gamma, beta, EPS)
    assert_close(y, expected, error, "y")
    _, exact = views.statistics(x, view)
    np.testing.assert_allclose(var, exact.ravel(), rtol=8 * np.finfo(np.float32).eps)
    (expected, _, _), (error, _, _) = views.backward(dy, x, view, gamma, EPS)
    assert_close(dx, expected, error + np.finfo(np.float32).smallest_subnormal, "dx")
