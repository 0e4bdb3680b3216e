"""Without PyTorch, or with an old one, numbabn works, and numbabn.torch says what to install."""

import sys

import pytest

from tests.support.processes import run_python


def test_numbabn_does_not_import_torch():
    assert run_python("import sys, numbabn; print('torch' in sys.modules)").strip() == "False"


@pytest.fixture
def _not_imported(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("numbabn.torch")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("_not_imported")
def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'needs PyTorch 2\.13 or newer: pip install "numbabn\[torch\]"'):
        __import__("numbabn.torch")


@pytest.mark.usefixtures("_not_imported")
def test_with_an_old_one(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.12.1"))
    with pytest.raises(ImportError, match=r"newer, and this is 2\.12\.1: pip install -U"):
        __import__("numbabn.torch")


def test_tensors_on_the_cpu_are_told_of_it():
    torch = pytest.importorskip("torch")
    import numbabn as nbn

    with pytest.raises(TypeError, match=r"pass x\.numpy\(\), or x\.cuda\(\); numbabn\.torch takes tensors"):
        nbn.batch_norm_forward(torch.ones(2, 3))
