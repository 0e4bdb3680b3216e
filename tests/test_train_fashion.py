"""The example train_fashion.py: what it learns and prints, and that a killed run goes on bit for bit."""

import json
import re
import signal
from argparse import Namespace

import numpy as np
import pytest

from tests.support.examples import EXAMPLES, run_example, run_script
from tests.support.jit import needs_jit
from tests.support.processes import ROOT

STRICT_CUPY = ROOT / "tests" / "support" / "strict_cupy.py"
QUICK = ("--quick", "--data", "digits")
CHECKPOINT, FIGURE = "train_fashion_quick.npz", "train_fashion.png"


@pytest.fixture
def run(example, monkeypatch, tmp_path, capsys):
    """Run the script in this process, in an empty folder; return what it printed."""

    def call(*options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["train_fashion.py", *options])
        example("train_fashion").main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without interruption, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_example("train_fashion.py", *QUICK, cwd=folder)


def refused(run, *options):
    """Return with which message the script ends."""
    with pytest.raises(SystemExit) as refusal:
        run(*options)
    return str(refusal.value)


def kept(path):
    """Return the arrays and facts of a checkpoint, without the seconds, which are never the same."""
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("facts")))
    for epoch in facts["history"]:
        del epoch["seconds"]
    return arrays, facts


def assert_same(path, expected):
    """Compare a checkpoint with another, bit for bit."""
    (arrays, facts), (expected_arrays, expected_facts) = kept(path), kept(expected)
    assert facts == expected_facts
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        assert array.dtype == expected_arrays[name].dtype
        assert array.tobytes() == expected_arrays[name].tobytes(), name


def accuracy(output):
    """Return the accuracy that the script printed in the end, in per cent."""
    return float(re.search(r"^([\d.]+)% of \d+ test images", output, re.MULTILINE)[1])


@needs_jit
def test_quick_run(whole):
    folder, output = whole
    assert "1437 training and 360 test images of 8x8 pixels" in output
    assert 60 < accuracy(output) <= 100  # 10 is guessing
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT, FIGURE}
    assert (folder / FIGURE).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@needs_jit
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "layer", "instance"])
def test_other_norms(norm, run):
    output = run(*QUICK, "--norm", norm, "--epochs", "4")
    assert f"with {norm} norm" in output
    assert accuracy(output) > 30  # 10 is guessing


def test_the_learning_rate_goes_down_over_all_epochs(example):
    """Every step has the rate of its place in the whole run, whichever epoch it is in."""
    script, nn = example("train_fashion"), example("minimal_nn")
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((40, 4, 4, 1), np.float32), np.arange(40) % 3
    data = script.Data(x, x, labels, labels, names=("a", "b", "c"), mirror=False)
    args = Namespace(batch_size=8, epochs=8, lr=0.5)
    rates = []

    class Steps:
        def step(self):
            rates.append(self.lr)

    run = script.Run(nn.Sequential(nn.Flatten(), nn.Dense(16, 3, rng=rng)), Steps(), rng)
    for epoch in range(args.epochs):
        run.history = [{}] * epoch
        script.train_epoch(run, data, args, example("training").SILENT)
    cosine = example("descent").cosine
    assert rates == [0.5 * cosine(step, 40, 2) for step in range(40)]


class Interruption(BaseException):
    """What ends the script between two lines, as Ctrl-C does."""


@needs_jit
def test_an_interrupted_run_goes_on_bit_for_bit(run, whole, example, monkeypatch, tmp_path):
    train_epoch = example("train_fashion").train_epoch

    def interrupted(run, *arguments):
        loss = train_epoch(run, *arguments)
        if len(run.history) == 1:  # the second epoch is trained, and not yet kept
            raise Interruption
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(example("train_fashion"), "train_epoch", interrupted)
        with pytest.raises(Interruption):
            run(*QUICK)
    assert "has 1 of 2 epochs; the run goes on from there" in run(*QUICK)
    assert_same(tmp_path / CHECKPOINT, whole[0] / CHECKPOINT)


@needs_jit
def test_a_finished_run_is_not_trained_again(run, whole, tmp_path):
    folder, output = whole
    path = tmp_path / CHECKPOINT
    path.write_bytes((folder / CHECKPOINT).read_bytes())
    again = run(*QUICK)
    assert path.read_bytes() == (folder / CHECKPOINT).read_bytes()
    assert accuracy(again) == accuracy(output)
    assert (tmp_path / FIGURE).exists()


# Where SIGKILL ends the run: a function and which of its calls.
MOMENTS = {
    "in the second epoch": ("minimal_nn", "softmax_cross_entropy", 60),
    "while the checkpoint is written": ("os", "fsync", 2),
    "before the checkpoint has its name": ("pathlib.Path", "replace", 2),
}
KILLED = """
import os, pkgutil, runpy, signal, sys
place, name, number, folder = sys.argv[1:5]
sys.path.insert(0, folder)
owner = pkgutil.resolve_name(place)
function, calls = getattr(owner, name), []

def killed(*arguments, **options):
    calls.append(name)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(owner, name, killed)
sys.argv = ["train_fashion.py", *sys.argv[5:]]
runpy.run_path(folder + "/train_fashion.py", run_name="__main__")
"""


@needs_jit
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(moment, whole, tmp_path):
    place, name, number = MOMENTS[moment]
    result = run_script("-c", KILLED, place, name, str(number), EXAMPLES, *QUICK, cwd=tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(kept(tmp_path / CHECKPOINT)[1]["history"]) == 1
    output = run_example("train_fashion.py", *QUICK, cwd=tmp_path)
    assert "has 1 of 2 epochs" in output
    assert_same(tmp_path / CHECKPOINT, whole[0] / CHECKPOINT)
    assert not list(tmp_path.glob("*.tmp"))


def with_facts(path, **changes):
    """Write a checkpoint again, with other facts."""
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays.pop("facts"))) | changes
    np.savez(path, facts=json.dumps(facts), **arrays)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_momentum(path):
    with np.load(path) as file:
        arrays = {name: array for name, array in file.items() if not name.startswith("velocity")}
    np.savez(path, **arrays)


BROKEN = {
    "cut in half": (cut, "is no checkpoint, or broken"),
    "empty": (lambda path: path.write_bytes(b""), "is no checkpoint, or broken"),
    "text": (lambda path: path.write_text("epoch 1"), "is no checkpoint, or broken"),
    "without facts": (lambda path: np.savez(path, x=0), "is no checkpoint, or broken"),
    "without momentum": (without_momentum, "is no checkpoint of this network"),
    "without random numbers": (lambda path: with_facts(path, random={}), "is no checkpoint of this network"),
}


@pytest.fixture
def untrained(run, example, monkeypatch, tmp_path):
    """Write the checkpoint of a run whose epochs do nothing, and that recognises nothing; return its path."""
    script = example("train_fashion")
    monkeypatch.setattr(script, "train_epoch", lambda *_: 1.0)
    monkeypatch.setattr(script, "predict", lambda _, x: np.zeros(len(x), int))
    run(*QUICK)
    return tmp_path / CHECKPOINT


def test_broken_checkpoints_are_refused(run, untrained):
    whole = untrained.read_bytes()
    for breaking, message in BROKEN.values():
        untrained.write_bytes(whole)
        breaking(untrained)
        found = refused(run, *QUICK)
        assert message in found
        assert CHECKPOINT in found
        assert "delete it to start anew, or give another --checkpoint" in found


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--norm", "group", "a run with --norm batch, and this one has --norm group"),
        ("--batch-size", "64", "a run with --batch-size 32, and this one has --batch-size 64"),
        ("--lr", "0.2", "a run with --lr 0.1, and this one has --lr 0.2"),
        ("--seed", "1", "a run with --seed 0, and this one has --seed 1"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(option, value, message, run, untrained):
    before = untrained.read_bytes()
    found = refused(run, *QUICK, option, value)
    assert message in found
    assert "delete it to start anew, or give another --checkpoint" in found
    assert untrained.read_bytes() == before


def test_all_other_options_are_named(example, tmp_path):
    check = example("checkpoint")._check
    with pytest.raises(
        SystemExit, match=r"a run with --batch-size 8 --lr 1, and this one has --batch-size 4"
    ):
        check(tmp_path, {"batch_size": 4, "lr": 2, "seed": 0}, {"batch_size": 8, "lr": 1, "seed": 0})


def test_missing_data(run, example, monkeypatch, tmp_path):
    monkeypatch.setitem(example("images").INSTALLED, "fashion-mnist", tmp_path / "nowhere")
    found = refused(run)
    assert "there is no" in found
    assert "Debian's package dataset-fashion-mnist" in found
    assert "https://github.com/zalandoresearch/fashion-mnist" in found
    assert "--data digits" in found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "1"], "--batch-size must be between 2 and 1437"),
        (["--batch-size", "1438"], "--batch-size must be between 2 and 1437"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--checkpoint", "nowhere/x.npz"], "there is no folder nowhere for x.npz"),
        (["--figure", "nowhere/x.png"], "there is no folder nowhere for x.png"),
    ],
)
def test_what_it_refuses(options, message, run, tmp_path, capsys):
    assert message in refused(run, *QUICK, *options) + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_jit
def test_a_run_that_diverges_ends_with_advice(run, tmp_path):
    assert refused(run, *QUICK, "--lr", "1e30") == "the loss of epoch 1 is no number; give a smaller --lr"
    assert not list(tmp_path.iterdir())


def test_clothes_have_names_and_mirror_images(example):
    images, labels = example("images"), np.arange(10)
    for name in ("fashion-mnist", "data/fashion-mnist"):
        assert images.of_clothes(name)
        assert images.class_names(name, labels)[9] == "Ankle boot"
    assert not images.of_clothes("digits")
    assert images.class_names("digits", labels) == tuple("0123456789")


def test_confusion_matrix(example):
    confusion = example("confusion")
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(3, size=(2, 50))
    expected = np.zeros((4, 4), int)
    for pair in zip(labels, predicted, strict=True):
        expected[pair] += 1
    matrix = confusion.confusion_matrix(labels, predicted, 4)
    np.testing.assert_array_equal(matrix, expected)
    assert confusion.accuracy(matrix) == np.mean(labels == predicted)


def test_what_is_said_of_a_confusion_matrix(example):
    say = example("confusion").sentence
    assert say(np.array([[5, 1], [3, 4]]), ("bag", "coat")) == (
        "The most frequent mistake: of 7 images of class coat, 3 were taken for bag."
    )
    assert say(np.diag([2, 0]), ("bag", "coat")) == "No image was taken for one of another class."


def test_figure_of_a_confusion_matrix(example):
    """Every count that is not 0 is written at its place; axes and classes have names."""
    matrix, names = np.array([[5, 0], [3, 4]]), ("bag", "coat")
    (axes,) = example("confusion").figure(matrix, names, "90% are recognised").axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "5",
        (0, 1): "3",
        (1, 1): "4",
    }
    assert axes.get_title() == "90% are recognised"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(names)


@needs_jit
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance"])
def test_on_a_gpu(norm, tmp_path):
    """The script on arrays like CuPy's, which learns, and goes on from a checkpoint."""
    options = (*QUICK, "--device", "cuda", "--norm", norm)
    outputs = []
    for _ in range(2):
        result = run_script(STRICT_CUPY, EXAMPLES / "train_fashion.py", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert accuracy(outputs[0]) > 30  # 10 is guessing
    assert "has 2 of 2 epochs" in outputs[1]
    assert accuracy(outputs[0]) == accuracy(outputs[1])


def test_what_a_run_in_the_checkout_writes_is_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    defaults = re.findall(r"train_fashion\w*\.(?:npz|png)", (EXAMPLES / "train_fashion.py").read_text())
    assert len(set(defaults)) == 3
    assert {f"/{name}" for name in defaults} | {"*.npz.tmp"} <= set(ignored)
