"""Small tensors are left to PyTorch, which takes less time for them."""

import pytest
import torch
import torch.nn.functional as plain
from torch import nn

import numbabn.torch as nt
from numbabn.torch import _kernels, _worth
from numbabn.torch import functional as F

LEAST = {"batch_norm": (64, 512), "instance_norm": (64, 512), "group_norm": (64, 512)}
LEAST |= {"layer_norm": (64, 64), "rms_norm": (64, 64)}
CALLS = {
    "batch_norm": lambda functions, x, **options: functions.batch_norm(
        x, None, None, training=True, **options
    ),
    "instance_norm": lambda functions, x, **options: functions.instance_norm(x, **options),
    "group_norm": lambda functions, x, **options: functions.group_norm(x, 2, **options),
    "layer_norm": lambda functions, x, **options: functions.layer_norm(x, x.shape[-1:], **options),
    "rms_norm": lambda functions, x, **options: functions.rms_norm(x, x.shape[-1:], **options),
}


@pytest.fixture(autouse=True)
def _numbers(monkeypatch):
    """Few elements are enough, for each thread, of which there are two."""
    monkeypatch.setattr(_worth, "LEAST", LEAST)
    monkeypatch.setattr(_worth, "LEAST_FOLLOWED", 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture
def shapes(monkeypatch):
    """Return the list of what numbabn's kernels are called with."""
    seen = []
    forward = _kernels.forward

    def noted(task, x, parameters):
        seen.append(tuple(x.shape))
        return forward(task, x, parameters)

    monkeypatch.setattr(_kernels, "forward", noted)
    return seen


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("samples", "taken"), [(7, False), (8, True)])
def test_tensors_of_fewer_elements_are_left_to_pytorch(name, samples, taken, shapes):
    x = torch.randn(samples, 4, 2, 2)
    y = CALLS[name](F, x)
    assert shapes == [(samples, 4, 2, 2)] * taken
    torch.testing.assert_close(y, CALLS[name](plain, x))


def test_channels_last_has_numbers_of_its_own(shapes):
    x = torch.randn(63, 4, 2, 2).to(memory_format=torch.channels_last)
    F.instance_norm(x)
    assert not shapes
    F.instance_norm(torch.cat((x, x[:1])))
    assert shapes == [(64, 4, 2, 2)]


@pytest.mark.parametrize("name", CALLS)
def test_fewer_are_enough_where_an_activation_follows(name, shapes):
    x = torch.randn(4, 4, 2, 2)
    y = CALLS[name](F, x, activation="relu")
    assert shapes == [(4, 4, 2, 2)]
    torch.testing.assert_close(y, CALLS[name](plain, x).relu())
    torch.testing.assert_close(CALLS[name](F, x[:3], activation="relu"), CALLS[name](plain, x[:3]).relu())
    assert len(shapes) == 1


def test_deterministic_algorithms_are_numbabns(shapes):
    torch.use_deterministic_algorithms(True)
    try:
        F.layer_norm(torch.randn(2, 4), (4,))
    finally:
        torch.use_deterministic_algorithms(False)
    assert shapes == [(2, 4)]


def test_a_module_does_the_same_with_small_and_large_batches(shapes):
    """Statistics, counts and gradients of steps that both take in turn are those of PyTorch."""
    expected = nn.BatchNorm2d(4, momentum=None)
    module = nt.BatchNorm2d(4, momentum=None)
    for samples in (2, 9, 3):
        x = torch.randn(samples, 4, 2, 2)
        for each in expected, module:
            (each(x) ** 2).sum().backward()
    assert shapes == [(9, 4, 2, 2)]
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    torch.testing.assert_close(module.weight.grad, expected.weight.grad)


def test_an_export_keeps_operators_of_all_sizes():
    exported = torch.export.export(nt.LayerNorm(4), (torch.randn(2, 4),))
    assert "numbabn.layer_norm" in str(exported.graph)


def test_numbers_are_of_every_function():
    assert set(_worth.LEAST) == set(CALLS) == set(F.__all__)
