"""What all layers are: parameters and their gradients on a device, a mode, and a state that can be saved."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import DTypeLike

from numbabn import arrays
from numbabn.arrays import host_copy, library_of
from numbabn.arrays.library import HOST, Place
from numbabn.arrays.place import place, put
from numbabn.backends.verbs import Array
from numbabn.norms import _checks, _options
from numbabn.norms._call import Reduce, backward
from numbabn.norms._epilogue import activation_of
from numbabn.norms._foreign import missing_attribute
from numbabn.norms._saved import Saved
from numbabn.norms._types import A


class Layer:
    """Base of the layers: what does not depend on which values are normalised together.

    Attributes
    ----------
    params, grads : dict
        ``gamma`` and ``beta``, as far as the layer has them; arrays of the layer's library. For type checkers
        they are NumPy's.
    training : bool
        The mode; see `train` and `eval`.
    activation, negative_slope
        What follows the norm in the same pass: the name of an activation, or None, and the slope below 0 of a
        leaky one.
    dresidual : array or None
        Gradient of the residual, from the last `backward`; None if there was none.
    """

    params: dict[str, Array]
    grads: dict[str, Array]
    training: bool

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        eps: float,
        scale: bool,
        center: bool,
        activation: str | None,
        negative_slope: float,
        dtype: DTypeLike,
        device: Any,
    ) -> None:
        self.eps = _checks.eps(eps)
        activation_of(activation, negative_slope)  # checks them
        self.activation, self.negative_slope = activation, negative_slope
        self.dtype = _options.parameter_dtype(dtype)
        self.training = True
        self._place = at = place(device)
        initial = {"gamma": np.ones(shape, self.dtype)} if scale else {}
        initial |= {"beta": np.zeros(shape, self.dtype)} if center else {}
        self.params = {name: put(values, at) for name, values in initial.items()}
        self.grads = {name: put(np.zeros_like(values), at) for name, values in initial.items()}
        self._saved: Saved | None = None
        self.dresidual: Any = None

    if not TYPE_CHECKING:  # for a type checker every attribute would exist then

        def __getattr__(self, name: str) -> Any:  # called for what is not found otherwise
            raise missing_attribute(self, name)

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
        to = place(device)
        if to != self._place:
            self.__dict__ |= self._moved(to)
        return self

    def _moved(self, to: Place) -> dict[str, Any]:
        """Attributes of this layer at a place, in new arrays; without what the last call saved."""
        moved = {
            name: {key: put(host_copy(value, key), to) for key, value in values.items()}
            for name, values in (("params", self.params), ("grads", self.grads))
        }
        return {**moved, "_place": to, "_saved": None, "dresidual": None}

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters in NumPy, for `load_state_dict` or ``numpy.savez``.

        Keys: gamma and beta, as far as the layer has them.
        """
        return {name: host_copy(value, name) for name, value in self.params.items()}

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
            If keys are missing or unknown. A state of another framework goes in by
            `numbabn.states.from_state`.
        TypeError, ValueError
            If a value has the wrong dtype or shape. Whatever is raised, the layer is unchanged.
        """
        self._take(_options.state(state, self))

    def _take(self, values: Mapping[str, Array]) -> None:
        """Take over a state that was checked; the arrays of parameters stay the same."""
        params = {name: arrays.of(value, f"params[{name!r}]") for name, value in self.params.items()}
        _options.writable_parameters(params)
        loaded = self._loaded(values)
        for name, value in params.items():
            library = library_of(value)
            library.assign(value, arrays.of(put(values[name], library.place(value)), name))
        self.__dict__ |= loaded

    def _loaded(self, state: Mapping[str, Array]) -> dict[str, Any]:
        """Attributes of this layer besides its parameters, from a state that was checked."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_saved": None, "dresidual": None}  # a batch is no part of a layer
        if self._place != HOST:  # in NumPy, which every process can read
            state |= {**self._moved(HOST), "_place": self._place}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_place": HOST}
        if state["_place"] != HOST:
            self.__dict__ |= self._moved(state["_place"])

    @overload
    def backward(
        self, dy: A, *, out: A | None = None, dresidual_out: A | None = None, need_dx: Literal[True] = True
    ) -> A: ...
    @overload
    def backward(
        self, dy: A, *, out: A | None = None, dresidual_out: A | None = None, need_dx: bool
    ) -> A | None: ...
    def backward(
        self, dy: A, *, out: A | None = None, dresidual_out: A | None = None, need_dx: bool = True
    ) -> A | None:
        """Gradient of the last call: return dx, and put dgamma and dbeta into `grads`.

        Where that call had a residual, its gradient is put into ``dresidual``, which is None otherwise.

        Parameters
        ----------
        dy : array
            Gradient with respect to the last result: shape and dtype of that x.
        out : array, optional
            Write dx here; may be dy itself.
        dresidual_out : array, optional
            Write dresidual here; may be dy itself, unless dx is written there.
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
        return self._backward(dy, out, dresidual_out, need_dx)

    def _backward(self, dy: A, out: A | None, dresidual_out: A | None, need_dx: bool) -> A | None:
        """`backward` of this process alone."""
        return self._gradients(dy, out, dresidual_out, need_dx, None)

    def _gradients(
        self, dy: A, out: A | None, dresidual_out: A | None, need_dx: bool, reduce: Reduce | None
    ) -> A | None:
        """Return dx, and put the other gradients where a user looks for them."""
        dx: A | None
        needs = need_dx, True, True
        gradients = backward(dy, self._saved_for_backward(), out, dresidual_out, needs, reduce)
        dx, dgamma, dbeta = gradients[:3]
        self.dresidual = gradients[3] if len(gradients) > 3 else None
        if dgamma is not None:
            self.grads["gamma"] = dgamma
        if dbeta is not None:
            self.grads["beta"] = dbeta
        return dx

    def _chosen(self) -> dict[str, Any]:
        """Return options of this layer by their names in ``__init__``."""
        return {
            "scale": "gamma" in self.params,
            "center": "beta" in self.params,
            "activation": self.activation,
            "negative_slope": self.negative_slope,
        }

    def _text(self, options: str) -> str:
        """Return how this layer is made: ``options``, and those of all layers that are not the defaults."""
        known = inspect.signature(type(self)).parameters
        for name, chosen in self._chosen().items():
            if name in known and chosen != known[name].default:
                options += f", {name}={chosen!r}"
        options += "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        options += "" if self._place == HOST else f", device='{self._place}'"
        return f"{type(self).__name__}({options})"

    def _saved_for_backward(self) -> Saved:
        """Return what the last forward call left."""
        if self._saved is None:
            raise RuntimeError("backward needs a forward call first: y = layer(x), then layer.backward(dy)")
        return self._saved
