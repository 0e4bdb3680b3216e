"""What every backend promises of layer norm and RMS norm: rows of the table, see `tests.support.table`.

Rows of up to 128 float32 fit in a tile where CUDA is simulated, forward, and half of them backward.
"""

import itertools
from typing import NamedTuple

import numpy as np

import numbabn as nbn
from tests.support import samples
from tests.support.checks import NAMES, assert_close, assert_same_bits
from tests.support.problems import arrange

EPS = 1e-5
# (shape, normalised axes). The comments say what is new in a shape where CUDA is simulated, for float32.
SMALL = (
    ((9, 3), (-1,)),  # one thread a row
    ((70, 5), (-1,)),  # several samples added up by a block
    ((11, 8), (-1,)),  # rows of whole vectors, two threads each
    ((7, 40), (-1,)),  # eight threads a row, and rows left over
    ((5, 64), (-1,)),  # a whole tile of the backward pass
    ((3, 70), (-1,)),  # rows in pieces, backward
    ((2, 132), (-1,)),  # and forward
    ((3, 515), (-1,)),  # pieces that are no whole vectors, several strips
    ((4, 1), (-1,)),
    ((2, 3, 4, 5), (-1, -2)),
    ((4, 3, 5), (1,)),  # a copy
    ((3, 2, 6), (0, 2)),
    ((2, 3, 4), (0, 1, 2)),
)
LARGE = (
    ((8192, 768), (-1,)),
    ((2048, 4096), (-1,)),
    ((32, 128, 1024), (-1,)),
    ((131_072, 64), (-1,)),
    ((64, 50_257), (-1,)),
    ((300_001, 7), (-1,)),
    ((8, 96, 56, 56), (1,)),
)
DTYPES = np.float32, np.float64


class Norm(NamedTuple):
    """One of the two norms, called in one way, with arrays of a backend."""

    name: str
    centered: bool

    def forward(self, backend, x, gamma, beta, axes, **options):
        if self.centered:
            return backend.call(nbn.layer_norm_forward, x, gamma, beta, axis=axes, eps=EPS, **options)
        return backend.call(nbn.rms_norm_forward, x, gamma, axis=axes, eps=EPS, **options)

    def backward(self, backend, dy, saved, **options):
        if self.centered:
            return backend.call(nbn.layer_norm_backward, dy, saved, **options)
        return *backend.call(nbn.rms_norm_backward, dy, saved, **options), None

    def problem(self, shape, axes, dtype=np.float32, offset=0.0, kinds=DTYPES[:1] * 2):
        """(x, dy, gamma, beta) with gamma and beta of these dtypes, or None; some gamma are 0."""
        rng = np.random.default_rng(len(shape))
        x, dy = rng.standard_normal((2, *shape)).astype(dtype)
        gamma, beta = rng.standard_normal((2, *(shape[a] for a in sorted(a % len(shape) for a in axes))))
        gamma.flat[:: max(2, gamma.size // 3)] = 0
        parameters = (
            p if kind is None else p.astype(kind) for p, kind in zip((gamma, beta), kinds, strict=True)
        )
        gamma, beta = (None if kind is None else p for p, kind in zip(parameters, kinds, strict=True))
        return (x + dtype(offset)).astype(dtype), dy, gamma, beta if self.centered else None


NORMS = Norm("layer norm", True), Norm("RMS norm", False)


def check_backward(norm, results, dy, x, parameters, axes):
    """The gradients that there are agree with the formulas."""
    arguments = dy, x, parameters[0], axes, EPS, norm.centered
    expected, errors = samples.backward(*arguments), samples.backward_error(*arguments)
    for name, result, value, error, like in zip(
        NAMES, results, expected, errors, (x, *parameters), strict=True
    ):
        assert result is None or like is not None, name
        if result is not None:
            assert result.dtype == like.dtype, name
            rounding = np.finfo(like.dtype)  # to the dtype of the parameter
            assert_close(
                result, value, error + rounding.eps * np.abs(value) + rounding.smallest_subnormal, name
            )


def values(backend, norm, shape, axes, dtype, offset, kinds=(np.float32, np.float32), layout="contiguous"):
    """The functions agree with the formulas, also where only some of the gradients are asked for."""
    x, dy, *parameters = norm.problem(shape, axes, dtype, offset, kinds)
    rng = np.random.default_rng(0)
    x, dy = arrange(x, layout, rng), arrange(dy, layout, rng)
    y, saved = norm.forward(backend, x, *parameters, axes)
    arguments = x, *parameters, axes, EPS, norm.centered
    assert_close(y, samples.forward(*arguments), samples.forward_error(*arguments), "y")
    mean, var = samples.statistics(x, axes, norm.centered)
    others = [n for i, n in enumerate(x.shape) if i not in {a % x.ndim for a in axes}]
    # Sums of a tile have the dtype of x: some roundings of the mean square about the row's mean.
    near = np.finfo(dtype).eps * 8
    np.testing.assert_allclose(saved.var, var.reshape(others), rtol=near, atol=1e-30)
    np.testing.assert_allclose(saved.mean, mean.reshape(others), rtol=near, atol=near)
    check_backward(norm, norm.backward(backend, dy, saved), dy, x, parameters, axes)
    dx, *sums = norm.backward(backend, dy, saved, need_dx=False)
    assert dx is None
    check_backward(norm, (None, *sums), dy, x, parameters, axes)
    dx, *sums = norm.backward(
        backend, dy, saved, need_dgamma=False, **{"need_dbeta": False} if norm.centered else {}
    )
    assert sums == [None, None]
    check_backward(norm, (dx, None, None), dy, x, parameters, axes)


def parameter_layouts(backend, norm):
    """gamma and beta may lie in any order in memory."""
    x, dy, *parameters = norm.problem((3, 4, 6), (-1, -2))
    expected = everything(backend, norm, x, dy, parameters, (-1, -2))
    strided = [None if p is None else np.asfortranarray(p) for p in parameters]
    for name, value in everything(backend, norm, x, dy, strided, (-1, -2)).items():
        assert_same_bits(np.ascontiguousarray(value), expected[name], name)


def addresses(backend, norm, shape):
    """Where arrays lie in memory changes no bit, also not whether their addresses are those of vectors."""
    x, dy, *parameters = norm.problem(shape, (-1,))
    expected = everything(backend, norm, x, dy, parameters, (-1,))
    rng = np.random.default_rng(0)
    shifted = arrange(x, "offset", rng), arrange(dy, "offset", rng)
    for name, value in everything(backend, norm, *shifted, parameters, (-1,)).items():
        assert_same_bits(value, expected[name], name)


def everything(backend, norm, x, dy, parameters, axes):
    """Return all results by name, for comparison to the last bit."""
    y, saved = norm.forward(backend, x, *parameters, axes)
    found = {"y": y, "mean": saved.mean, "var": saved.var}
    found |= dict(zip(NAMES, norm.backward(backend, dy, saved), strict=True))
    return {name: value for name, value in found.items() if value is not None}


def batch_invariance(backend, norm, shape, dtype):
    """The bits of a sample's y and dx depend neither on the other samples nor on its place among them."""
    x, dy, *parameters = norm.problem(shape, (-1,), dtype, offset=3.0)
    expected = everything(backend, norm, x, dy, parameters, (-1,))
    order = np.random.default_rng(0).permutation(shape[0])
    for chosen in ([0], [shape[0] - 1], [2, 1], order, np.repeat(order[:3], 30)):
        found = everything(backend, norm, x[chosen], dy[chosen], parameters, (-1,))
        for name in ("y", "mean", "var", "dx"):
            assert_same_bits(found[name], expected[name][chosen], name)


def same_bits(backend, norm, shape, dtype):
    """The same call gives the same bits again."""
    x, dy, *parameters = norm.problem(shape, (-1,), dtype)
    first = everything(backend, norm, x, dy, parameters, (-1,))
    for _ in range(3):
        for name, value in everything(backend, norm, x, dy, parameters, (-1,)).items():
            assert_same_bits(value, first[name], name)


def poison(backend, norm, shape, value):
    """NaN or infinity in one sample changes no bit of any other."""
    x, dy, *parameters = norm.problem(shape, (-1,))
    clean = everything(backend, norm, x, dy, parameters, (-1,))
    x[1, shape[1] // 2] = value
    with np.errstate(all="ignore"):  # with the JIT off, NumPy computes, and warns of infinity
        found = everything(backend, norm, x, dy, parameters, (-1,))
    others = np.arange(shape[0]) != 1
    for name in ("y", "mean", "var", "dx"):
        assert_same_bits(found[name][others], clean[name][others], name)
    assert np.isnan(found["dx"][1]).all()
    assert not np.isfinite(found["var"][1])


def constants(backend, shape, dtype):
    """A constant sample is exactly beta, with variance 0; its dx is finite."""
    norm = NORMS[0]
    _, dy, gamma, beta = norm.problem(shape, (-1,), dtype, kinds=(dtype, dtype))
    for value in (0.0, 0.1, -1e4 / 3, 1e-30, 3e30):
        y, saved = norm.forward(backend, np.full(shape, value, dtype), gamma, beta, (-1,))
        assert (y == beta).all()
        assert (saved.var == 0).all()
        assert (saved.mean == float(dtype(value))).all()
        assert np.isfinite(norm.backward(backend, dy, saved)[0]).all()


def accuracy(backend, norm, shape):
    """At offset 1e4 and spread 1, y is right to 1e-6 of its largest value, or of 1."""
    x, _, _, _ = norm.problem(shape, (-1,), offset=1e4)
    y, _ = norm.forward(backend, x, None, None, (-1,))
    exact = samples.forward(x, None, None, (-1,), EPS, norm.centered)
    assert np.abs(y - exact).max() <= 1e-6 * max(1, np.abs(exact).max() / 4)


def ranges(backend, norm, shape, dtype, spread):
    """Large and small x cost no digit of y and the variance."""
    x, _, _, _ = norm.problem(shape, (-1,), dtype)
    x = (x * dtype(spread)).astype(dtype)
    call = nbn.layer_norm_forward if norm.centered else nbn.rms_norm_forward
    with np.errstate(over="ignore"):  # with the JIT off, NumPy computes, and warns
        y, saved = backend.call(call, x, eps=0.0)
    arguments = x, None, None, (-1,), 0.0, norm.centered
    assert_close(y, samples.forward(*arguments), samples.forward_error(*arguments), "y")
    _, var = samples.statistics(x, (-1,), norm.centered)
    np.testing.assert_allclose(saved.var, var[:, 0], rtol=np.finfo(dtype).eps * 8)


def empty(backend, norm, shape):
    """An empty batch has an empty result, and gradients of 0."""
    x, dy, *parameters = norm.problem(shape, (-1,))
    y, saved = norm.forward(backend, x, *parameters, (-1,))
    dx, *sums = norm.backward(backend, dy, saved)
    assert y.shape == dx.shape == shape
    assert saved.mean.shape == shape[:-1]
    for gradient, like in zip(sums, parameters, strict=True):
        assert (gradient is None) == (like is None)
        assert gradient is None or (gradient.shape == like.shape and not gradient.any())


def outs(backend, norm, shape, axes):
    """A result in ``out``, x or dy has the bits of a fresh one."""
    x, dy, *parameters = norm.problem(shape, axes)
    y, saved = norm.forward(backend, x, *parameters, axes)
    for out in (np.zeros_like(x), 0):
        again, _ = norm.forward(backend, x, *parameters, axes, out=out)
        assert_same_bits(np.ascontiguousarray(again), np.ascontiguousarray(y), "y")
    gradients = norm.backward(backend, dy, saved)
    for out in (np.zeros_like(x), 0):
        again = norm.backward(backend, dy, saved, out=out)
        for name, result, value in zip(NAMES, again, gradients, strict=True):
            if value is not None:
                assert_same_bits(np.ascontiguousarray(result), np.ascontiguousarray(value), name)


def layer_is_the_functions(backend, norm, shape, axis, dtype):
    """A layer computes what the functions do, and goes to a device and back with its parameters."""
    axes = (axis,)
    x, dy, gamma, beta = norm.problem(shape, axes, kinds=(dtype, dtype))
    layer = (nbn.LayerNorm if norm.centered else nbn.RMSNorm)(shape[axis], axis=axis, eps=EPS, dtype=dtype)
    state = {"gamma": gamma} | ({"beta": beta} if norm.centered else {})
    layer.load_state_dict(state)
    layer.to(backend.put(np.zeros(1, np.float32)))
    y, saved = norm.forward(backend, x, gamma, beta, axes)
    dx, *sums = norm.backward(backend, dy, saved)
    assert_same_bits(backend.call(layer, x), y, "y")
    assert_same_bits(backend.call(layer.backward, dy), dx, "dx")
    for name, gradient in zip(("gamma", "beta"), sums, strict=True):
        if gradient is not None:
            assert_same_bits(backend.get(layer.grads[name]), gradient, name)
    for name, value in layer.to("cpu").state_dict().items():
        assert_same_bits(value, state[name], name)


def checks(large):
    """Yield (check, arguments) of all rows, with or without those of large arrays."""
    for norm in NORMS:
        for (shape, axes), dtype in itertools.product(SMALL + LARGE if large else SMALL, DTYPES):
            yield values, norm, shape, axes, dtype, 3.0
            if large:
                yield same_bits, norm, shape, dtype
        for kinds in itertools.product((None, np.float16, np.float32, np.float64), repeat=2):
            yield values, norm, (6, 12), (-1,), np.float32, 0.0, kinds
        for layout, axis in itertools.product(
            ("fortran", "transposed", "sliced", "offset", "loose"), (-1, 1)
        ):
            yield values, norm, (4, 5, 8), (axis,), np.float32, 0.0, DTYPES, layout
        for shape in ((30, 3), (12, 40), (4, 150)):
            yield batch_invariance, norm, shape, np.float32
        yield batch_invariance, norm, (12, 40), np.float64
        for shape, value in itertools.product(((30, 4), (12, 40), (3, 150)), (np.nan, np.inf)):
            yield poison, norm, shape, value
        yield parameter_layouts, norm
        yield addresses, norm, (64, 16)
        for shape in ((6, 12), (3, 150), (2, 768)):
            yield accuracy, norm, shape
        for dtype, spread in (
            (np.float32, 1e-30),
            (np.float32, 1e30),
            (np.float64, 1e-150),
            (np.float64, 1e150),
        ):
            yield ranges, norm, (5, 40), dtype, spread
        for shape in ((0, 5), (3, 0), (2, 0, 4)):
            yield empty, norm, shape
        for axis in (-1, 1):
            yield outs, norm, (4, 5, 6), (axis,)
        for dtype, axis in itertools.product((np.float16, *DTYPES), (-1, 1)):
            yield layer_is_the_functions, norm, (4, 5, 6), axis, dtype
    for shape, dtype in itertools.product(((5, 3), (3, 40), (3, 150)), DTYPES):
        yield constants, shape, dtype
