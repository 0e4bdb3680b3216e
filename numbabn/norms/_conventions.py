"""What other frameworks call the state of a layer: the one table, for `numbabn.states` and for advice.

It stands below `numbabn.states`, since `load_state_dict` tells whose names it was given.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Convention(NamedTuple):
    """How a framework names the state of a norm, and what its variances are.

    ``names`` go by the keys of `state_dict`. A name may have a collection, which stands before the prefix of
    a layer: ``params/scale`` is ``params/block/bn1/scale`` there.
    """

    names: Mapping[str, str]
    separator: str
    biased: bool  # whether variances are divided by the number of values, not by one less
    nested: bool = False  # whether states are dictionaries of dictionaries
    others: Mapping[str, Mapping[str, str]] = {}  # names of some layers alone, by their class

    def paths(self, layer: Any, keys: Iterable[str], prefix: str) -> dict[str, str]:
        """Return the full names of a layer's state, by its keys, as far as there are names for them."""
        classes = (kind.__name__ for kind in type(layer).__mro__)
        names = {**self.names, **next((self.others[name] for name in classes if name in self.others), {})}
        return {key: self.path(names[key], prefix) for key in keys if key in names}

    def path(self, name: str, prefix: str) -> str:
        """Return the full name under a prefix."""
        *collection, own = name.split(self.separator)
        return self.separator.join([*collection, *([prefix] if prefix else []), own])

    def flat(self, mapping: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the values of a mapping, and of those in it, by their full names."""
        result: dict[str, Any] = {}
        for name, value in mapping.items():
            inner = self.flat(value) if isinstance(value, Mapping) else {"": value}
            result |= {f"{name}{self.separator}{rest}" if rest else str(name): v for rest, v in inner.items()}
        return result

    def unflat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Inverse of `flat`, where states are nested."""
        result: dict[str, Any] = {}
        for path, value in values.items():
            *outer, own = path.split(self.separator) if self.nested else [path]
            inner = result
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[own] = value
        return result

    def under(self, flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Return those of the values whose full names begin with the prefix, behind any collection."""
        starts = tuple(self.path(name, prefix).removesuffix(_own(name, self)) for name in self.names.values())
        return {path: value for path, value in flat.items() if path.startswith(starts)}

    def prefixes(self, flat: Mapping[str, Any], path: str) -> list[str]:
        """Return the prefixes under which values have this name, which is a full one without a prefix."""
        own = _own(path, self)
        collection = path.removesuffix(own)
        middles = [name.removeprefix(collection).removesuffix(own).strip(self.separator) for name in flat]
        return [prefix for prefix in middles if self.path(path, prefix) in flat]


def _own(name: str, convention: Convention) -> str:
    """Return the last part of a name."""
    return name.rpartition(convention.separator)[2]


_PYTORCH = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
_ONNX = {"gamma": "scale", "beta": "B", "running_mean": "input_mean", "running_var": "input_var"}
_KERAS = {"gamma": "gamma", "beta": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_LINEN = {
    "gamma": "params/scale",
    "beta": "params/bias",
    "running_mean": "batch_stats/mean",
    "running_var": "batch_stats/var",
}
_NNX = {"gamma": "scale", "beta": "bias", "running_mean": "mean", "running_var": "var"}
_SCALER = {"running_mean": "mean_", "running_var": "var_", "population_count": "n_samples_seen_"}

CONVENTIONS = {
    "torch": Convention({**_PYTORCH, "num_batches_tracked": "num_batches_tracked"}, ".", biased=False),
    "keras": Convention(_KERAS, "/", biased=True, others={"RMSNorm": {"gamma": "scale"}}),
    "flax": Convention(_LINEN, "/", biased=True, nested=True),
    "nnx": Convention(_NNX, "/", biased=True, nested=True),
    "onnx": Convention(
        _ONNX, ".", biased=True, others={"LayerNorm": {"gamma": "Scale"}, "GroupNorm": {"beta": "bias"}}
    ),
    "sklearn": Convention(_SCALER, ".", biased=True),
}
OPTIONAL = ("num_batches_tracked",)  # PyTorch's files from before version 0.4.1 lack it
DERIVED = {"population_mean": "running_mean", "population_m2": "running_var"}  # where there is a count
# The option of a layer that decides whether its state has a key, and its values with the key and without.
MADE_WITH: dict[str, tuple[str, Any, Any]] = {
    "gamma": ("scale", True, False),
    "beta": ("center", True, False),
    "running_mean": ("track_running_stats", True, False),
    "running_var": ("track_running_stats", True, False),
    "population_count": ("momentum", None, 0.1),
}


def made_with(layer: Any, missing: Iterable[str], unknown: Iterable[str]) -> str:
    """Return the options with which a layer has the unknown keys, and not the missing ones."""
    known = inspect.signature(type(layer)).parameters
    chosen = {MADE_WITH[key][0]: MADE_WITH[key][1] for key in unknown}
    chosen |= {MADE_WITH[key][0]: MADE_WITH[key][2] for key in missing}
    return ", ".join(f"{name}={value!r}" for name, value in chosen.items() if name in known)


def call_for(layer: Any, mapping: Mapping[Any, Any]) -> str:
    """Return the call that loads a state of another framework; its convention is "..." if it is not clear."""
    found = recognised(layer, mapping) or ("...", "")
    options = "".join(
        f', {name}="{value}"' for name, value in zip(("convention", "prefix"), found, strict=True) if value
    )
    return f"numbabn.states.from_state(layer, mapping{options})"


def recognised(layer: Any, mapping: Mapping[Any, Any]) -> tuple[str, str] | None:
    """Return the convention and the prefix under which a mapping has all names for a layer, if it has them.

    Where there are several, shapes decide: a dense layer has a weight and a bias, too.
    """
    expected = layer.state_dict()
    fits: list[tuple[int, str, str]] = []
    for name, convention in CONVENTIONS.items():
        flat = convention.flat(mapping)
        needed = convention.paths(layer, (key for key in expected if key not in OPTIONAL), "")
        if needed.keys() != expected.keys() - {*OPTIONAL, *DERIVED} or not needed:
            continue
        for prefix in convention.prefixes(flat, next(iter(needed.values()))):
            paths = convention.paths(layer, needed, prefix)
            if flat.keys() >= set(paths.values()):
                same = sum(np.shape(flat[path]) == expected[key].shape for key, path in paths.items())
                fits.append((same, name, prefix))
    return max(fits, key=lambda fit: fit[0])[1:] if fits else None
