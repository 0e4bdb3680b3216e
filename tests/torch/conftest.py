"""Tests of `numbabn.torch` are left out where PyTorch is not installed, but for those of its import."""

from importlib.util import find_spec

import pytest

FILES = (
    "conversion",
    "functional",
    "models_benchmark",
    "modules",
    "operators",
    "threads",
    "training",
    "worth",
)
collect_ignore = [] if find_spec("torch") else [f"test_{name}.py" for name in FILES]


@pytest.fixture(autouse=True)
def _seed():
    if find_spec("torch"):
        import torch

        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _all_sizes(monkeypatch):
    """Let numbabn compute tensors of all sizes: those of tests are too small for it to be faster."""
    if find_spec("torch"):
        from numbabn.torch import _worth

        monkeypatch.setattr(_worth, "LEAST", dict.fromkeys(_worth.LEAST, (0, 0)))
