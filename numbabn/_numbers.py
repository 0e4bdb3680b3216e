"""Numbers that users pass: of the right kind, or an error that names the argument."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np


def integer(value: object, name: str) -> int:
    """Return an integer of any kind as an int."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def integers(value: object, name: str) -> tuple[int, ...]:
    """Return one integer, or a tuple or list of them, as a tuple of ints."""
    given = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(integer(each, name) for each in given)


def real(value: object, name: str) -> float:
    """Return a real number of any kind as a float; infinity where it is too large for one."""
    if type(value) is float:  # isinstance with an abstract class takes longer than a kernel's launch
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # an integer
            return math.inf
    raise TypeError(f"{name} must be a real number, not {value!r}")


def sequence(values: list[Any] | tuple[Any, ...], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a list or tuple of real numbers, which may be nested, as an array of float64."""
    try:
        array = np.array(values)
    except ValueError:
        raise ValueError(f"{name} is a {type(values).__name__} of lists of different lengths") from None
    if array.size and array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers only, not {values!r:.80}")
    return array.astype(np.float64)
