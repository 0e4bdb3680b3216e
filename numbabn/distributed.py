"""Statistics of data that no single machine holds: `moments` of Dask arrays.

Import it by name, ``import numbabn.distributed``; ``import numbabn`` does not. Dask comes with
``pip install "numbabn[dask]"``.

For MPI nothing is needed here: mpi4py adds up `numbabn.Moments` of all ranks itself, and
``numbabn.BatchNorm(..., comm=MPI.COMM_WORLD)`` is synchronised batch normalisation::

    # mpiexec -n 4 python -m mpi4py statistics.py
    moments = MPI.COMM_WORLD.allreduce(nbn.Moments().update(x))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbabn.arrays import type_name
from numbabn.backends.verbs import Array
from numbabn.statistics import _checks
from numbabn.statistics.moments import Moments

INSTALL = 'pip install "numbabn[dask]"'

# Results merged in one task. The tree has its shape from the array's blocks alone, and so the bits of the
# result have nothing of the workers in them, their number, their order or their end.
_FAN_IN = 8


def moments(
    x: Any, axis: int | tuple[int, ...] = -1, *, nan_policy: str = "propagate", compute: bool = True
) -> Any:
    r"""Count, mean, variance and range per channel of a Dask array.

    .. math:: \mu_c = \frac1n \sum x, \qquad \sigma_c^2 = \frac{1}{n - \mathrm{ddof}} \sum (x - \mu_c)^2

    over all axes but ``axis``, in one pass: every block of the array becomes a `numbabn.Moments` where it is,
    and these are merged in a tree, eight at a time.

    Parameters
    ----------
    x : dask.array.Array
        Of bool, any integer, float16, float32 or float64 in NumPy blocks, cut along any axes, those of the
        channels too. Lengths may be unknown.
    axis : int or tuple of int, default -1
        Channel axes, as for `numbabn.Moments`.
    nan_policy : {"propagate", "omit", "raise"}, default "propagate"
        As for `numbabn.Moments`; an error names the block.
    compute : bool, default True
        Run it now, as ``x.compute()`` would: on the cluster of the current ``dask.distributed.Client`` if
        there is one, else on threads. Without, the result is lazy, to compute together with others.

    Returns
    -------
    numbabn.Moments or dask.delayed.Delayed
        To which chunks, and the moments of other arrays, may be added.

    Raises
    ------
    ImportError
        If Dask is not installed.
    TypeError
        If x is no Dask array, or has the wrong dtype.
    ValueError
        If ``axis`` or ``nan_policy`` is wrong, or, when computed, there is a NaN under "raise".

    Notes
    -----
    On one type of machine the result has the same bits however many workers there are, and whichever are
    lost on the way: Dask computes lost blocks again. Another chunking agrees within the bounds of
    `numbabn.Moments`: 1e-14 of the data's size in means, 1e-12 of themselves in variances.

    A worker holds a block and its temporary copies; blocks of some tens of megabytes are a good size. Where
    workers share a machine, give each ``threads_per_worker=1`` or set ``NUMBA_NUM_THREADS=1``, because
    kernels use all cores themselves.

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
    # Blocks of one object each and Dask's own reduction, not delayed calls: Dask makes one task of it and the
    # element-wise work before it, and has the graph of 10000 blocks in 4 s instead of 17.
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


# What tasks run, on the workers -----------------------------------------------------------------------------


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
    return block


def _merged(blocks: Any, axis: Any, keepdims: bool) -> Array:
    """Merge blocks in nested lists, in order."""
    first, *others = _flat(blocks)
    total: Moments = first.item().copy()
    for block in others:
        total.merge(block.item())
    return _boxed(total, first.ndim)


def _flat(blocks: Any) -> list[Array]:
    return [each for part in blocks for each in _flat(part)] if isinstance(blocks, list) else [blocks]


def _boxed(moments: Moments, ndim: int) -> Array:
    """Return an array of so many axes with one element, as Dask expects of a block."""
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = moments
    return box


def _side_by_side(blocks: Sequence[Array], grid: tuple[int, ...]) -> Moments:
    """Return the moments of all channels, which are cut into a grid of blocks."""
    parts: list[Moments] = [block.item() for block in blocks]
    if len(parts) == 1:
        return parts[0]
    states = [part.to_dict() for part in parts]
    state = dict(states[0])
    for name in state.keys() - _WHOLE:
        pieces = np.empty(len(parts), object)
        for i, part in enumerate(parts):
            values = states[i][name]
            pieces[i] = values.reshape(*values.shape[:-1], *(part.shape or ()))
        together = np.block(pieces.reshape(grid).tolist())  # along the last axes, as many as grid has
        state[name] = together.reshape(*together.shape[: -len(grid)], -1)
    state["shape"] = np.array(together.shape[-len(grid) :])
    return Moments.from_dict(state)


_WHOLE = {"format", "axis", "nan_policy", "shape", "weighted"}  # what no channel has of its own


def _dask() -> tuple[Any, Any]:
    """Return (dask.array, dask.delayed)."""
    try:
        import dask.array
        from dask import delayed
    except ImportError as error:
        raise ImportError(f"numbabn.distributed.moments needs Dask: {INSTALL}") from error
    return dask.array, delayed
