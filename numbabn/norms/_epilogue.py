"""What follows a norm, y = activation(v + residual): checked here, and what its backward call needs."""

import math
from typing import NamedTuple

from numbabn._numbers import real
from numbabn.arrays import AnyArray
from numbabn.backends.verbs import Kept


class Activation(NamedTuple):
    """An activation as `Result` has it: its slope where a < 0, and its ceiling."""

    slope: float | None
    ceiling: float | None

    @property
    def derivative(self) -> float:
        """Its derivative where that is not 1."""
        return self.slope or 0.0


# Those that have no parameter; None is the identity.
_FIXED = {None: Activation(1.0, None), "relu": Activation(None, None), "relu6": Activation(None, 6.0)}
_LEAKY = "leaky_relu"
_NAMES = (*filter(None, _FIXED), _LEAKY)


class Epilogue(NamedTuple):
    """What follows the norm of a call."""

    residual: AnyArray | None
    activation: Activation
    keeps: bool  # whether the backward call will have to know where the derivative of the activation is 1


class Passed(NamedTuple):
    """What the backward call needs of an epilogue besides dy."""

    kept: Kept | None
    derivative: float  # of the activation, where it is not 1
    residual: bool  # whether there was one


def activation_of(name: object, negative_slope: object) -> Activation:
    """Return an activation from its name and slope.

    Raises
    ------
    TypeError, ValueError
        If there is no activation of this name, or the slope is no finite number.
    """
    slope = real(negative_slope, "negative_slope")
    if not math.isfinite(slope):
        raise ValueError(f"negative_slope must be a finite number, for example 0.01, not {negative_slope!r}")
    if name == _LEAKY:
        return Activation(slope, None)
    found = _FIXED.get(name) if name is None or isinstance(name, str) else None
    if found is None:
        kind = ValueError if isinstance(name, str) else TypeError
        raise kind(f"activation must be None or one of {', '.join(map(repr, _NAMES))}, not {name!r}")
    return found
