"""Tests of `numbabn.torch` are left out where PyTorch is not installed, but for those of its import."""

from importlib.util import find_spec

import pytest

FILES = ("conversion", "functional", "models_benchmark", "modules", "operators", "threads", "training")
collect_ignore = [] if find_spec("torch") else [f"test_{name}.py" for name in FILES]


@pytest.fixture(autouse=True)
def _seed():
    if find_spec("torch"):
        import torch

        torch.manual_seed(0)
