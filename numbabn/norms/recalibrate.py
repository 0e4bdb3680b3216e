"""Running statistics of a trained network, taken anew from all of its data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from numbabn import _progress
from numbabn.norms._running import Running
from numbabn.norms.batch import BatchNorm


def recalibrate(
    layers: Iterable[BatchNorm],
    forward: Callable[[Any], object],
    batches: Iterable[Any],
    *,
    progress: bool = False,
    sequential: bool = False,
) -> None:
    r"""Replace running statistics by those of each layer's input over all the data.

    .. math:: \mu_c = \frac1n \sum_b \sum x_b, \qquad
              \sigma_c^2 = \frac{1}{n-1} \sum_b \sum (x_b - \mu_c)^2

    over every value of channel c in every batch b, n in all: the variance of everything, unbiased like every
    ``running_var``, not a mean of variances of batches; a small last batch counts for its size.

    Use it at the end of training, where running averages lag behind the parameters and come from few, small
    batches; when the input has changed; or after weights were averaged.

    Parameters
    ----------
    layers : iterable of BatchNorm
        The layers of one network that are to be recalibrated, in the order in which data passes through them.
        The same layer given again is taken once.
    forward : callable
        Called with every batch; it calls the network, and what it returns is not used. It must leave the mode
        of the layers alone, and has everything else as in evaluation: dropout off, no augmentation.
    batches : iterable
        Whatever ``forward`` takes. With ``sequential=True`` it is gone through once per layer, so it must be
        a list or another object that can.
    progress : bool, default False
        Show a bar; needs tqdm, ``pip install "numbabn[progress]"``.
    sequential : bool, default False
        Let every layer see what the recalibrated layers before it give; one pass over the data per layer.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, a layer has no running statistics or was not reached, or
        ``forward`` changed the mode of a layer. Whatever is raised, by ``forward`` too, the statistics of all
        layers are as before.

    Notes
    -----
    What a layer's input is depends on how the layers before it normalise.

    - By default all layers are in training mode: they normalise with the statistics of the batch, as they did
      when the parameters were learned. One pass is enough, and layers do not depend on each other. The inputs
      of all but the first layer still carry the noise of batches; take them as large as memory allows, also
      larger than in training. This is the "precise batch norm" of Wu and Johnson (2021), "Rethinking 'Batch'
      in BatchNorm", with sums over values in place of averages over batches.
    - With ``sequential=True`` the layers before are in evaluation mode with their new statistics, so that the
      statistics of every layer are exactly those of its input at inference, whatever the batches.

    Both agree where all data are one batch. Layers in evaluation mode throughout would measure their inputs
    behind the old statistics, which are gone afterwards.

    A batch needs two values per channel, as in training. A layer that ``forward`` calls several times gets
    the statistics of all its inputs. Modes, momentum, frozen statistics and what `BatchNorm.backward` needs
    are afterwards as before; ``num_batches_tracked`` is the number of batches taken in, and a layer with
    ``momentum=None`` goes on from the new statistics. Values are pooled as there, in float64.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> bn = nbn.BatchNorm(1)
    >>> batches = [np.array([[0.0], [2.0]]), np.array([[10.0], [12.0], [6.0]])]
    >>> nbn.recalibrate([bn], bn, batches)
    >>> bn.running_mean, bn.running_var
    (array([6.], dtype=float32), array([26.], dtype=float32))
    """
    tracked = _distinct(layers)
    _check_batches(forward, batches, sequential)
    passes = [[layer] for layer in tracked] if sequential else [tracked]
    found: list[Running] = []
    with ExitStack() as preserved:
        for layer in tracked:
            preserved.enter_context(layer._preserved())
            layer.eval()
        for i, group in enumerate(passes, 1):
            title = f"recalibrate {i}/{len(passes)}" if sequential else "recalibrate"
            items = _progress.bar(batches, title, "batch") if progress else batches
            found += _collected(tracked, group, forward, items)
    for layer, new in zip(tracked, found, strict=True):
        layer._adopt(new)


def _collected(
    tracked: Sequence[BatchNorm],
    group: Sequence[BatchNorm],
    forward: Callable[[Any], object],
    batches: Iterable[Any],
) -> list[Running]:
    """Go through the data once; return the statistics of a group's inputs, which its layers have now."""
    for layer in group:
        layer._collect()
    modes = [layer.training for layer in tracked]
    for batch in batches:
        forward(batch)
        for i, (layer, training) in enumerate(zip(tracked, modes, strict=True)):
            if layer.training is not training:
                raise ValueError(
                    f"forward put layer {i} into {'evaluation' if training else 'training'} mode; "
                    "recalibrate chooses the modes of its layers, forward has just to call the network"
                )
    for layer in group:
        if not layer.num_batches_tracked:
            raise ValueError(
                f"layer {tracked.index(layer)} saw no data: batches has none, or forward does not call it"
            )
        layer.eval()
    return [layer._running for layer in group if layer._running is not None]


def _distinct(layers: Iterable[BatchNorm]) -> list[BatchNorm]:
    """Return the layers, each once."""
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a list of BatchNorm, not {type(layers).__name__}")
    found: dict[int, BatchNorm] = {}
    for i, layer in enumerate(layers):
        if not isinstance(layer, BatchNorm):
            raise TypeError(
                f"layers must be BatchNorm only, but layer {i} is {type(layer).__name__}; "
                "pass [layer for layer in layers if isinstance(layer, numbabn.BatchNorm)]"
            )
        if layer._running is None:
            raise ValueError(f"layer {i} has no running statistics to recalibrate; leave it out")
        found[id(layer)] = layer
    if not found:
        raise ValueError("layers is empty: there is nothing to recalibrate")
    return list(found.values())


def _check_batches(forward: object, batches: object, again: bool) -> None:
    if not callable(forward):
        raise TypeError(f"forward must be a function of a batch, not {type(forward).__name__}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, not {type(batches).__name__}")
    if again and isinstance(batches, Iterator):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be gone through only once, but "
            "sequential=True does so for every layer; pass a list, or an object that begins anew"
        )
