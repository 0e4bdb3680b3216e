"""Statistics of data that no single machine holds: `moments` of Dask arrays.

``import numbabn`` does not import this module: write ``import numbabn.distributed``. Dask is installed by
``pip install "numbabn[dask]"``.

MPI needs nothing of this module: mpi4py adds up the `numbabn.Moments` of all ranks itself, and
``numbabn.BatchNorm(..., comm=MPI.COMM_WORLD)`` is synchronised batch normalisation::

    # mpiexec -n 4 python -m mpi4py statistics.py
    moments = MPI.COMM_WORLD.allreduce(nbn.Moments().update(x))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbabn.arrays import type_name
from numbabn.backends.verbs import Array
from numbabn.statistics import _checks, _state
from numbabn.statistics.moments import Moments

INSTALL = 'pip install "numbabn[dask]"'

# Results merged in one task. The shape of the tree depends on the array's blocks alone: so the result has the
# same bits for any number of workers, in whatever order they finish, and if some of them are lost.
_FAN_IN = 8


def moments(
    x: Any, axis: int | tuple[int, ...] = -1, *, nan_policy: str = "propagate", compute: bool = True
) -> Any:
    r"""Count, mean, variance and range per channel of a Dask array.

    .. math:: \mu_c = \frac1n \sum x, \qquad \sigma_c^2 = \frac{1}{n - \mathrm{ddof}} \sum (x - \mu_c)^2

    over all axes but ``axis``, in one pass: every block of the array becomes a `numbabn.Moments` on the
    worker that has it, and these are merged in a tree, eight at a time.

    Parameters
    ----------
    x : dask.array.Array
        An array of bool, any integer, float16, bfloat16, float32 or float64 in NumPy blocks. It may be cut
        along any axes, the channel axes among them, and the lengths of its blocks may be unknown.
    axis : int or tuple of int, default -1
        Channel axes, as for `numbabn.Moments`.
    nan_policy : {"propagate", "omit", "raise"}, default "propagate"
        As for `numbabn.Moments`; an error names the block.
    compute : bool, default True
        Whether to compute the result now, as ``x.compute()`` would: on the cluster of the current
        ``dask.distributed.Client`` if there is one, else on threads. If False, the result is lazy, and may be
        computed together with others.

    Returns
    -------
    numbabn.Moments or dask.delayed.Delayed
        An object to which chunks, and the moments of other arrays, may be added; lazy if ``compute`` is
        False.

    Raises
    ------
    ImportError
        If Dask is not installed.
    TypeError
        If x is not a Dask array, or has an unsupported dtype.
    ValueError
        If ``axis`` or ``nan_policy`` is wrong; or, when the result is computed, if there is a NaN under
        ``nan_policy="raise"``.

    Notes
    -----
    On one type of machine the bits of the result are the same for any number of workers, even if workers are
    lost during the computation: Dask computes lost blocks again. The results of other block sizes agree
    within the bounds of `numbabn.Moments`: 1e-14 times the size of the data for means, and a relative 1e-12
    for variances.

    A worker holds a block and temporary copies of it; some tens of megabytes are a good size for a block.
    Where several workers share a machine, start them with ``threads_per_worker=1`` or set
    ``NUMBA_NUM_THREADS=1``, because the kernels use all cores themselves.

    Examples
    --------
    >>> import dask.array as da
    >>> import numbabn.distributed
    >>> x = da.arange(8, chunks=3).reshape(4, 2)
    >>> m = numbabn.distributed.moments(x)
    >>> m
    Moments(axis=-1, nan_policy='propagate'): 2 channels, 4 values each
    >>> m.mean, m.var()
    (array([3., 4.]), array([5., 5.]))

    On a cluster, here one of this machine::

        from dask.distributed import Client
        with Client(n_workers=4, threads_per_worker=1):
            m = numbabn.distributed.moments(da.from_zarr("images.zarr"), axis=-1)
    """
    array, delayed = _dask()
    if not isinstance(x, array.Array):
        raise TypeError(
            f"x must be a dask.array.Array, not {type_name(x)}; pass dask.array.from_array(x), or use "
            "numbabn.Moments for what is in memory"
        )
    kept = _checks.kept_axes_of(_checks.kept_axes(axis), x.ndim)
    _checks.nan_policy(nan_policy)
    _checks.chunk(np.empty(0, x.dtype), "x")
    # The moments of a block are a block of one object, and Dask's own reduction merges these. Delayed calls
    # were slower: Dask did not make one task of the moments and the element-wise work before them, and built
    # the graph of 10000 blocks in 17 s instead of 4.
    blocks = x.map_blocks(
        _block, axis=axis, nan_policy=nan_policy, dtype=object, meta=np.empty((0,) * x.ndim, object),
        chunks=tuple((1,) * n for n in x.numblocks),
    )  # fmt: skip
    others = tuple(i for i in range(x.ndim) if i not in kept)
    merged = array.reduction(
        blocks, _unchanged, _merged, axis=others, keepdims=True, concatenate=False, split_every=_FAN_IN,
        dtype=object, meta=np.empty((0,) * x.ndim, object),
    )  # fmt: skip
    parts = merged.to_delayed().transpose(kept + others)
    result = delayed(_side_by_side)(parts.ravel().tolist(), parts.shape[: len(kept)])
    return result.compute() if compute else result


# Functions of the tasks, which run on the workers -----------------------------------------------------------


def _block(
    chunk: Array, axis: int | tuple[int, ...], nan_policy: str, block_id: tuple[int, ...] = ()
) -> Array:
    """Return the moments of a block as the only element of an array of objects."""
    try:
        moments = Moments(axis, nan_policy=nan_policy).update(chunk)
    except (TypeError, ValueError) as error:
        place = ", ".join(map(str, block_id))
        raise type(error)(f"in x.blocks[{place}]: {error}") from None
    return _boxed(moments, chunk.ndim)


def _unchanged(block: Array, axis: Any, keepdims: bool) -> Array:
    """Return the block: the first step of Dask's reduction, which here has nothing to do."""
    return block


def _merged(blocks: Any, axis: Any, keepdims: bool) -> Array:
    """Merge the moments of blocks in nested lists, in order; an array of one object again."""
    first, *others = _flat(blocks)
    total: Moments = first.item().copy()
    for block in others:
        total.merge(block.item())
    return _boxed(total, first.ndim)


def _flat(blocks: Any) -> list[Array]:
    """Return the blocks of nested lists in one list."""
    return [each for part in blocks for each in _flat(part)] if isinstance(blocks, list) else [blocks]


def _boxed(moments: Moments, ndim: int) -> Array:
    """Return an array with ``ndim`` axes, as Dask expects of a block, and the moments as its only element."""
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = moments
    return box


def _side_by_side(blocks: Sequence[Array], grid: tuple[int, ...]) -> Moments:
    """Return the moments of all channels, from a grid of blocks that have some of the channels each."""
    parts: list[Moments] = [block.item() for block in blocks]
    if len(parts) == 1:
        return parts[0]
    states = [part.to_dict() for part in parts]
    state = dict(states[0])
    for name in state.keys() & _state.CHANNEL_ARRAYS.keys():
        pieces = np.empty(len(parts), object)
        for i, part in enumerate(parts):
            values = states[i][name]
            pieces[i] = values.reshape(*values.shape[:-1], *(part.shape or ()))
        together = np.block(pieces.reshape(grid).tolist())  # joins the last axes, one for each axis of grid
        state[name] = together.reshape(*together.shape[: -len(grid)], -1)
    state["shape"] = np.array(together.shape[-len(grid) :])
    return Moments.from_dict(state)


def _dask() -> tuple[Any, Any]:
    """Return (dask.array, dask.delayed)."""
    try:
        import dask.array
        from dask import delayed
    except ImportError as error:
        raise ImportError(f"numbabn.distributed.moments needs Dask: {INSTALL}") from error
    return dask.array, delayed
