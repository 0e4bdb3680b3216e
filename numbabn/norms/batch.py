"""Batch normalisation: the functions, which remember nothing, and the layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbabn.arrays.library import Place
from numbabn.norms import _checks, _options, _ranks
from numbabn.norms._call import Call, Reduce, backward
from numbabn.norms._foreign import advised
from numbabn.norms._running import Running
from numbabn.norms._saved import Saved
from numbabn.norms._tracking import TrackingLayer
from numbabn.norms._types import A


def batch_norm_forward(
    x: A,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    mean: Any = None,
    var: Any = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
) -> tuple[A, Saved]:
    r"""Normalise every channel of a batch, and keep what the backward pass needs.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c

    with the mean and the biased variance of x over all axes but ``axis``, or with those given.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``: NC, NCL, NCHW and NCDHW have 1, NHWC has -1.
    gamma, beta : array of any float dtype, or list of numbers, shape (C,), optional
        Scale and shift; 1 and 0 without. A list becomes an array of float64.
    axis : int, default 1
        Channel axis.
    eps : float, default 1e-5
        Added to the variance; not negative. With 0, a constant channel gives NaN.
    mean, var : array of any float dtype, or list of numbers, shape (C,), optional
        Use these statistics, constants for the backward pass, in place of those of x. Both or none.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass: y is the activation of the above.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; not looked at without an activation or a residual.
    residual : array, optional
        z, of the shape and dtype of y: it is added before the activation. May be ``out``; may not overlap it
        in any other way.
    out : array, optional
        Write the result here: shape of x, dtype of x. May be x itself, which then cannot go backward;
        may not overlap x in any other way.

    Returns
    -------
    y : array
        Shape and dtype of x, memory order as ``numpy.empty_like(x)``; ``out`` if given.
    saved : Saved
        For `batch_norm_backward`. Holds x, not a copy: do not change x before going backward; on a GPU, nor
        gamma, mean and var.

    Raises
    ------
    TypeError
        If an array is of no library that is supported or has the wrong dtype, if some arrays are on a GPU and
        others are not, or if ``out`` is of another library than x.
    ValueError
        If a shape, ``axis``, ``eps``, ``activation`` or ``negative_slope`` is wrong, ``out`` overlaps x or
        the residual partly, a channel has just one value to take statistics of, or arrays are on different
        GPUs.
    ImportError, RuntimeError
        If x is on a GPU, and numba-cuda is not installed or finds none.

    Notes
    -----
    Ioffe and Szegedy (2015), "Batch normalization: accelerating deep network training by reducing internal
    covariate shift". An empty batch gives an empty result. NaN and infinity stay in their channel. A constant
    channel gives exactly beta. A negative variance is refused on the CPU. On a GPU, reading it would
    synchronise with the device: there its channel becomes NaN, unless eps makes the sum positive.

    On a GPU all arrays of a call are on one device. Nothing is copied to the host and nothing waits: work
    goes to the current stream of the library of x, for Numba to the stream that its array was made with.
    y and dx are arrays of the library of x; dgamma and dbeta are arrays of the library of gamma and beta.

    float16 and bfloat16, which NumPy has from ml_dtypes, are dtypes of storage: everything is computed in
    float32, with statistics in float64, and y is rounded once, to nearest even. It is at most one ulp from
    the exact result so rounded, unless xhat * gamma and beta cancel to less than the precision of float32.
    What is beyond the range becomes infinity.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, saved = nbn.batch_norm_forward(x, eps=0.0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> saved.var
    array([  1., 100.])
    """
    call = Call(x, axis, out)
    call.follow(activation, negative_slope, residual)
    if mean is not None or var is not None:
        affine, known = call.affine_and_known(gamma, beta, eps, mean, var)
        return call.normalize(affine, known, None)
    if call.count == 1:
        raise _checks.one_value(call.x, "mean= and var= to use known statistics")
    return call.normalize(call.affine(gamma, beta, eps), None, None)


def batch_norm_inference(
    x: A,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: A | None = None,
    out: A | None = None,
    dtype: DTypeLike | None = None,
) -> A:
    r"""Normalise every channel with known statistics.

    .. math:: y = \frac{x - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} \gamma_c + \beta_c

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, rank >= 2
        Any memory layout; C channels on ``axis``. On the CPU also of uint8, int8, uint16 or int16, with a
        ``dtype`` for y.
    mean, var : array of any float dtype, or list of numbers, shape (C,)
        Statistics of the population, usually running averages.
    gamma, beta : array of any float dtype, or list of numbers, shape (C,), optional
        Scale and shift; 1 and 0 without. A list becomes an array of float64.
    axis : int, default 1
        Channel axis.
    eps : float, default 1e-5
        Added to the variance; not negative.
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass: y is the activation of the above.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; not looked at without an activation or a residual.
    residual : array, optional
        z, of the shape and dtype of y: it is added before the activation. May be ``out``; may not overlap it
        in any other way.
    out : array, optional
        Write the result here; may be x itself.
    dtype : {float32, float64}, optional
        Dtype of y where x has integers, for example an image of uint8, which is converted while it is read:
        in one pass, without a copy of x in between. Otherwise y has the dtype of x.

    Returns
    -------
    y : array
        Shape and dtype of x, or ``dtype``; ``out`` if given.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_forward`, and if x has integers and there is no ``dtype``, or floats of another one.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> nbn.batch_norm_inference(x, np.array([2.0, 20.0]), np.array([1.0, 100.0]), eps=0.0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    if mean is None or var is None:
        raise TypeError("mean and var must be arrays of one value per channel, not None")
    call = Call(x, axis, out, dtype)
    call.follow(activation, negative_slope, residual, backward=False)
    y: A
    affine, known = call.affine_and_known(gamma, beta, eps, mean, var)
    y, _ = call.normalize(affine, known, None)
    return y


def batch_norm_backward(
    dy: A,
    saved: Saved,
    *,
    out: A | None = None,
    dresidual_out: A | None = None,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
) -> tuple[Any, ...]:
    r"""Gradients of a forward call.

    With xhat the normalised x and means over a channel's n values:

    .. math::

        d\beta = \sum dy, \qquad d\gamma = \sum dy\, \hat x, \qquad
        dx = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
             \left(dy - \overline{dy} - \hat x\, \overline{dy\, \hat x}\right)

    where the statistics were those of x; where they were given, the two means are absent from dx.

    Parameters
    ----------
    dy : array
        Gradient of the loss with respect to y: shape and dtype of x, any memory layout.
    saved : Saved
        From the `batch_norm_forward` call that made y.
    out : array, optional
        Write dx here: shape and dtype of x. May be dy itself; may not overlap dy or x in any other way.
    dresidual_out : array, optional
        Write dresidual here: shape and dtype of x. May be dy itself; may not overlap dy, x or ``out`` in any
        other way.
    need_dx, need_dgamma, need_dbeta : bool, default True
        What to compute; the rest is None.

    Returns
    -------
    dx : array or None
        Shape and dtype of x; ``out`` if given.
    dgamma, dbeta : array or None, shape (C,)
        In the dtypes of gamma and beta; None where the forward call had no such parameter.
    dresidual : array
        Fourth, where the forward call had a residual: its gradient, which is dy times the derivative of the
        activation.

    Raises
    ------
    TypeError
        If dy is not an array of the library and dtype of x, or saved is not a `Saved`.
    ValueError
        If a shape is wrong, ``out`` or ``dresidual_out`` overlaps an input partly, or the other one, there
        was no residual for ``dresidual_out``, or the forward call overwrote x (``out=x``).

    Notes
    -----
    Ioffe and Szegedy (2015), section 3. An empty batch has an empty dx, and zero dgamma and dbeta.

    y and dx have their full precision as long as gamma / std, dy / std and sums of dy * (x - mean) lie in the
    range of the dtype of x, and var in that of float64: for gamma and dy near 1, that is a standard deviation
    from 1e-30 to 1e30 in float32, and from 1e-150 to 1e150 in float64.

    dx of float16 and bfloat16 is that of float32, rounded once. Each of its terms is rounded in float32, so
    that where they cancel it may be more than one ulp off; dgamma and dbeta are as precise as for float32.
    With "leaky_relu" on a GPU, what the activation passes on, dy times the slope, is rounded to such a dtype
    first, as it is between PyTorch's steps.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, saved = nbn.batch_norm_forward(x, np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = nbn.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), saved)
    >>> dx.sum().round(12), dbeta
    (np.float64(0.0), array([1.]))
    """
    _checks.norm(saved, "batch_norm")
    return backward(dy, saved, out, dresidual_out, (need_dx, need_dgamma, need_dbeta), None)


class BatchNorm(TrackingLayer):
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
    activation : {"relu", "relu6", "leaky_relu"}, optional
        What follows in the same pass, after the addition of the ``residual`` of a call.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0.
    dtype : dtype, default float32
        Of parameters and running statistics; any floating dtype, on a GPU float16, float32 or float64. x may
        have another.
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
    activation, negative_slope
        As given; may be set.
    dresidual : array or None
        Gradient of the residual, from the last `backward`; None if there was none.
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

    A call keeps x for `backward`, and does not copy it: do not change x before.

    For inference alone, `fold_into_dense` and `fold_into_conv` put a layer into the one beside it; `affine`
    gives the scale and shift that it then is.

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
    `backward` of it is one message of 2 C + 2 numbers (an ``Allgather``), and the first call one more, which
    compares the numbers of channels. In evaluation mode nothing is sent, and dgamma and dbeta are those of
    the rank's own batch. If a call is refused on one rank, it raises its error there and a RuntimeError that
    names the rank on all others; none of them has changed anything, and all may go on. What no layer can see
    is a rank that ends before its call: the others wait for it. Start programs with ``python -m mpi4py``,
    which ends all ranks when one has an error that nobody catches::

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

    # Twelve parameters: the options of the layer, which a user passes by keyword.
    @advised
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
        activation: str | None = None,
        negative_slope: float = 0.01,
        dtype: DTypeLike = np.float32,
        device: Any = "cpu",
        comm: Any = None,
    ) -> None:
        self.momentum = _options.momentum(momentum)
        super().__init__(
            num_channels,
            axis,
            track_running_stats,
            eps=eps,
            scale=scale,
            center=center,
            activation=activation,
            negative_slope=negative_slope,
            dtype=dtype,
            device=device,
        )
        self._ranks = _ranks.ranks(comm, self._place)

    @property
    def comm(self) -> Any:
        """Communicator of a synchronised layer, or None."""
        return None if self._ranks is None else self._ranks.comm

    @comm.setter
    def comm(self, comm: Any) -> None:
        self._ranks = _ranks.ranks(comm, self._place)
        self._saved = None

    def __call__(self, x: A, *, residual: A | None = None, out: A | None = None) -> A:
        """Normalise x; in training mode, update the running statistics.

        Parameters
        ----------
        x : array of float16, bfloat16, float32 or float64, rank >= 2
            With ``num_channels`` along ``axis``, on the device of the layer. Do not change it before
            `backward`, which reads it again.
        residual : array, optional
            Added before the activation: shape and dtype of y. May be ``out``; may not overlap it in any
            other way.
        out : array, optional
            Write the result here; may be x itself, which then cannot go backward.

        Returns
        -------
        y : array
            Shape, dtype and library of x; ``out`` if given.
        """
        if self._ranks is None or not self.training:
            return self._forward(x, residual, out, None)
        # NaN and infinity of one rank are merged into the statistics of all, without a warning.
        with (
            np.errstate(all="ignore"),
            self._ranks.message(_ranks.FORWARD, self.num_channels) as message,
        ):
            return self._forward(x, residual, out, message)

    def _forward(self, x: A, residual: A | None, out: A | None, reduce: Reduce | None) -> A:
        call = Call(x, self.axis, out)
        self._check_input(call)
        call.follow(self.activation, self.negative_slope, residual)
        gamma, beta, eps = self.params.get("gamma"), self.params.get("beta"), self.eps
        running, training = self._running, self.training
        y: A
        if running is not None and not training:
            affine, known = call.affine_and_known(gamma, beta, eps, running.mean, running.var)
            y, self._saved = call.normalize(affine, known, None)
            return y
        affine = call.affine(gamma, beta, eps)
        if reduce is None and call.count == 1:
            raise _checks.one_value(call.x, "use evaluation mode: bn.eval()" if running else None)
        y, saved = call.normalize(affine, None, reduce)
        if training and running is not None and not self._frozen and saved.count:
            self._running = running.after(saved._statistics, saved.count, self.momentum)
        self._saved = saved
        return y

    def _backward(self, dy: A, out: A | None, dresidual_out: A | None, need_dx: bool) -> A | None:
        saved = self._saved
        together = self.training if saved is None else saved._origin == "ranks"
        if self._ranks is None or not together:
            return self._gradients(dy, out, dresidual_out, need_dx, None)
        with self._ranks.message(_ranks.BACKWARD, self.num_channels) as message:
            return self._gradients(dy, out, dresidual_out, need_dx, message)

    def _moved(self, to: Place) -> dict[str, Any]:
        _ranks.ranks(self.comm, to)  # refuses a GPU
        return super()._moved(to)

    # For `recalibrate`.

    @contextmanager
    def _preserved(self) -> Iterator[None]:
        """Whatever happens in the block: mode, statistics and saved arrays are afterwards as before."""
        names = "training", "momentum", "_frozen", "_running", "_saved"
        before = {name: getattr(self, name) for name in names}
        try:
            yield
        finally:
            self.__dict__ |= before

    def _collect(self) -> None:
        """Begin exact statistics of all inputs from now on, in training mode."""
        self.train()
        self.momentum, self._frozen = None, 0
        self._running = Running.initial(self.num_channels, self.dtype, self._place)

    def _adopt(self, collected: Running) -> None:
        """Take over statistics that were collected; the population only where it is in use."""
        running = self._running
        assert running is not None  # of a layer that tracks
        if self.momentum is not None:
            collected = collected._replace(population=running.population)
        self._running = running.loaded(collected)

    def __repr__(self) -> str:
        text = self._text(f"{self.num_channels}, axis={self.axis}, eps={self.eps}, momentum={self.momentum}")
        return text if self._ranks is None else f"{text[:-1]}, comm={self.comm!r})"
