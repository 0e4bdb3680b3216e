"""convert and revert: in place, and only where it is safe."""

import copy

import pytest
import torch
from torch import nn

import numbabn.torch as nt
from numbabn.torch.conversion import Joined
from tests.torch.tensors import assert_close, results


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x):
        return x + self.norm(self.body(x))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        Residual(),
        nn.InstanceNorm2d(4),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.RMSNorm(8),
        nn.GELU(),
    )


X = (5, 3, 8, 8)


def classes(model):
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("fuse", [False, True])
def test_results_states_and_way_back(fuse):
    model = network()
    original, before = copy.deepcopy(model), classes(model)
    modules, parameters = list(model.modules()), list(model.parameters())
    assert nt.convert(model, fuse=fuse) is model
    assert sum(isinstance(each, nt.modules.Normalization) for each in model.modules()) == 6
    assert sum(isinstance(each, Joined) for each in model.modules()) == (4 if fuse else 0)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == original.state_dict().keys()
    again = copy.deepcopy(model)
    x = torch.randn(X, requires_grad=True)
    for converted in (model, again):
        for mode in (True, False):
            both = [each.train(mode) for each in (converted, original)]
            pairs = [results(lambda x, *_, m=m: m(x), x, *m.parameters()) for m in both]
            assert_close(*pairs, tolerance=2e-4)  # of a network, whose roundings are enlarged by every norm
        original.load_state_dict(again.state_dict())  # with which the copy starts
    nt.revert(model.train())
    assert classes(model) == before
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert not any("following" in vars(module) for module in model.modules())


def test_a_norm_itself():
    module = nn.LayerNorm(4)
    assert nt.convert(module) is module
    assert type(module) is nt.LayerNorm
    assert type(nt.revert(module)) is nn.LayerNorm


def test_twice_is_once():
    model = network()
    found = classes(nt.convert(nt.convert(model, fuse=True), fuse=True))
    assert found == classes(nt.convert(network(), fuse=True))
    assert classes(nt.revert(nt.revert(model))) == classes(network())


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_derives_from_pytorchs_classes_stays():
    parametrized = nn.utils.parametrizations.weight_norm(nn.LayerNorm(4))
    model = nn.ModuleList([Own(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm2d(), parametrized])
    before = classes(model)
    assert classes(nt.convert(model, fuse=True)) == before


def test_the_mode_reaches_what_was_joined():
    model = nt.convert(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), fuse=True).eval()
    assert not nt.revert(model)[1].training


class Reversed(nn.Sequential):
    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


SHARED = nn.ReLU()


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(hooked(nn.BatchNorm2d(4)), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), hooked(nn.ReLU())),
        nn.Sequential(nn.BatchNorm2d(4), SHARED, nn.Conv2d(4, 4, 1), SHARED),
        nn.Sequential(nn.BatchNorm2d(4), nn.Identity(), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), nn.GELU()),
        nn.ModuleList([nn.BatchNorm2d(4), nn.ReLU()]),
        Reversed(nn.BatchNorm2d(4), nn.ReLU()),
    ],
    ids=["hook", "hook of the ReLU", "shared", "between", "order", "GELU", "list", "own forward"],
)
def test_not_fused(model):
    nt.convert(model, fuse=True)
    assert not any(isinstance(module, Joined) for module in model.modules())
    assert any(isinstance(module, nt.BatchNorm2d) for module in model.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_errors():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not function"):
        nt.convert(lambda x: x)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not NoneType"):
        nt.revert(None)
    model = nt.convert(nn.Sequential(nn.LayerNorm(4), nn.ReLU()), fuse=True)
    with pytest.raises(TypeError, match=r"numbabn\.torch\.revert"):
        torch.jit.script(model)


def test_an_activation_runs_again_where_its_norm_was_replaced():
    """As PyTorch's tools do, which take our norms for theirs."""
    model = nt.convert(nn.Sequential(nn.BatchNorm2d(3), nn.LeakyReLU(0.1)), fuse=True).eval()
    x = torch.randn(X)
    expected = nn.functional.leaky_relu(x / (1 + 1e-5) ** 0.5, 0.1)
    assert_close((model(x),), (expected,))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(synchronised[0]) is nn.SyncBatchNorm
    assert_close((synchronised(x),), (expected,))
    assert_close((model(x),), (expected,))
    assert type(nt.revert(synchronised)[1]) is nn.LeakyReLU
