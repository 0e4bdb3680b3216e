"""The whole library on arrays of CuPy, PyTorch and Numba: right values, in arrays of the same library.

The modules are those of `tests.support.cuda.libraries`, and kernels run in the simulator.
"""

import numba
import numpy as np
import pytest

import numbabn as nbn
from numbabn import arrays
from numbabn.arrays import door
from numbabn.backends import cuda_module
from numbabn.backends.verbs import View
from tests.support import half, reference, views
from tests.support.checks import assert_close, assert_same_bits, check_moments
from tests.support.cuda.kinds import F32, VIEWS, normal

if not numba.config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)


def values(native):
    return native.values


def parameters(channels):
    rng = np.random.default_rng(1)
    return [rng.uniform(0.5, 2, channels).astype(F32) for _ in range(4)]


@pytest.mark.parametrize("view", VIEWS)
def test_results(kind, view):
    """Values are right, in arrays of the same library and device, for every memory order of x and dy."""
    x, dy = VIEWS[view](normal(3, 2, 2, 2)), VIEWS[view](normal(3, 2, 2, 2, seed=1))
    gamma, beta, mean, var = parameters(2)
    native, dy_native = kind.array(x, device=1), kind.array(dy, device=1)
    on_gpu = [kind.array(p, device=1) for p in (gamma, beta, mean, var)]

    y, saved = nbn.batch_norm_forward(native, *on_gpu[:2])
    dx, dgamma, dbeta = nbn.batch_norm_backward(dy_native, saved)
    frozen = nbn.batch_norm_inference(native, on_gpu[2], on_gpu[3], *on_gpu[:2])
    count, own_mean, own_m2 = nbn.moments(native)

    results = [y, dx, dgamma, dbeta, frozen, own_mean, own_m2, saved.mean, saved.var]
    assert all(kind.is_mine(result) and kind.device_of(result) == 1 for result in results)
    assert values(y).strides == values(dx).strides == np.empty_like(x).strides
    assert values(dgamma).dtype == values(dbeta).dtype == F32
    assert values(saved.mean).dtype == values(own_m2).dtype == np.float64
    _, exact_mean, exact_m2 = reference.moments(x, 1)
    assert count == 12
    np.testing.assert_allclose(values(own_mean), exact_mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(values(own_m2), exact_m2, rtol=1e-12)
    assert_close(values(y), reference.forward(x, gamma, beta), reference.forward_error(x, gamma, beta), "y")
    exact = reference.backward(dy, x, gamma)
    errors = reference.backward_error(dy, x, gamma, beta)
    for name, result, value, error in zip(
        ("dx", "dgamma", "dbeta"), (dx, dgamma, dbeta), exact, errors, strict=True
    ):
        assert_close(values(result), value, error, name)
    given = {"mean": mean, "var": var}
    expected = reference.forward(x, gamma, beta, **given)
    assert_close(values(frozen), expected, reference.forward_error(x, gamma, beta, **given), "frozen y")


@pytest.mark.parametrize("view", VIEWS)
def test_an_activation_and_a_residual(kind, view):
    """They follow the norm for every memory order of the residual; their results are the library's, too."""
    x, dy, residual = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1), normal(3, 2, 2, 2, seed=2)
    natives = [kind.array(array, device=1) for array in (x, dy, VIEWS[view](residual))]
    y, saved = nbn.batch_norm_forward(natives[0], activation="relu", residual=natives[2])
    dx, _, _, dresidual = nbn.batch_norm_backward(natives[1], saved)
    assert all(kind.is_mine(result) and kind.device_of(result) == 1 for result in (y, dx, dresidual))
    v = reference.forward(x) + residual
    # Adding the residual rounds once more, at half an eps.
    error = reference.forward_error(x) + np.finfo(F32).eps * np.abs(v)
    assert_close(values(y), reference.activated(v, "relu", 0.0), error, "y")
    g = np.where(values(y) > 0, dy, F32(0))
    assert_same_bits(values(dresidual), g, "dresidual")
    assert_close(values(dx), reference.backward(g, x)[0], reference.backward_error(g, x)[0], "dx")


def test_out_of_any_strides(kind):
    x = normal(3, 2, 2, 2)
    expected = values(nbn.batch_norm_forward(kind.array(x))[0])
    for view in VIEWS.values():
        host = view(np.full(x.shape, 7, F32))
        out = kind.array(host)
        y, saved = nbn.batch_norm_forward(kind.array(x), out=out)
        assert y is out
        np.testing.assert_array_equal(values(out), expected)
        gradient = kind.array(view(normal(3, 2, 2, 2, seed=1)))
        dx, *_ = nbn.batch_norm_backward(kind.array(values(gradient).copy()), saved)
        assert nbn.batch_norm_backward(gradient, saved, out=gradient)[0] is gradient
        np.testing.assert_allclose(values(gradient), values(dx), rtol=0, atol=1e-6)
    x_native = kind.array(x)
    y, saved = nbn.batch_norm_forward(x_native, out=x_native)
    np.testing.assert_array_equal(values(x_native), expected)
    with pytest.raises(ValueError, match="out=x"):
        nbn.batch_norm_backward(x_native, saved)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 0)])
def test_empty(kind, shape):
    x = kind.over(np.zeros(shape, F32))
    channels = shape[1]
    gamma, beta, *_ = (kind.array(p) for p in parameters(channels))
    y, saved = nbn.batch_norm_forward(x, gamma, beta)
    dx, dgamma, dbeta = nbn.batch_norm_backward(x, saved)
    assert y.shape == dx.shape == shape
    assert (values(dgamma) == 0).all()
    assert (values(dbeta) == 0).all()
    assert values(dbeta).shape == (channels,)
    count, mean, m2 = nbn.moments(x)
    assert count == 0
    assert np.isnan(values(mean)).all()
    assert np.isnan(values(saved.var)).all()
    assert (values(m2) == 0).all()


def half_tensor(torch, host, gap=1):
    """Return a tensor with the values of an array of a half type, from the fourth place of its memory on."""
    memory = np.zeros(3 + gap * host.size, f"u{host.itemsize}")
    memory[3::gap] = host.view(memory.dtype).ravel()
    kind = getattr(torch.module, host.dtype.name)
    return torch.module.Tensor(memory[3::gap].reshape(host.shape), kind, torch.gpu(0))


NORMS = {
    "batch": (nbn.batch_norm_forward, nbn.batch_norm_backward, {}, View(1, 6, 4, 1, 5)),
    "group": (
        lambda x, *p: nbn.group_norm_forward(x, 2, *p),
        nbn.group_norm_backward,
        {},
        View(6, 1, 2, 2, 5),
    ),
    "instance": (nbn.instance_norm_forward, nbn.instance_norm_backward, {}, View(6, 1, 4, 1, 5)),
    "layer": (nbn.layer_norm_forward, nbn.layer_norm_backward, {"axis": (1, 2)}, View(6, 1, 1, 20, 1)),
}


@pytest.mark.parametrize("dtype", half.DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_half_tensors(torch, norm, dtype):
    """Views that begin anywhere in memory, also with gaps, give results of their type within one ulp."""
    forward, backward, options, view = NORMS[norm]
    places = view.groups * view.members
    x, dy = (normal(6, 4, 5, seed=seed).astype(dtype) for seed in (0, 1))
    gamma, beta = (normal(places, seed=seed) for seed in (2, 3))
    shape = (4, 5) if norm == "layer" else (places,)
    parameters = torch.array(gamma.reshape(shape)), torch.array(beta.reshape(shape))
    exact = views.forward(x.astype(F32).ravel(), view, gamma, beta, 1e-5)
    gradients, errors = views.backward(dy.astype(F32).ravel(), x.astype(F32).ravel(), view, gamma, 1e-5)
    for gap in (1, 2):
        y, saved = forward(half_tensor(torch, x, gap), *parameters, **options)
        dx, dgamma, dbeta = backward(half_tensor(torch, dy, gap), saved)
        assert y.dtype is dx.dtype is getattr(torch.module, dtype.name)
        for name, result, value in (("y", y, exact), ("dx", dx, (gradients[0], errors[0]))):
            found = np.ascontiguousarray(result.values).view(dtype).ravel()
            half.assert_rounded(found, *value, name)
        for result, value, error in zip((dgamma, dbeta), gradients[1:], errors[1:], strict=True):
            assert_close(values(result).ravel(), value, error + np.finfo(F32).eps * np.abs(value), "sums")


@pytest.mark.parametrize("dtype", half.DTYPES, ids=str)
def test_half_tensors_with_known_statistics(torch, dtype):
    """y, and dx with constant statistics, are within one ulp; moments are float64."""
    x, dy = (normal(6, 4, 5, seed=seed).astype(dtype) for seed in (0, 1))
    gamma, beta, mean, var = parameters(4)
    on_gpu = [torch.array(p) for p in (mean, var, gamma, beta)]
    wide, known = x.astype(F32), {"mean": mean, "var": var}
    y = nbn.batch_norm_inference(half_tensor(torch, x), *on_gpu)
    exact = reference.forward(wide, gamma, beta, **known)
    half.assert_rounded(y.values.view(dtype), exact, reference.forward_error(wide, gamma, beta, **known), "y")
    again, saved = nbn.batch_norm_forward(half_tensor(torch, x), *on_gpu[2:], mean=on_gpu[0], var=on_gpu[1])
    assert_same_bits(again.values, y.values, "y of known statistics")
    dx, _, _ = nbn.batch_norm_backward(half_tensor(torch, dy), saved)
    exact, *_ = reference.backward(dy.astype(F32), wide, gamma, **known)
    error, *_ = reference.backward_error(dy.astype(F32), wide, gamma, **known)
    half.assert_rounded(dx.values.view(dtype), exact, error, "dx")
    count, mean, m2 = nbn.moments(half_tensor(torch, x))
    check_moments((count, values(mean), values(m2)), wide, 1)


def test_parameters_of_other_libraries_and_dtypes(cupy, torch):
    """Gradients are of the library and dtype of the parameter; bfloat16 has eight bits."""
    x, dy = normal(5, 2), normal(5, 2, seed=1)
    gamma, beta = np.array([1.5, -0.75], F32), np.array([0.5, 2], F32)
    bfloat16 = torch.module.Tensor(
        (gamma.view(np.uint32) >> 16).astype(np.uint16), torch.module.bfloat16, torch.gpu(0)
    )
    half = cupy.array(np.repeat(beta, 2).astype(np.float16)[::2])
    y, saved = nbn.batch_norm_forward(cupy.array(x), bfloat16, half)
    assert_close(values(y), reference.forward(x, gamma, beta), reference.forward_error(x, gamma, beta), "y")
    _, dgamma, dbeta = nbn.batch_norm_backward(cupy.array(dy), saved)
    assert dgamma.dtype is torch.module.bfloat16
    assert values(dbeta).dtype == np.float16
    exact = reference.backward(dy, x, gamma)
    # One rounding to the dtype; the sums themselves are of float32 and much better.
    np.testing.assert_allclose(values(dgamma.float()), exact[1], rtol=2.0**-8)
    np.testing.assert_allclose(values(dbeta), exact[2], rtol=2.0**-10)
    with pytest.raises(TypeError, match=r"dy is a torch\.\S*Tensor on cuda:0, but x is a cupy.*one library"):
        nbn.batch_norm_backward(torch.array(dy), saved)


@pytest.mark.parametrize(
    ("momentum", "dtype"), [(0.1, F32), (1, np.float64), (0.25, np.float16), (None, F32), (None, np.float64)]
)
def test_running_statistics(kind, momentum, dtype):
    """They are updated in place, with the values of the CPU; a state goes from and to the GPU."""
    bn, twin = (nbn.BatchNorm(2, momentum=momentum, dtype=dtype) for _ in range(2))
    batches = [normal(4, 2, dtype=np.float64, seed=seed) + seed for seed in range(3)]
    twin.to(kind.array(batches[0]))
    held = twin.running_mean, twin.running_var
    for x in batches:
        y, expected = twin(kind.array(x)), bn(x)
        np.testing.assert_allclose(values(y), expected, rtol=0, atol=1e-12)
        twin.backward(kind.array(x)), bn.backward(x)
    assert (twin.running_mean, twin.running_var) == held
    assert twin.num_batches_tracked == 3
    state, expected = twin.state_dict(), bn.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        # Of float64 throughout, rounded to the dtype once a batch.
        np.testing.assert_allclose(
            state[name], value, rtol=8 * np.finfo(value.dtype).eps if value.dtype.kind == "f" else 0
        )

    other = nbn.BatchNorm(2, momentum=momentum, dtype=dtype, device=kind.array(x))
    parameter, mean = other.params["gamma"], other.running_mean
    other.load_state_dict({**state, "gamma": kind.array(np.array([2, 3], dtype))})
    assert other.params["gamma"] is parameter
    assert other.running_mean is mean
    assert values(parameter).tolist() == [2, 3]
    np.testing.assert_array_equal(values(mean), state["running_mean"])
    found = other.state_dict()
    for name in state.keys() - {"gamma"}:
        np.testing.assert_array_equal(found[name], state[name])
    other.eval(), twin.eval()
    twin.params["gamma"] = other.params["gamma"]
    np.testing.assert_array_equal(values(other(kind.array(x))), values(twin(kind.array(x))))


def scattered(values, rng):
    """Return an array of these values with gaps, some axes backwards, in any order of axes."""
    order = rng.permutation(values.ndim)
    moved = values.transpose(order)
    memory = np.full([2 * n + 1 for n in moved.shape], 9, values.dtype)
    part = tuple(slice(0, 2 * n, 2) if rng.random() < 0.5 else slice(n, 0, -1) for n in moved.shape)
    memory[part] = moved
    return memory[part].transpose(np.argsort(order))


@pytest.mark.parametrize("small", [2**32, 1])
@pytest.mark.parametrize("dtype", [np.float16, F32, np.float64])
def test_strided_copies(cupy, dtype, small, monkeypatch):
    """Copies go from any strides to any others, float16 ones by a kernel that converts, and write no more."""
    monkeypatch.setattr("numbabn.backends.cuda.copies.SMALL", small)
    rng, assign = np.random.default_rng(0), door.LIBRARIES["cupy"].assign
    for shape in ((1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 2, 3)):
        source, target = (scattered(normal(*shape, dtype=dtype, seed=s), rng) for s in (0, 1))
        around = target.base.copy()
        assign(arrays.of(cupy.over(target), "out"), arrays.of(cupy.over(source), "x"))
        np.testing.assert_array_equal(target, source)
        assert (target.base == around).sum() >= around.size - target.size
        expected = np.arange(target.size, dtype=F32).reshape(shape)  # and from one dtype to another
        assign(arrays.of(cupy.over(target), "out"), arrays.of(cupy.over(expected), "x"))
        np.testing.assert_array_equal(target, expected)


def folding_problem():
    """A weight OIHW of two groups, its bias, and the norm behind it."""
    rng = np.random.default_rng(0)
    bn = nbn.BatchNorm(4)
    state = {name: rng.uniform(0.5, 2, 4) for name in ("gamma", "beta", "running_mean", "running_var")}
    bn.load_state_dict({**bn.state_dict(), **state})
    return normal(4, 2, 2, 2), normal(4, seed=1).astype(np.float16), bn


@pytest.mark.parametrize("view", VIEWS)
def test_folding(kind, view):
    """The bits of the CPU, where the weight is and in its memory order, wherever the norm is."""
    weight, bias, bn = folding_problem()
    weight = VIEWS[view](weight)
    expected = nbn.fold_into_conv(weight, bias, bn)
    natives = kind.array(weight, device=1), kind.array(bias, device=1)
    on_gpu = folding_problem()[2].to(kind.array(bias))
    for layer in (bn, on_gpu):
        folded = nbn.fold_into_conv(*natives, layer)
        assert values(folded[0]).strides == np.empty_like(weight).strides
        for native, host in zip(folded, expected, strict=True):
            assert kind.is_mine(native)
            assert kind.device_of(native) == 1
            assert values(native).dtype == host.dtype
            np.testing.assert_array_equal(values(native), host)
    for native, host in zip(on_gpu.affine(), bn.affine(), strict=True):
        assert kind.is_mine(native)
        assert_same_bits(values(native), host, "affine")
    np.testing.assert_array_equal(values(natives[0]), weight)
    _, bias = nbn.fold_into_conv(natives[0], None, bn)
    assert values(bias).dtype == F32


def test_folding_a_bfloat16_weight(torch):
    """It stays bfloat16, with eight bits: one rounding is at most 2**-8 of the value."""
    weight, _, bn = folding_problem()
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    native = torch.module.Tensor(bits, torch.module.bfloat16, torch.gpu(0))
    folded, bias = nbn.fold_into_conv(native, None, bn)
    assert folded.dtype is bias.dtype is torch.module.bfloat16
    exact, exact_bias = nbn.fold_into_conv(values(native.float()).astype(np.float64), None, bn)
    np.testing.assert_allclose(values(folded.float()), exact, rtol=2.0**-8)
    np.testing.assert_allclose(values(bias.float()), exact_bias, rtol=2.0**-8)


def test_folding_needs_weight_and_bias_together(kind):
    weight, bias, bn = folding_problem()
    for other in (bias, kind.array(bias, device=1)):
        with pytest.raises(TypeError, match=r"bias is a .*, but weight is a .* on cuda:0; pass both"):
            nbn.fold_into_conv(kind.array(weight), other, bn)


@pytest.fixture
def followed(monkeypatch):
    """Return the list of (library that waits, library that it waits for)."""
    found = []

    def follow(array, other):
        found.append((array.library.name, other.library.name))

    monkeypatch.setattr(cuda_module("gpu"), "follow", follow)
    return found


def test_streams_of_libraries_wait_for_each_other(cupy, torch, followed):
    """What is launched on the stream of x reads what was launched on that of gamma, and the other way."""
    x, gamma = torch.array(normal(4, 2)), cupy.array(np.ones(2, F32))
    both = [("torch", "cupy"), ("cupy", "torch")]
    y, saved = nbn.batch_norm_forward(x, gamma)
    assert followed == both
    followed.clear()
    nbn.batch_norm_backward(y, saved)
    assert followed == both
    followed.clear()
    nbn.batch_norm_inference(x, cupy.array(np.zeros(2, F32)), cupy.array(np.ones(2, F32)))
    assert followed == [both[0], both[0], both[1], both[1]]


def test_streams_of_a_layer_and_a_batch_wait_for_each_other(cupy, torch, followed):
    layer = nbn.BatchNorm(2, device=cupy.array(normal(1)), scale=False, center=False)
    layer(torch.array(normal(4, 2)))
    assert followed == [("torch", "cupy"), ("cupy", "torch")]  # around the running statistics


def test_nothing_waits_where_all_arrays_are_of_one_library(kind, followed):
    layer = nbn.BatchNorm(2, device=kind.array(normal(1)))
    layer.backward(layer(kind.array(normal(4, 2))))
    assert not followed
