"""Layers for images of shape (N, H, W, C): batch, height, width, channels, as Keras has them by default.

A convolution is a matrix product: what it multiplies to compute a pixel is copied into a row of a matrix.
That matrix is larger than the images, for a 3x3 convolution nine times. It is made for a few images at a
time, so that it is still in the cache when it is multiplied, and by one thread per core: NumPy releases
Python's lock while it copies and multiplies. BLAS should be limited to one thread then, as with
`threadpoolctl`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache
from threading import get_ident

import numpy as np
from minimal_nn import Layer, he_normal, library
from numba import config

GROUP_BYTES = 1 << 20  # of the matrix for a few images
THREADS = ThreadPoolExecutor(config.NUMBA_NUM_THREADS)


def for_groups(function, size, x):
    """Call a function with slices that cover the images of x; return the list of its results.

    A slice has ``GROUP_BYTES`` of a matrix that is ``size`` times as large as x. Several threads share the
    slices, and NumPy's warnings are on or off in them as here. On a GPU one slice has all images.
    """
    if library(x) is not np:
        return [function(slice(None))]
    step = max(1, GROUP_BYTES // (size * x[0].nbytes))
    groups = [slice(start, start + step) for start in range(0, len(x), step)]
    futures = [THREADS.submit(copy_context().run, function, group) for group in groups]
    return [future.result() for future in futures]


def rows(x):
    """Return images as a matrix with one row per pixel, without a copy."""
    return x.reshape(-1, x.shape[-1])


class Windows:
    """Memory in which one thread lays out the k x k pixels around every pixel of images (im2col).

    It is used again for other images: fresh memory for every few images made a training step take 10 to 15 %
    longer.
    """

    def __init__(self, xp, shape, k, dtype):
        n, h, w, c = shape
        p = k // 2
        padded = xp.zeros((n, h + 2 * p, w + 2 * p, c), dtype)
        lines = padded.reshape(n, h + 2 * p, (w + 2 * p) * c)
        # Of each row of pixels, the k * C numbers that a window has of it lie side by side.
        view = xp.lib.stride_tricks.sliding_window_view(lines, (k, k * c), axis=(1, 2))
        self._images, self._windows = padded[:, p : p + h, p : p + w], view[:, :, ::c]
        self._matrix = xp.empty((n * h * w, k * k * c), dtype)

    def of(self, x):
        """Return the matrix whose rows are the windows of x, with zeros beyond the edge.

        The next call changes it.
        """
        self._images[...] = x
        self._matrix.reshape(self._windows.shape)[...] = self._windows
        return self._matrix


@lru_cache
def _memory(thread, xp, shape, k, dtype):
    """Return the memory of a thread for images of this shape."""
    return Windows(xp, shape, k, dtype)


def windows(x, k):
    """Return the matrix of the windows of x, which the next call for this shape by this thread changes."""
    return _memory(get_ident(), library(x), x.shape, k, x.dtype).of(x)


class Conv2d(Layer):
    """Convolution of k x k pixels, k odd, with zeros around the image: y has the height and width of x.

    ``y[n, h, w, o] = sum_ijc W[i, j, c, o] * x[n, h + i - k//2, w + j - k//2, c]``

    The shapes are x (N, H, W, C), W (K, K, C, O) and y (N, H, W, O). There is no bias: a norm follows, whose
    beta does the same.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, *, rng, dtype=np.float32):
        super().__init__()
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.params["weight"] = he_normal(rng, shape, in_channels * kernel_size**2, dtype)

    def __call__(self, x):
        """Return y."""
        self.x = x
        k, *_, outputs = self.params["weight"].shape
        matrix = rows(self.params["weight"])
        xp = library(x)
        y = xp.empty((*x.shape[:3], outputs), x.dtype)

        def convolve(group):
            xp.matmul(windows(x[group], k), matrix, out=rows(y[group]))

        for_groups(convolve, k * k, x)
        return y

    def backward(self, dy):
        """Return dx, a convolution of dy with the weight mirrored; fill dW.

        dW is ``sum_nhw x[n, h, w, c] * dy[n, h - i + k//2, w - j + k//2, o]``, so that both are products
        with the same matrix, that of the windows of dy.
        """
        x, weight = self.x, self.params["weight"]
        k, _, inputs, outputs = weight.shape
        mirrored = weight[::-1, ::-1].swapaxes(2, 3).reshape(k * k * outputs, inputs)
        xp = library(x)
        dx = xp.empty(x.shape, x.dtype)

        def differentiate(group):
            matrix = windows(dy[group], k)
            xp.matmul(matrix, mirrored, out=rows(dx[group]))
            return rows(x[group]).T @ matrix

        dweight = sum(for_groups(differentiate, k * k, dy)).reshape(inputs, k, k, outputs)
        self.grads["weight"] = dweight[:, ::-1, ::-1].transpose(1, 2, 0, 3)
        return dx


class ImageConv2d(Conv2d):
    """A convolution of the images themselves, which need no gradient: the first layer of a network."""

    def backward(self, dy):
        """Fill ``dW = windows(x)^T dy``, which has few columns for images of few channels; return None."""
        x, weight = self.x, self.params["weight"]
        k = len(weight)

        def differentiate(group):
            return windows(x[group], k).T @ rows(dy[group])

        self.grads["weight"] = sum(for_groups(differentiate, k * k, x)).reshape(weight.shape)


class Downsample(Layer):
    """Convolution of 2x2 pixels that do not overlap, which halves height and width.

    ``y[n, h, w, o] = sum_ijc W[i, j, c, o] * x[n, 2h + i, 2w + j, c]``

    The shapes are x (N, 2H, 2W, C), W (2, 2, C, O) and y (N, H, W, O). There is no bias, as in `Conv2d`.
    """

    def __init__(self, in_channels, out_channels, *, rng, dtype=np.float32):
        super().__init__()
        self.params["weight"] = he_normal(rng, (2, 2, in_channels, out_channels), 4 * in_channels, dtype)

    @staticmethod
    def squares(x):
        """Return x in the shape (N, H, W, 2, 2, C), without a copy."""
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)

    def __call__(self, x):
        """Return y."""
        self.x = x
        n, h, w, c = x.shape
        xp, matrix = library(x), self.params["weight"].reshape(4 * c, -1)
        y = xp.empty((n, h // 2, w // 2, matrix.shape[1]), x.dtype)

        def convolve(group):
            xp.matmul(self.squares(x[group]).reshape(-1, 4 * c), matrix, out=rows(y[group]))

        for_groups(convolve, 1, x)
        return y

    def backward(self, dy):
        """Return dx; fill dW."""
        x, weight = self.x, self.params["weight"]
        matrix = weight.reshape(-1, weight.shape[-1])
        dx = library(x).empty(x.shape, x.dtype)

        def differentiate(group):
            squares = self.squares(dx[group])
            squares[...] = (rows(dy[group]) @ matrix.T).reshape(squares.shape)
            return self.squares(x[group]).reshape(-1, len(matrix)).T @ rows(dy[group])

        self.grads["weight"] = sum(for_groups(differentiate, 1, x)).reshape(weight.shape)
        return dx


class GlobalAveragePool(Layer):
    """Mean of all pixels, where the shapes are x (N, H, W, C) and y (N, C)."""

    def __call__(self, x):
        """Return y."""
        self.x_shape = x.shape
        return x.mean(axis=(1, 2))

    def backward(self, dy):
        """Return dx, which is the same for all pixels."""
        _, h, w, _ = self.x_shape
        xp = library(dy)
        return xp.ascontiguousarray(xp.broadcast_to(dy[:, None, None] / (h * w), self.x_shape))
