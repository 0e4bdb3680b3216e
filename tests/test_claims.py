"""The claims: which evidence counts, how results are kept and drawn, and that all scripts conclude."""

import gzip
import logging
import re
import struct

import numpy as np
import pytest
from tqdm import tqdm

from examples.claims import command, evidence, gallery, plots
from examples.claims.__main__ import EXAMPLES, stored
from examples.claims.study import Claim, Options, Results
from tests.support.examples import is_png, run_module
from tests.support.processes import ROOT

CLAIMS = pytest.mark.parametrize("claim", gallery.CLAIMS, ids=lambda claim: claim.name)
SEVERAL_RUNS = [0.5, 0.7, 0.6]


# Evidence ---------------------------------------------------------------------------------------------------


def test_a_difference_counts_beyond_the_spread_of_differences():
    """Seeds that are hard for both networks say nothing of either."""
    hard_and_easy = np.array([0.3, 0.1, 0.2])
    assert evidence.effect(hard_and_easy + 0.01, hard_and_easy) == 1
    assert evidence.effect(hard_and_easy, hard_and_easy + 0.01) == -1
    assert evidence.effect(hard_and_easy, hard_and_easy) == 0
    assert evidence.effect([0.1, 0.3], [0.2, 0.1]) == 0


def test_just_two_standard_deviations_do_not_count():
    gaps = np.array([1.0, 3.0])  # mean 2, standard deviation sqrt(2)
    assert evidence.effect(gaps, 0 * gaps) == 0
    assert evidence.effect(gaps + 0.9, 0 * gaps) == 1


def test_every_setting_has_an_effect_of_its_own():
    values = np.array([[[1.0, 1.1], [0.0, 0.1]], [[0.0, 0.1], [-1.0, -1.1]]])
    np.testing.assert_array_equal(evidence.effect(values, np.zeros(2)), [[1, 0], [0, -1]])


@pytest.mark.parametrize(
    ("effects", "word"),
    [([1, 1], "Seen"), ([[1], [0]], "Depends"), ([1, -1], "Depends"), ([0, 0], "Not seen"), (-1, "Not seen")],
)
def test_verdict(effects, word):
    assert evidence.verdict(effects) == word


def test_texts():
    assert evidence.percent(SEVERAL_RUNS) == "60.0 %"
    assert evidence.percent_spread(SEVERAL_RUNS) == "60.0 ± 10.0 %"
    assert evidence.spread(SEVERAL_RUNS, 2) == "0.60 ± 0.10"
    assert evidence.listed(["a"]) == "a"
    assert evidence.listed(["a", "b", "c"]) == "a, b and c"


# A study ----------------------------------------------------------------------------------------------------


def experiment(data, rng, epochs, factor, kind):
    """An experiment whose results tell with what it was made."""
    logging.getLogger("numbabn").info("compiled something in 3 s")
    draw = rng.random()
    return {"product": factor * data, "curve": [draw, epochs, np.inf if kind == "b" else 0.0]}


MADE_UP = Claim(
    "made_up", "A claim.", "A source", {"factor": [1, 2, 3], "kind": ["a", "b"]}, 7, experiment,
    table=lambda results: [["", "a"]], figure=None, finding=lambda results: "Seen: it.", alone=True,
)  # fmt: skip


def measure(claim, data, options):
    return claim.measure(data, options, tqdm(disable=True))


def test_results_have_an_axis_for_each_factor_and_one_for_the_seeds():
    results = measure(MADE_UP, 10.0, Options(seeds=4))
    assert results["product"].shape == (3, 2, 4)
    np.testing.assert_array_equal(results["product"][:, 1, 3], [10, 20, 30])
    assert results["curve"].shape == (3, 2, 4, 3)
    assert MADE_UP.num_runs(Options(seeds=4)) == 24
    assert results.options["epochs"] == 7
    first = [np.random.default_rng(seed).random() for seed in range(4)]
    np.testing.assert_allclose(results["curve"][2, 1, :, 0], first, rtol=1e-4)  # five digits are kept


def test_quick_keeps_the_ends_of_numbers_and_every_name():
    quick = Options(quick=True)
    results = measure(MADE_UP, 1.0, quick)
    assert results.grid == {"factor": [1, 3], "kind": ["a", "b"]}
    assert results["curve"].shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(results["curve"][..., 1], 1)  # epochs
    assert MADE_UP.num_runs(quick) == 8


def test_results_are_the_same_after_they_were_kept():
    results = measure(MADE_UP, 1 / 3, Options())
    again = Results.from_json(results.to_json())
    assert np.isnan(results["curve"][:, 1, :, 2]).all(), "JSON has no infinity"
    for name in results.found:
        np.testing.assert_array_equal(again[name], results[name])
    assert (again.grid, again.options, again.seconds) == (results.grid, results.options, results.seconds)
    assert again.to_json() == results.to_json()


def test_what_is_compiled_is_told_once():
    told = []
    progress = tqdm(disable=True)
    progress.write = told.append
    MADE_UP.measure(1.0, Options(), progress)
    assert told == ["numbabn: compiled something in 3 s"]


# Figures ----------------------------------------------------------------------------------------------------


def test_labels_stand_clear_of_each_other_and_near_their_lines():
    figure, (axes,) = plots.panels("title")
    x = np.arange(3.0)
    levels = {"low": 1.0, "also low": 1.01, "high": 9.0}
    for name, level in levels.items():
        plots.draw(axes, x, np.full((2, 3), level), name)
    plots.label_lines(axes)
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == set(levels)
    assert boxes["low"].y1 <= boxes["also low"].y0 + 2  # pixels; the boxes of letters have a margin
    middle = (boxes["high"].y0 + boxes["high"].y1) / 2
    assert middle == pytest.approx(axes.transData.transform((2, 9))[1], abs=2)


def test_a_line_that_ends_early_is_labelled_at_its_end():
    _, (axes,) = plots.panels("title")
    plots.draw(axes, np.arange(3.0), np.array([[1.0, 2.0, np.nan]] * 2), "short")
    plots.label_lines(axes)
    assert axes.texts[0].xy == pytest.approx((1, 2))


# Every claim ------------------------------------------------------------------------------------------------


def check_report(claim, results):
    finding = claim.finding(results)
    assert re.match(r"(Seen|Not seen|Depends): .*\.$", finding), finding
    assert not re.search(r"\b(nan|inf|None)\b", finding), finding
    rows = claim.table(results)
    assert len({len(row) for row in rows}) == 1
    assert 2 <= len(rows) <= 20
    assert not re.search(r"\b(nan|inf|None)\b", str(rows))
    figure = claim.figure(results)
    assert all(axes.get_title() for axes in figure.axes)
    figure.draw_without_rendering()


@pytest.mark.slow
@CLAIMS
def test_the_command_in_its_quick_form(claim, tmp_path):
    output = run_module(f"examples.claims.{claim.name}", "--quick", "--output", tmp_path / "new", cwd=ROOT)
    kept = tmp_path / "new" / claim.name
    assert {path.name for path in kept.parent.iterdir()} == {f"{claim.name}.json", f"{claim.name}.png"}
    assert is_png(kept.with_suffix(".png"))
    results = Results.from_json(kept.with_suffix(".json").read_text(encoding="utf-8"))
    check_report(claim, results)
    assert claim.statement in output
    assert claim.finding(results) in output.splitlines()
    assert command.table_text(claim.table(results)) in output


@CLAIMS
def test_a_script_states_its_claim_source_and_command(claim):
    text = (EXAMPLES / "claims" / f"{claim.name}.py").read_text(encoding="utf-8")
    assert 60 <= text.count("\n") <= 150
    assert f"python -m examples.claims.{claim.name}\n" in text
    assert claim.statement.endswith(".")
    assert claim.source[-1] != "."


def test_every_script_is_in_the_gallery():
    scripts = {
        path.stem
        for path in (EXAMPLES / "claims").glob("*.py")
        if "CLAIM = Claim(" in path.read_text(encoding="utf-8")
    }
    assert scripts == {claim.name for claim in gallery.CLAIMS}


# The gallery ------------------------------------------------------------------------------------------------


def committed():
    return {claim.name: results for claim, results in stored(gallery.CLAIMS, EXAMPLES / "results")}


@CLAIMS
def test_committed_results_are_of_the_whole_experiment(claim):
    results = committed()[claim.name]
    grid, seeds, epochs = claim.plan(Options())
    assert results.grid == {name: list(values) for name, values in grid.items()}
    assert (results.options["seeds"], results.options["epochs"]) == (seeds, epochs)
    assert seeds >= 5
    check_report(claim, results)
    assert is_png(EXAMPLES / "results" / f"{claim.name}.png")


def test_the_page_follows_from_the_committed_results():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert page == gallery.page(committed())


def test_the_gallery_is_written_by_a_whole_run_only(monkeypatch, capsys):
    from examples.claims import __main__ as program

    for option in (["--quick"], ["--seeds", "6"], ["--images", "500"], ["--data", "fashion-mnist"]):
        monkeypatch.setattr("sys.argv", ["claims", *option])
        with pytest.raises(SystemExit):
            program.main()
        assert "--output FOLDER is needed" in capsys.readouterr().err


def test_what_a_run_in_the_checkout_writes_is_ignored_by_git():
    assert f"/{command.FOLDER}/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seeds", "1"], "--seeds must be at least 2: one run says nothing about chance"),
        (["--images", "10"], "--images must be at least"),
        (["--data", "no_such_folder"], "there is no no_such_folder/train-images-idx3-ubyte"),
        (["--data", "no_such_folder"], "Debian's package dataset-fashion-mnist installs"),
    ],
)
def test_what_a_claim_refuses(option, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["claim", *option])
    monkeypatch.setattr("console.set_up", lambda interrupted: None)  # which is for good
    with pytest.raises(SystemExit) as refusal:
        command.main(MADE_UP)
    assert message in f"{refusal.value}{capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


# Images -----------------------------------------------------------------------------------------------------


def write_idx(path, array, compress):
    """Write bytes in the format of MNIST."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def folder(request, tmp_path):
    """A folder of 60 images for training and 40 for testing, of 4x6 pixels, in four files."""
    rng = np.random.default_rng(0)
    for part, size in (("train", 60), ("t10k", 40)):
        ending = ".gz" if request.param else ""
        images = rng.integers(0, 256, (size, 4, 6)).astype(np.uint8)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{ending}", images, request.param)
        labels = (np.arange(size) % 10).astype(np.uint8)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{ending}", labels, request.param)
    return tmp_path


def test_images_of_a_folder_are_standardised(folder):
    x_train, x_test, labels_train, labels_test = command.load(str(folder))
    assert x_train.shape == (60, 1, 4, 6)
    assert x_test.shape == (40, 1, 4, 6)
    assert x_train.dtype == np.float32
    # Rounding x to float32 moves neither by more than its precision, 6e-8, times a few.
    assert x_train.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert x_train.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(labels_train, np.arange(60) % 10)
    np.testing.assert_array_equal(labels_test, np.arange(40) % 10)


def test_fewer_images_are_of_all_classes(folder):
    x_train, x_test, labels_train, labels_test = command.load(str(folder), 30)
    assert len(x_train) == len(x_test) == 30
    np.testing.assert_array_equal(np.bincount(labels_train), np.full(10, 3))
    np.testing.assert_array_equal(np.bincount(labels_test), np.full(10, 3))
    again = command.load(str(folder), 30)
    np.testing.assert_array_equal(again[0], x_train)
