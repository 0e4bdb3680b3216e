"""Every example runs from start to end, in its quick form, without a warning."""

import os
import subprocess
import sys
from pathlib import Path

import numbabn

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name, *arguments, cwd):
    """Run a script in a fresh interpreter that imports the same numbabn as the tests."""
    package_parent = str(Path(numbabn.__file__).parents[1])
    python_path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        cwd=cwd,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_quickstart(tmp_path):
    output = run_example("quickstart.py", cwd=tmp_path)
    assert output.count(": True") == 2
    assert "running_mean" in output
    assert not list(tmp_path.iterdir())


def test_train_digits(tmp_path):
    output = run_example("train_digits.py", "--quick", cwd=tmp_path)
    models = ["MLP", "MLP + batch norm", "CNN", "CNN + batch norm"]
    for model in models:
        rows = [line for line in output.splitlines() if line.startswith(f"{model:17}  ")]
        assert len(rows) == 2, f"{model} is not once in each table:\n{output}"
        mean = float(rows[0].split("%")[0].split()[-1])
        assert 80 < mean <= 100
    assert [path.name for path in tmp_path.iterdir()] == ["train_digits.png"]
    assert is_png(tmp_path / "train_digits.png")


def test_train_digits_options(tmp_path):
    figure = tmp_path / "curves.png"
    options = ["--quick", "--batch-size", "64", "--lr", "0.01", "--seed", "3"]
    output = run_example("train_digits.py", *options, "--figure", figure, cwd=tmp_path)
    assert "batches of 64" in output
    assert "Learning rate 0.01" in output
    assert is_png(figure)


def test_recalibrate(tmp_path):
    output = run_example("recalibrate.py", "--quick", cwd=tmp_path)
    rows = [line for line in output.splitlines() if line.endswith("%")][1:]
    before, after, exact = (float(row.rstrip("%").split()[-1]) for row in rows)
    assert before > 5, "running averages of ten tiny batches are noisy"
    assert after < 1
    assert exact == 0
    assert not list(tmp_path.iterdir())
