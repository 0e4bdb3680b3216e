"""Gradients of the layers of the examples, against finite differences."""

import numpy as np


def numeric_gradient(function, array, step=1e-6):
    """Central differences of a scalar function of `array`, which is changed and restored in place."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = function()
        array[index] = value - step
        below = function()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def check_gradients(layer, x, rng):
    """Compare dx and every parameter gradient of sum(dy * layer(x)) with central differences."""
    dy = rng.standard_normal(layer(x).shape)
    dx = layer.backward(dy)
    grads = {name: g.copy() for name, g in layer.grads.items()}
    assert dx.shape == x.shape
    assert dx.dtype == x.dtype
    assert grads.keys() == layer.params.keys()

    def objective():
        return np.sum(dy * layer(x))

    np.testing.assert_allclose(dx, numeric_gradient(objective, x), rtol=1e-6, atol=1e-7)
    for name, p in layer.params.items():
        expected = numeric_gradient(objective, p)
        np.testing.assert_allclose(grads[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
