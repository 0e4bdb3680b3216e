"""What instance norm has and group norm does not: known statistics, and running statistics of its layer.

What both have is tested together, in the tests of group norm.
"""

import itertools

import numpy as np
import pytest

import numbabn as nbn
from tests.support import groups, reference
from tests.support.checks import NAMES, assert_close, assert_same_bits, check_backward, check_inference
from tests.support.jit import needs_jit
from tests.support.layers import assert_same_state, batches, snapshot
from tests.support.problems import Problem

# Known statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "sliced"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 4), 1), ((3, 4, 6), 1), ((3, 4, 5, 7), 1), ((3, 5, 6, 4), -1), ((3, 5, 4, 6), 2), ((4, 6), 0)],
)
def test_known_statistics(shape, axis, dtype, layout):
    """They are constants, one pair for each channel: the inference of batch norm, and its gradients."""
    problem = Problem(shape, axis, dtype, layout=layout)
    x, dy, parameters, (mean, var) = (
        problem.x(),
        problem.dy(),
        (problem.gamma(), problem.beta()),
        problem.given(),
    )
    y, saved = nbn.instance_norm_forward(x, *parameters, mean=mean, var=var, **problem.options)
    check_inference(y, problem, x, mean, var)
    assert_same_bits(y, nbn.batch_norm_inference(x, mean, var, *parameters, **problem.options), "y")
    assert not saved.training
    assert saved.mean.shape == saved.var.shape == (problem.channels,)
    assert_same_bits(saved.mean, mean, "mean")
    assert repr(saved).startswith(f"Saved(instance_norm, statistics=({problem.channels},), count=")
    gradients = nbn.instance_norm_backward(dy, saved)
    check_backward(gradients, problem, True, x, dy)
    for needs in itertools.product([True, False], repeat=3):
        options = dict(zip(("need_dx", "need_dgamma", "need_dbeta"), needs, strict=True))
        for need, result, expected in zip(
            needs, nbn.instance_norm_backward(dy, saved, **options), gradients, strict=True
        ):
            assert (result is None) != need
            if need:
                assert_same_bits(result, expected, "a gradient")


def test_known_statistics_in_place_and_of_lists():
    problem = Problem((3, 4, 5))
    x, dy, (mean, var) = problem.x(), problem.dy(), problem.given()
    y, saved = nbn.instance_norm_forward(x, mean=mean, var=var)
    listed, _ = nbn.instance_norm_forward(x, mean=mean.tolist(), var=tuple(var))
    assert_same_bits(listed, y, "y")
    dx = nbn.instance_norm_backward(dy, saved)[0]
    assert nbn.instance_norm_backward(dy, saved, out=dy)[0] is dy
    assert_same_bits(dy, dx, "dx")
    again, saved = nbn.instance_norm_forward(x, mean=mean, var=var, out=x)
    assert again is x
    assert_same_bits(x, y, "y")
    with pytest.raises(ValueError, match="out=x"):
        nbn.instance_norm_backward(dy, saved)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)], ids=str)
def test_known_statistics_of_nothing(shape):
    x = np.zeros(shape, np.float32)
    y, saved = nbn.instance_norm_forward(x, np.ones(3), np.ones(3), mean=np.zeros(3), var=np.ones(3))
    dx, dgamma, dbeta = nbn.instance_norm_backward(x, saved)
    assert y.shape == dx.shape == shape
    assert dgamma.tolist() == dbeta.tolist() == [0, 0, 0]


# Running statistics -----------------------------------------------------------------------------------------


def tracking(**options):
    return nbn.InstanceNorm(3, track_running_stats=True, **options)


def statistics_of(x, axis):
    """Means over all samples of the means and of the unbiased variances of their channels."""
    count, mean, m2 = reference.moments(groups.by_group(x, axis, 3), 0)
    return mean.reshape(-1, 3).mean(axis=0), (m2 / (count - 1)).reshape(-1, 3).mean(axis=0)


@pytest.mark.parametrize("momentum", [0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_running_statistics(axis, dtype, momentum):
    for x_dtype in (np.float32, np.float64):
        layer = tracking(momentum=momentum, dtype=dtype, axis=axis)
        mean, var = np.zeros(3), np.ones(3)
        assert_same_bits(layer.running_mean, mean.astype(dtype), "running_mean")
        assert_same_bits(layer.running_var, var.astype(dtype), "running_var")
        for i, x in enumerate(batches([4, 1, 9, 2], dtype=x_dtype), 1):
            x = np.moveaxis(x, 1, axis)
            y = layer(x)
            assert_same_bits(y, nbn.instance_norm_forward(x, axis=axis)[0], "y")
            assert layer.num_batches_tracked == i
            batch_mean, batch_var = statistics_of(x, axis)
            mean = (1 - momentum) * mean + momentum * batch_mean
            var = (1 - momentum) * var + momentum * batch_var
            # Rounded to the dtype of the layer once or twice a step, and float32 sums in those of the batch.
            error = 4 * i * max(np.finfo(dtype).eps, np.finfo(x_dtype).eps)
            assert layer.running_mean.dtype == layer.running_var.dtype == dtype
            assert_close(layer.running_mean, mean, error * (np.abs(mean) + 1), "running_mean")
            assert_close(layer.running_var, var, error * (var + 1), "running_var")


@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 700])
@pytest.mark.parametrize("channels", [1, 3, 40])
def test_means_over_samples(channels, samples):
    """Of any number of samples, of one channel as well: with momentum 1, those of the last batch."""
    x = Problem((samples, channels, 2), dtype=np.float64, offset=5.0).x()
    layer = nbn.InstanceNorm(channels, track_running_stats=True, momentum=1.0, dtype=np.float64)
    layer(x)
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=2).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, x.var(axis=2, ddof=1).mean(axis=0), rtol=1e-12)


def test_evaluation_mode_uses_the_running_statistics():
    layer = tracking(scale=True, center=True)
    layer.params["gamma"][:], layer.params["beta"][:] = [1.0, 2.0, -1.0], [0.5, 0.0, 3.0]
    for x in batches([4, 6]):
        layer(x)
    before = snapshot(layer.eval())
    problem = Problem((5, 3, 4))
    x, dy, affine = problem.x(), problem.dy(), (layer.params["gamma"], layer.params["beta"])
    known = {"mean": layer.running_mean, "var": layer.running_var}
    y, saved = nbn.instance_norm_forward(x, *affine, **known)
    expected = nbn.instance_norm_backward(dy, saved)
    assert_same_bits(layer(x), y, "y")
    assert_same_state(layer, before)
    results = layer.backward(dy), layer.grads["gamma"], layer.grads["beta"]
    for name, a, b in zip(NAMES, results, expected, strict=True):
        assert_same_bits(a, b, name)
    assert_close(y, reference.forward(x, *affine, **known), 1e-5, "y")
    assert_same_bits(layer(x[:2]), y[:2], "y of two samples")
    out = problem.out("sliced")
    assert layer(x, out=out) is out
    assert_same_bits(out, y, "y in out")
    assert layer(x, out=x) is x
    assert_same_bits(x, y, "y in place")
    with pytest.raises(ValueError, match="out=x"):
        layer.backward(dy)
    layer.train()(problem.x())
    assert layer.num_batches_tracked == 3


def test_without_tracking():
    """There are no statistics, and evaluation mode takes those of every sample."""
    layer = nbn.InstanceNorm(3)
    problem = Problem((5, 3, 4))
    assert layer.running_mean is layer.running_var is None
    assert layer.num_batches_tracked == 0
    y, dx = layer(problem.x()), layer.backward(problem.dy())
    layer.eval()
    assert_same_bits(layer(problem.x()), y, "y")
    assert_same_bits(layer.backward(problem.dy()), dx, "dx")


def test_frozen_stats():
    layer = tracking()
    x, other = batches([4, 6])
    layer(x)
    before = snapshot(layer)
    with layer.frozen_stats() as inside, layer.frozen_stats():
        assert inside is layer
        y = layer(other)
        assert_same_bits(y, nbn.instance_norm_forward(other)[0], "y")
    with layer.frozen_stats():
        layer(other)
    assert_same_state(layer, before)
    layer(other)
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (0, 3, 1)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_empty_batches_are_not_tracked(training, shape):
    layer = tracking()
    layer(batches([4])[0])
    layer.training = training
    before = snapshot(layer)
    x = np.zeros(shape, np.float32)
    assert layer(x).shape == layer.backward(x).shape == shape
    assert_same_state(layer, before)


@needs_jit
def test_a_sample_of_nan_is_in_the_running_statistics_of_its_channel():
    x = batches([4])[0]
    layer, clean = tracking(), tracking()
    clean(x)
    x[1, 2, 0, 0] = np.nan
    with np.errstate(all="raise"):
        layer(x)
    assert np.isnan([layer.running_mean[2], layer.running_var[2]]).all()
    assert_same_bits(layer.running_mean[:2], clean.running_mean[:2], "running_mean")
    assert_same_bits(layer.running_var[:2], clean.running_var[:2], "running_var")
    layer(batches([4])[0])
    assert layer.num_batches_tracked == 2


def test_state_is_that_of_batch_norm():
    """A state dictionary goes from one layer to the other, as in PyTorch."""
    layer, batch = tracking(scale=True, center=True), nbn.BatchNorm(3)
    for x in batches([4, 6]):
        layer(x), batch(x)
    layer.load_state_dict(batch.state_dict())
    x = batches([5], seed=3)[0]
    assert_same_bits(layer.eval()(x), batch.eval()(x), "y")
