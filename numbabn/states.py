"""States of layers under the names that PyTorch, Keras, Flax, ONNX and scikit-learn give them.

`from_state` loads what one of them wrote into a layer, and `to_state` writes a layer for it. Neither needs
the framework: a state is a mapping of names to arrays. What gamma, beta, running_mean and running_var are
called, and the defaults of what is no part of a state:

========= ============ =========== ================ =================== ====== =======================
name      gamma        beta        running_mean     running_var         eps    momentum
========= ============ =========== ================ =================== ====== =======================
(numbabn) gamma        beta        running_mean     running_var (n - 1) 1e-5   0.1, weight of the new
"torch"   weight       bias        running_mean     running_var (n - 1) 1e-5   0.1, weight of the new
"keras"   gamma        beta        moving_mean      moving_variance (n) 1e-3   0.99, weight of the old
"flax"    params/scale params/bias batch_stats/mean batch_stats/var (n) 1e-5   0.99, weight of the old
"nnx"     scale        bias        mean             var (n)             1e-5   0.99, weight of the old
"onnx"    scale        B           input_mean       input_var (n)       1e-5   0.9, weight of the old
"sklearn"                          mean_            var_ (n)            0
========= ============ =========== ================ =================== ====== =======================

(n) is the biased variance, divided by the number of values, and (n - 1) the unbiased one; see ``count``.
**Make the layer with the eps and the momentum of the framework**; numbabn's momentum is 1 minus the weight of
the old. Other norms have other defaults of eps: Flax 1e-6 in all of them, Keras 1e-6 in RMS norm, and PyTorch
the machine epsilon in it, as numbabn. An InstanceNorm with running statistics has the names of batch norm.

What a mapping is:

- **"torch"**: ``module.state_dict()``; of a model with ``prefix="layer1.0.bn1"``. ``num_batches_tracked`` may
  be absent, as in old files, and is 0 then, as from all other frameworks. Files of safetensors are such
  mappings, too: ``from_state(bn, safetensors.numpy.load_file(path), prefix="bn1")``, and back
  ``safetensors.numpy.save_file(to_state(bn, prefix="bn1"), path)``.
- **"keras"**: ``{v.path: v for v in model.variables}`` with ``prefix=layer.path`` of the layer in it, or
  ``dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), layer.get_weights()))``. gamma of RMS norm
  is called scale there. Instance norm is its GroupNormalization with groups=-1.
- **"flax"**, which is linen: the variables, ``{"params": {...}, "batch_stats": {...}}``; of a model with
  ``prefix="block/bn1"``, which stands behind params and batch_stats in it.
- **"nnx"**: ``nnx.to_pure_dict(nnx.state(model))``, with ``prefix="block/bn1"`` of a model.
- **"onnx"**: the initialisers by the names that the standard has for the inputs of the node, whatever they
  are called in the file: those above; "Scale" and "B" of LayerNormalization, "scale" and "bias" of
  GroupNormalization (opset 21). A node has all inputs: write ones and zeros for a layer without gamma and
  beta. PyTorch's exporter leaves unbiased variances in its files.
- **"sklearn"**: ``{name: getattr(scaler, name) for name in ("mean_", "var_", "n_samples_seen_")}`` of a
  StandardScaler, which is ``BatchNorm(C, eps=0, momentum=None, scale=False, center=False)``: momentum=None
  keeps the statistics of all samples, as it does. With a number as momentum, leave n_samples_seen_ out. With
  eps=0 a constant feature is NaN, where StandardScaler divides by 1; a small eps makes it 0. Its ``scale_``
  is the square root of ``var_``.

Values may be arrays of any library, on any device, and variables that NumPy can read. Dictionaries in
dictionaries may be written flat, with "/" between the names.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from numbabn import _numbers
from numbabn.norms import _conventions, _options
from numbabn.norms._base import Layer
from numbabn.norms._conventions import CONVENTIONS, MADE_WITH, Convention

__all__ = ["from_state", "to_state"]

L = TypeVar("L", bound=Layer)

_SHOWN = 8  # names of a large mapping in a message


def from_state(
    layer: L,
    mapping: Mapping[str, Any],
    convention: str = "torch",
    prefix: str = "",
    *,
    count: int | None = None,
) -> L:
    """Load a state that another framework wrote into a layer; return the layer.

    Parameters
    ----------
    layer : BatchNorm, GroupNorm, InstanceNorm, LayerNorm or RMSNorm
        Made with the options that the state was written with: their shapes, eps and momentum.
    mapping : mapping of str to array
        The state, also of a whole model, in the form above.
    convention : {"torch", "keras", "flax", "nnx", "onnx", "sklearn"}, default "torch"
        Whose names they are.
    prefix : str, default ""
        What names of this layer begin with in the state of a model, as "layer1.0.bn1" or "block/bn1". All
        other names in it are left alone; under the prefix there must be the names of the layer and no others.
    count : int, optional
        Number of values, from 2, that the batches had for each channel, N * H * W. With it, biased variances
        are made unbiased, as running_var is when numbabn trains: times count / (count - 1). Without, they are
        taken as they are, so that evaluation mode gives the results of the framework.

    Returns
    -------
    layer
        With its own dtypes, arrays of parameters and device.

    Raises
    ------
    KeyError
        If names are missing, or unknown under the prefix.
    TypeError, ValueError
        If an argument or the dtype, shape or range of a value is wrong, ``count`` is given where variances
        are unbiased already, or the convention has no place for what the layer has: exact statistics with
        ``momentum=None`` are in "sklearn" only. Whatever is raised, the layer is unchanged.

    Notes
    -----
    The unbiased variance in evaluation is that of Ioffe and Szegedy (2015), algorithm 2.

    Examples
    --------
    >>> import numpy as np, numbabn as nbn
    >>> from numbabn import states
    >>> file = {"bn1.weight": np.ones(2), "bn1.bias": np.zeros(2), "fc.weight": np.ones((5, 2))}
    >>> file |= {"bn1.running_mean": np.array([3.0, 0.0]), "bn1.running_var": np.array([4.0, 1.0])}
    >>> bn = states.from_state(nbn.BatchNorm(2, eps=0.0), file, prefix="bn1")
    >>> bn.eval()(np.array([[5.0, 1.0]]))
    array([[1., 1.]])
    >>> states.to_state(bn, convention="keras")["moving_variance"]
    array([4., 1.], dtype=float32)
    """
    part = _Part.of(layer, convention, prefix)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"mapping must be a mapping of names to arrays, not {type(mapping).__name__}")
    factor, expected = _unbiased(count, part), layer.state_dict()
    if "population_count" in expected.keys() - part.names(expected).keys():
        raise ValueError(
            f"{layer!r} keeps the exact statistics of everything seen, which convention {convention!r} does "
            "not have; make the layer with a number as momentum"
        )
    found = _found(part, mapping, expected)
    if "population_count" in found:
        found |= {key: found[source] for key, source in _conventions.DERIVED.items()}
    values = {
        key: _options.state_value(key, value, expected[key], f"mapping[{path!r}]")
        for key, (path, value) in found.items()
    }
    if "population_count" in values:
        values["population_m2"] = values["population_m2"] * values["population_count"]
    if "running_var" in values and factor != 1:
        (path, value), like = found["running_var"], expected["running_var"]
        exact = _options.state_value("running_var", value, like.astype(np.float64), f"mapping[{path!r}]")
        values["running_var"] = _options.state_value(
            "running_var", exact * factor, like, f"mapping[{path!r}]"
        )
    layer._take({"num_batches_tracked": np.array(0), **values})
    return layer


def to_state(
    layer: Layer, convention: str = "torch", prefix: str = "", *, count: int | None = None
) -> dict[str, Any]:
    """Return the state of a layer under the names of another framework; the inverse of `from_state`.

    Parameters
    ----------
    layer, convention, prefix
        As of `from_state`.
    count : int, optional
        Number of values, from 2, that the batches had for each channel. With it, running_var becomes biased:
        times (count - 1) / count; without, it is written as it is. Exact statistics count by themselves.

    Returns
    -------
    state : dict of str to ndarray
        Copies in the dtypes of the layer; for "flax" and "nnx" in dictionaries in each other. What the
        framework has no name for is left out: num_batches_tracked, and the exact statistics of
        ``momentum=None``, which are written for "sklearn", in float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, ``count`` is given where variances are unbiased, or the convention has no
        name for a parameter of the layer.

    Notes
    -----
    What `from_state` took without ``count`` comes back bit for bit in the dtype of the layer; with the same
    ``count``, or as ``var_`` of a layer with ``momentum=None``, up to the last bits.

    To load it: ``module.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})`` in
    PyTorch, ``layer.set_weights(list(state.values()))`` in Keras, ``module.apply(state, x)`` in Flax.

    Examples
    --------
    >>> import numbabn as nbn
    >>> from numbabn import states
    >>> list(states.to_state(nbn.LayerNorm(2), prefix="block.norm"))
    ['block.norm.weight', 'block.norm.bias']
    >>> states.to_state(nbn.RMSNorm(2), convention="flax", prefix="block/norm")
    {'params': {'block': {'norm': {'scale': array([1., 1.], dtype=float32)}}}}
    """
    part = _Part.of(layer, convention, prefix)
    factor, state = _unbiased(count, part), layer.state_dict()
    names = part.names(state)
    if "running_var" in state:
        var = state["running_var"]
        state["running_var"] = (var.astype(np.float64) / factor).astype(var.dtype)
    if "population_count" in names and state["population_count"]:
        state["running_mean"] = state["population_mean"]
        state["running_var"] = state["population_m2"] / state["population_count"]
    return part.how.unflat({path: state[key] for key, path in names.items()})


class _Part(NamedTuple):
    """What a layer is in the state of another framework: whose names it has there, and under which prefix."""

    layer: Layer
    convention: str
    prefix: str

    @classmethod
    def of(cls, layer: object, convention: object, prefix: object) -> "_Part":
        """Return it, if the convention has the layer's parameters; without separators around the prefix."""
        if not isinstance(layer, Layer):
            raise TypeError(
                f"layer must be a layer of numbabn, such as numbabn.BatchNorm(64), not {type(layer).__name__}"
            )
        if not isinstance(convention, str) or convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {list(CONVENTIONS)}, not {convention!r}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, such as 'layer1.0.bn1', not {prefix!r}")
        part = cls(layer, convention, prefix.strip(CONVENTIONS[convention].separator))
        lacking = sorted(layer.params.keys() - part.names(layer.params).keys())
        if lacking:
            options = ", ".join(f"{MADE_WITH[key][0]}=False" for key in lacking)
            raise ValueError(
                f"convention {convention!r} has no {' and no '.join(lacking)}, which {layer!r} has; "
                f"make the layer with {options}"
            )
        return part

    @property
    def how(self) -> Convention:
        """The convention itself."""
        return CONVENTIONS[self.convention]

    def names(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the full names of these keys, as far as the convention has them."""
        return self.how.paths(self.layer, keys, self.prefix)


def _found(part: _Part, mapping: Mapping[str, Any], keys: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """Return full names and values of a layer's keys, if they and no others are under the prefix."""
    values = part.how.under(part.how.flat(mapping), part.prefix)
    names = part.names(keys)
    missing = [path for key, path in names.items() if path not in values and key not in _conventions.OPTIONAL]
    unknown = [path for path in values if path not in names.values()]
    if missing or unknown:
        some = len(values) > len(unknown)  # else it is another layer's, whatever the options
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise KeyError(
            f"mapping has missing names {missing} and unknown names {unknown[:_SHOWN]}{more} under prefix "
            f"{part.prefix!r}; in convention {part.convention!r} the names of {part.layer!r} are "
            f"{list(names.values())}{_advice(part, mapping, missing if some else [], unknown)}"
        )
    return {key: (path, _whole(values[path])) for key, path in names.items() if path in values}


def _advice(part: _Part, mapping: Mapping[str, Any], missing: list[str], unknown: list[str]) -> str:
    """Say which call takes the state, or which layer does."""
    if _conventions.recognised(part.layer, mapping) not in (None, (part.convention, part.prefix)):
        return f"; its names are there for {_conventions.call_for(part.layer, mapping)}"
    names = part.names(MADE_WITH)
    lost, extra = ([key for key, path in names.items() if path in each] for each in (missing, unknown))
    options = _conventions.made_with(part.layer, lost, extra)
    return f"; if the state is right, make the layer with {options}" if options else ""


def _unbiased(count: object, part: _Part) -> float:
    """Return what makes a variance of a framework that of numbabn: 1 without a count."""
    if count is None:
        return 1.0
    number = _numbers.integer(count, "count")
    if not part.how.biased:
        raise ValueError(
            f"count is {number}, but the variances of convention {part.convention!r} are unbiased, as those "
            "of numbabn are; leave count out"
        )
    if number < 2:
        raise ValueError(f"count must be at least 2, the number of values of a variance, not {number}")
    return number / (number - 1)


def _whole(value: Any) -> Any:
    """Return an integer for a float with that value, which scikit-learn counts with."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
