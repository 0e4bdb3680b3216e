"""float16 and bfloat16 as storage on a GPU: every number within one ulp, arithmetic in float32."""

import ml_dtypes
import numpy as np
import pytest

from numbabn import arrays
from numbabn.arrays.device import Description, DeviceArray
from numbabn.arrays.device_library import described, numpy_dtype
from numbabn.backends.verbs import Affine, Gradient, Result, View
from tests.support import reference, views
from tests.support.backends import MissingError, Numba
from tests.support.checks import NAMES, assert_close, assert_same_bits, check_moments
from tests.support.half import BFLOAT16, DTYPES, assert_rounded

copies = pytest.importorskip("numbabn.backends.cuda.copies", exc_type=ImportError)
EPS = 1e-5
# The comments say how arrays are copied where CUDA is simulated, in accesses of so many elements.
VIEWS = {
    "batch NC": View(1, 40, 16, 1, 1),  # 8, several blocks
    "batch NC of odd channels": View(1, 6, 33, 1, 1),  # 1
    "batch NCHW of small maps": View(1, 3, 8, 1, 6),  # 4, several channels a group
    "batch NCHW of large maps": View(1, 1, 2, 1, 520),  # 8, in pieces
    "batch NCHW, a multiple of 4": View(1, 2, 2, 1, 300),  # 4, in pieces
    "batch of one channel": View(1, 1, 1, 1, 501),  # 8, of which some are left over
    "instance NCHW": View(3, 1, 5, 1, 16),  # 8
    "group NCHW": View(3, 1, 2, 3, 12),  # 4
    "group NHWC": View(3, 9, 2, 4, 1),  # 8
    "group NC": View(9, 1, 3, 4, 1),  # 4
    "layer": View(6, 1, 1, 24, 1),  # 8
    "layer of odd rows": View(5, 1, 1, 35, 1),  # 1
    "layer of long rows": View(2, 1, 1, 548, 1),  # 4, in pieces
}
SOME = "batch NC", "batch NCHW of small maps", "batch NCHW of large maps", "group NCHW", "group NHWC", "layer"
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
some_views = pytest.mark.parametrize("view", [VIEWS[name] for name in SOME], ids=SOME)


class Device:
    """The verbs with NumPy arrays in and out."""

    def __init__(self):
        self._numba = Numba()

    def put(self, array, start=0):
        """Return a device array that begins ``start`` elements after an aligned address."""
        if array is None:
            return None
        memory = np.zeros(array.nbytes + start * array.itemsize + 32, np.uint8)
        memory[start * array.itemsize :][: array.nbytes] = array.view(np.uint8)
        whole = arrays.of(self._numba.upload(memory), "x")
        assert whole.address % 16 == 0
        address, dtype = whole.address + start * array.itemsize, described(array.dtype)
        where = Description(address, array.shape, (array.itemsize,), dtype, whole.device)
        return DeviceArray(whole.native, whole.library, where)

    def get(self, array):
        """Return the elements; nothing may have been written around them."""
        if array is None:
            return None
        memory = self._numba.download(array.native).view(np.uint8)
        first = array.address - arrays.of(array.native, "x").address
        end = first + array.size * array.itemsize
        assert not memory[:first].any()
        assert not memory[end:].any()
        return memory[first:end].view(numpy_dtype(array.dtype))

    def run(self, view, x, dy, gamma, beta, start=0, in_place=False):
        """Return (y, mean, var, dx, dgamma, dbeta); arrays of the dtype of x begin ``start`` elements on."""
        empty = np.zeros_like(x)
        x, dy, y, dx = (self.put(a, start) for a in (x, dy, empty, empty))
        gradients = tuple(self.put(None if p is None else np.zeros_like(p)) for p in (gamma, beta))
        backend, affine = x.library.backend.samples, Affine((self.put(gamma), self.put(beta)), EPS)
        statistics = backend.forward(x, view, affine, y)
        result = dy if in_place else dx
        backend.backward(dy, x, view, statistics, affine, result, gradients)
        if in_place:
            backend.forward(x, view, affine, x)
            y = x
        return [self.get(a) for a in (y, *statistics, result, *gradients)]


@pytest.fixture(scope="module")
def device():
    try:
        return Device()
    except MissingError as reason:
        pytest.skip(str(reason))


def problem(view, dtype, offset=0.0, spread=1.0):
    """(x, dy, gamma, beta): x and dy of a half type, the parameters float32."""
    rng = np.random.default_rng(sum(view))
    size, places = int(np.prod(view)), view.groups * view.members
    x, dy = rng.standard_normal((2, size))
    gamma, beta = rng.standard_normal((2, places)).astype(np.float32)
    return (x * spread + offset).astype(dtype), dy.astype(dtype), gamma, beta


def check(found, view, x, dy, gamma, beta):
    """y and dx are within one ulp, what is float32 or float64 as near as for float32 arrays."""
    y, mean, var, *gradients = found
    x, dy = x.astype(np.float32), dy.astype(np.float32)
    assert_rounded(y, *views.forward(x, view, gamma, beta, EPS), "y")
    exact_mean, exact_var = views.statistics(x, view)
    near = 8 * np.finfo(np.float32).eps  # as for float32: roundings of the mean square about a near value
    np.testing.assert_allclose(var, exact_var.ravel(), rtol=near, atol=1e-30)
    np.testing.assert_allclose(mean, exact_mean.ravel(), rtol=near, atol=near * np.abs(x).max())
    expected, errors = views.backward(dy, x, view, gamma, EPS)
    assert_rounded(gradients[0], expected[0], errors[0], "dx")
    for name, result, value, allowed in zip(NAMES[1:], gradients[1:], expected[1:], errors[1:], strict=True):
        if result is not None:
            rounding = float(ml_dtypes.finfo(result.dtype).eps) * np.abs(value)
            assert_close(result, value, allowed + rounding, name)


@every_dtype
@every_view
def test_one_ulp(device, view, dtype):
    given = problem(view, dtype, offset=3.0)
    check(device.run(view, *given), view, *given)


@every_dtype
@some_views
def test_large_values_do_not_overflow(device, view, dtype):
    """Squares and sums of them are far above the largest number of the type."""
    given = problem(view, dtype, spread=1e4 if dtype == np.float16 else 1e30)
    found = device.run(view, *given)
    assert np.isfinite(found[0].astype(np.float32)).all()
    check(found, view, *given)


@pytest.mark.parametrize(
    "kinds",
    [(None, None), (np.float16, BFLOAT16), (BFLOAT16, np.float64), (np.float64, np.float16)],
    ids=["none", "halves", "bfloat16 and double", "double and float16"],
)
@pytest.mark.parametrize("name", ["batch NCHW of small maps", "group NCHW", "layer"])
def test_parameters_of_any_dtype(device, name, kinds):
    """They are not rounded to the type of x; their gradients are of their own."""
    view = VIEWS[name]
    x, dy, *parameters = problem(view, DTYPES[0])
    gamma, beta = (
        None if kind is None else p.astype(kind) for p, kind in zip(parameters, kinds, strict=True)
    )
    found = device.run(view, x, dy, gamma, beta)
    assert [None if g is None else g.dtype for g in found[4:]] == [kind and np.dtype(kind) for kind in kinds]
    check(found, view, x, dy, gamma, beta)


@some_views
@every_dtype
def test_constant_groups(device, view, dtype):
    """They give exactly beta, rounded, with variance 0, and a finite dx."""
    _, dy, gamma, beta = problem(view, dtype)
    of_groups = np.random.default_rng(0).standard_normal((view.batch, 1, view.groups, 1, 1)) * 1e4
    x = np.broadcast_to(of_groups, view).astype(dtype).ravel()
    y, mean, var, dx, *_ = device.run(view, x, dy, gamma, beta)
    expected = np.broadcast_to(beta.reshape(1, 1, view.groups, view.members, 1), view).ravel()
    assert_same_bits(y, expected.astype(dtype), "y")
    assert (var == 0).all()
    assert (mean == of_groups.astype(dtype).astype(np.float64).ravel()).all()
    assert np.isfinite(dx.astype(np.float32)).all()


@pytest.mark.parametrize(("dtype", "value"), [(DTYPES[0], np.nan), (BFLOAT16, np.inf)], ids=str)
@some_views
def test_nan_and_infinity_stay_in_their_statistic(device, view, dtype, value):
    x, dy, gamma, beta = problem(view, dtype)
    clean = device.run(view, x, dy, gamma, beta)
    x.reshape(view)[-1, 0, -1, -1, -1] = value
    others = np.ones(view, bool)
    others[-1, :, -1] = False
    found = device.run(view, x, dy, gamma, beta)
    for k in (0, 3):
        assert_same_bits(found[k][others.ravel()], clean[k][others.ravel()], "another statistic")
        assert np.isnan(found[k][~others.ravel()].astype(np.float32)).all()


@pytest.mark.parametrize("start", [1, 4, 8])
@some_views
def test_any_address(device, view, start):
    """Arrays that begin at multiples of 2, 8 and 16 bytes give the same bits, and nothing else is written."""
    given = problem(view, DTYPES[0])
    expected = device.run(view, *given)
    for result, value in zip(device.run(view, *given, start), expected, strict=True):
        assert_same_bits(result, value, f"at element {start}")


@some_views
def test_in_place(device, view):
    given = problem(view, BFLOAT16)
    expected = device.run(view, *given)
    for result, value in zip(device.run(view, *given, in_place=True), expected, strict=True):
        assert_same_bits(result, value, "in place")


@every_dtype
def test_moments(device, dtype):
    view = View(1, 2, 8, 1, 40)
    x, *_ = problem(view, dtype, offset=100.0)
    array = device.put(x)
    mean, m2 = map(device.get, array.library.backend.moments(array, view))
    shaped = x.reshape(2, 8, 40)
    check_moments((80, mean, m2), shaped.astype(np.float32), 1, reference.exact_moments)


@every_dtype
def test_rounding(device, dtype):
    """To nearest even, also where numbers are subnormal; to infinity above the largest; NaN is NaN."""
    numbers = np.arange(0x7F00, dtype=np.uint16).view(dtype).astype(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    middles = ((numbers[:-1].astype(np.float64) + numbers[1:]) / 2).astype(np.float32)
    some = np.concatenate([middles[:20], middles[::97], middles[-20:]])
    some = np.concatenate([np.nextafter(some, np.float32(0)), some, np.nextafter(some, np.float32(np.inf))])
    largest = np.array([numbers[-1], np.nextafter(numbers[-1], np.float32(np.inf)), 3e38, np.inf, np.nan])
    values = np.concatenate([some, largest.astype(np.float32), [np.float32(0)]])
    values = np.concatenate([values, -values])
    source, target = device.put(values), device.put(np.zeros(values.size, dtype))
    copies.copy(target, source)
    with np.errstate(over="ignore"):
        expected = values.astype(dtype)
    found = device.get(target)
    finite = ~np.isnan(values)
    assert_same_bits(found[finite], expected[finite], "rounded")
    assert np.isnan(found[~finite].astype(np.float32)).all()


@every_dtype
def test_copies_keep_all_bits(device, dtype):
    """Of numbers: NaN stays NaN."""
    values = np.arange(0, 2**16, 31, dtype=np.uint16).view(dtype)
    source, target = device.put(values), device.put(np.zeros_like(values))
    copies.copy(target, source)
    number = ~np.isnan(values.astype(np.float32))
    assert_same_bits(device.get(target)[number], values[number], "copy")
    assert np.isnan(device.get(target)[~number].astype(np.float32)).all()


@every_dtype
@some_views
def test_epilogue(device, view, dtype):
    """An activation and a residual follow in float32, and y is rounded once; so is the residual's gradient.

    Where the argument of the activation is nearer to 0 than float32 can tell, dy is 0. What the norm's
    gradient begins with is rounded to the type of dy, which ReLU leaves as it is.
    """
    x, dy, gamma, beta = problem(view, dtype)
    z = problem(view, dtype)[1][::-1].copy()
    exact, error = views.forward(x.astype(np.float32), view, gamma, beta, EPS)
    exact = exact + z.astype(np.float64)
    dy[np.abs(exact) < error + 1e-6] = 0
    through = np.where(exact > 0, dy, dtype.type(0))
    empty = np.zeros_like(x)
    there = [device.put(array) for array in (x, z, dy, empty, empty, empty)]
    x_there, residual, gradient, y, dx, dresidual = there
    backend, affine = x_there.library.backend.samples, Affine((device.put(gamma), device.put(beta)), EPS)
    kept, _ = backend.keep(y, view)
    statistics = backend.forward(x_there, view, affine, Result(y, residual, kept, 0, None, None))
    given = Gradient(gradient, dresidual, kept, 0, 0.0)
    backend.backward(given, x_there, view, statistics, affine, dx, (None, None))
    assert_rounded(device.get(y), np.maximum(exact, 0), error + 1e-7 * np.abs(exact), "y")
    assert_same_bits(device.get(dresidual), through, "dresidual")
    expected, errors = views.backward(through.astype(np.float32), x.astype(np.float32), view, gamma, EPS)
    assert_rounded(device.get(dx), expected[0], errors[0], "dx")
