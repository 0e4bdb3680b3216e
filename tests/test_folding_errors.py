"""What cannot be folded: each message names the argument, what it was, and what would be right."""

import ml_dtypes
import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_same_bits, unchanged
from tests.support.layers import assert_same_state, snapshot
from tests.support.refusals import bad, check_refused

F16, F32 = np.float16, np.float32


def with_variance(value, **options):
    bn = nbn.BatchNorm(3, **options)
    bn.running_var[1] = value
    return bn


def shifting(channels):
    bn = nbn.BatchNorm(channels)
    bn.params["beta"][1] = 0.5
    return bn


def far():
    bn = nbn.BatchNorm(3)
    bn.running_mean[:] = 1e5
    return bn


def dense(weight=np.ones((4, 3), F32), bias=None, bn=None, **options):  # noqa: B008 - never written
    return nbn.fold_into_dense(weight, bias, nbn.BatchNorm(3) if bn is None else bn, **options)


def conv(shape=(3, 4, 2, 2), channels=3, bias=None, bn=None, **options):
    bn = nbn.BatchNorm(channels) if bn is None else bn
    return nbn.fold_into_conv(np.ones(shape, F32), bias, bn, **options)


NO_STATISTICS = "BatchNorm(3 | no running statistics | track_running_stats=True"
REFUSED = [
    bad("layer norm", lambda w: dense(bn=nbn.LayerNorm(3)), TypeError, "bn | BatchNorm | not LayerNorm"),
    bad("group norm", lambda w: conv(bn=nbn.GroupNorm(1, 3)), TypeError, "bn | InstanceNorm | GroupNorm"),
    bad("swapped", lambda w: nbn.fold_into_dense(w.layer, None, w.x), TypeError, "weight | NumPy array"),
    bad("no statistics", lambda w: dense(bn=nbn.BatchNorm(3, track_running_stats=False)), ValueError,
        NO_STATISTICS),
    bad("instance norm", lambda w: dense(bn=nbn.InstanceNorm(3)), ValueError,
        "InstanceNorm(3 | no running statistics | track_running_stats=True"),
    bad("affine without", lambda w: nbn.BatchNorm(3, track_running_stats=False).affine(), ValueError,
        NO_STATISTICS),
    bad("activation", lambda w: dense(bn=nbn.BatchNorm(3, activation="relu")), ValueError,
        "behind | activation='relu' | cannot be folded | to None"),
    bad("activation between", lambda w: conv(bn=nbn.BatchNorm(4, activation="relu6"), fold_before=True),
        ValueError, "in front of | activation='relu6' | cannot be folded"),
    bad("negative variance", lambda w: with_variance(-2).affine(), ValueError,
        "running_var[1] is -2.0 | must not be negative"),
    bad("negative, folded", lambda w: dense(bn=with_variance(-2)), ValueError, "running_var[1] is -2.0"),
    bad("no variance", lambda w: with_variance(0, eps=0.0).affine(), ValueError,
        "running_var[1] | eps | infinite | eps > 0"),
    bad("list", lambda w: dense([[1.0]]), TypeError, "weight | numpy.asarray(weight"),
    bad("int8", lambda w: dense(np.ones((4, 3), np.int8)), TypeError, "weight | int8 | floating"),
    bad("longdouble", lambda w: dense(np.ones((4, 3), np.longdouble)), TypeError, "weight | float16"),
    bad("8 bits", lambda w: dense(np.ones((4, 3), ml_dtypes.float8_e5m2)), TypeError, "weight | float8_e5m2"),
    bad("dense axis 2", lambda w: dense(channel_axis=2), ValueError, "channel_axis | -1 | (I, O) | not 2"),
    bad("complex", lambda w: dense(np.ones((4, 3), complex)), TypeError, "weight | complex128 | floating"),
    bad("rank 3", lambda w: dense(np.ones((1, 4, 3))), ValueError, "weight | (1, 4, 3) | (I, O) or (O, I)"),
    bad("rank 2", lambda w: conv((3, 4)), ValueError, "weight | (3, 4) | kernel | fold_into_dense"),
    bad("bias list", lambda w: dense(bias=[0.0] * 3), TypeError, "bias | numpy.asarray(bias"),
    bad("bias int", lambda w: dense(bias=np.zeros(3, int)), TypeError, "bias | int64 | floating"),
    bad("bias shape", lambda w: dense(bias=np.zeros(4)), ValueError, "bias | (4,) | (4, 3) | must be (3,)"),
    bad("bias rank", lambda w: dense(bias=np.zeros((1, 3))), ValueError, "bias | (1, 3) | must be (3,)"),
    bad("bias of inputs", lambda w: conv(bn=shifting(4), bias=np.zeros(4), fold_before=True), ValueError,
        "bias | (4,) | (3, 4, 2, 2) | (3,)"),
    bad("bias of groups", lambda w: conv((2, 4, 2), 8, np.zeros(4), groups=2, transposed=True),
        ValueError, "bias | (4,) | (2, 4, 2) | (8,)"),
    bad("bias, transposed, before", lambda w: conv(bias=np.zeros(5), transposed=True, fold_before=True),
        ValueError, "bias | (5,) | (4,)"),
    bad("nothing in a group", lambda w: conv((3, 0, 2), bias=np.ones(4), transposed=True, fold_before=True),
        ValueError, "bias | (4,) | (0,)"),
    bad("dense channels", lambda w: dense(np.ones((4, 5), F32)), ValueError,
        "weight | (4, 5) | 5 output channels on axis 1 | num_channels=3 | channel_axis | fold_before=True"),
    bad("dense axis", lambda w: dense(channel_axis=0), ValueError,
        "4 output channels on axis 0 | channel_axis"),
    bad("dense before", lambda w: dense(fold_before=True), ValueError,
        "4 input channels on axis 0 | num_channels=3 | in front of | fold_before=False"),
    bad("dense has no groups", lambda w: dense(np.ones((3, 4)), bn=nbn.BatchNorm(6), fold_before=True),
        ValueError, "3 input channels on axis 0 | num_channels=6"),
    bad("conv channels", lambda w: conv(channels=4), ValueError,
        "(3, 4, 2, 2) | 3 output channels on axis 0 | num_channels=4 | channel_axis, groups and transposed"),
    bad("conv before", lambda w: conv(fold_before=True), ValueError,
        "4 input channels per group on axis 1, and groups=1 | num_channels=3"),
    bad("transposed", lambda w: conv(transposed=True), ValueError,
        "4 output channels per group on axis 1 | num_channels=3"),
    bad("outputs are no inputs", lambda w: conv((8, 4, 3, 3), 8, fold_before=True), ValueError,
        "4 input channels per group on axis 1, and groups=1 | num_channels=8"),
    bad("groups", lambda w: conv(channels=8, fold_before=True, groups=2), ValueError,
        "groups | the 3 channels on axis 0 | (3, 4, 2, 2) | not 2"),
    bad("no groups", lambda w: conv(groups=0), ValueError, "groups | not 0"),
    bad("groups of float", lambda w: conv(groups=1.0), TypeError, "groups | integer | 1.0"),
    bad("keras depthwise", lambda w: conv((2, 2, 3, 1), channel_axis=-1), ValueError, "1 output channels"),
    bad("axis 2", lambda w: conv(channel_axis=2), ValueError, "channel_axis | 0 or 1 | -1 or -2 | not 2"),
    bad("axis of text", lambda w: conv(channel_axis="O"), TypeError, "channel_axis | integer | 'O'"),
    bad("padding unknown", lambda w: conv(bn=shifting(4), fold_before=True), ValueError,
        "in front | shifts channel 1 by 0.5 | padding is not given | pass 0 | zeros"),
    bad("padded", lambda w: conv(bn=shifting(4), fold_before=True, padding=1), ValueError,
        "in front | shifts channel 1 by 0.5 | padding is 1 | zeros | keep it"),
    bad("padding pairs", lambda w: conv(bn=shifting(4), fold_before=True, padding=((0, 0), (0, 1))),
        ValueError, "padding is ((0, 0), (0, 1)) | zeros"),
    bad("padding same", lambda w: conv(bn=shifting(4), fold_before=True, padding="SAME"), ValueError,
        "padding is 'SAME'"),
    bad("transposed before", lambda w: conv((3, 4, 1, 1), bn=shifting(3), fold_before=True, transposed=True),
        ValueError, "shifts channel 1 by 0.5 | transposed | different numbers"),
    bad("padding negative", lambda w: conv(padding=(0, -1)), ValueError, "padding | negative | (0, -1)"),
    bad("padding text", lambda w: conv(padding="reflect"), ValueError, "padding | 'same' | 'reflect'"),
    bad("padding float", lambda w: conv(padding=0.5), TypeError, "padding | integer | 0.5"),
    bad("beyond float16", lambda w: dense(np.full((4, 3), 1e4, F16), bn=with_variance(0)), ValueError,
        "folded weight | 3.16 | float16 | wider dtype"),
    bad("beyond float64", lambda w: dense(np.full((4, 3), 1e307), bn=with_variance(0)), ValueError,
        "folded weight | inf | float64"),
    bad("no bias beyond float16", lambda w: dense(np.ones((4, 3), F16), bn=far()), ValueError,
        "folded bias | float16 | pass a bias of a wider dtype"),
    bad("bias beyond float16", lambda w: dense(bias=np.full(3, 1e4, F16), bn=with_variance(0)), ValueError,
        "folded bias | float16 | wider dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "fragments"), REFUSED)
def test_refusals(call, error, fragments):
    check_refused(call, error, fragments)


def test_a_refusal_changes_nothing():
    weight, bias, bn = np.ones((3, 4, 2, 2), F32), np.ones(3, F32), shifting(4)
    before = snapshot(bn)
    with unchanged(weight, bias), pytest.raises(ValueError, match="padding is 1"):
        nbn.fold_into_conv(weight, bias, bn, fold_before=True, padding=1)
    assert_same_state(bn, before)


EXACT_PADDINGS = {
    "valid": (2, 2), "VALID": (2, 2), "same": (1, 1), "causal": (1,), 0: (2, 2), (0, 0): (2, 2),
    ((0, 0), (0, 0)): (2, 2),
}  # fmt: skip


@pytest.mark.parametrize("padding", EXACT_PADDINGS)
def test_paddings_without_zeros_fold(padding):
    weight = np.ones((3, 4, *EXACT_PADDINGS[padding]), F32)
    _, bias = nbn.fold_into_conv(weight, None, shifting(4), fold_before=True, padding=padding)
    np.testing.assert_array_equal(bias, 0.5 * weight[0, 0].size)


def test_padding_behind_which_the_norm_is_does_not_matter():
    weight = np.ones((3, 4, 2, 2), F32)
    results = [nbn.fold_into_conv(weight, None, shifting(3), padding=padding) for padding in (0, 1, "same")]
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert_same_bits(a, b, "folded")
