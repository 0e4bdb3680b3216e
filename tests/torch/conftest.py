"""Tests of `numbabn.torch` are left out where PyTorch is not installed."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
