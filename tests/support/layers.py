"""Batches that drift, and all that a layer holds: to train layers with, and to see what a call changes."""

import numpy as np

from tests.support.checks import assert_same_bits


def batches(sizes, channels=3, dtype=np.float32, seed=0):
    """Batches of several sizes that drift: each has a mean and a spread of its own."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((n, channels, 2, 3)) * (1 + 0.3 * i) + 5 * i - 3).astype(dtype)
        for i, n in enumerate(sizes)
    ]


def snapshot(bn):
    """Return copies of all arrays of a layer, and its mode: all that a refused call must not change."""
    return {
        **{name: value.copy() for name, value in bn.state_dict().items()},
        **{f"grad {name}": value.copy() for name, value in bn.grads.items()},
        "training": np.array(bn.training),
    }


def assert_same_state(bn, expected):
    """The layer holds what it held when this snapshot was made, bit by bit."""
    found = snapshot(bn)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_same_bits(value, expected[name], name)
