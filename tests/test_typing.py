"""What type checkers make of a user's script: it is accepted, and they see the arrays; lists are refused."""

import re
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
import numbabn as nbn

x = np.ones((4, 3), np.float32)
bn = nbn.BatchNorm(3, momentum=None)
y = bn(x)
dx = bn.backward(y) * 2
half = 0.5 * bn.eval()(x, out=np.empty_like(x))
bn.params["gamma"] -= 0.1 * bn.grads["gamma"]
total = bn.running_mean.sum() + bn.running_var.sum()
bn.backward(y, need_dx=False)

y, saved = nbn.batch_norm_forward(x, np.ones(3), np.zeros(3), axis=-1)
dx, dgamma, dbeta = nbn.batch_norm_backward(y, saved)
dx = 2 * dx + nbn.batch_norm_inference(x, saved.mean, saved.var)
count, mean, m2 = nbn.moments(x)
std = np.sqrt(m2 / count)
statistics = nbn.Moments(axis=-1).update(x)
std = statistics.std() * 2
nbn.recalibrate([bn], bn, [x])
scale, shift = bn.affine()
weight, bias = nbn.fold_into_dense(np.ones((2, 3)), None, bn)
y = x @ weight.T * scale + bias + shift
weight, bias = nbn.fold_into_conv(np.ones((3, 2, 3, 3)), bias, nbn.InstanceNorm(3), padding=((1, 1), (1, 1)))

bn([1, 2])  # refused
nbn.batch_norm_forward([[1.0, 2.0]])  # refused
bn.params["gamma"].weight  # refused
bn.grads["beta"].weight  # refused
bn.running_mean.weight  # refused
bn.backward(y, need_dx=False) * 2  # refused
saved.count = 3  # refused
nbn.BatchNorm(3, momentum="high")  # refused
nbn.fold_into_dense([[1.0]], None, bn)  # refused
nbn.fold_into_conv(weight, bias, nbn.LayerNorm(3))  # refused
nbn.LayerNorm(3).affine()  # refused
"""
REFUSED = {i for i, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# refused")}


def errors(*command):
    """Return the lines of a script of which a type checker says that they are wrong."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.findall(r"script\.py:(\d+)(?::\d+)?(?: -|:) error: (.*)", run.stdout)
    assert found, run.stdout + run.stderr  # some are expected
    return {int(line): text for line, text in found}


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
def test_mypy(script, tmp_path):
    pytest.importorskip("mypy")
    found = errors(sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}/cache", str(script))
    assert found.keys() == REFUSED, found


@pytest.mark.slow
def test_pyright(script):
    pyright = shutil.which("pyright", path=str(script.parent.joinpath(sys.executable).parent))
    if pyright is None:
        pytest.skip("pyright is not installed beside this Python")
    found = errors(pyright, "--pythonpath", sys.executable, str(script))
    assert found.keys() == REFUSED, found
