"""The state of `Moments` as arrays by name, which ``to_dict`` returns and state files hold; and its check."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numbabn.backends.verbs import Array
from numbabn.statistics._population import SQUARE_DIGITS, SUM_DIGITS

FORMAT = 1  # version of the keys and of what they mean

# Arrays whose last axis are the channels, flat, and the lengths of their other axes.
CHANNEL_ARRAYS = {
    "min": (), "max": (),
    "exact_count": (), "exact_total": (SUM_DIGITS,), "exact_squares": (SQUARE_DIGITS,),
    "real_moments": (6,),
}  # fmt: skip
_KINDS = {  # kinds of dtypes, as in ``numpy.dtype.kind``
    "format": "iu", "axis": "iu", "nan_policy": "U", "shape": "iu", "weighted": "b", "min": "f", "max": "f",
    "exact_count": "iu", "exact_total": "iu", "exact_squares": "iu",
    "real_moments": "f",
}  # fmt: skip
_ALWAYS = {"format", "axis", "nan_policy"}
_AFTER_AN_UPDATE = {"shape", "weighted", "min", "max"}
_EXACT, _REAL = ({name for name in _KINDS if name.startswith(part)} for part in ("exact", "real"))


def checked(given: Any) -> dict[str, Array]:
    """Return copies of the arrays of a state, or raise where they cannot be one."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state must be a dictionary as from to_dict(), not {type(given).__name__}")
    values = {name: np.array(given[name]) for name in _KINDS if name in given}
    _check_names(set(values), set(given))
    version = values["format"]
    if version.shape != () or version.dtype.kind not in "iu" or version != FORMAT:
        raise ValueError(f"state has format {version}; this version of numbabn reads {FORMAT}")
    channels = math.prod(values["shape"].tolist()) if "shape" in values else 0
    for name, value in values.items():
        if name in CHANNEL_ARRAYS:
            shape: tuple[int, ...] = (*CHANNEL_ARRAYS[name], channels)
        else:
            shape = (value.size,) if name in ("axis", "shape") else ()
        if value.dtype.kind not in _KINDS[name] or value.shape != shape:
            raise ValueError(f"state[{name!r}] cannot have dtype {value.dtype} and shape {value.shape}")
    if len(values.get("shape", values["axis"])) != len(values["axis"]):
        raise ValueError(f"state has axis {values['axis'].tolist()} and shape {values['shape'].tolist()}")
    return values


def _check_names(known: set[str], given: set[Any]) -> None:
    """Raise unless the names of a state, of which some are known, are complete and no others."""
    needed = set(_ALWAYS)
    for part in (_AFTER_AN_UPDATE, _EXACT, _REAL):
        if known & part:
            needed |= part | _AFTER_AN_UPDATE
    if known != needed or given - known:
        raise ValueError(
            f"state is not one of Moments: missing keys {sorted(needed - known)}, "
            f"unknown keys {sorted(given - known, key=str)}"
        )
