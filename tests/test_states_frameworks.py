"""States that PyTorch, Keras, Flax and scikit-learn themselves have written: evaluation gives the same.

Everything is float64, so that two implementations differ by some of its roundings only: the values are below
100, a rounding of them is 1e-14, and 1e-11 is allowed. Keras computes norms in float32 whatever their dtype:
x and its means are rounded to 2e-6, and 1e-5 is allowed.
"""

import importlib
import os
import warnings

import numpy as np
import pytest

import numbabn as nbn
from numbabn import states
from tests.support.checks import assert_same_bits

X = np.random.default_rng(0).normal(3, 5, (8, 6, 4, 5))
NEW = np.random.default_rng(1).normal(2, 4, (8, 6, 4, 5))
NHWC, NEW_NHWC = np.moveaxis(X, 1, -1), np.moveaxis(NEW, 1, -1)
DOUBLE = {"dtype": np.float64}


def imported(name):
    """Import a framework, which may warn of its own dependencies, or skip the test."""
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], exc_type=ImportError)
        return importlib.import_module(name)


def assert_same_results(found, expected, atol=1e-11):
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=atol)


def scrambled(shape, seed):
    """Values for a parameter, none of which is that of another place."""
    return np.random.default_rng(seed).normal(1, 0.5, shape)


# PyTorch ----------------------------------------------------------------------------------------------------

TORCH = {
    "BatchNorm2d": (
        lambda nn: nn.BatchNorm2d(6, eps=1e-3, momentum=0.3),
        lambda: nbn.BatchNorm(6, eps=1e-3, momentum=0.3, **DOUBLE),
    ),
    "BatchNorm2d without parameters": (
        lambda nn: nn.BatchNorm2d(6, affine=False),
        lambda: nbn.BatchNorm(6, scale=False, center=False, **DOUBLE),
    ),
    "BatchNorm2d without statistics": (
        lambda nn: nn.BatchNorm2d(6, track_running_stats=False),
        lambda: nbn.BatchNorm(6, track_running_stats=False, **DOUBLE),
    ),
    "InstanceNorm2d": (lambda nn: nn.InstanceNorm2d(6), lambda: nbn.InstanceNorm(6, **DOUBLE)),
    "InstanceNorm2d with statistics": (
        lambda nn: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        lambda: nbn.InstanceNorm(6, scale=True, center=True, track_running_stats=True, **DOUBLE),
    ),
    "GroupNorm": (lambda nn: nn.GroupNorm(3, 6), lambda: nbn.GroupNorm(3, 6, **DOUBLE)),
    "LayerNorm": (lambda nn: nn.LayerNorm((4, 5)), lambda: nbn.LayerNorm((4, 5), **DOUBLE)),
    "LayerNorm without bias": (
        lambda nn: nn.LayerNorm(5, bias=False),
        lambda: nbn.LayerNorm(5, center=False, **DOUBLE),
    ),
    "RMSNorm": (lambda nn: nn.RMSNorm(5), lambda: nbn.RMSNorm(5, **DOUBLE)),
}


@pytest.mark.parametrize(("theirs", "ours"), TORCH.values(), ids=TORCH)
def test_torch(theirs, ours):
    torch = imported("torch")
    module = theirs(torch.nn).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.as_tensor(scrambled(parameter.shape, seed)))
        for scale in (1, 2, 3):
            module(torch.from_numpy(X * scale))
        expected = module.eval()(torch.from_numpy(NEW)).numpy()
    layer = states.from_state(ours(), module.state_dict())
    assert_same_results(layer.eval()(NEW), expected)
    written = states.to_state(layer)
    for name, value in module.state_dict().items():
        assert_same_bits(written[name], value.numpy(), name)
    twin = theirs(torch.nn).double()
    twin.load_state_dict({name: torch.as_tensor(value) for name, value in written.items()})  # strict
    assert_same_bits(twin.eval()(torch.from_numpy(NEW)).detach().numpy(), expected, "y")


def test_torch_goes_on_training():
    """momentum is the same: the running statistics of one step more agree."""
    torch = imported("torch")
    module = torch.nn.BatchNorm2d(6, momentum=0.3).double()
    module(torch.from_numpy(X))
    bn = states.from_state(nbn.BatchNorm(6, momentum=0.3, **DOUBLE), module.state_dict())
    module(torch.from_numpy(NEW)), bn(NEW)
    assert_same_results(bn.running_mean, module.running_mean)
    assert_same_results(bn.running_var, module.running_var)
    assert bn.num_batches_tracked == 2


def test_torch_model():
    torch = imported("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 1), torch.nn.BatchNorm2d(6))
    with pytest.raises(KeyError, match='convention="torch", prefix="1"'):
        nbn.BatchNorm(6).load_state_dict(model.state_dict())
    bn = states.from_state(nbn.BatchNorm(6), model.state_dict(), prefix="1")
    assert_same_bits(bn.running_var, model[1].running_var.numpy(), "running_var")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_torch_parameters_that_require_grad(kind):
    """Also of bfloat16, which NumPy reads neither."""
    torch = imported("torch")
    module = torch.nn.RMSNorm(5, dtype=getattr(torch, kind))
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(scrambled(5, 0)))
    rms = states.from_state(nbn.RMSNorm(5), dict(module.named_parameters()))
    assert_same_bits(rms.params["gamma"], module.weight.detach().float().numpy(), "gamma")


def test_safetensors(tmp_path):
    safetensors = imported("safetensors.numpy")
    bn = nbn.BatchNorm(6)
    bn(X.astype(np.float32))
    safetensors.save_file(states.to_state(bn, prefix="bn1"), tmp_path / "bn.safetensors")
    file = safetensors.load_file(tmp_path / "bn.safetensors")
    twin = states.from_state(nbn.BatchNorm(6), file, prefix="bn1")
    for name, value in bn.state_dict().items():
        assert_same_bits(twin.state_dict()[name], value, name)


# Keras ------------------------------------------------------------------------------------------------------

KERAS = {
    "BatchNormalization": (
        lambda layers: layers.BatchNormalization(),
        lambda: nbn.BatchNorm(6, axis=-1, eps=1e-3, momentum=0.01, **DOUBLE),
    ),
    "BatchNormalization without gamma": (
        lambda layers: layers.BatchNormalization(scale=False),
        lambda: nbn.BatchNorm(6, axis=-1, eps=1e-3, momentum=0.01, scale=False, **DOUBLE),
    ),
    "GroupNormalization": (
        lambda layers: layers.GroupNormalization(groups=3),
        lambda: nbn.GroupNorm(3, 6, axis=-1, eps=1e-3, **DOUBLE),
    ),
    "GroupNormalization as instance norm": (
        lambda layers: layers.GroupNormalization(groups=-1),
        lambda: nbn.InstanceNorm(6, axis=-1, eps=1e-3, scale=True, center=True, **DOUBLE),
    ),
    "LayerNormalization": (
        lambda layers: layers.LayerNormalization(axis=(-2, -1)),
        lambda: nbn.LayerNorm((5, 6), eps=1e-3, **DOUBLE),
    ),
    "RMSNormalization": (
        lambda layers: layers.RMSNormalization(),
        lambda: nbn.RMSNorm(6, eps=1e-6, **DOUBLE),
    ),
}


@pytest.fixture
def keras():
    """Keras with variables of float64, on NumPy unless KERAS_BACKEND says otherwise."""
    module = imported("keras")
    policy = module.config.dtype_policy()
    module.config.set_dtype_policy("float64")
    with warnings.catch_warnings():  # NumPy's, since a variable's __array__ has no copy
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        yield module
    module.config.set_dtype_policy(policy)


@pytest.mark.parametrize(("theirs", "ours"), KERAS.values(), ids=KERAS)
def test_keras(theirs, ours, keras):
    module = theirs(keras.layers)
    module.build(NHWC.shape)
    for seed, variable in enumerate(module.trainable_variables):
        variable.assign(scrambled(variable.shape, seed))
    for scale in (1, 2, 3):
        module(NHWC * scale, training=True)
    expected = keras.ops.convert_to_numpy(module(NEW_NHWC, training=False))
    mapping = {variable.path: variable for variable in module.variables}
    layer = states.from_state(ours(), mapping, "keras", prefix=module.name)
    assert_same_results(layer.eval()(NEW_NHWC), expected, 1e-5)
    written = states.to_state(layer, "keras", prefix=module.name)
    assert list(written) == list(mapping)
    for value, own in zip(written.values(), module.get_weights(), strict=True):
        assert_same_bits(value, own, "a weight")
    twin = theirs(keras.layers)
    twin.build(NHWC.shape)
    twin.set_weights(list(written.values()))
    assert_same_results(keras.ops.convert_to_numpy(twin(NEW_NHWC, training=False)), expected, 1e-5)


def test_keras_model(keras):
    """Paths of variables begin with those of their layers."""
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.layers.Input((2,)), *layers])
    mapping = {variable.path: variable for variable in model.variables}
    bn = states.from_state(nbn.BatchNorm(3), mapping, "keras", prefix=layers[1].path)
    assert list(states.to_state(bn, "keras", prefix=layers[1].path)) == [v.path for v in layers[1].variables]
    with pytest.raises(KeyError, match=f'convention="keras", prefix="{layers[1].path}"'):
        nbn.BatchNorm(3).load_state_dict(mapping)


def test_keras_goes_on_training(keras):
    """momentum is 1 minus Keras', whose batch variance is biased: with a count both averages agree."""
    module = keras.layers.BatchNormalization(momentum=0.7)
    module.build(NHWC.shape)
    module(NHWC, training=True)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    mapping = dict(zip(names, module.get_weights(), strict=True))
    count = X.size // 6
    bn = nbn.BatchNorm(6, axis=-1, momentum=1 - 0.7, **DOUBLE)
    states.from_state(bn, mapping, "keras", count=count)
    module(NEW_NHWC, training=True), bn(NEW_NHWC)
    _, _, mean, var = module.get_weights()
    assert_same_results(bn.running_mean, mean, 1e-5)
    # Variances near 20, as sums of squares in float32.
    assert_same_results(states.to_state(bn, "keras", count=count)["moving_variance"], var, 1e-4)


# Flax -------------------------------------------------------------------------------------------------------

FLAX = {
    "BatchNorm": (lambda: nbn.BatchNorm(6, axis=-1, momentum=0.01, **DOUBLE), {}),
    "GroupNorm": (lambda: nbn.GroupNorm(3, 6, axis=-1, eps=1e-6, **DOUBLE), {"num_groups": 3}),
    "InstanceNorm": (
        lambda: nbn.InstanceNorm(6, axis=-1, eps=1e-6, scale=True, center=True, **DOUBLE),
        {},
    ),
    "LayerNorm": (lambda: nbn.LayerNorm(6, eps=1e-6, **DOUBLE), {}),
    "RMSNorm": (lambda: nbn.RMSNorm(6, eps=1e-6, **DOUBLE), {}),
}


@pytest.fixture
def jax():
    """JAX with float64 for one test."""
    imported("flax")
    module = imported("jax")
    before = module.config.jax_enable_x64
    module.config.update("jax_enable_x64", True)
    yield module
    module.config.update("jax_enable_x64", before)


def changed(jax, tree):
    """The same tree with other values, the variances of which stay positive."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, [np.abs(scrambled(leaf.shape, seed)) for seed, leaf in enumerate(leaves)]
    )


@pytest.mark.parametrize("kind", FLAX)
def test_linen(kind, jax):
    linen = imported("flax.linen")
    ours, options = FLAX[kind]

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            mode = {"use_running_average": True} if kind == "BatchNorm" else {}
            return getattr(linen, kind)(name="norm", param_dtype=np.float64, **options, **mode)(x)

    variables = changed(jax, Model().init(jax.random.key(0), NHWC))
    expected = Model().apply(variables, NEW_NHWC)
    layer = states.from_state(ours(), variables, "flax", prefix="norm")
    assert_same_results(layer.eval()(NEW_NHWC), expected)
    written = states.to_state(layer, "flax", prefix="norm")
    assert jax.tree.structure(written) == jax.tree.structure(variables)
    jax.tree.map(lambda mine, theirs: assert_same_bits(mine, theirs, "a leaf"), written, variables)
    assert_same_results(Model().apply(written, NEW_NHWC), expected)


@pytest.mark.parametrize("kind", FLAX)
def test_nnx(kind, jax):
    nnx = imported("flax.nnx")
    ours, options = FLAX[kind]
    module = getattr(nnx, kind)(6, param_dtype=np.float64, **options, rngs=nnx.Rngs(0))
    module.eval()
    state = changed(jax, nnx.to_pure_dict(nnx.state(module)))
    nnx.update(module, state)
    expected = module(NEW_NHWC)
    layer = states.from_state(ours(), state, "nnx")
    assert_same_results(layer.eval()(NEW_NHWC), expected)
    written = states.to_state(layer, "nnx")
    assert written.keys() == state.keys()
    for name, value in written.items():
        assert_same_bits(value, state[name], name)


# scikit-learn -----------------------------------------------------------------------------------------------


def test_scaler():
    preprocessing = imported("sklearn.preprocessing")
    x, new = X.reshape(-1, 6), NEW.reshape(-1, 6)
    scaler = preprocessing.StandardScaler().fit(x)
    mapping = {name: getattr(scaler, name) for name in ("mean_", "var_", "n_samples_seen_")}
    bn = nbn.BatchNorm(6, eps=0, momentum=None, scale=False, center=False, **DOUBLE)
    states.from_state(bn, mapping, "sklearn")
    assert_same_results(bn.eval()(new), scaler.transform(new))
    bn.train()(new)
    scaler.partial_fit(new)
    written = states.to_state(bn, "sklearn")
    for name, value in written.items():
        assert_same_results(value, getattr(scaler, name))


# ONNX -------------------------------------------------------------------------------------------------------


def test_onnx():
    """Names of inputs in the operators' own definitions, and the reference evaluator's result."""
    onnx = imported("onnx")
    evaluator = imported("onnx.reference")
    inputs = {
        "BatchNormalization": nbn.BatchNorm(6, **DOUBLE),
        "InstanceNormalization": nbn.InstanceNorm(6, scale=True, center=True),
        "GroupNormalization": nbn.GroupNorm(3, 6),
        "LayerNormalization": nbn.LayerNorm(6),
        "RMSNormalization": nbn.RMSNorm(6),
    }
    for operator, layer in inputs.items():
        names = [each.name for each in onnx.defs.get_schema(operator).inputs]
        assert list(states.to_state(layer, "onnx")) == names[1:], operator
    bn = inputs["BatchNormalization"]
    bn(X)
    state = states.to_state(bn, "onnx")
    node = onnx.helper.make_node("BatchNormalization", ["X", *state], ["Y"])  # its own eps, 1e-5
    (y,) = evaluator.ReferenceEvaluator(node).run(None, {"X": NEW, **state})
    assert_same_results(bn.eval()(NEW), y)
