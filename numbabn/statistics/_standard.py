"""Values less the mean of their channel, in units of its standard deviation, for channels on any axes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from numbabn.arrays import library_of, memory
from numbabn.arrays.dtypes import COMPUTED, CONVERTED, beyond_float32
from numbabn.arrays.layout import Layout
from numbabn.arrays.numpy import writable
from numbabn.backends import cpu
from numbabn.backends.strides import memory_order
from numbabn.backends.verbs import Affine, Array, View


class Standard:
    """What values are compared with: mean and variance of the channels on the axes ``kept``, in this order.

    A channel of variance 0 is divided by 1, as in scikit-learn's StandardScaler, and becomes 0 and not NaN.
    """

    def __init__(self, kept: Sequence[int], mean: Array, var: Array) -> None:
        self.kept = kept
        self.mean = mean
        self.var = np.where(var == 0, 1.0, var)

    @np.errstate(all="ignore")  # values that leave a range become infinity or 0, without a warning
    def write(self, x: Array, y: Array | None, dtype: np.dtype[Any]) -> Array:
        """Return (x - mean) / sqrt(var) in this dtype; in y, unless it is None.

        The arithmetic has the dtype of the result where x has integers of 8 or 16 bits, that of x where it is
        float32 or float64, and else it is float64; and so it is where 1 / sqrt(var) is beyond float32.
        """
        kind = x.dtype.newbyteorder("=")
        single = dtype if kind in CONVERTED else kind
        wide = single == np.float32 and beyond_float32(1 / np.sqrt(self.var))
        if wide or (kind not in CONVERTED and kind not in COMPUTED):
            x = x.astype(np.float64, order="K")
        source = library_of(x).dense(x)
        computed = dtype if source.dtype in CONVERTED else source.dtype
        layout, axes = self._layout(source)
        fits = y is not None and y.dtype == computed and layout.matches(y)
        result = y if y is not None and fits else memory.empty_like(source, computed)
        if source.size:
            pair = tuple(self._per_group(values, source, axes) for values in (self.mean, self.var))
            affine = Affine((np.ones(layout.view.groups), np.zeros(layout.view.groups)), 0.0)
            cpu.normalize(layout.flat(source), layout.view, pair, affine, layout.flat(result))
        if result is y or (y is None and computed == dtype):
            return result
        y = memory.empty_like(source, dtype) if y is None else y
        y[...] = result
        return y

    def _layout(self, x: Array) -> tuple[Layout, Sequence[int]]:
        """Return a layout whose groups are a range of the axes of x in memory order, and these axes.

        The range goes from the first channel axis to the last, and may have other axes in between.
        """
        order = memory_order(x.strides)
        places = [order.index(axis) for axis in self.kept]
        first, end = (min(places), max(places) + 1) if places else (0, 0)
        lengths = [x.shape[axis] for axis in order]
        outer, groups, inner = map(math.prod, (lengths[:first], lengths[first:end], lengths[end:]))
        return Layout(order, View(1, outer, groups, 1, inner)), order[first:end]

    def _per_group(self, values: Array, x: Array, axes: Sequence[int]) -> Array:
        """Return the values of the channels once for each group of x; the groups lie on these axes."""
        alone = [n if axis in self.kept else 1 for axis, n in enumerate(x.shape)]
        groups = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
        ascending = values.transpose(np.argsort(self.kept).tolist())
        whole = np.broadcast_to(ascending.reshape(alone), groups)
        return writable(whole.transpose(memory_order(x.strides)).reshape(-1))
