"""What every call does, in this order: recognise, check, view, allocate, run, deliver."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import numpy as np

from numbabn import arrays
from numbabn.arrays import AnyArray, follow, library_of, native
from numbabn.arrays.dtypes import COMPUTED
from numbabn.arrays.layout import Layout, arranged, axis_number, channels_layout
from numbabn.arrays.overlap import output, overlap, refuse_overlap, same_memory
from numbabn.backends.verbs import Affine, Array, Gradient, Pair, Result
from numbabn.norms import _checks
from numbabn.norms._epilogue import Epilogue, Passed, activation_of
from numbabn.norms._saved import Origin, Saved


class Reduce(Protocol):
    """The exchange with the other ranks of a synchronised layer."""

    def statistics(self, count: int, moments: Array) -> tuple[int, Array]:
        """Return the count and the pair (mean, biased variance) of all ranks from this rank's (mean, m2)."""

    def sums(self, sums: Array) -> Array:
        """Return the sums of all ranks from those of this rank."""


class Call:
    """A call with x: what x is, how it is read, and where the result goes.

    x, once recognised and checked, is read through the attributes here by everything that follows. Here the
    groups of values with one mean and one variance are the channels of batch norm; other norms override how x
    is read and what parameters must be.
    """

    __slots__ = (
        "axis", "channels", "converted", "count", "epilogue", "groups", "library", "out", "overwrites",
        "target", "x",
    )  # fmt: skip
    norm = "batch_norm"  # what the functions are called before "_forward"

    def __init__(self, x: object, axis: object, out: object = None, dtype: object = None) -> None:
        # NumPy's arrays and good dtypes are told apart here: two calls are 2 % of one with a small array.
        self.x = array = x if type(x) is np.ndarray else arrays.of(x, "x")
        self.converted = None  # the dtype of y where x has integers; else y has the dtype of x
        if dtype is not None:
            self.converted = _checks.converted(array, "x", dtype)
        elif array.dtype not in COMPUTED:
            _checks.dtype(array, "x", self.norm)
        self.library = library_of(array)
        self.out = out  # what is returned: a subclass of ndarray, for example
        self.target: AnyArray | None = None
        self.overwrites = False  # whether y is written over x
        self.epilogue: Epilogue | None = None  # what follows the norm
        if out is not None:
            result = array.dtype if self.converted is None else self.converted
            self.target = output(out, array, result, "x", {"x": array})
            # `output` has refused every overlap but x itself.
            self.overwrites = self.target is array or overlap(self.target, array)
        self._read(axis)

    def write_to(self, y: AnyArray) -> None:
        """Let the result go to y, which is not checked: new, of the shape, dtype and library of x."""
        self.target = self.out = y

    def _read(self, axis: object) -> None:
        """Set ``axis``, the numbers of ``channels`` and ``groups``, and ``count``, the values of a group."""
        x = self.x
        if x.ndim < 2:
            raise _checks.rank(x, "x")
        self.axis: Any = axis_number(axis, x.ndim)
        self.channels: int = x.shape[self.axis]
        self.groups = self.channels
        self.count: int = x.size // self.groups if self.groups else 0

    def _arranged(self) -> tuple[AnyArray, Layout]:
        """Return x, or a copy of it, as kernels take it, and how they read it."""
        source = self.library.dense(self.x)
        return source, channels_layout(source, self.axis)

    def affine(self, gamma: object, beta: object, eps: object) -> Affine:
        """Return gamma, beta and eps as backends take them."""
        x, channels, number = self.x, self.channels, _checks.eps(eps)
        given_gamma = None if gamma is None else _checks.per_channel(gamma, "gamma", channels, x)
        given_beta = None if beta is None else _checks.per_channel(beta, "beta", channels, x)
        parameters = self.library.pair(given_gamma, given_beta, channels)
        return Affine(parameters, number, (given_gamma, given_beta))

    def affine_and_known(
        self, gamma: object, beta: object, eps: object, mean: object, var: object
    ) -> tuple[Affine, Pair]:
        """Return gamma, beta and eps, and given statistics, as backends take them."""
        if mean is None or var is None:
            missing, present = ("mean", "var") if mean is None else ("var", "mean")
            raise ValueError(
                f"{present} is given without {missing}; pass both to use known statistics, or none"
            )
        x, channels, number = self.x, self.channels, _checks.eps(eps)
        given = (
            None if gamma is None else _checks.per_channel(gamma, "gamma", channels, x),
            None if beta is None else _checks.per_channel(beta, "beta", channels, x),
        )
        known = _checks.per_channel(mean, "mean", channels, x), _checks.variance(var, "var", channels, x)
        # Both at once: with two conversions a call with a small array takes 3 % longer.
        parameters, statistics = self.library.pairs(given, known, channels)
        return Affine(parameters, number, given), statistics

    def follow(
        self, activation: object, negative_slope: object, residual: object, backward: bool = True
    ) -> None:
        """Let an activation and the addition of a residual follow, as far as they are not None.

        ``backward`` is whether there may be a backward call.
        """
        if activation is None and residual is None:
            return
        chosen = activation_of(activation, negative_slope)
        array: AnyArray | None = None
        if residual is not None:
            dtype = self.x.dtype if self.converted is None else self.converted
            array = _checks.residual(residual, self.x, dtype)
            if self.target is not None:
                refuse_overlap(self.target, "out", array, "residual", "residual")
        self.epilogue = Epilogue(array, chosen, keeps=backward and activation is not None)

    def moments(self) -> tuple[int, Pair]:
        """Return the count and the pair (mean, m2) of every channel: NaN and 0 where there are no values."""
        return self._moments(*self._arranged())

    def _moments(self, source: AnyArray, layout: Layout) -> tuple[int, Pair]:
        if source.size == 0:
            return 0, self.library.constants(source, self.groups, (np.nan, 0.0))
        return self.count, self.library.backend.moments(layout.flat(source), layout.view)

    def normalize(self, affine: Affine, known: Pair | None, reduce: Reduce | None) -> tuple[Any, Saved]:
        """Return y, and what its backward call needs.

        Statistics are those ``known``, or with ``reduce`` those of all ranks, or else those of x.
        """
        source, layout = self._arranged()
        library, target, count = self.library, self.target, self.count
        origin: Origin = "x" if known is None else "given"
        if target is not None and layout.matches(target):
            y = target
        else:
            y = library.empty_like(source, self.converted)
        if reduce is not None:
            origin = "ranks"
            count, known = reduce.statistics(*self._moments(source, layout))
        by_sample = known is None and layout.batch is not None
        verbs: Any = library.backend.samples if by_sample else library.backend
        result, passed = layout.flat(y), None
        if self.epilogue is not None:
            result, passed = self._result(self.epilogue, y, layout, verbs)
        if source.size == 0:
            nothing = np.nan, np.nan
            statistics = library.constants(source, self.groups, nothing) if known is None else known
        elif known is None:
            statistics = verbs.forward(layout.flat(source), layout.view, affine, result)
        else:
            statistics = known
            verbs.normalize(layout.flat(source), layout.view, known, affine, result)
        if not library.on_host:
            _after(y, (*affine.given, *(statistics if origin == "given" else ())))
        x = None if self.overwrites else source
        saved = Saved(self.norm, x, layout, affine, statistics, count, origin, passed)
        return native(y) if target is None else _deliver(y, target, self.out), saved

    def recalled(self, affine: Affine, statistics: Pair, given: bool, passed: Passed | None) -> Saved:
        """Return what `normalize` left for the backward call, from the statistics that x had or was given."""
        source, layout = self._arranged()
        origin: Origin = "given" if given else "x"
        return Saved(self.norm, source, layout, affine, statistics, self.count, origin, passed)

    def _result(self, epilogue: Epilogue, y: AnyArray, layout: Layout, verbs: Any) -> tuple[Result, Passed]:
        """Return what is passed to the backend in place of y, and what the backward call needs of it."""
        flat, (residual, activation, keeps) = layout.flat(y), epilogue
        kept = verbs.keep(flat, layout.view) if keeps else None
        memory, phase = (None, 0) if kept is None else kept
        beside = None if residual is None else layout.flat(arranged(residual, y, layout))
        result = Result(flat, beside, memory, phase, *activation)
        return result, Passed(kept, activation.derivative, residual is not None)


class SampleCall(Call):
    """A call in which every sample has statistics of its own, so that samples lie one after the other."""

    __slots__ = ()

    def _layout(self, source: AnyArray) -> Layout:
        """Return how kernels read an array of the shape of x, which need not lie so."""
        raise NotImplementedError

    def _arranged(self) -> tuple[AnyArray, Layout]:
        """Return x, or if it lies otherwise in memory a copy, and the layout that reads it.

        A copy is in another order of memory than x, so that y, if it is new, is one more copy.
        """
        library = self.library
        source = library.dense(self.x)
        layout = self._layout(source)
        if layout.matches(source):
            return source, layout
        if self.target is None:
            self.target = library.empty_like(source)
            self.out = native(self.target)
        copy = library.empty_in_order(source, layout.order or range(source.ndim))
        library.assign(copy, source)
        return copy, layout


# Which gradients are wanted: dx, dgamma, dbeta. That of a residual always is. A plain tuple, since making a
# named one is 3 % of a call with a small array.
Needs: TypeAlias = tuple[bool, bool, bool]


def backward(
    dy: object, saved: object, out: object, dresidual_out: object, needs: Needs, reduce: Reduce | None
) -> tuple[Any, ...]:
    """Return dx, dgamma and dbeta, of which what is not needed is None, and a dresidual if there is one."""
    if not isinstance(saved, Saved):
        raise TypeError(
            f"saved must come from a forward call such as batch_norm_forward, but is {type(saved).__name__}"
        )
    x: AnyArray = saved._x
    layout, passed = saved._layout, saved._passed
    if x is None:
        raise ValueError(
            "the forward call wrote y over x (out=x), so x is gone; "
            "give that call an out of its own to go backward"
        )
    array = _checks.gradient(dy, x)
    target = second = None
    need_dx, need_dgamma, need_dbeta = needs
    if out is not None:
        if not need_dx:
            raise ValueError("out is given, but need_dx is False: there is nothing to write to it")
        target = output(out, x, x.dtype, "dy", {"dy": array, "x": x})
    if dresidual_out is not None:
        second = _second(dresidual_out, array, saved, target)
    source, library = arranged(array, x, layout), library_of(x)
    gamma, beta = saved._affine.given
    if not library.on_host:
        _before(x, (gamma, beta))
    dgamma = dbeta = dx = dresidual = None
    if need_dgamma and gamma is not None:
        dgamma = library_of(gamma).empty_vector(gamma)
    if need_dbeta and beta is not None:
        dbeta = library_of(beta).empty_vector(beta)
    if passed is not None and passed.residual:
        fits = second is not None and layout.matches(second)
        dresidual = second if fits else library.empty_like(x)
    if need_dx or dresidual is not None:  # what writes the gradient of a residual writes dx beside it
        fits = target is not None and layout.matches(target)
        dx = target if fits else library.empty_like(x)
    gradient = layout.flat(source)
    if passed is not None:
        gradient = _gradient(gradient, passed, None if dresidual is None else layout.flat(dresidual))
    if reduce is not None:
        _reduced_backward(gradient, saved, reduce, dx, (dgamma, dbeta))
    elif x.size and dx is not None and saved.training:
        verbs = library.backend if layout.batch is None else library.backend.samples
        flat, affine = layout.flat, saved._affine
        verbs.backward(gradient, flat(x), layout.view, saved._statistics, affine, flat(dx), (dgamma, dbeta))
    else:
        _partial_backward(gradient, saved, dx, (dgamma, dbeta))
    if not library.on_host:
        _after(x, (gamma, beta))
    gradients = (
        None if not need_dx else native(dx) if target is None else _deliver(dx, target, out),
        None if dgamma is None else native(dgamma),
        None if dbeta is None else native(dbeta),
    )
    if dresidual is None:
        return gradients
    return *gradients, native(dresidual) if second is None else _deliver(dresidual, second, dresidual_out)


def _second(dresidual_out: object, dy: AnyArray, saved: Saved, target: AnyArray | None) -> AnyArray:
    """Return ``dresidual_out`` if the gradient of a residual can be written to it."""
    x: AnyArray = saved._x
    if saved._passed is None or not saved._passed.residual:
        raise ValueError("dresidual_out is given, but the forward call had no residual")
    array = output(dresidual_out, x, x.dtype, "dy", {"dy": dy, "x": x}, "dresidual_out")
    if target is not None and overlap(array, target):
        raise ValueError("dresidual_out overlaps out in memory; pass two arrays")
    return array


def _gradient(dy: AnyArray, passed: Passed, dresidual: AnyArray | None) -> AnyArray | Gradient:
    """Return what is passed to the backend in place of a flat dy: dy itself where it is the gradient."""
    if passed.kept is None and (dresidual is None or same_memory(dy, dresidual)):
        return dy
    memory, phase = (None, 0) if passed.kept is None else passed.kept
    return Gradient(dy, dresidual, memory, phase, passed.derivative)


def _before(x: AnyArray, parameters: Iterable[AnyArray | None]) -> None:
    """Let work on x come after work on parameters of another library, and on memory of its pool."""
    for parameter in parameters:
        if parameter is not None:
            follow(x, parameter)


def _after(x: AnyArray, parameters: Iterable[AnyArray | None]) -> None:
    """Let what is done to parameters of another library, or to their memory, come after work on x."""
    for parameter in parameters:
        if parameter is not None:
            follow(parameter, x)


def _partial_backward(dy: AnyArray | Gradient, saved: Saved, dx: AnyArray | None, gradients: Pair) -> None:
    """Fill what is not None, where dx is not needed, or statistics are constants, or x is empty."""
    x: AnyArray = saved._x
    layout, affine, statistics = saved._layout, saved._affine, saved._statistics
    dgamma, dbeta = gradients
    if x.size == 0:
        for gradient in gradients:
            if gradient is not None:
                gradient.fill(0)
        return
    backend, view = library_of(x).backend, layout.view
    if dgamma is not None or dbeta is not None:
        verbs = backend if layout.batch is None else backend.samples
        verbs.backward_reduce(dy, layout.flat(x), view, statistics, affine.eps, gradients)
    if dx is not None:
        backend.backward_known(dy, view, statistics, affine, layout.flat(dx))


@np.errstate(all="ignore")  # of what is merged, and rounded to the dtypes of gamma and beta
def _reduced_backward(
    dy: AnyArray | Gradient, saved: Saved, reduce: Reduce, dx: AnyArray | None, gradients: Pair
) -> None:
    """Fill what is not None, with the sums of all ranks. Every rank takes part, with an empty batch, too."""
    x: AnyArray = saved._x
    layout, affine, statistics = saved._layout, saved._affine, saved._statistics
    backend, view = library_of(x).backend, layout.view
    if x.size:
        sums = backend.backward_reduce(dy, layout.flat(x), view, statistics, affine.eps, (None, None))
    else:
        sums = np.zeros((2, len(statistics[0])))
    sums = reduce.sums(sums)
    for gradient, total in zip(gradients, (sums[1], sums[0]), strict=True):
        if gradient is not None:
            library_of(gradient).assign(gradient, total)
    if dx is not None and x.size:
        flat = layout.flat
        backend.backward_apply(dy, flat(x), view, statistics, affine, sums, saved.count, flat(dx))


def _deliver(result: AnyArray, target: AnyArray, out: Any) -> Any:
    """Return ``out`` with the result in it; ``target`` is ``out`` once recognised."""
    if target is not result:  # whose memory order is another
        library_of(target).assign(target, result)
    return out
