"""What layers with running statistics share, which are one mean and one variance for each channel."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from numbabn import _numbers
from numbabn.arrays import native, on_host
from numbabn.arrays.library import Place
from numbabn.arrays.place import put
from numbabn.backends.arithmetic import normalize_coefficients
from numbabn.backends.verbs import Array
from numbabn.norms import _options
from numbabn.norms._base import Layer
from numbabn.norms._call import Call
from numbabn.norms._running import Running


class ChannelLayer(Layer):
    """A layer with one gamma and one beta for each channel."""

    def __init__(self, num_channels: int, axis: int, **options: Any) -> None:
        self.num_channels = _options.channels(num_channels)
        self.axis = _numbers.integer(axis, "axis")
        super().__init__((self.num_channels,), **options)

    def _check_input(self, call: Call) -> None:
        """Raise unless x has the channels of the layer, and is on its device."""
        if call.channels != self.num_channels or call.library.place(call.x) != self._place:
            _options.layer_input(call.x, self.axis, self.num_channels, self._place)


class TrackingLayer(ChannelLayer):
    """A layer that may keep running statistics of its channels.

    Attributes
    ----------
    running_mean, running_var : array of shape (C,), or None
        Start at 0 and 1.
    num_batches_tracked : int
        Training batches seen.
    """

    momentum: float | None

    def __init__(self, num_channels: int, axis: int, track_running_stats: bool, **options: Any) -> None:
        super().__init__(num_channels, axis, **options)
        self._running: Running | None = None
        if track_running_stats:
            self._running = Running.initial(self.num_channels, self.dtype, self._place)
        self._frozen = 0

    @property
    def running_mean(self) -> Array | Any:
        """Running mean, or None without tracking."""
        return None if self._running is None else native(self._running.mean)

    @property
    def running_var(self) -> Array | Any:
        """Running unbiased variance, or None without tracking."""
        return None if self._running is None else native(self._running.var)

    @property
    def num_batches_tracked(self) -> int:
        """Number of training batches in the running statistics."""
        return 0 if self._running is None else self._running.batches

    @contextmanager
    def frozen_stats(self) -> Iterator[Self]:
        """Within the block no call updates the running statistics; what a call returns is the same.

        For recomputation of activations, and for looking at training-mode output in the middle of training.

        Examples
        --------
        >>> import numpy as np, numbabn as nbn
        >>> bn = nbn.BatchNorm(1)
        >>> with bn.frozen_stats():
        ...     y = bn(np.array([[1.0], [3.0]]))
        >>> bn.num_batches_tracked
        0
        """
        self._frozen += 1
        try:
            yield self
        finally:
            self._frozen -= 1

    def affine(self) -> tuple[Array, Array]:
        r"""Return scale and shift of evaluation mode: y = x * scale + shift, channel by channel.

        .. math:: \mathit{scale}_c = \frac{\gamma_c}{\sqrt{\sigma_c^2 + \epsilon}}, \qquad
                  \mathit{shift}_c = \beta_c - \mu_c\, \mathit{scale}_c

        with the running mean and the running variance, whatever the mode of the layer. An activation comes
        after.

        Returns
        -------
        scale, shift : array of float64, shape (C,)
            New arrays of the layer's library, on its device.

        Raises
        ------
        ValueError
            If there are no running statistics, a running variance is negative, or it and eps are both 0.

        Notes
        -----
        Ioffe and Szegedy (2015), section 3.1: normalisation with constant statistics is a linear map.

        The two are float64 whatever the dtype of the layer, since ``mean * scale`` and ``x * scale`` cancel
        where the mean is large: at mean 1e4 and variance 1 a shift rounded to float32 puts y off by up to
        5e-4. The layer itself subtracts the mean first, and has no such error in float32 either.

        To put the map into the weight of the layer before or after, see `fold_into_dense` and
        `fold_into_conv`.

        Examples
        --------
        >>> import numpy as np, numbabn as nbn
        >>> bn = nbn.BatchNorm(2, eps=0.0)
        >>> bn.running_mean[:], bn.running_var[:] = [3, 0], [4, 1]
        >>> bn.affine()
        (array([0.5, 1. ]), array([-1.5,  0. ]))
        """
        scale, shift = self._constants()
        return put(scale, self._place), put(shift, self._place)

    @np.errstate(all="ignore")  # of NaN and infinity in a channel, which stay there
    def _constants(self) -> tuple[Array, Array]:
        """Return scale and shift of evaluation mode in NumPy, as float64."""
        running = self._running
        if running is None:
            raise ValueError(
                f"{self!r} has no running statistics, so that evaluation mode takes those of x and has no "
                "constant scale and shift; make the layer with track_running_stats=True"
            )
        mean, var = (
            on_host(each, name).astype(np.float64)
            for name, each in (("running_mean", running.mean), ("running_var", running.var))
        )
        given = {
            name: on_host(each, f"params[{name!r}]").astype(np.float64) for name, each in self.params.items()
        }
        if (var < 0).any():
            c = int(np.argmax(var < 0))
            raise ValueError(f"running_var must not be negative, but running_var[{c}] is {var[c]}")
        if (var + self.eps == 0).any():
            c = int(np.argmax(var + self.eps == 0))
            raise ValueError(f"running_var[{c}] and eps are 0, so that the scale is infinite; use an eps > 0")
        gamma, beta = given.get("gamma", 1.0), given.get("beta", 0.0)
        return normalize_coefficients(mean, np.sqrt(var + self.eps), gamma, beta, 0.0)

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and statistics in NumPy, for `load_state_dict` or ``numpy.savez``.

        Keys: gamma, beta, running_mean, running_var, num_batches_tracked, as far as the layer has them; with
        ``momentum=None`` of `BatchNorm` also population_count, population_mean and population_m2 in full
        precision. Counts beyond 2**63 - 1 are written as 2**63 - 1.
        """
        state = super().state_dict()
        if self._running is not None:
            state |= self._running.state(population=self.momentum is None)
        return state

    def _loaded(self, state: Mapping[str, Array]) -> dict[str, Any]:
        if self._running is None:
            return {}
        return {"_running": self._running.loaded(Running.from_state(state, self._place))}

    def _moved(self, to: Place) -> dict[str, Any]:
        running = self._running
        if running is not None:
            running = Running.from_state(running.state(population=True), to)
        return {**super()._moved(to), "_running": running}

    def _chosen(self) -> dict[str, Any]:
        return {**super()._chosen(), "track_running_stats": self._running is not None}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_frozen": 0}
