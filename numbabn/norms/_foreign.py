"""Names that other libraries give to what layers have here: a user who types one is told ours."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., None])

# An option of another library, and ours: those that the layer has.
_OPTIONS = {
    "num_features": ("num_channels", "normalized_shape"),
    "num_units": ("num_channels", "normalized_shape"),
    "affine": ("scale", "center"),
    "elementwise_affine": ("scale", "center"),
    "use_scale": ("scale",),
    "bias": ("center",),
    "use_bias": ("center",),
    "epsilon": ("eps",),
    "groups": ("num_groups",),
    "decay": ("momentum",),
    "decay_rate": ("momentum",),
    "process_group": ("comm",),
}
_REMARKS = {"momentum": ", the weight of the new batch, which is 1 minus a decay"}

_GAMMA, _BETA = ("gamma", "weight", "scale"), ("beta", "bias")  # entries of params
_ATTRIBUTES = {
    "parameters": "params",
    "weights": "params",
    "grad": "grads",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "num_features": "num_channels",
    "epsilon": "eps",
}
_OTHERS = {
    "forward": "call the layer itself: y = layer(x)",
    "cuda": 'here it is to("cuda")',
    "cpu": 'here it is to("cpu")',
    "zero_grad": "it is not needed: every backward call replaces grads",
}


def advised(init: F) -> F:
    """Make the ``__init__`` of a layer answer an option of another library with the name it has here."""
    ours = inspect.signature(init).parameters

    @functools.wraps(init)
    def with_advice(self: Any, *arguments: Any, **options: Any) -> None:
        for name in options.keys() - ours.keys():
            found = [our for our in _OPTIONS.get(name, ()) if our in ours]
            if found:
                kind, remark = type(self).__name__, _REMARKS.get(found[0], "")
                text = f"{kind} has no option {name!r}; here it is {' and '.join(found)}{remark}"
                raise TypeError(f"{text}: see help({kind})")
        init(self, *arguments, **options)

    return with_advice  # type: ignore[return-value]


def missing_attribute(layer: Any, name: str) -> AttributeError:
    """Return the error for an attribute that a layer does not have."""
    text = f"{type(layer).__name__!r} object has no attribute {name!r}"
    advice = _advice(layer, name)
    return AttributeError(f"{text}; {advice}" if advice else text, name=name, obj=layer)


def _advice(layer: Any, name: str) -> str:
    """Say what the attribute is called here; nothing if the layer has none like it."""
    for key, names in (("gamma", _GAMMA), ("beta", _BETA)):
        if name in names:
            if key in vars(layer).get("params", {}):
                return f'here it is params["{key}"]'
            return f"this layer was made without {key}"
    our = _ATTRIBUTES.get(name)
    if our is not None and (our in vars(layer) or hasattr(type(layer), our)):
        return f"here it is {our}"
    return _OTHERS.get(name, "")
