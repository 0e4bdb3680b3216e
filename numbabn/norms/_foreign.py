"""Names that other libraries give to what layers have here: a user who types one is told ours."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., None])

_OPTIONS = {
    "num_features": "num_channels",
    "num_units": "num_channels",
    "affine": "scale and center",
    "elementwise_affine": "scale and center",
    "use_scale": "scale",
    "bias": "center",
    "use_bias": "center",
    "epsilon": "eps",
    "decay": "momentum, the weight of the new batch, which is 1 - decay",
    "decay_rate": "momentum, the weight of the new batch, which is 1 - decay_rate",
    "process_group": "comm",
}

_ATTRIBUTES = {
    "gamma": 'params["gamma"]',
    "weight": 'params["gamma"]',
    "scale": 'params["gamma"]',
    "beta": 'params["beta"]',
    "bias": 'params["beta"]',
    "parameters": "params, a dictionary",
    "weights": "params, a dictionary",
    "grad": 'grads["gamma"] and grads["beta"]',
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "num_features": "num_channels",
    "epsilon": "eps",
    "forward": "the layer itself: y = bn(x)",
    "cuda": 'to("cuda")',
    "cpu": 'to("cpu")',
    "zero_grad": "not needed: every backward call replaces grads",
}


def advised(init: F) -> F:
    """Make the ``__init__`` of a layer answer an option of another library with the name it has here."""

    @functools.wraps(init)
    def with_advice(self: Any, *arguments: Any, **options: Any) -> None:
        for name in _OPTIONS.keys() & options.keys():
            kind = type(self).__name__
            raise TypeError(f"{kind} has no option {name!r}; here it is {_OPTIONS[name]}: see help({kind})")
        init(self, *arguments, **options)

    return with_advice  # type: ignore[return-value]


def missing_attribute(layer: object, name: str) -> AttributeError:
    """Return the error for an attribute that a layer does not have."""
    text = f"{type(layer).__name__!r} object has no attribute {name!r}"
    if name in _ATTRIBUTES:
        text += f"; here it is {_ATTRIBUTES[name]}"
    return AttributeError(text, name=name, obj=layer)
