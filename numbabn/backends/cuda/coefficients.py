"""What is done to every element: out = (x - center) * scale + shift, + dy * weight where there is a dy.

Normalisation and the backward pass are this map with other coefficients, which thread c < across computes
for channel c of a group, in float64, and writes to all its columns. The mean stays wide: center is the mean
rounded to the dtype of x, and what the rounding lost is in the shift. Device functions for `kernels`.
"""

import numpy as np

from numbabn.backends import arithmetic
from numbabn.backends.cuda.gpu import convert, cuda, device, load_parameter, peek, sqrt
from numbabn.backends.cuda.tiles import CENTER, ROW, spread

normalize_coefficients = device(arithmetic.normalize_coefficients)
gradient_coefficients = device(arithmetic.gradient_coefficients)


@device
def load_pair(first, second, geometry, g):
    """Values of two parameters for channel c of a group, for thread c; 0 and 1 for the other threads."""
    t, block = np.int64(cuda.threadIdx.x), geometry.block
    if t < min(block, geometry.channels - g * block):
        return load_parameter(first, g * block + t, 0.0), load_parameter(second, g * block + t, 1.0)
    return np.float64(0), np.float64(1)


@device
def peek_pair(first, second, geometry, g):
    """Do the same with two pointers to float64 to which another block has written."""
    t, block, zero = np.int64(cuda.threadIdx.x), geometry.block, np.float64(0)
    if t < min(block, geometry.channels - g * block):
        return peek(first, g * block + t, zero), peek(second, g * block + t, zero)
    return zero, np.float64(1)


@device
def fill_affine(tile, geometry, g, mean, var, gamma, beta, eps, like):
    """Coefficients of y = (x - mean) / sqrt(var + eps) * gamma + beta."""
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows were scratch
    if t < tile.across:
        c, center = g * geometry.block + t, convert(mean, like)
        scale, shift = normalize_coefficients(
            mean, sqrt(var + eps), load_parameter(gamma, c, 1.0), load_parameter(beta, c, 0.0),
            np.float64(center),
        )  # fmt: skip
        spread(CENTER, t, tile, geometry, center)
        spread(CENTER + ROW, t, tile, geometry, convert(scale, like))
        spread(CENTER + 2 * ROW, t, tile, geometry, convert(shift, like))
    cuda.syncthreads()


@device
def fill_gradient(tile, geometry, g, mean, var, gamma, eps, sum_dy, sum_dy_xhat, count, like):
    """Coefficients of dx = gamma * invstd * (dy - sum_dy / count - xhat * sum_dy_xhat / count)."""
    t = np.int64(cuda.threadIdx.x)
    cuda.syncthreads()  # the rows were scratch
    if t < tile.across:
        c, center = g * geometry.block + t, convert(mean, like)
        scale, shift, weight = gradient_coefficients(
            mean, sqrt(var + eps), load_parameter(gamma, c, 1.0), sum_dy / count, sum_dy_xhat / count,
            np.float64(center),
        )  # fmt: skip
        spread(CENTER, t, tile, geometry, center)
        spread(CENTER + ROW, t, tile, geometry, convert(scale, like))
        spread(CENTER + 2 * ROW, t, tile, geometry, convert(shift, like))
        spread(CENTER + 3 * ROW, t, tile, geometry, convert(weight, like))
    cuda.syncthreads()
