"""Folding: layer and norm become one layer, against convolutions in float64 written from their definition."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from tests.support.checks import assert_close, assert_result_of, assert_same_bits, unchanged
from tests.support.jit import JIT
from tests.support.layers import assert_same_state, snapshot

F16, F32, F64 = np.float16, np.float32, np.float64
# A weight or a bias is rounded once, by half of the spacing of its dtype; float64 sums of less than a hundred
# products, in the oracle and in the folding, are off by less than 1e-13 of their terms.
ROUNDINGS = {F16: 2.0**-11, F32: 2.0**-24, F64: 2.0**-53}
SUMS = 1e-13


# The definitions, in float64 --------------------------------------------------------------------------------


def convolution(x, weight, bias, groups, stride, padding):
    """x (N, I, ...), weight (O, I / groups, ...) to (N, O, ...): one output pixel after the other."""
    kernel = weight.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), *[(padding, padding)] * len(kernel)])
    out = [(n - k) // stride + 1 for n, k in zip(x.shape[2:], kernel, strict=True)]
    outputs, inputs = len(weight) // groups, weight.shape[1]
    y = np.zeros((len(x), len(weight), *out))
    for o in range(len(weight)):
        first = o // outputs * inputs
        for place in np.ndindex(*out):
            window = tuple(slice(i * stride, i * stride + k) for i, k in zip(place, kernel, strict=True))
            seen = x[(slice(None), slice(first, first + inputs), *window)]
            y[(slice(None), o, *place)] = (seen * weight[o]).sum(axis=tuple(range(1, seen.ndim))) + bias[o]
    return y


def transposed_convolution(x, weight, bias, groups, stride, padding):
    """x (N, I, ...), weight (I, O / groups, ...) to (N, O, ...): every input pixel adds a kernel."""
    kernel = weight.shape[2:]
    inputs, outputs = len(weight) // groups, weight.shape[1]
    whole = [(n - 1) * stride + k for n, k in zip(x.shape[2:], kernel, strict=True)]
    y = np.zeros((len(x), outputs * groups, *whole))
    for i in range(len(weight)):
        first = i // inputs * outputs
        for place in np.ndindex(*x.shape[2:]):
            window = tuple(slice(p * stride, p * stride + k) for p, k in zip(place, kernel, strict=True))
            value = x[(slice(None), i, *place)].reshape(-1, 1, *[1] * len(kernel))
            y[(slice(None), slice(first, first + outputs), *window)] += value * weight[i]
    cropped = tuple(slice(padding, n - padding) for n in whole)
    return y[(slice(None), slice(None), *cropped)] + bias.reshape(-1, *[1] * len(kernel))


def normalised(x, bn):
    """Evaluation mode of the norm, from its state, with the channels on axis 1."""
    state = {name: value.astype(F64) for name, value in bn.state_dict().items()}
    mean, var = state["running_mean"], state["running_var"]
    gamma, beta = state.get("gamma", np.ones_like(mean)), state.get("beta", np.zeros_like(mean))
    mean, var, gamma, beta = (each.reshape(-1, *[1] * (x.ndim - 2)) for each in (mean, var, gamma, beta))
    return (x - mean) / np.sqrt(var + bn.eps) * gamma + beta


def terms(x, bn):
    """What ``normalised`` adds up, without signs, if x is a sum of terms without signs."""
    state = {name: np.abs(value.astype(F64)) for name, value in bn.state_dict().items()}
    mean, std = state["running_mean"], np.sqrt(state["running_var"] + bn.eps)
    gamma, beta = state.get("gamma", np.ones_like(mean)), state.get("beta", np.zeros_like(mean))
    mean, std, gamma, beta = (each.reshape(-1, *[1] * (x.ndim - 2)) for each in (mean, std, gamma, beta))
    return (x + mean) / std * gamma + beta


# The problems -----------------------------------------------------------------------------------------------


def norm(channels, rng, kind=nbn.BatchNorm, *, shifts=True, **options):
    """A norm with statistics and parameters of any size; without shifts its shift is 0."""
    options = {"scale": True, "center": shifts, **options}
    bn = kind(channels, **options)
    state = bn.state_dict()
    state["running_mean"] = rng.normal(0, 3, channels) * shifts
    state["running_var"] = rng.uniform(0.1, 4, channels)
    state |= {name: rng.normal(0.5, 1, channels) for name in ("gamma", "beta") if name in state}
    bn.load_state_dict(state)
    return bn


ORDERS = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "sliced": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
}
# Where weights have their channels: (channel_axis, axes of output and input channels); where transposed, of
# input and output channels.
LAYOUTS = {"OIHW": (0, (0, 1)), "HWIO": (-1, (-1, -2)), "IOHW": (1, (1, 0)), "HWOI": (-2, (-2, -1))}


@dataclass(frozen=True)
class Convolution:
    """A convolution beside a norm."""

    groups: int = 1
    inputs: int = 2  # of a group
    outputs: int = 3
    kernel: tuple = (2, 3)
    stride: int = 1
    padding: int = 0
    transposed: bool = False
    layout: str = "OIHW"
    order: str = "C"
    dtype: type = F32
    bias_dtype: type | None = F32
    before: bool = False
    options: tuple = ()
    seed: int = 0

    def made(self):
        """Return (x, weight in the order of the definition, bias or None, norm)."""
        rng = np.random.default_rng(self.seed)
        inputs, outputs = self.inputs * self.groups, self.outputs * self.groups
        first, second = (inputs, self.outputs) if self.transposed else (outputs, self.inputs)
        weight = rng.standard_normal((first, second, *self.kernel)).astype(self.dtype)
        bias = None if self.bias_dtype is None else rng.standard_normal(outputs).astype(self.bias_dtype)
        x = rng.standard_normal((2, inputs, *(k + 2 for k in self.kernel)))
        exact_before = not self.transposed and not self.padding
        shifts = exact_before if self.before else True
        bn = norm(inputs if self.before else outputs, rng, shifts=shifts, **dict(self.options))
        return x, weight, bias, bn

    def apply(self, x, weight, bias):
        """The convolution by its definition."""
        outputs = self.outputs * self.groups
        bias = np.zeros(outputs) if bias is None else bias.astype(F64)
        function = transposed_convolution if self.transposed else convolution
        return function(x, weight.astype(F64), bias, self.groups, self.stride, self.padding)

    def fold(self, weight, bias, bn):
        """Fold a weight that is laid out as users have it; return it in the order of the definition."""
        channel_axis, axes = LAYOUTS[self.layout]
        laid_out = ORDERS[self.order](np.ascontiguousarray(np.moveaxis(weight, (0, 1), axes)))
        options = {"transposed": self.transposed, "fold_before": self.before, "padding": self.padding}
        if self.transposed:  # its padding crops the output
            del options["padding"]
        if self.before or self.transposed:  # else neither norm nor bias has the channels within a group
            options["groups"] = self.groups
        with unchanged(laid_out, bias):
            folded, new_bias = nbn.fold_into_conv(laid_out, bias, bn, channel_axis=channel_axis, **options)
        assert_result_of(folded, laid_out, "weight")
        return np.moveaxis(folded, axes, (0, 1)), new_bias

    def check(self):
        """The folded convolution is the convolution and the norm, within the roundings of its weights."""
        x, weight, bias, bn = self.made()
        before = snapshot(bn)
        folded, new_bias = self.fold(weight, bias, bn)
        assert_same_state(bn, before)
        if new_bias is not None:
            assert new_bias.dtype == (self.dtype if bias is None else bias.dtype)
        sizes, absolute = np.abs(x), [None if each is None else np.abs(each) for each in (weight, bias)]
        if self.before:
            expected = self.apply(normalised(x, bn), weight, bias)
            size = self.apply(terms(sizes, bn), *absolute)
        else:
            expected = normalised(self.apply(x, weight, bias), bn)
            size = terms(self.apply(sizes, *absolute), bn)
        rounded = ROUNDINGS[self.dtype] * self.apply(sizes, np.abs(folded), None)
        # Half of the smallest number of float16, where a result is below the smallest normal one.
        rounded += (2.0**-25 if self.dtype == F16 else 0) * self.apply(sizes, np.ones_like(weight), None)
        if new_bias is not None:
            zeros = np.zeros_like(folded)
            kind = new_bias.dtype.type
            rounded += ROUNDINGS[kind] * self.apply(sizes, zeros, np.abs(new_bias)) + 2.0**-25 * (kind == F16)
        assert_close(self.apply(x, folded, new_bias), expected, 1.01 * rounded + SUMS * size, "y")


@st.composite
def convolutions(draw):
    return Convolution(
        groups=draw(st.integers(1, 3)),
        inputs=draw(st.integers(1, 3)),
        outputs=draw(st.integers(1, 3)),
        kernel=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        transposed=draw(st.booleans()),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        order=draw(st.sampled_from(sorted(ORDERS))),
        dtype=draw(st.sampled_from([F16, F32, F64])),
        bias_dtype=draw(st.sampled_from([None, F16, F32, F64])),
        before=draw(st.booleans()),
        options=(("scale", draw(st.booleans())), ("dtype", draw(st.sampled_from([F32, F64])))),
        seed=draw(st.integers(0, 99)),
    )


# Convolutions -----------------------------------------------------------------------------------------------


@settings(max_examples=200 if JIT else 50)
@given(convolutions())
def test_any_convolution(problem):
    problem.check()


NAMED = {
    "plain": Convolution(),
    "of PyTorch with groups": Convolution(groups=2, stride=2, padding=1),
    "of Keras": Convolution(layout="HWIO", padding=1),
    "depthwise": Convolution(groups=4, inputs=1, outputs=2),
    "1x1": Convolution(kernel=(1, 1), bias_dtype=None),
    "3-D": Convolution(kernel=(1, 2, 2)),
    "transposed of PyTorch": Convolution(transposed=True, stride=2, padding=1),
    "transposed with groups": Convolution(transposed=True, groups=3, stride=2),
    "transposed of Keras": Convolution(transposed=True, layout="HWIO"),
    "transposed of Flax": Convolution(transposed=True, layout="HWOI"),
    "behind the norm": Convolution(before=True),
    "behind the norm, of Keras with groups": Convolution(before=True, layout="HWIO", groups=2),
    "behind the norm, depthwise": Convolution(before=True, groups=4, inputs=1, outputs=2, bias_dtype=None),
    "padded behind a norm without shift": Convolution(before=True, padding=1, groups=2),
    "transposed behind a norm without shift": Convolution(before=True, transposed=True, groups=2),
    "no gamma, no beta": Convolution(options=(("scale", False), ("center", False))),
    "instance norm": Convolution(options=(("kind", nbn.InstanceNorm), ("track_running_stats", True))),
    "exact population": Convolution(options=(("momentum", None),)),
}


@pytest.mark.parametrize("name", NAMED)
def test_convolution(name):
    NAMED[name].check()


def test_layouts_of_one_weight_fold_to_the_same_bits():
    found = []
    for layout in LAYOUTS:
        problem = Convolution(layout=layout, transposed=True, groups=2)
        _, weight, bias, bn = problem.made()
        found.append(problem.fold(weight, bias, bn))
    for weight, bias in found[1:]:
        assert_same_bits(weight, found[0][0], "weight")
        assert_same_bits(bias, found[0][1], "bias")


def test_a_depthwise_weight_of_keras():
    """(H, W, I, M) in the shape that the docstring names; output i * M + m is of input i."""
    rng = np.random.default_rng(0)
    weight, bn = rng.standard_normal((2, 2, 3, 2)), norm(6, rng)
    folded, _ = nbn.fold_into_conv(weight.reshape(2, 2, 1, 6), None, bn, channel_axis=-1)
    scale, _ = bn.affine()
    np.testing.assert_allclose(folded.reshape(2, 2, 3, 2), weight * scale.reshape(3, 2), rtol=1e-15)


def torch_without_warnings():
    return pytest.importorskip("torch", exc_type=ImportError)


@pytest.mark.parametrize(("transposed", "groups"), [(False, 1), (False, 3), (True, 1)])
def test_as_pytorch_fuses(transposed, groups):
    torch = torch_without_warnings()
    fusion = pytest.importorskip("torch.nn.utils.fusion")
    torch.manual_seed(0)
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    conv, peer = kind(6, 9, 3, groups=groups), torch.nn.BatchNorm2d(9)
    rng = np.random.default_rng(0)
    bn = norm(9, rng)
    names = {"gamma": "weight", "beta": "bias"}
    state = {names.get(name, name): torch.from_numpy(value) for name, value in bn.state_dict().items()}
    peer.load_state_dict(state)
    fused = fusion.fuse_conv_bn_eval(conv.eval(), peer.eval(), transpose=transposed)
    weight, bias = (p.detach().numpy() for p in (conv.weight, conv.bias))
    folded, new_bias = nbn.fold_into_conv(weight, bias, bn, groups=groups, transposed=transposed)
    # PyTorch computes in float32: the scale has three roundings, each weight one more; the bias cancels.
    np.testing.assert_allclose(folded, fused.weight.detach().numpy(), rtol=4e-7)
    np.testing.assert_allclose(new_bias, fused.bias.detach().numpy(), rtol=1e-6, atol=4e-6)


def test_transposed_convolutions_with_groups_of_pytorch():
    """Which PyTorch itself does not fuse; x passes through its convolution."""
    torch = torch_without_warnings()
    problem = Convolution(transposed=True, groups=3, stride=2, padding=1)
    x, weight, bias, bn = problem.made()
    options = {"stride": 2, "padding": 1, "groups": 3}

    def convolved(*arrays):
        tensors = (torch.from_numpy(each.astype(F64)) for each in (x, *arrays))
        return torch.nn.functional.conv_transpose2d(*tensors, **options).numpy()

    expected = normalised(convolved(weight, bias), bn)
    found = convolved(*nbn.fold_into_conv(weight, bias, bn, groups=3, transposed=True))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


# Dense layers -----------------------------------------------------------------------------------------------


@settings(max_examples=100 if JIT else 40)
@given(
    st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), st.sampled_from([F16, F32, F64]),
    st.sampled_from([None, F16, F32, F64]), st.sampled_from(sorted(ORDERS)), st.integers(0, 99),
)  # fmt: skip
def test_any_dense_layer(inputs, outputs, before, of_pytorch, dtype, bias_dtype, order, seed):
    """A dense layer is a convolution of one pixel; (I, O) or (O, I)."""
    problem = Convolution(
        1, inputs, outputs, (1,), dtype=dtype, bias_dtype=bias_dtype, before=before, seed=seed
    )

    class Dense(Convolution):
        def fold(self, weight, bias, bn):
            matrix = weight[..., 0] if of_pytorch else weight[..., 0].T
            matrix = ORDERS[order](np.ascontiguousarray(matrix))
            options = {"channel_axis": 0} if of_pytorch else {}
            with unchanged(matrix, bias):
                folded, new_bias = nbn.fold_into_dense(matrix, bias, bn, fold_before=before, **options)
            assert_result_of(folded, matrix, "weight")
            return (folded if of_pytorch else folded.T)[..., None], new_bias

    Dense(**vars(problem)).check()


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_folded_layer_is_layer_and_norm_in_float32(axis, before):
    """Within 1e-6 of the sizes of the terms, through the layer itself.

    Each of 8 products and their sum is rounded by 6e-8 on either side, and the norm by as much: in the worst
    case 1.2e-6 together, of which the tenth is usual, since roundings do not all point in one direction.
    """
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((8, 8), F32), rng.standard_normal(8, F32)
    x = rng.standard_normal((50, 8), F32) + 1
    bn = norm(8, rng, axis=axis).eval()
    expected = bn(x) @ weight + bias if before else bn(x @ weight + bias)
    folded, new_bias = nbn.fold_into_dense(weight, bias, bn, fold_before=before)
    size = np.abs(x) @ np.abs(folded) + np.abs(new_bias)
    assert folded.dtype == new_bias.dtype == F32
    assert_close(x @ folded + new_bias, expected.astype(F64), 1e-6 * size, "y")


def test_the_mode_of_the_norm_does_not_matter():
    rng = np.random.default_rng(0)
    weight, bn = rng.standard_normal((3, 2)), norm(2, rng)
    first, second = (nbn.fold_into_dense(weight, None, layer) for layer in (bn.train(), bn.eval()))
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b, "folded")


def test_bfloat16_stays_bfloat16():
    """It has 8 bits: one rounding is at most 2**-8 of the value."""
    rng = np.random.default_rng(0)
    bn, exact = norm(2, rng), rng.standard_normal((3, 2))
    weight = exact.astype(ml_dtypes.bfloat16)
    folded, bias = nbn.fold_into_dense(weight, None, bn)
    assert folded.dtype == bias.dtype == ml_dtypes.bfloat16
    scale, shift = bn.affine()
    np.testing.assert_allclose(folded.astype(F64), weight.astype(F64) * scale, rtol=2.0**-8)
    np.testing.assert_allclose(bias.astype(F64), shift, rtol=2.0**-8)


def test_nan_stays_in_its_channel():
    bn = nbn.BatchNorm(3)
    bn.running_mean[:], bn.running_var[:] = [0, np.nan, np.inf], [np.inf, 1, 1]
    weight, bias = nbn.fold_into_dense(np.ones((2, 3)), None, bn)
    np.testing.assert_array_equal(np.isnan(weight), False)
    np.testing.assert_array_equal(weight[:, 0], 0)
    np.testing.assert_array_equal(bias, [0, np.nan, -np.inf])


def test_a_signalling_nan_neither_warns_nor_raises():
    weight = np.ones((2, 3), F32)
    weight.view(np.uint32)[0, 0] = 0x7F800001
    bn = nbn.BatchNorm(3)
    bn.running_mean.view(np.uint32)[2] = 0x7F800001
    folded, bias = nbn.fold_into_dense(weight, None, bn)
    np.testing.assert_array_equal(np.isnan(folded), np.isnan(weight))
    np.testing.assert_array_equal(np.isnan(bias), [False, False, True])


# The map ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, F32, F64])
@pytest.mark.parametrize(("scale", "center"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", [nbn.BatchNorm, nbn.InstanceNorm])
@pytest.mark.parametrize("axis", [1, -1])
def test_affine_is_the_map_of_evaluation_mode(axis, kind, scale, center, dtype):
    """Where the mean is as large as the standard deviation x * scale + shift has all digits of float64."""
    rng = np.random.default_rng(0)
    options = {"track_running_stats": True, "dtype": dtype, "axis": axis}
    bn = norm(4, rng, kind, scale=scale, center=center, **options)
    x = rng.standard_normal((3, 4, 4, 4))
    found = bn.affine()
    for each in found:
        assert each.dtype == F64
        assert each.shape == (4,)
    factor, shift = (each if axis == -1 else each[:, None, None] for each in found)
    np.testing.assert_allclose(x * factor + shift, bn.eval()(x), rtol=0, atol=1e-13)


def test_affine_of_a_new_layer_changes_nothing_but_by_eps():
    scale, shift = nbn.BatchNorm(2, eps=3.0).affine()
    np.testing.assert_array_equal(scale, [0.5, 0.5])
    np.testing.assert_array_equal(shift, [0, 0])


def test_affine_gives_new_arrays_and_changes_nothing():
    bn = norm(3, np.random.default_rng(0), dtype=F64)
    before = snapshot(bn)
    for each in (*bn.affine(), *nbn.fold_into_dense(np.ones((2, 3)), None, bn)):
        each += 1
    assert_same_state(bn, before)


def test_a_result_is_no_view_of_the_bias():
    bias, bn = np.zeros(3), nbn.BatchNorm(2, center=False)
    _, same = nbn.fold_into_conv(np.ones((2, 3, 1)), bias, bn, transposed=True, fold_before=True)
    assert not np.shares_memory(same, bias)


def test_a_variance_of_zero_has_a_scale_by_eps():
    bn = nbn.BatchNorm(1, eps=0.25)
    bn.running_mean[:], bn.running_var[:] = 3, 0
    scale, shift = bn.affine()
    np.testing.assert_array_equal([scale, shift], [[2], [-6]])
