"""Sixteen values into sums: what the kernels of streaming statistics do to every vector.

Arguments that are None select code when a kernel is compiled:

shift
    None for integers, whose sums are those of the values themselves. Else there is a vector k that deviations
    are taken from, and numbers of 16 bits are float16.
masked
    None where all values are there. Else they have weights: those in the array w; or where w is None, 0 for
    NaN and 1 for others. What has weight 0 is not there at all.

Sums are a tuple (weight, sum of d, sum of d * d, least value, greatest value) of vectors; the weight is only
added up where there is a mask. d = x - k has like's dtype, values have that of ``value``.
"""

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


@helper
def no_sums(value, like):
    """Sums of nothing."""
    none = zeros(like)
    return none, none, none, splat(convert(np.inf, value)), splat(convert(-np.inf, value))


@helper
def add_values(x, w, i, shift, k, masked, value, like, sums):
    """Add sixteen values to the sums."""
    weight, s, q, low, high = sums
    v = load_number(x, i, shift, value)
    d = cast(v, like)
    if shift is not None:
        d = sub(d, k)
    e = d
    least = most = v
    if masked is not None:
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
def add_part(x, w, i, n, shift, k, masked, value, like, sums):
    """Add the first n of sixteen values to the sums."""
    weight, s, q, low, high = sums
    none = zeros(like)
    v = load_number_part(x, i, n, shift, value)
    d = cast(v, like)
    if shift is not None:
        d = blend(sub(d, k), none, n)
    e = d
    least, most = blend(v, low, n), blend(v, high, n)
    if masked is not None:
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
    """Sums of both, in the dtypes of a."""
    return (
        add(a[0], cast(b[0], like)),
        add(a[1], cast(b[1], like)),
        add(a[2], cast(b[2], like)),
        minimum(a[3], cast(b[3], value)),
        maximum(a[4], cast(b[4], value)),
    )
