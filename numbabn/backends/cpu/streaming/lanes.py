"""Sixteen values into sums: what the kernels of streaming statistics do to every vector.

The sums are a tuple of five vectors: weight, sum of d, sum of d * d, least value, greatest value, with d the
deviation of a value v from a shift. The weight is summed only where there are weights.

Two arguments select code when a kernel is compiled:

shift
    None for integers, whose sums are those of the values themselves: d = v. Else d = v - k, with the shift in
    the vector k, and numbers of 16 bits are floats: unsigned ones float16, and signed ones bfloat16.
summation
    A `Summation`. Where it is masked, the weights are those in the array w; or where w is None, 0 for NaN and
    1 for all other values. An element of weight 0 is left out of all five sums, even if it is NaN.
"""

from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cpu.jit import helper
from numbabn.backends.cpu.simd import (
    add,
    blend,
    cast,
    convert,
    drop_nan,
    fma,
    load,
    load_number,
    load_number_part,
    load_part,
    maximum,
    minimum,
    select,
    splat,
    sub,
    zeros,
)


class Summation(NamedTuple):
    """How values are summed. Kernels take the three fields as arguments, and make the tuple inside.

    The reason: Numba takes 2 us to look at a named tuple among the arguments of a kernel.
    """

    masked: Any  # None where all values count 1, True where they have weights: the type selects code
    value: Any  # a float32 or float64: values are read, and compared for the range, in its dtype
    like: Any  # a float32 or float64: deviations, weights and sums have its dtype


@helper
def no_sums(value, like):
    """Return the sums of nothing: the range has value's dtype, the others have like's."""
    none = zeros(like)
    return none, none, none, splat(convert(np.inf, value)), splat(convert(-np.inf, value))


@helper
def add_values(x, w, i, shift, k, summation, sums):
    """Return the sums and those of the sixteen values from i on."""
    like = summation.like
    weight, s, q, low, high = sums
    v = load_number(x, i, shift, summation.value)
    d = cast(v, like)
    if shift is not None:
        d = sub(d, k)
    e = d
    least = most = v
    if summation.masked is not None:
        one = splat(convert(1.0, like))
        here = drop_nan(one, v)
        if w is not None:
            here = load(w, i, like)
        d = select(here, d, zeros(like))
        e = fma(here, d, zeros(like))
        weight = add(weight, here)
        least, most = select(here, v, low), select(here, v, high)
    return weight, add(s, e), fma(e, d, q), minimum(least, low), maximum(most, high)


@helper
def add_part(x, w, i, n, shift, k, summation, sums):
    """Like ``add_values`` for n < 16 values; the other lanes add nothing."""
    like = summation.like
    weight, s, q, low, high = sums
    none = zeros(like)
    v = load_number_part(x, i, n, shift, summation.value)
    d = cast(v, like)
    if shift is not None:
        d = blend(sub(d, k), none, n)
    e = d
    least, most = blend(v, low, n), blend(v, high, n)
    if summation.masked is not None:
        one = splat(convert(1.0, like))
        here = blend(drop_nan(one, v), none, n)
        if w is not None:
            here = load_part(w, i, n, none)
        d = select(here, d, none)
        e = fma(here, d, none)
        weight = add(weight, here)
        least, most = select(here, v, low), select(here, v, high)
    return weight, add(s, e), fma(e, d, q), minimum(least, low), maximum(most, high)


@helper
def add_sums(a, b, value, like):
    """Return the sums of both: the range in value's dtype, the others in like's, which are those of a."""
    return (
        add(a[0], cast(b[0], like)),
        add(a[1], cast(b[1], like)),
        add(a[2], cast(b[2], like)),
        minimum(a[3], cast(b[3], value)),
        maximum(a[4], cast(b[4], value)),
    )
