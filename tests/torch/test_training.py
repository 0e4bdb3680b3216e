"""Training: a converted model learns what PyTorch's learns, step by step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import numbabn.torch as nt
from tests.support.jit import needs_jit

pytestmark = needs_jit

STEPS = 50


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        return x + self.norm(self.body(x))


def network():
    stem = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), Residual(), nn.Flatten(), nn.Linear(288, 16)
    return nn.Sequential(*stem, nn.LayerNorm(16), nn.GELU(), nn.RMSNorm(16), nn.Linear(16, 4))


def losses(model, dtype, memory_format):
    """Train on 4 batches in turn; return the loss of every step."""
    model = model.to(dtype=dtype, memory_format=memory_format)
    random = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(16, 3, 8, 8, generator=random), torch.randint(4, (16,), generator=random))
        for _ in range(4)
    ]
    sgd = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    found = []
    for step in range(STEPS):
        x, labels = batches[step % len(batches)]
        sgd.zero_grad()
        loss = cross_entropy(model(x.to(dtype=dtype, memory_format=memory_format)), labels)
        loss.backward()
        sgd.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("fuse", [False, True])
def test_losses_over_many_steps_agree_within_noise_of_float32(fuse, memory_format):
    """PyTorch's own in float32 and numbabn's are both 3e-7 from PyTorch's in float64; losses are 2 at most.

    The learning rate is small enough that training does not make roundings larger.
    """
    model = network()
    exact, plain = (
        losses(copy.deepcopy(model), dtype, memory_format) for dtype in (torch.float64, torch.float32)
    )
    ours = losses(nt.convert(copy.deepcopy(model), fuse=fuse), torch.float32, memory_format)
    assert exact[-4:].mean() < 0.5 * exact[:4].mean()  # it learns
    for found in (plain, ours):
        torch.testing.assert_close(found, exact, rtol=0, atol=3e-6)
