"""The coefficients of the map of elements, out = (x - center) * scale + shift.

With a dy it is out = ((x - center) * scale + dy) * weight + shift. Normalisation and the backward pass are
these maps, `tiles.write_affine` and `tiles.write_gradient`. Thread c < across computes those of channel c of
a group in float64, and writes them, rounded to the dtype of x, or to float32 where that is a half type, to
all columns of that channel. The mean stays wide: center is the mean so rounded, and what the rounding lost is
in the shift. Device functions for `kernels`.
"""

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cuda.gpu import convert, cuda, device, sqrt
from numbabn.backends.cuda.parameters import load_parameter
from numbabn.backends.cuda.tiles import CENTER, GAMMA, ROW, channels_of, fill_columns

normalize_coefficients = device(arithmetic.normalize_coefficients)
gradient_coefficients = device(arithmetic.gradient_coefficients)


@device
def fill_affine(tile, geometry, g, like, statistics, affine_map):
    """Write the coefficients of y = (x - mean) / sqrt(var + eps) * gamma + beta.

    ``statistics`` are the values (mean, var) of this thread's channel, ``affine_map`` is an `arguments.Map`.
    """
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows of coefficients were scratch until here
    if t < tile.across:
        mean, var = statistics
        _, first, _ = channels_of(geometry, g)
        c, center = first + t, convert(mean, like)
        scale, shift = normalize_coefficients(
            mean, sqrt(var + affine_map.eps),
            load_parameter(affine_map.gamma, affine_map.gamma_kind, c, 1.0),
            load_parameter(affine_map.beta, affine_map.beta_kind, c, 0.0), np.float64(center),
        )  # fmt: skip
        fill_columns(CENTER, t, tile, geometry, center)
        fill_columns(CENTER + ROW, t, tile, geometry, convert(scale, like))
        fill_columns(CENTER + 2 * ROW, t, tile, geometry, convert(shift, like))
    cuda.syncthreads()


@device
def fill_gradient(tile, geometry, g, like, statistics, scaling, sums, count):
    """Write the coefficients of dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count).

    ``statistics`` and ``sums`` are the values (mean, var) and (sum of dy, sum of dy * xhat) of this thread's
    channel, ``scaling`` is an `arguments.Scaling`.
    """
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows of coefficients were scratch until here
    if t < tile.across:
        mean, var = statistics
        _, first, _ = channels_of(geometry, g)
        c, center, values = first + t, convert(mean, like), np.float64(count)
        scale, shift, weight = gradient_coefficients(
            mean, sqrt(var + scaling.eps), load_parameter(scaling.gamma, scaling.gamma_kind, c, 1.0),
            sums[0] / values, sums[1] / values, np.float64(center),
        )  # fmt: skip
        fill_columns(CENTER, t, tile, geometry, center)
        fill_columns(CENTER + ROW, t, tile, geometry, convert(scale, like))
        fill_columns(CENTER + 2 * ROW, t, tile, geometry, convert(shift, like))
        fill_columns(CENTER + 3 * ROW, t, tile, geometry, convert(weight, like))
    cuda.syncthreads()


@device
def fill_shared_gradient(tile, geometry, g, like, statistics, scaling, sums, count):
    """Write the coefficients of dx = invstd * (e - sum_e / count - xhat * sum_e_xhat / count).

    Like `fill_gradient`, but channels share statistics, and sums are of e = gamma * dy over several of them.
    Each has a gamma of its own, which may be 0, and is written to a row of its own.
    """
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows of coefficients were scratch until here
    if t < tile.across:
        mean, var = statistics
        _, first, _ = channels_of(geometry, g)
        center, values = convert(mean, like), np.float64(count)
        scale, shift, weight = gradient_coefficients(
            mean, sqrt(var + scaling.eps), 1.0, sums[0] / values, sums[1] / values, np.float64(center)
        )
        gamma = load_parameter(scaling.gamma, scaling.gamma_kind, first + t, 1.0)
        fill_columns(CENTER, t, tile, geometry, center)
        fill_columns(GAMMA, t, tile, geometry, convert(gamma, like))
        fill_columns(CENTER + ROW, t, tile, geometry, convert(scale, like))
        fill_columns(CENTER + 2 * ROW, t, tile, geometry, convert(shift, like))
        fill_columns(CENTER + 3 * ROW, t, tile, geometry, convert(weight, like))
    cuda.syncthreads()
