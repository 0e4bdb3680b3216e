"""A whole model at once: PyTorch's modules become numbabn's, in place, and back."""

from collections import Counter
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn

from numbabn.torch import modules
from numbabn.torch._norms import Activation
from numbabn.torch.modules import Normalization, original

__all__ = ["Joined", "convert", "revert"]

M = TypeVar("M", bound=nn.Module)

_OURS = {original(kind): kind for kind in (getattr(modules, name) for name in modules.__all__)}
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def convert(model: M, fuse: bool = False) -> M:
    """Let numbabn compute every norm of a model.

    Modules stay the objects that they are, and become of a subclass of their class: parameters, buffers,
    hooks, names in states and the states of optimisers remain. Only the classes of PyTorch themselves are
    replaced: BatchNorm1d to BatchNorm3d, InstanceNorm1d to InstanceNorm3d, GroupNorm, LayerNorm and RMSNorm.
    What derives from them stays, such as SyncBatchNorm, modules whose parameters are lazy or parametrized,
    and your own.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    fuse : bool, default False
        Whether to join a norm with the ReLU, ReLU6 or LeakyReLU that follows it in a ``torch.nn.Sequential``,
        so that memory is read and written once. A `Joined` takes the place of the activation, so that all
        names stay. Both modules must have no hooks, and one place in the model. Do not fuse where other code
        than the ``Sequential`` itself calls the norm, or keeps what it returns.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    TypeError
        If it is no module.

    See Also
    --------
    revert : The inverse.

    Notes
    -----
    On the CPU, tensors for which PyTorch takes less time are left to it: those of few elements, as the
    documentation of `numbabn.torch.functional` says. After ``torch.use_deterministic_algorithms(True)``
    numbabn computes all norms, and results are the same bits for any number of threads.

    Convert before ``torch.compile``, and revert before an export to ONNX, before quantization, before tools
    that compare the types of modules with ``type`` and not with ``isinstance``, and where an activation was
    joined before tools that fold a norm into another module, such as ``fuse_conv_bn_eval``. Where a tool puts
    another norm in the place of a joined one, such as ``convert_sync_batchnorm``, the activation runs again.

    PyTorch does not resize storages that are shared with NumPy: code that frees activations by
    ``storage.resize_(0)`` cannot free the input, parameters and result of these norms on the CPU.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> numbabn.torch.convert(model, fuse=True)[1]
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, activation=relu)
    """
    _check(model)
    for module in model.modules():
        if type(module) in _OURS:
            module.__class__ = _OURS[type(module)]
    if fuse:
        places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        for sequence in _sequences(model):
            for norm, name, follower in _followed_norms(sequence):
                if all(places[id(module)] == 1 and not _has_hooks(module) for module in (norm, follower)):
                    norm.following = _activation(follower)
                    setattr(sequence, name, Joined(follower, norm, sequence))
    return model


def revert(model: M) -> M:
    """Undo `convert`: let PyTorch compute every norm of a model, and every activation that was joined to one.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, also where its modules were made by the classes of `numbabn.torch`.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    TypeError
        If it is no module.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> model = numbabn.torch.convert(torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.ReLU()), fuse=True)
    >>> numbabn.torch.revert(model)
    Sequential(
      (0): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
      (1): ReLU()
    )
    """
    _check(model)
    for sequence in _sequences(model):
        for name, module in sequence.named_children():
            if isinstance(module, Joined):
                setattr(sequence, name, module.activation.train(module.training))
    for module in model.modules():
        if type(module) in _OURS.values():
            vars(module).pop("following", None)
            module.__class__ = original(type(module))
    return model


class Joined(nn.Identity):
    """What stands in a model where an activation was that the norm before it now does.

    It does nothing while that norm is in its ``Sequential``, and what the activation did if it is no more.

    Attributes
    ----------
    activation, norm, sequence : torch.nn.Module
        What stood here, for `revert`, the norm that does it now, and where both are. None is a child of this
        module.

    Examples
    --------
    >>> import torch, numbabn.torch
    >>> numbabn.torch.convert(torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.ReLU()), fuse=True)[1]
    Joined(ReLU())
    """

    activation: nn.Module
    norm: Normalization
    sequence: nn.Sequential

    def __init__(self, activation: nn.Module, norm: Normalization, sequence: nn.Sequential) -> None:
        super().__init__()
        self.training = activation.training
        self.__dict__ |= {"activation": activation, "norm": norm, "sequence": sequence}

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the input, or its activation if the norm has left the ``Sequential``."""
        if any(module is self.norm for module in self.sequence._modules.values()):
            return input
        activated: Tensor = self.activation(input)
        return activated

    def extra_repr(self) -> str:
        """Return what stood here."""
        return repr(self.activation)


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def _sequences(model: nn.Module) -> list[nn.Sequential]:
    """Return the modules that call their children one after the other."""
    found = [module for module in model.modules() if isinstance(module, nn.Sequential)]
    return [module for module in found if type(module).forward is nn.Sequential.forward]


def _followed_norms(sequence: nn.Sequential) -> list[tuple[Normalization, str, nn.Module]]:
    """Return the norms that an activation follows, and the names and modules of the activations."""
    children = list(sequence._modules.items())
    return [
        (norm, name, follower)
        for (_, norm), (name, follower) in pairwise(children)
        if type(norm) in _OURS.values() and norm.following is None and _activation(follower) is not None
    ]


def _activation(module: nn.Module) -> Activation | None:
    """Return what numbabn calls an activation of PyTorch; None if it is another module."""
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", module.negative_slope)
    name = {nn.ReLU: "relu", nn.ReLU6: "relu6"}.get(type(module))
    return None if name is None else Activation(name, 0.0)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)
