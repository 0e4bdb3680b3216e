"""What follows a norm, y = activation(v + residual), and what its gradient meets first. Device functions.

Kernels work on addresses of y and dy. Where a norm is followed by something, an `arguments.Output` is in the
place of y, and an `arguments.GradientInputs` in that of dy and x; the functions here do what belongs to them,
so that no kernel knows of it. Whether it is one is known when a kernel is compiled: for plain addresses there
is nothing but the load or the store.

The backward pass must know where the derivative of the activation is 1, and the forward pass keeps that. A
byte has the bits of ``sharing`` adjacent elements, the first in the lowest place: of four
where one thread writes them all, so that no two threads write one byte, and else of one; see `plan.sharing`.
Which byte an element has thus depends on its index alone, and not on how the arrays of a pass are cut up.
Without a residual v could be computed again from x, with the coefficients of the forward pass beside those of
the backward pass, in all kernels; with one it cannot.
"""

import numpy as np

from numbabn.backends.cuda.gpu import (
    adapted,
    array_load,
    array_load_four,
    array_store,
    array_store4,
    convert,
    device,
    load,
    load4,
    load_four,
    store,
)

# The result ------------------------------------------------------------------------------------------------


@device
def activated(v, out):
    """Return the activation of v; of NaN it is NaN, with which every comparison is false."""
    low = v * out.slope
    if low < out.floor:
        low = out.floor
    value = v if v > 0 else low
    return out.ceiling if value > out.ceiling else value


@device
def passing(v, out):
    """Return 1 where the derivative of the activation at v is 1, and else 0."""
    above = v > 0 or (v != v and out.nan > 0)  # only NaN is another than itself
    return np.int64(1) if above and not v >= out.ceiling else np.int64(0)


def _put_in_output(out, i, value, like):
    if out.residual != 0:  # adding 0 would turn -0 into 0
        value += array_load(out.residual, i, like)
    if out.kept != 0:
        store(out.kept, i, np.uint8(passing(value, out)))
    array_store(out.y, i, activated(value, out), like)


@adapted(0, Output=_put_in_output)
def put(out, i, value, like):
    """Write element i of a result, where elements are not written by fours."""
    array_store(out, i, value, like)


def _put_four_in_output(out, i, a, b, c, d, like):
    if out.residual != 0:
        r, s, t, u = array_load_four(out.residual, i, out.vector, like)
        a, b, c, d = a + r, b + s, c + t, d + u
    if out.kept != 0:
        p, q, r, s = passing(a, out), passing(b, out), passing(c, out), passing(d, out)
        if out.sharing > 1:
            store(out.kept, i >> 2, np.uint8(p | q << 1 | r << 2 | s << 3))
        else:
            store(out.kept, i, np.uint8(p))
            store(out.kept, i + 1, np.uint8(q))
            store(out.kept, i + 2, np.uint8(r))
            store(out.kept, i + 3, np.uint8(s))
    a, b, c, d = activated(a, out), activated(b, out), activated(c, out), activated(d, out)
    if out.vector:
        array_store4(out.y, i, a, b, c, d, like)
    else:
        array_store(out.y, i, a, like)
        array_store(out.y, i + 1, b, like)
        array_store(out.y, i + 2, c, like)
        array_store(out.y, i + 3, d, like)


@adapted(0, Output=_put_four_in_output)
def put_four(out, i, a, b, c, d, like):
    """Write four elements of a result from i on, a multiple of four."""
    array_store4(out, i, a, b, c, d, like)


def _by_fours_in_output(out, vector):
    return vector != 0 or out.sharing > 1


@adapted(0, Output=_by_fours_in_output)
def by_fours(out, vector):
    """Return whether a result is written by fours: where they are aligned, or where they share a byte."""
    return vector


def _load_beside_output(out, address, i, like):
    return load_four(address, i, out.vector, like)


@adapted(0, Output=_load_beside_output)
def load_beside(out, address, i, like):
    """Return four elements from i on of another array that is read where a result is written by fours."""
    return load4(address, i, like)


# The gradient ----------------------------------------------------------------------------------------------


def _address_of_gradient(dy):
    return dy.dy


@adapted(0, GradientInputs=_address_of_gradient)
def address_of(dy):
    """Return the address of dy, where a kernel takes dy, or what stands for it, in the place of x."""
    return dy


@device
def masked(e, bit, inputs):
    """Return e times the derivative of the activation, which is 1 where the bit is."""
    if bit:
        return e
    # Infinity times a derivative of 0 would be NaN.
    return e * inputs.derivative if inputs.derivative != 0 else convert(0.0, e)


def _derived_from_gradient(inputs, i, e):
    if inputs.kept == 0:
        return e
    if inputs.sharing > 1:
        return masked(e, load(inputs.kept, i >> 2, np.uint8(0)) >> (i & 3) & 1, inputs)
    return masked(e, load(inputs.kept, i, np.uint8(0)), inputs)


@adapted(0, GradientInputs=_derived_from_gradient)
def derived(inputs, i, e):
    """Return what the norm's gradient is for element i of dy, whose value is e."""
    return e


def _four_derived_from_gradient(inputs, i, e, f, g, h):
    if inputs.kept == 0:
        return e, f, g, h
    if inputs.sharing > 1:
        bits = load(inputs.kept, i >> 2, np.uint8(0))
        p, q, r, s = bits & 1, bits & 2, bits & 4, bits & 8
    else:
        p, q, r, s = load_four(inputs.kept, i, 0, np.uint8(0))
    return masked(e, p, inputs), masked(f, q, inputs), masked(g, r, inputs), masked(h, s, inputs)


@adapted(0, GradientInputs=_four_derived_from_gradient)
def derived_four(inputs, i, e, f, g, h):
    """Like `derived` for four elements from i on, a multiple of four."""
    return e, f, g, h
