"""States as other frameworks write them: every convention's names, written out, for every layer."""

import numpy as np
import pytest

import numbabn as nbn
from tests.support.checks import assert_same_bits

VALUES = {
    "gamma": np.array([0.5, -2.0, 3.0], np.float32),
    "beta": np.array([0.1, 0.2, -0.3], np.float32),
    "mean": np.array([10.0, -20.0, 0.7], np.float32),
    "var": np.array([4.0, 0.3, 1e-3], np.float32),
}
GAMMA, BETA, MEAN, VAR = VALUES.values()
AFFINE, PLAIN = {"scale": True, "center": True}, {"scale": False, "center": False}
COUNT = np.array(7)

# A layer, a convention, and the state as this framework writes it.
BATCH = [
    (
        "torch",
        {
            "weight": GAMMA,
            "bias": BETA,
            "running_mean": MEAN,
            "running_var": VAR,
            "num_batches_tracked": COUNT,
        },
    ),
    ("keras", {"gamma": GAMMA, "beta": BETA, "moving_mean": MEAN, "moving_variance": VAR}),
    ("flax", {"params": {"scale": GAMMA, "bias": BETA}, "batch_stats": {"mean": MEAN, "var": VAR}}),
    ("nnx", {"scale": GAMMA, "bias": BETA, "mean": MEAN, "var": VAR}),
    ("onnx", {"scale": GAMMA, "B": BETA, "input_mean": MEAN, "input_var": VAR}),
]
STATISTICS = [
    ("torch", {"running_mean": MEAN, "running_var": VAR, "num_batches_tracked": COUNT}),
    ("keras", {"moving_mean": MEAN, "moving_variance": VAR}),
    ("flax", {"batch_stats": {"mean": MEAN, "var": VAR}}),
    ("nnx", {"mean": MEAN, "var": VAR}),
    ("onnx", {"input_mean": MEAN, "input_var": VAR}),
    ("sklearn", {"mean_": MEAN, "var_": VAR}),
]
PARAMETERS = [
    ("torch", {"weight": GAMMA, "bias": BETA}),
    ("keras", {"gamma": GAMMA, "beta": BETA}),
    ("flax", {"params": {"scale": GAMMA, "bias": BETA}}),
    ("nnx", {"scale": GAMMA, "bias": BETA}),
]
SCALE = [
    ("torch", {"weight": GAMMA}),
    ("keras", {"scale": GAMMA}),
    ("flax", {"params": {"scale": GAMMA}}),
    ("nnx", {"scale": GAMMA}),
    ("onnx", {"scale": GAMMA}),
]
CENTER = [
    ("torch", {"bias": BETA}),
    ("keras", {"beta": BETA}),
    ("flax", {"params": {"bias": BETA}}),
    ("nnx", {"bias": BETA}),
]
LAYERS = {
    "batch norm": (lambda **o: nbn.BatchNorm(3, **o), BATCH),
    "batch norm without parameters": (lambda **o: nbn.BatchNorm(3, **PLAIN, **o), STATISTICS),
    "batch norm without statistics": (
        lambda **o: nbn.BatchNorm(3, track_running_stats=False, **o),
        PARAMETERS,
    ),
    "instance norm": (
        lambda **o: nbn.InstanceNorm(3, **AFFINE, **o),
        [*PARAMETERS, ("onnx", {"scale": GAMMA, "B": BETA})],
    ),
    "instance norm with statistics": (
        lambda **o: nbn.InstanceNorm(3, track_running_stats=True, **AFFINE, **o),
        BATCH,
    ),
    "group norm": (
        lambda **o: nbn.GroupNorm(1, 3, **o),
        [*PARAMETERS, ("onnx", {"scale": GAMMA, "bias": BETA})],
    ),
    "layer norm": (lambda **o: nbn.LayerNorm(3, **o), [*PARAMETERS, ("onnx", {"Scale": GAMMA, "B": BETA})]),
    "layer norm without gamma": (
        lambda **o: nbn.LayerNorm(3, scale=False, **o),
        [*CENTER, ("onnx", {"B": BETA})],
    ),
    "group norm without gamma": (
        lambda **o: nbn.GroupNorm(1, 3, scale=False, **o),
        [*CENTER, ("onnx", {"bias": BETA})],
    ),
    "RMS norm": (lambda **o: nbn.RMSNorm(3, **o), SCALE),
}
CASES = [
    pytest.param(make, convention, state, id=f"{name} {convention}")
    for name, (make, rows) in LAYERS.items()
    for convention, state in rows
]
SEPARATORS = {"torch": ".", "keras": "/", "flax": "/", "nnx": "/", "onnx": ".", "sklearn": "."}


def assert_same_states(found, expected):
    """Dictionaries, and those in them, have the same names in the same order, and values of the same bits."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same_states(found[name], value)
        else:
            assert_same_bits(found[name], value, name)


def within(state, convention, prefix):
    """The state of one layer, as that of a model with another layer that has the same names."""
    if convention == "flax":
        return {
            collection: {"block": {prefix: values, "other": {"kernel": GAMMA}}}
            for collection, values in state.items()
        }
    if convention == "nnx":
        return {"block": {prefix: state, "other": state}}
    separator = SEPARATORS[convention]
    return {
        f"block{separator}{name}{separator}{key}": value
        for name in (prefix, prefix + "0")
        for key, value in state.items()
    }
