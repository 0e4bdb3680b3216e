"""Arrays to test with: nasty memory layouts, and batch normalisations in a few numbers.

Without hypothesis and pytest, so that `table` can run where they are not.
"""

from dataclasses import dataclass

import numpy as np

FLOAT_DTYPES = (np.float16, np.float32, np.float64, np.longdouble)


# Memory layouts: functions from an array and a random generator to an array of the same shape --------------


def contiguous(x, rng):
    return np.ascontiguousarray(x)


def fortran(x, rng):
    return np.asfortranarray(x)


def transposed(x, rng):
    order = rng.permutation(x.ndim)
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def sliced(x, rng):
    """Gaps between the elements, in one or more axes."""
    steps = rng.integers(1, 4, x.ndim)
    steps[rng.integers(x.ndim)] = 2
    starts = rng.integers(0, 3, x.ndim)
    gap = np.nan if x.dtype.kind == "f" else 1
    big = np.full([start + n * step for start, n, step in zip(starts, x.shape, steps, strict=True)], gap)
    part = tuple(
        slice(start, start + n * step, step) for start, n, step in zip(starts, x.shape, steps, strict=True)
    )
    big = big.astype(x.dtype)
    big[part] = x
    return big[part]


def negative(x, rng):
    """Backwards in memory, along one or more axes."""
    flip = rng.integers(0, 2, x.ndim)
    flip[rng.integers(x.ndim)] = 1
    back = tuple(slice(None, None, -1 if f else 1) for f in flip)
    return np.ascontiguousarray(x[back])[back]


def broadcast(x, rng):
    """Stride 0 along one axis: other values than x, the same ones all along it."""
    axes = [i for i, n in enumerate(x.shape) if n > 1]
    return np.broadcast_to(x.take([0], rng.choice(axes)), x.shape) if axes and x.size else x


def read_only(x, rng):
    x = np.array(x, order="C")
    x.flags.writeable = False
    return x


def misaligned(x, rng):
    """At an address that is no multiple of the item size."""
    memory = np.zeros(x.nbytes + x.itemsize, np.uint8)
    start = int(rng.integers(1, max(2, x.itemsize)))
    y = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def offset(x, rng):
    """Aligned, but not at a cache line."""
    memory = np.empty(x.size + 16, x.dtype)
    start = int(rng.integers(1, 16))
    y = memory[start : start + x.size].reshape(x.shape)
    y[...] = x
    return y


def swapped(x, rng):
    return x if x.dtype.kind == "V" else x.astype(x.dtype.newbyteorder())  # bfloat16 has one byte order


def loose(x, rng):
    """Axes of length 1 with strides that mean nothing, as NumPy allows."""
    x = np.array(x, order="C")
    strides = [int(rng.integers(0, 1000)) if n == 1 else s for n, s in zip(x.shape, x.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(x, strides=strides)


LAYOUTS = {
    f.__name__: f
    for f in (
        contiguous, fortran, transposed, sliced, negative, broadcast,
        read_only, misaligned, offset, swapped, loose,
    )
}  # fmt: skip
# Those that out= accepts.
WRITABLE = tuple(name for name in LAYOUTS if name not in ("broadcast", "read_only", "swapped"))


def arrange(x, layout, rng):
    """Return x in one of the `LAYOUTS`."""
    y = LAYOUTS[layout](x, rng)
    assert y.shape == x.shape
    return y


# Problems ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A batch normalisation in a few numbers, so that a failing one is read at a glance."""

    shape: tuple[int, ...]
    axis: int = 1
    dtype: type = np.float32
    layout: str = "contiguous"
    dy_layout: str = "contiguous"
    offset: float = 0.0
    spread: float = 1.0
    gamma_dtype: type | None = np.float32
    beta_dtype: type | None = np.float32
    eps: float = 1e-5
    seed: int = 0

    @property
    def channels(self):
        return self.shape[self.axis]

    @property
    def options(self):
        return {"axis": self.axis, "eps": self.eps}

    def _rng(self, purpose):
        return np.random.default_rng((self.seed, purpose))

    def _along(self, values):
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return np.reshape(values, shape)

    def x(self):
        """Every channel has a mean and a spread of its own, around those of the problem."""
        rng = self._rng(0)
        values = rng.standard_normal(self.shape, self.dtype)
        values *= self._along(rng.uniform(0.5, 2, self.channels) * self.spread)
        values += self._along(rng.standard_normal(self.channels) * self.spread + self.offset)
        return arrange(values, self.layout, rng)

    def dy(self):
        """Gradients with a mean, and part of them along x, so that no term of dx is small."""
        rng = self._rng(1)
        values = rng.standard_normal(self.shape, self.dtype)
        values += self._along(rng.standard_normal(self.channels))
        values += self._rng(0).standard_normal(self.shape, self.dtype)
        return arrange(values, self.dy_layout, rng)

    def out(self, layout="contiguous"):
        """Return an array of the dtype and shape of a result, full of NaN."""
        return arrange(np.full(self.shape, np.nan, self.dtype), layout, self._rng(2))

    def gamma(self):
        rng = self._rng(3)
        values = rng.uniform(0.5, 2, self.channels) * rng.choice([-1, 1], self.channels)
        return None if self.gamma_dtype is None else values.astype(self.gamma_dtype)

    def beta(self):
        values = self._rng(4).standard_normal(self.channels)
        return None if self.beta_dtype is None else values.astype(self.beta_dtype)

    def given(self):
        """Statistics that are near those of x, but not the same."""
        rng = self._rng(5)
        mean = self.offset + rng.standard_normal(self.channels) * self.spread
        return mean, rng.uniform(0.5, 2, self.channels) * self.spread**2


# Results at every address -----------------------------------------------------------------------------------


def guarded(problem, start):
    """Return an array that begins ``start`` elements into a buffer full of -7, and a check of the rest."""
    size = int(np.prod(problem.shape))
    memory = np.full(size + 64, -7, problem.dtype)
    out = memory[start : start + size].reshape(problem.shape)

    def check():
        assert (memory[:start] == -7).all(), "something was written before out"
        assert (memory[start + size :] == -7).all(), "something was written after out"

    return out, check
