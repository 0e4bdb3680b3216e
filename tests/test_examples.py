"""Every example runs from start to end, in its quick form, without a warning."""

import re
import signal

import pytest

from tests.support.examples import EXAMPLES, is_png, run_example, run_script
from tests.support.jit import needs_jit
from tests.support.processes import ROOT, python

STRICT_CUPY = ROOT / "tests" / "support" / "strict_cupy.py"
NO_CUPY = (
    "import sys; sys.modules['cupy'] = None; import runpy; del sys.argv[0]; sys.path.insert(0, {folder!r}); "
)
RUN = "runpy.run_path(sys.argv[0], run_name='__main__')"


def run_on_strict_cupy(name, *arguments, cwd):
    """Run a script with a module in place of CuPy that refuses what CuPy would; return what it prints."""
    result = run_script(STRICT_CUPY, EXAMPLES / name, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_without_cupy(name, *arguments, cwd):
    """Run a script where CuPy cannot be imported; return how it ends."""
    code = NO_CUPY.format(folder=str(EXAMPLES)) + RUN
    return run_script("-c", code, EXAMPLES / name, *arguments, cwd=cwd)


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


@pytest.mark.slow
def test_train_digits_options(tmp_path):
    figure = tmp_path / "curves.png"
    options = ["--quick", "--batch-size", "64", "--lr", "0.01", "--seed", "3"]
    output = run_example("train_digits.py", *options, "--figure", figure, cwd=tmp_path)
    assert "batches of 64" in output
    assert "Learning rate 0.01" in output
    assert is_png(figure)


def test_train_digits_explains_its_figure(tmp_path, monkeypatch, example):
    """Every panel has a title; the text below says why a higher training loss is not worse."""
    script, training = map(example, ("train_digits", "training"))
    figures = []
    monkeypatch.setattr(script.Figure, "savefig", lambda self, *arguments, **options: figures.append(self))
    runs = {model: [training.History([1.0, 0.5], [0.8, 0.9])] for model in script.MODELS}
    script.save_figure(tmp_path / "x.png", runs, {model: [0.9] for model in runs}, [0.1])
    (figure,) = figures
    assert len({axes.get_title() for axes in figure.axes} - {""}) == len(figure.axes) == 3
    assert "a higher one is not worse" in figure.get_supxlabel()


def test_the_figure_of_train_digits_is_not_committed():
    default = re.search(r'Path\("(.*\.png)"\)', (EXAMPLES / "train_digits.py").read_text())[1]
    assert default in (ROOT / ".gitignore").read_text().splitlines()


@needs_jit
def test_torch_resnet(tmp_path):
    """Both kinds of norms learn alike from the same batches, together or alone."""
    pytest.importorskip("torch")
    found = {}
    for options in ((), ("--numbabn",), ("--no-numbabn",)):
        output = run_example("torch_resnet.py", "--quick", *options, cwd=tmp_path)
        *_, epoch = (line for line in output.splitlines() if line.startswith("epoch"))
        rows = [line.split() for line in output.splitlines() if line.endswith("of the test images")]
        assert all(float(seconds) > 0 for _, _, seconds, *_ in rows)
        losses = map(float, re.findall(r"([\d.]+) with", epoch))
        found[options] = {row[0]: (loss, row[4]) for row, loss in zip(rows, losses, strict=True)}
    pytorch, numbabn = found[()]["PyTorch's"], found[()]["numbabn's"]
    assert float(pytorch[1].rstrip("%")) > 80
    assert numbabn[0] == pytest.approx(pytorch[0], rel=5e-2)
    assert found["--numbabn",] == {"numbabn's": numbabn}  # bit for bit the same training
    assert list(found["--no-numbabn",]) == ["PyTorch's"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_train_digits_on_a_gpu(tmp_path):
    """The same script on arrays like CuPy's learns the same."""
    options = ["--quick", "--seed", "3"]
    rows = {}
    for device, run in (("cpu", run_example), ("cuda", run_on_strict_cupy)):
        output = run("train_digits.py", *options, "--device", device, cwd=tmp_path)
        rows[device] = [
            line.split("%")[1] for line in output.splitlines() if line.startswith(("MLP", "CNN "))
        ]
    assert len(rows["cpu"]) >= 4
    assert rows["cuda"] == rows["cpu"]


def test_cupy_batch_norm(tmp_path):
    output = run_on_strict_cupy("cupy_batch_norm.py", cwd=tmp_path)
    assert "y: cupy.ndarray, mean 0.000, std 1.000" in output
    assert "near 0.3: 0.30" in output


SCRIPTS = ["train_digits.py", "train_fashion.py", "fold.py"]
ON_GPU = [["cupy_batch_norm.py"], *([script, "--device", "cuda"] for script in SCRIPTS)]


@pytest.mark.parametrize("command", ON_GPU)
def test_what_is_missing_on_a_gpu(command, tmp_path):
    result = run_without_cupy(*command, cwd=tmp_path)
    assert result.returncode == 1
    assert "cannot run: import of cupy halted" in result.stderr
    assert 'python -m pip install "numbabn[cuda]" cupy-cuda13x' in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_recalibrate(tmp_path):
    output = run_example("recalibrate.py", "--quick", cwd=tmp_path)
    rows = [line for line in output.splitlines() if line.endswith("%")][1:]
    before, after, exact = (float(row.rstrip("%").split()[-1]) for row in rows)
    assert before > 5, "running averages of ten tiny batches are noisy"
    assert after < 1
    assert exact == 0
    assert not list(tmp_path.iterdir())


def check_folded(output):
    """Both networks predict the same without their norms, which have fewer bytes in two layers less."""
    lines = output.splitlines()
    for name in ("MLP", "CNN"):
        before, after = (
            next(line for line in lines if line.startswith(f"{row}  "))[len(row) :].split()
            for row in (name, f"{name}, folded")
        )
        assert int(before[0]) - int(after[0]) == 2  # layers
        assert int(before[1]) > int(after[1])  # bytes
        assert before[2] == after[2]  # accuracy
        (text,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert "without its 2 norms all 360 predictions are the same" in text
        # Logits below 100 after three layers: some hundred roundings of 6e-8 of that at the most.
        assert float(re.search(r"differ by at most (\S+);", text)[1]) < 1e-4


def test_fold(tmp_path):
    check_folded(run_example("fold.py", "--quick", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fold_on_a_gpu(tmp_path):
    check_folded(run_on_strict_cupy("fold.py", "--quick", "--device", "cuda", cwd=tmp_path))


# Ctrl-C while a kernel is compiled: in Numba, and where LLVM calls Python, which cannot raise.
INTERRUPTED = {
    "in Numba": "from numba.core.compiler import CompilerBase as owner; name = 'compile_extra'",
    "in LLVM": "from llvmlite.binding import ExecutionEngine as owner; name = '_find_module_ptr'",
}
INTERRUPT = """
import runpy, signal, sys
function = getattr(owner, name)

def interrupted(*arguments):
    signal.raise_signal(signal.SIGINT)
    return function(*arguments)

setattr(owner, name, interrupted)
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[1] + "/quickstart.py", run_name="__main__")
"""


@needs_jit
@pytest.mark.parametrize("place", INTERRUPTED)
def test_ctrl_c_while_a_kernel_is_compiled(place, tmp_path):
    code = INTERRUPTED[place] + INTERRUPT
    result = python("-c", code, EXAMPLES, cwd=tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert result.returncode == -signal.SIGINT, result.stderr  # which shells show as 130
    assert result.stderr.splitlines() == ["", "Interrupted."]


@pytest.mark.slow
@needs_jit
def test_an_example_says_what_it_compiles(tmp_path):
    script, cache = EXAMPLES / "quickstart.py", str(tmp_path / "cache")
    first, second = (python(script, cwd=tmp_path, NUMBA_CACHE_DIR=cache) for _ in range(2))
    assert "numbabn: compiled row_kernels.forward for float32" in first.stderr
    assert not second.stderr
