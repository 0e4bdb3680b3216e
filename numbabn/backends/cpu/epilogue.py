"""What follows a norm, y = activation(v + residual), and what its gradient meets first.

Kernels work on arrays y and dy. Where a norm is followed by something, a `Result` is in the place of y, and
a `Gradient` in that of dy; the functions here do what belongs to them, so that no kernel knows of it. Whether
it is one is known when a kernel is compiled: for plain arrays there is nothing but the load or the store.

The backward pass must know where the derivative of the activation is 1. The forward pass keeps one bit for
each element, in words of sixteen bits that are those of a vector. Without a residual v could be computed
again from x, with the coefficients of the forward pass beside those of the backward pass, in all kernels and
in both of their passes; with one it cannot. The bits are 1/32 of the bytes of x in float32, and the same for
all: forward of 32x64x112x112 with ReLU takes as long as without in 7.2 ms, that of 32x256x56x56 1.1 times as
long, and backward 1.1 times as long, on two cores of an EPYC with AVX2.
"""

import functools

from numba import types
from numba.extending import overload

from numbabn.backends.cpu.jit import OPTIONS, helper
from numbabn.backends.cpu.simd import (
    LANES,
    add,
    below,
    elements,
    load,
    load_bits,
    load_input,
    load_input_part,
    load_like,
    load_part,
    maximum,
    minimum,
    mul,
    pick,
    positive,
    positive_or_nan,
    select,
    splat_like,
    store,
    store_bits,
    store_bits_part,
    store_part,
    stream,
    unaligned,
    zeros_like,
)
from numbabn.backends.verbs import Gradient, Result


def _adapted(index, **others):
    """Make a function for kernels that is another one where its argument ``index`` is of a class named.

    None has the class NoneType, also among the types of Numba.
    """

    def decorate(plain):
        @functools.wraps(plain)
        def function(*arguments):
            return others.get(type(arguments[index]).__name__, plain)(*arguments)

        def chosen(*kinds):
            kind = kinds[index]
            named = isinstance(kind, types.BaseNamedTuple)
            name = kind.instance_class.__name__ if named else type(kind).__name__
            return others.get(name, plain)

        overload(function, jit_options=OPTIONS, strict=False)(chosen)
        return function

    return decorate


@helper
def row_bits(length):
    """Return how many bits a row of this length takes where each begins at a word."""
    return -(-length // LANES) * LANES


# What may be None is an argument of a function of its own: there Numba leaves out what is not needed then,
# and not where it is a field of a tuple.


@helper
def _with_arrays(out, y, residual, kept, phase):
    """Return a result with the activation of another one."""
    return Result(y, residual, kept, phase, out.slope, out.ceiling)


def _nothing(array, lo, hi):
    return None


@_adapted(0, NoneType=_nothing)
def _slice(array, lo, hi):
    return array[lo:hi]


def _slice_of_result(out, lo, hi):
    phase = out.phase + lo
    return _with_arrays(out, out.y[lo:hi], _slice(out.residual, lo, hi), out.kept, phase)


def _slice_of_gradient(dy, lo, hi):
    return Gradient(dy.dy[lo:hi], _slice(dy.dresidual, lo, hi), dy.kept, dy.phase + lo, dy.derivative)


@_adapted(0, Result=_slice_of_result, Gradient=_slice_of_gradient)
def slice_of(array, lo, hi):
    """Return the elements lo..hi of a flat array, or of a result or gradient; None of None."""
    return _slice(array, lo, hi)


def _bare_result(out):
    return _with_arrays(out, elements(out.y), elements(out.residual), elements(out.kept), out.phase)


def _bare_gradient(dy):
    return Gradient(elements(dy.dy), elements(dy.dresidual), elements(dy.kept), dy.phase, dy.derivative)


@_adapted(0, Result=_bare_result, Gradient=_bare_gradient)
def bare(array):
    """Return the ``elements`` of an array, or a result or gradient with them; None of None."""
    return elements(array)


def _result_of_row(out, row, length):
    phase = out.phase + row * (row_bits(length) - length)
    return _with_arrays(out, out.y, out.residual, out.kept, phase)


def _gradient_of_row(dy, row, length):
    phase = dy.phase + row * (row_bits(length) - length)
    return Gradient(dy.dy, dy.dresidual, dy.kept, phase, dy.derivative)


@_adapted(0, Result=_result_of_row, Gradient=_gradient_of_row)
def of_row(array, row, length):
    """Return the array, or a result or gradient for one of the rows whose bits each begin at a word."""
    return array


def _array_of_tuple(array):
    return array[0]


@_adapted(0, Result=_array_of_tuple, Gradient=_array_of_tuple)
def array_of(array):
    """Return the array itself: that of a result or gradient."""
    return array


# The gradient.


@helper
def _masked(e, kept, position, derivative):
    """Return e times the derivative of the activation, which is 1 where the bits from a position on are 1."""
    if kept is None:
        return e
    d = splat_like(derivative, e)
    # Infinity times a derivative of 0 would be NaN.
    rest = select(splat_like(abs(derivative), e), mul(e, d), zeros_like(e))
    return pick(load_bits(kept, position), e, rest)


def _take_gradient(dy, i, like):
    return _masked(load(dy.dy, i, like), dy.kept, i + dy.phase, dy.derivative)


@_adapted(0, Gradient=_take_gradient)
def take(dy, i, like):
    """Return sixteen values of the gradient from i on, in the dtype of ``like``."""
    return load(dy, i, like)


def _take_gradient_part(dy, i, count, otherwise):
    return _masked(load_part(dy.dy, i, count, otherwise), dy.kept, i + dy.phase, dy.derivative)


@_adapted(0, Gradient=_take_gradient_part)
def take_part(dy, i, count, otherwise):
    """Like ``take`` for ``count`` < 16 values. Of an array the other lanes are those of ``otherwise``."""
    return load_part(dy, i, count, otherwise)


@_adapted(0, Gradient=_take_gradient)
def take_input(x, i, like):
    """Return sixteen values of x, or of a gradient, from i on; x may be integers, see ``load_input``."""
    return load_input(x, i, like)


def _take_gradient_input_part(dy, i, count, otherwise, like):
    return take_part(dy, i, count, otherwise)


@_adapted(0, Gradient=_take_gradient_input_part)
def take_input_part(x, i, count, otherwise, like):
    """Like ``take_input`` for ``count`` < 16 values, with ``otherwise`` in the other lanes."""
    return load_input_part(x, i, count, otherwise, like)


@helper
def _write(array, i, value):
    if array is not None:
        store(array, i, value)


@helper
def _write_part(array, i, count, value):
    if array is not None:
        store_part(array, i, count, value)


def _give_gradient(dy, i, e):
    _write(dy.dresidual, i, e)


@_adapted(0, Gradient=_give_gradient)
def give(dy, i, e):
    """Write sixteen values that ``take`` returned to the gradient of the residual, if there is one."""


def _give_gradient_part(dy, i, count, e):
    _write_part(dy.dresidual, i, count, e)


@_adapted(0, Gradient=_give_gradient_part)
def give_part(dy, i, count, e):
    """Like ``give`` for ``count`` < 16 values."""


# The result.


@helper
def _with_residual(value, residual, i):
    if residual is None:
        return value
    return add(value, load_like(residual, i, value))


@helper
def _with_residual_part(value, residual, i, count):
    if residual is None:
        return value
    return add(value, load_part(residual, i, count, value))


@helper
def _above_floor(v, slope):
    """Return v where v > 0, and else v * slope, or 0; NaN is the second of two operands, and the result."""
    if slope is None:
        return maximum(zeros_like(v), v)
    return select(v, v, mul(v, splat_like(slope, v)))


@helper
def _below_ceiling(v, ceiling):
    if ceiling is None:
        return v
    return minimum(splat_like(ceiling, v), v)


@helper
def _activated(v, out):
    """Return the activation of v."""
    return _below_ceiling(_above_floor(v, out.slope), out.ceiling)


@helper
def _rising(v, slope):
    """Return where v > 0; NaN is among them where there is no slope."""
    if slope is None:
        return positive_or_nan(v)
    return positive(v)


@helper
def _not_capped(bits, v, ceiling):
    if ceiling is None:
        return bits
    return bits & below(v, splat_like(ceiling, v))


@helper
def _passing(v, out):
    """Return where the derivative of the activation at v is 1."""
    return _not_capped(_rising(v, out.slope), v, out.ceiling)


@helper
def _note(v, kept, i, out):
    if kept is not None:
        store_bits(kept, i + out.phase, _passing(v, out))


@helper
def _note_part(v, kept, i, count, out):
    if kept is not None:
        store_bits_part(kept, i + out.phase, count, _passing(v, out))


@helper
def _put(value, i, streaming, y):
    if streaming:
        stream(y, i, value)
    else:
        store(y, i, value)


def _put_result(value, i, streaming, out):
    v = _with_residual(value, out.residual, i)
    _note(v, out.kept, i, out)
    _put(_activated(v, out), i, streaming, out.y)


@_adapted(3, Result=_put_result)
def put(value, i, streaming, out):
    """Write sixteen values to out from i on, past the caches if ``streaming``."""
    _put(value, i, streaming, out)


def _put_result_part(value, i, count, out):
    v = _with_residual_part(value, out.residual, i, count)
    _note_part(v, out.kept, i, count, out)
    store_part(out.y, i, count, _activated(v, out))


@_adapted(3, Result=_put_result_part)
def put_part(value, i, count, out):
    """Write ``count`` < 16 values to out from i on."""
    store_part(out, i, count, value)


@helper
def _to_word(x, i, streaming, y, kept, phase):
    if kept is None:
        return _to_line(x, i, streaming, y)
    return -(i + phase) % LANES


@helper
def _to_line(x, i, streaming, out):
    if streaming:
        return unaligned(out, i)
    return unaligned(x, i)


def _head_of_result(x, i, streaming, out):
    return _to_word(x, i, streaming, out.y, out.kept, out.phase)


@_adapted(3, Result=_head_of_result)
def head(x, i, streaming, out):
    """How many elements from i on must be written before the first whole vector.

    Vectors that are streamed must begin at cache lines of the result. Others begin at lines of x, and with it
    mostly at those of the other arrays, as NumPy's large ones all lie 16 bytes behind one: vectors of which
    each lies in two lines make the pass from dy and x to dx of 32x14x14x256 take 1.15 times as long.
    """
    return _to_line(x, i, streaming, out)
