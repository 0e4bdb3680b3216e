"""The example compare_norms.py: its recurrent layer, what it says of made-up errors, and what it writes."""

import json

import numpy as np
import pytest

from tests.support.examples import EXAMPLES, run_example
from tests.support.gradients import check_gradients
from tests.support.processes import ROOT

SIZES = [2, 8, 32]


@pytest.fixture(params=["no_norm", "layer_norm", "rms_norm"])
def recurrent_layer(request, example):
    """A layer of 3 inputs and 5 hidden units, with parameters as after some training."""
    recurrent = example("recurrent")
    rng = np.random.default_rng(0)
    norm = getattr(recurrent, request.param)
    layer = recurrent.Recurrent(3, 5, norm=norm, rng=rng, dtype=np.float64)
    for p in layer.params.values():
        p += 0.3 * rng.standard_normal(p.shape)
    return layer


@pytest.mark.parametrize("steps", [1, 4])
def test_gradients_through_all_steps(recurrent_layer, steps):
    rng = np.random.default_rng(1)
    check_gradients(recurrent_layer, rng.standard_normal((6, steps, 3)), rng)


def normalised(a, norm):
    if norm == "no_norm":
        return a
    if norm == "layer_norm":
        return (a - a.mean(axis=1, keepdims=True)) / np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)
    return a / np.sqrt(np.mean(a**2, axis=1, keepdims=True) + np.finfo(a.dtype).eps)


def test_every_step_is_normalised(recurrent_layer):
    """The last state against the formula, step by step."""
    x, p = np.random.default_rng(1).standard_normal((6, 4, 3)), recurrent_layer.params
    h = np.zeros((6, 5))
    for t in range(4):
        a = x[:, t] @ p["input"].T + h @ p["state"].T
        h = np.tanh(normalised(a, recurrent_layer.norm.__name__) * p.get("gamma", 1) + p["beta"])
    # Float64 with a handful of roundings per step, which tanh does not enlarge.
    np.testing.assert_allclose(recurrent_layer(x), h, rtol=1e-12, atol=1e-13)


def curves(*finals):
    """Curves of two epochs from several seeds, with these errors after the last."""
    return np.array([[0.9, final] for final in finals])


@pytest.fixture
def cnn_errors(example):
    """Errors where batch norm is clearly worse at 2, as good at 8, and clearly better at 32."""
    errors = {norm: dict.fromkeys(SIZES, curves(0.02, 0.04)) for norm in example("compare_cnn").NORMS}
    errors["batch norm"] = {2: curves(0.08, 0.12), 8: curves(0.01, 0.06), 32: curves(0.01, 0.02)}
    errors[example("compare_cnn").RECALIBRATED] = dict.fromkeys(SIZES, np.array([[0.05], [0.06]]))
    return errors


def test_sentences_about_batch_sizes(example, cnn_errors):
    against, spans, exact = example("compare_cnn").sentences(cnn_errors)
    assert against == (
        "Batch norm makes more errors than group norm at batch size 2 (10.0% against 3.0%); "
        "batch norm makes fewer errors than group norm at batch size 32 (1.5% against 3.0%); "
        "batch norm and group norm differ by no more than 2 standard deviations over 2 seeds "
        "at batch size 8 (3.5% against 3.0%)."
    )
    assert "from 1.5% at 32 to 10.0% at 2 with batch norm" in spans
    assert "At batch size 2, batch norm makes 10.0% errors" in exact
    assert "5.5% with exact statistics" in exact


def test_a_difference_counts_beyond_the_spread_of_differences(example):
    """Seeds that are hard for both norms say nothing of either."""
    relation = example("over_seeds").relation
    hard_and_easy = curves(0.3, 0.1, 0.2)
    assert relation(hard_and_easy + 0.01, hard_and_easy) == "more"
    assert relation(hard_and_easy, hard_and_easy + 0.01) == "fewer"
    assert relation(hard_and_easy, hard_and_easy) == "like"
    assert relation(curves(0.1, 0.3), curves(0.2, 0.1)) == "like"


@pytest.fixture
def rnn_errors(example):
    """Errors where layer norm learns in one epoch at 0.3, and no norm never."""
    part = example("compare_rnn")
    errors = {norm: dict.fromkeys([0.03, 0.3, 3.0], curves(0.14, 0.16)) for norm in part.NORMS}
    errors["layer norm"] = dict(errors["layer norm"])
    errors["layer norm"][0.3] = np.array([[0.04, 0.01], [0.05, 0.01]])
    return errors


def test_sentences_about_the_recurrent_network(example, rnn_errors):
    against, speed = example("compare_rnn").sentences(rnn_errors)
    assert "fewer errors than no norm at learning rate 0.3 (1.0% against 15.0%)" in against
    assert "over 2 seeds at learning rates 0.03 (15.0% against 15.0%) and 3 (15.0%" in against
    assert "At learning rate 0.3, mean errors fall below 5% in epoch 1 with layer norm" in speed
    assert speed.endswith("in none of 2 epochs without.")


@pytest.mark.parametrize("part", ["compare_cnn", "compare_rnn"])
def test_the_figure_shows_every_norm(part, example, cnn_errors, rnn_errors):
    errors = {"compare_cnn": cnn_errors, "compare_rnn": rnn_errors}[part]
    figure = example(part).figure(errors)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert set(labels) == set(errors)


@pytest.mark.parametrize(
    ("options", "name"), [([], "compare_norms"), (["--rnn"], "compare_norms_rnn")], ids=["cnn", "rnn"]
)
@pytest.mark.slow
def test_compare_norms(options, name, tmp_path):
    output = run_example("compare_norms.py", "--quick", *options, "--output", "new", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    results = tmp_path / "new" / name
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    kept = json.loads(results.with_suffix(".json").read_text())
    for sentence in kept["sentences"]:
        assert sentence in output.splitlines()
    assert kept["options"] == {"epochs": 1, "lr": 0.03, "seed": 0, "seeds": 2}
    for norm, by_setting in kept["errors[norm][setting][seed][epoch]"].items():
        finals = np.array(list(by_setting.values()))[:, :, -1]
        assert finals.shape[1] == 2
        assert finals.min() < 0.4, f"{norm} has learned nothing; 0.9 is guessing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-sizes", "1", "8"], "--batch-sizes must be between 2 and 1437"),
        (["--seeds", "1"], "one run says nothing about chance"),
        (["--epochs", "0"], "--epochs must be at least 1"),
    ],
)
def test_what_it_refuses(options, message, example, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare_norms.py", *options])
    with pytest.raises(SystemExit) as refusal:
        example("compare_norms").main()
    assert message in f"{refusal.value}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


PARTS = pytest.mark.parametrize("part", ["compare_cnn", "compare_rnn"])


@PARTS
def test_committed_sentences_follow_from_the_committed_errors(part, example):
    module = example(part)
    kept = json.loads((EXAMPLES / "results" / f"{module.NAME}.json").read_text())
    errors = {
        norm: {float(value): np.array(curves) for value, curves in by_setting.items()}
        for norm, by_setting in kept["errors[norm][setting][seed][epoch]"].items()
    }
    assert module.sentences(errors) == kept["sentences"]
    assert kept["sentences"][0] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@PARTS
def test_what_a_run_in_the_checkout_writes_is_ignored_by_git(part, example):
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{example(part).NAME}.{ending}" for ending in ("png", "json")} <= set(ignored)
