"""What forward leaves for backward: pickled and copied with its memory order, and never changed."""

import copy
import pickle

import numpy as np
import pytest

import numbabn as nbn
from numbabn.arrays.layout import channels_layout
from tests.support.checks import assert_same_bits
from tests.support.problems import Problem

ORDERS = ((0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 3, 2), (2, 3, 1, 0))


def problem_in_order(order):
    """Return x and dy of shape (4, 3, 5, 6) whose axes lie in memory in this order."""
    problem = Problem((4, 3, 5, 6))
    arrays = []
    for values in (problem.x(), problem.dy()):
        memory = np.ascontiguousarray(values.transpose(order))
        arrays.append(memory.transpose(np.argsort(order)))
    return arrays


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("again", [lambda saved: pickle.loads(pickle.dumps(saved)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_a_copy(order, again, given):
    x, dy = problem_in_order(order)
    statistics = {"mean": np.zeros(3), "var": np.ones(3)} if given else {}
    _, saved = nbn.batch_norm_forward(x, np.full(3, 2.0), np.ones(3), **statistics)
    twin = again(saved)
    expected, found = (nbn.batch_norm_backward(dy, s) for s in (saved, twin))
    for name, a, b in zip(("dx", "dgamma", "dbeta"), found, expected, strict=True):
        assert_same_bits(a, b, name)
    assert found[0].strides == expected[0].strides
    assert (twin.count, twin.training) == (saved.count, saved.training)
    assert_same_bits(twin.mean, saved.mean, "mean")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_later_changes_of_parameters_do_not_reach_it(given, dtype):
    """An optimiser may change gamma, beta and statistics before the backward pass."""
    x, dy = problem_in_order(ORDERS[0])
    parameters = [np.full(3, value, dtype) for value in (2.0, 1.0, 0.5, 3.0)]
    gamma, beta, mean, var = parameters
    statistics = {"mean": mean, "var": var} if given else {}
    _, saved = nbn.batch_norm_forward(x, gamma, beta, **statistics)
    expected = nbn.batch_norm_backward(dy, saved)
    for value in parameters:
        value[...] = np.nan
    found = nbn.batch_norm_backward(dy, saved)
    for name, a, b in zip(("dx", "dgamma", "dbeta"), found, expected, strict=True):
        assert_same_bits(a, b, name)


def test_a_saved_without_x_is_pickled_too():
    x = np.ones((4, 3))
    _, saved = nbn.batch_norm_forward(x, out=x)
    with pytest.raises(ValueError, match="out=x"):
        nbn.batch_norm_backward(x, pickle.loads(pickle.dumps(saved)))


@pytest.mark.parametrize("order", ORDERS)
def test_flat_is_a_view(order):
    x, _ = problem_in_order(order)
    layout = channels_layout(x, 1)
    flat = layout.flat(x)
    assert np.shares_memory(flat, x)
    assert_same_bits(layout.restored(flat, x.shape), x, "x")
    if layout.order is not None:
        with pytest.raises(RuntimeError, match="is not laid out as"):
            layout.flat(x[::2])


@pytest.mark.parametrize("name", ["mean", "var", "count", "training"])
def test_saved_cannot_be_changed(name):
    _, saved = nbn.batch_norm_forward(np.ones((4, 3)))
    with pytest.raises(AttributeError):
        setattr(saved, name, 1)
