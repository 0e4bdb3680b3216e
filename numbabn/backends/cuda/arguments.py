"""What kernels take, besides numbers: named tuples of numbers, each of which is launched as its elements.

An array is passed as the address of its first element, and with the kind of its dtype where that may be any
float dtype. A tuple holds no tuples, whose numbers would take longer to collect than the launch of a kernel
may take. The arguments of a kernel come in this order: the arrays that are read, how they are cut up, zeros
of their dtypes, statistics, parameters, and at the end what is written.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from numbabn.backends.cuda import plan
from numbabn.backends.verbs import Affine, DeviceMemory, Gradient, Pair, Result, View

# The dtype of an array, as kernels know it at run time; see `parameters.load_parameter`.
NONE, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(5)
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}
# The dtype of x, as kernels know it when they are compiled: see `memory` for those of half types.
ZEROS: dict[str, Any] = {
    "float16": np.uint16(0), "bfloat16": np.int16(0), "float32": np.float32(0), "float64": np.float64(0),
}  # fmt: skip

HALF_BYTES = 2  # of an element of a half type

Parameter = tuple[int, int]  # address and kind of one value per channel


class Inputs(NamedTuple):
    """Addresses of the two arrays that the backward pass reads."""

    dy: int
    x: int


class GradientInputs(NamedTuple):
    """`Inputs` where dy is a `numbabn.backends.verbs.Gradient`; x is 0 where it is not read.

    ``kept`` is 0 where the derivative is 1 everywhere, ``dresidual`` where it is not wanted.
    """

    dy: int
    x: int
    kept: int
    sharing: int  # elements that share a byte of what is kept
    derivative: Any  # in the dtype that is computed in
    dresidual: int


class Output(NamedTuple):
    """A `numbabn.backends.verbs.Result`, whose numbers are in the dtype that is computed in.

    The addresses ``residual`` and ``kept`` are 0 where there is none.
    """

    y: int
    residual: int
    vector: int  # 0 where elements of y and of the residual are read and written one by one
    kept: int
    sharing: int  # elements that share a byte of what is kept
    slope: Any  # the activation of a is a where a > 0, and else max(a * slope, floor)
    floor: Any
    ceiling: Any  # or NaN: no number is greater
    nan: Any  # above 0 where the derivative at NaN is 1


class Statistics(NamedTuple):
    """Mean and variance of every channel, of any float dtype."""

    mean: int
    mean_kind: int
    var: int
    var_kind: int


class Moments(NamedTuple):
    """Addresses of two float64 per channel: the mean, and the biased variance or m2."""

    mean: int
    var: int


class Map(NamedTuple):
    """The map after normalisation, and the eps that is added to the variance."""

    gamma: int
    gamma_kind: int
    beta: int
    beta_kind: int
    eps: float


class Scaling(NamedTuple):
    """What of a `Map` the gradient with respect to x depends on."""

    gamma: int
    gamma_kind: int
    eps: float


class AlongMap(NamedTuple):
    """Like `Map` for gamma and beta in the dtype computed in, or 0; ``centered``: the mean is subtracted."""

    gamma: int
    beta: int
    eps: float
    centered: int


class AlongScaling(NamedTuple):
    """What of an `AlongMap` the gradient with respect to x depends on."""

    gamma: int
    eps: float
    centered: int


class Results(NamedTuple):
    """Where the sums of dy and of dy * xhat are written: to float64 [2, channels], and as gradients."""

    sums: int
    dgamma: int
    dgamma_kind: int
    dbeta: int
    dbeta_kind: int


class Workspace(NamedTuple):
    """Addresses of the counters of `synchronization`, and of the partial sums of `merging`.

    Where blocks wait for each other, also the `residency.Permit` for that, and else zeros.
    """

    counters: int
    partials: int
    permit: int = 0
    launch: int = 0


class Cluster(NamedTuple):
    """In the place of a `Workspace` where the blocks of a group are a cluster of so many; see `clusters`.

    Kernels are compiled anew for it. They know the number, too, but a tuple must have one.
    """

    blocks: int


def arrays_of(*operands: Any) -> tuple[DeviceMemory, ...]:
    """Return all arrays of operands that are arrays, results or gradients."""
    found: list[DeviceMemory] = []
    for operand in operands:
        if isinstance(operand, Result | Gradient):
            found += [array for array in operand[:2] if array is not None]
        elif operand is not None:
            found.append(operand)
    return tuple(found)


def inputs(dy: DeviceMemory | Gradient, x: DeviceMemory | None, view: View) -> Inputs | GradientInputs:
    """Return what kernels take for the arrays that the backward pass reads; x may be none of them."""
    if not isinstance(dy, Gradient):
        return Inputs(dy.address, _address(x))
    array, dresidual, kept, _, derivative = dy
    sharing, number = plan.sharing(view, array.itemsize), _number(array)
    return GradientInputs(
        array.address, _address(x), _address(kept), sharing, number(derivative), _address(dresidual)
    )


def output(y: DeviceMemory | Result, view: View, vector: int) -> int | Output:
    """Return what kernels take for a result; ``vector`` is that of the geometry."""
    if not isinstance(y, Result):
        return y.address
    array, residual, kept, _, slope, ceiling = y
    sharing, number = plan.sharing(view, array.itemsize), _number(array)
    kinks = (1.0, 0.0) if slope is None else (slope, -math.inf)
    activation = *kinks, math.nan if ceiling is None else ceiling, slope is None
    return Output(
        array.address, _address(residual), vector, _address(kept), sharing, *map(number, activation)
    )


def _number(array: DeviceMemory) -> Any:
    """Return the type of the numbers that kernels compute with for elements of an array."""
    return np.float64 if array.itemsize == 8 else np.float32


def parameter(array: DeviceMemory | None) -> Parameter:
    """Return the address and the kind of an array of any float dtype, or those of none for None."""
    return (0, NONE) if array is None else (array.address, _kind(array.dtype))


@functools.cache
def _kind(dtype: Any) -> int:
    """Return the kind of a dtype. NumPy takes 2.5 us to find the name of one, this a tenth of it."""
    return KINDS[dtype.name]


@functools.cache
def zero(dtype: Any) -> Any:
    """Return the zero that stands for the dtype of x in kernels, which call it ``like``."""
    return ZEROS[dtype.name]


def statistics(pair: Pair) -> Statistics:
    """Return what kernels take for mean and variance; None is 0 and 1."""
    mean, var = pair
    return Statistics(*parameter(mean), *parameter(var))


def moments(pair: Pair) -> Moments:
    """Return what kernels take for two arrays of float64."""
    mean, var = pair
    return Moments(mean.address, var.address)


def affine_map(affine: Affine) -> Map:
    """Return what kernels take for gamma, beta and eps; a gamma of None is 1, a beta of None is 0."""
    gamma, beta = affine.parameters
    return Map(*parameter(gamma), *parameter(beta), float(affine.eps))


def scaling(affine: Affine) -> Scaling:
    """Return what kernels take for gamma and eps; a gamma of None is 1."""
    return Scaling(*parameter(affine.parameters[0]), float(affine.eps))


def along_map(gamma: DeviceMemory | None, beta: DeviceMemory | None, affine: Affine) -> AlongMap:
    """Return what kernels take for gamma and beta in the dtype computed in, and the rest of ``affine``."""
    return AlongMap(_address(gamma), _address(beta), float(affine.eps), int(affine.centered))


def along_scaling(gamma: DeviceMemory | None, affine: Affine) -> AlongScaling:
    """Return what kernels take for gamma in the dtype computed in, and the rest of ``affine``."""
    return AlongScaling(_address(gamma), float(affine.eps), int(affine.centered))


def _address(array: DeviceMemory | None) -> int:
    return 0 if array is None else array.address


def results(sums: DeviceMemory, gradients: Pair) -> Results:
    """Return what kernels take for the sums and for the gradients (dgamma, dbeta), which may be None."""
    dgamma, dbeta = gradients
    return Results(sums.address, *parameter(dgamma), *parameter(dbeta))
