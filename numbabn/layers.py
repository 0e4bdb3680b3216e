"""Layers: parameters and running statistics around the functions, no arithmetic of their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from numbabn import _checks, _places, _synchronised
from numbabn._arrays import Array, assign, known, native
from numbabn._running import Running, averaged, initial, pooled
from numbabn._synchronised import Group, Message
from numbabn.functional import (
    Saved,
    batch_norm_backward,
    batch_norm_forward,
    synchronised_backward,
    synchronised_forward,
)

A = TypeVar("A")  # an array of NumPy, CuPy, Numba or PyTorch: results are of the same kind


class BatchNorm:
    r"""Batch normalisation with learned scale and shift, and running statistics for inference.

    In training mode every channel is normalised with the statistics of the batch,

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c,

    and the running statistics move towards them; in evaluation mode the running statistics are used.

    Parameters
    ----------
    num_channels : int
        C, the length of x along ``axis``.
    axis : int, default 1
        Channel axis of x, of any rank from 2: 1 for NC, NCL, NCHW and NCDHW, -1 for NHWC.
    eps : float, default 1e-5
        Added to the variance; not negative.
    momentum : float or None, default 0.1
        Weight of the **new** batch, ``running = (1 - momentum) * running + momentum * batch``, as in PyTorch;
        Keras' and Flax' momentum is 1 minus this. None keeps the exact statistics of everything seen, every
        value with the same weight, which is neither PyTorch's mean of batch means nor its mean of variances.
    scale, center : bool, default True
        Whether there is a gamma, and a beta.
    track_running_stats : bool, default True
        Without, evaluation mode uses the statistics of the batch too.
    dtype : dtype, default float32
        Of parameters and running statistics; any floating dtype, on a GPU of at most 64 bits. x may have
        another.
    device : {"cpu", "cuda", "cuda:0", ...} or array, default "cpu"
        Where parameters and statistics are, and x must be; see `to`.
    comm : MPI communicator, optional
        Synchronise the layer over its ranks, see Notes; for example ``mpi4py.MPI.COMM_WORLD``. Needs
        ``pip install "numbabn[mpi]"``, and NumPy arrays.

    Attributes
    ----------
    params, grads : dict
        ``gamma`` and ``beta``, shape (C,); update them in place. `backward` replaces the entries of grads.
    running_mean, running_var : array of shape (C,), or None
        Start at 0 and 1. running_var is unbiased, as in PyTorch; normalisation uses the biased variance. On a
        GPU they are updated in place, on the CPU replaced by new arrays.
    num_batches_tracked : int
        Training batches seen.
    training : bool
        The mode; see `train` and `eval`.
    comm : MPI communicator or None
        As given; may be set, and is not pickled.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range. A refused call changes nothing.

    Notes
    -----
    Ioffe and Szegedy (2015), "Batch normalization: accelerating deep network training by reducing internal
    covariate shift".

    In evaluation mode several threads may call one layer at once. In training mode every call gives its own
    right result, but of calls at the same moment just one may be counted in the running statistics, and
    `backward` belongs to the last call: train with one thread per layer.

    On a GPU the running statistics are updated in place, so that a replayed CUDA graph goes on updating them;
    counts are kept on the host, so that ``num_batches_tracked`` stands still then and ``momentum=None`` must
    not be captured.

    **Several processes.** With ``comm``, each rank calls its own layer with its own batch, of any size, 0
    too. In training mode it gets what one process would with the batches of all ranks in one: y and dx of its
    part, and the same bits on all ranks of the running statistics, of dgamma and of dbeta. These two are sums
    over all ranks and must not be added up again; PyTorch's SyncBatchNorm keeps local sums. Parameters must
    be the same on all ranks, as they are in the beginning.

    All ranks make the same calls in training mode, in the same order: each call of the layer and each
    `backward` of it is one message of 2 C + 2 numbers (an ``Allgather``). In evaluation mode nothing is sent,
    and dgamma and dbeta are those of the rank's own batch. If a call is refused on one rank, it raises its
    error there and a RuntimeError that names the rank on all others; none of them has changed anything, and
    all may go on. What no layer can see is a rank that ends before its call: the others wait for it. Start
    programs with ``python -m mpi4py``, which ends all ranks when one has an error that nobody catches::

        # mpiexec -n 4 python -m mpi4py train.py
        from mpi4py import MPI
        bn = nbn.BatchNorm(64, comm=MPI.COMM_WORLD)
        y = bn(x)               # of this rank's part of the batch
        dx = bn.backward(dy)

    Copies of a layer keep its comm; a layer from a pickle has none, until ``bn.comm = comm``.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> bn = nbn.BatchNorm(2)
    >>> x = np.array([[1, 10], [3, 30]], np.float32)
    >>> bn(x).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> bn.running_mean
    array([0.2, 2. ], dtype=float32)
    >>> dx = bn.backward(np.ones_like(x))
    >>> bn.grads["beta"]
    array([2., 2.], dtype=float32)
    """

    def __init__(
        self,
        num_channels: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        scale: bool = True,
        center: bool = True,
        track_running_stats: bool = True,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
        comm: Any = None,
    ) -> None:
        self.num_channels = _checks.channels(num_channels)
        self.axis = _checks.integer(axis, "axis")
        self.eps = _checks.eps(eps)
        self.momentum = _checks.momentum(momentum)
        self.dtype = _checks.parameter_dtype(dtype)
        self.training = True
        self._place = place = _places.place(device)
        self._group: Group | None = _synchronised.group(comm, place)
        ones, zeros = np.ones(self.num_channels, self.dtype), np.zeros(self.num_channels, self.dtype)
        self.params: dict[str, Any] = {}
        if scale:
            self.params["gamma"] = place.put(ones)
        if center:
            self.params["beta"] = place.put(zeros)
        self.grads = {name: place.put(zeros) for name in self.params}
        # All running statistics in one tuple, replaced in one assignment: no call can leave half of them.
        self._running = initial(self.num_channels, self.dtype, place) if track_running_stats else None
        self._frozen = 0
        self._saved: Saved | None = None

    @property
    def running_mean(self) -> Any:
        """Running mean, or None without tracking."""
        return None if self._running is None else native(self._running.mean)

    @property
    def running_var(self) -> Any:
        """Running unbiased variance, or None without tracking."""
        return None if self._running is None else native(self._running.var)

    @property
    def num_batches_tracked(self) -> int:
        """Number of training batches in the running statistics."""
        return 0 if self._running is None else self._running.batches

    @property
    def comm(self) -> Any:
        """Communicator of a synchronised layer, or None."""
        return None if self._group is None else self._group.comm

    @comm.setter
    def comm(self, comm: Any) -> None:
        self._group = _synchronised.group(comm, self._place)
        self._saved = None

    def __call__(self, x: A, *, out: A | None = None) -> A:
        """Normalise x; in training mode, update the running statistics.

        Parameters
        ----------
        x : array of float32 or float64, rank >= 2
            With ``num_channels`` along ``axis``, on the device of the layer.
        out : array, optional
            Write the result here; may be x itself, which then cannot go backward.

        Returns
        -------
        y : array
            Shape, dtype and library of x; ``out`` if given.
        """
        if self._group is None or not self.training:
            return self._forward(x, out, None)
        with self._group.message(_synchronised.FORWARD, self.num_channels) as message:
            return self._forward(x, out, message)

    def _forward(self, x: A, out: A | None, message: Message | None) -> A:
        x = _checks.layer_input(x, self.axis, self.num_channels, self._place)
        gamma, beta = self.params.get("gamma"), self.params.get("beta")
        running = self._running
        if self.training or running is None:
            if message is None:
                y, saved = batch_norm_forward(x, gamma, beta, axis=self.axis, eps=self.eps, out=out)
            else:
                y, saved = synchronised_forward(x, gamma, beta, self.axis, self.eps, out, message)
            if self.training and running is not None and not self._frozen and saved.count:
                update = (
                    pooled(running, saved)
                    if self.momentum is None
                    else averaged(running, saved, self.momentum)
                )
                self._running = update
        else:
            y, saved = batch_norm_forward(
                x, gamma, beta, axis=self.axis, eps=self.eps, mean=running.mean, var=running.var, out=out
            )
        self._saved = saved
        return y

    def backward(self, dy: A, *, out: A | None = None, need_dx: bool = True) -> A | None:
        """Gradient of the last call: return dx, and put dgamma and dbeta into `grads`.

        Parameters
        ----------
        dy : array
            Gradient with respect to the last result: shape and dtype of that x.
        out : array, optional
            Write dx here; may be dy itself.
        need_dx : bool, default True
            Without, only the gradients of the parameters are computed.

        Returns
        -------
        dx : array or None

        Raises
        ------
        RuntimeError
            If the layer was not called before.
        """
        saved = self._saved
        together = self.training if saved is None else saved._synchronised
        if self._group is None or not together:
            return self._backward(dy, out, need_dx, None)
        with self._group.message(_synchronised.BACKWARD, self.num_channels) as message:
            return self._backward(dy, out, need_dx, message)

    def _backward(self, dy: A, out: A | None, need_dx: bool, message: Message | None) -> A | None:
        saved = self._saved
        if saved is None:
            raise RuntimeError("backward needs a forward call first: y = bn(x), then bn.backward(dy)")
        if message is None:
            dx, dgamma, dbeta = batch_norm_backward(dy, saved, out=out, need_dx=need_dx)
        else:
            dx, dgamma, dbeta = synchronised_backward(dy, saved, out, need_dx, message)
        if dgamma is not None:
            self.grads["gamma"] = dgamma
        if dbeta is not None:
            self.grads["beta"] = dbeta
        return dx

    def train(self) -> Self:
        """Switch to training mode; return the layer."""
        self.training = True
        return self

    def eval(self) -> Self:
        """Switch to evaluation mode; return the layer."""
        self.training = False
        return self

    def to(self, device: Any) -> Self:
        """Move parameters, gradients and statistics; return the layer.

        Parameters
        ----------
        device : {"cpu", "cuda", "cuda:0", ...} or array
            "cuda" is the current device, and chooses CuPy's arrays where CuPy is installed, else PyTorch's
            where it can use CUDA, else Numba's. An array stands for its own device and library. x may be of
            another library than the layer, on the same device.

        Raises
        ------
        TypeError, ValueError
            If it is none of these, or there is no such device.
        ImportError, RuntimeError
            If numba-cuda is not installed, or finds no GPU.

        Notes
        -----
        `params` and `grads` get new arrays, unless the layer is there already, and `backward` needs a new
        forward call.

        Examples
        --------
        >>> import numbabn as nbn
        >>> nbn.BatchNorm(64).to("cpu")
        BatchNorm(64, axis=1, eps=1e-05, momentum=0.1)
        """
        place = _places.place(device)
        if place != self._place:
            _synchronised.group(self.comm, place)
            self.__dict__ |= self._moved(place)
        return self

    def _moved(self, place: _places.Place) -> dict[str, Any]:
        """Attributes of this layer at a place, in new arrays; nothing of a batch."""
        arrays = {
            name: {key: place.put(_places.to_host(known(value, key))) for key, value in values.items()}
            for name, values in (("params", self.params), ("grads", self.grads))
        }
        running = self._running
        if running is not None:
            running = Running.from_state(running.state(population=True), place)
        return {**arrays, "_running": running, "_place": place, "_saved": None}

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

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters and statistics in NumPy, for `load_state_dict` or ``numpy.savez``.

        Keys: gamma, beta, running_mean, running_var, num_batches_tracked, as far as the layer has them; with
        ``momentum=None`` also population_count, population_mean and population_m2 in full precision.
        """
        state = {name: _places.to_host(known(value, name)) for name, value in self.params.items()}
        if self._running is not None:
            state |= self._running.state(population=self.momentum is None)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over parameters and statistics from `state_dict`; the dtypes become those of this layer.

        Parameters
        ----------
        state : mapping of str to array
            Exactly the keys of `state_dict` of a layer made with the same options. The arrays may be of any
            library, on any device.

        Raises
        ------
        KeyError
            If keys are missing or unknown.
        TypeError, ValueError
            If a value has the wrong dtype or shape. Whatever is raised, the layer is unchanged.
        """
        values = _checks.state(state, self.state_dict())
        params = {name: known(value, f"params[{name!r}]") for name, value in self.params.items()}
        _checks.writable_parameters(params)
        running = self._running
        if running is not None:
            running = running.loaded(Running.from_state(values, self._place))
        for name, value in params.items():
            assign(value, known(_places.place_of(value).put(values[name]), name))
        self._running = running

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_saved": None, "_frozen": 0}  # a batch is no part of a layer
        if self._place != _places.HOST:  # in NumPy, which every process can read
            state |= {**self._moved(_places.HOST), "_place": self._place}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_place": _places.HOST}
        if state["_place"] != _places.HOST:
            self.__dict__ |= self._moved(state["_place"])

    def __repr__(self) -> str:
        options = f"axis={self.axis}, eps={self.eps}, momentum={self.momentum}"
        for name, present in (
            ("scale", "gamma" in self.params),
            ("center", "beta" in self.params),
            ("track_running_stats", self._running is not None),
        ):
            options += "" if present else f", {name}=False"
        options += "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        options += "" if self._place == _places.HOST else f", device='{self._place}'"
        options += "" if self._group is None else f", comm={self.comm!r}"
        return f"BatchNorm({self.num_channels}, {options})"
