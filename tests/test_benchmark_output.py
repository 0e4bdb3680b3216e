"""Where the benchmarks leave their files: only a full run with --write replaces the committed results."""

import argparse
import contextlib
import sys

import pytest

from benchmarks import (
    accuracy,
    epilogue,
    estimator,
    family,
    machine,
    moments,
    output,
    report,
    scaling,
    step,
    workers,
)
from benchmarks.libraries import LIBRARIES, OPERATIONS
from benchmarks.measure import Record
from tests.support.cases import CASES, Case
from tests.support.jit import needs_jit

PAGE = output.Files("page", "# Page\n", {"number": 1}, lambda folder: (folder / "page.png").touch())
WRITTEN = {"page.md", "page.json", "page.png"}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A folder in the place of the committed results."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(output, "RESULTS", folder)
    return folder


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def chosen(*arguments, left_out=()):
    parser = argparse.ArgumentParser()
    output.add_options(parser)
    return output.Output.chosen(parser, parser.parse_args([str(text) for text in arguments]), left_out)


# The decision -----------------------------------------------------------------------------------------------


def test_without_an_option_a_run_only_prints(results, capsys):
    chosen().deliver(PAGE)
    text = capsys.readouterr().out
    assert text.startswith("# Page\n")
    assert "--output" in text
    assert "--write" in text
    assert not names(results)


@pytest.mark.parametrize("left_out", [[], ["29 of 30 rows"]])
def test_output_names_a_folder_for_any_run(left_out, results, tmp_path, capsys):
    chosen("--output", tmp_path / "a" / "b", left_out=left_out).deliver(PAGE, left_out)
    assert names(tmp_path / "a" / "b") == WRITTEN
    assert not names(results)
    assert f"Written: {tmp_path / 'a' / 'b'}" in capsys.readouterr().out


def test_write_replaces_the_results(results):
    chosen("--write").deliver(PAGE)
    assert names(results) == WRITTEN
    assert (results / "page.md").read_text() == "# Page\n"
    assert (results / "page.json").read_text() == '{\n "number": 1\n}\n'


def test_write_is_refused_for_a_part(results, capsys):
    with pytest.raises(SystemExit) as refused:
        chosen("--write", left_out=["29 of 30 rows", "jax (not installed)"])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    for text in ("--write", "29 of 30 rows, jax (not installed)", "--output FOLDER"):
        assert text in message
    assert not names(results)


def test_output_does_not_name_the_results(results, capsys):
    with pytest.raises(SystemExit):
        chosen("--output", results / ".." / "results")
    assert "--write" in capsys.readouterr().err


def test_output_and_write_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit):
        chosen("--write", "--output", tmp_path)
    assert "not allowed with" in capsys.readouterr().err


def test_what_is_left_out_in_the_end_keeps_the_results(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    chosen("--write").deliver(PAGE, ["JAX"])
    assert not names(results)
    assert names(tmp_path / "numbabn-page-") == WRITTEN
    text = capsys.readouterr().out
    assert "is not replaced: the run left out JAX" in text
    assert f"Written: {tmp_path / 'numbabn-page-'}" in text


def test_files_of_a_run_that_goes_on(results, tmp_path):
    for arguments in ((), ("--write",), ("--output", tmp_path / "other")):
        chosen(*arguments).keep(PAGE)
    assert not names(results)
    assert names(tmp_path / "other") == WRITTEN


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path, capsys):
    def draw(folder):
        raise ImportError("No module named 'matplotlib'")

    output.Files("page", "# Page\n", {}, draw).write(tmp_path / "other")
    assert names(tmp_path / "other") == {"page.md", "page.json"}
    assert "no figure: No module named 'matplotlib'" in capsys.readouterr().out


def test_what_a_run_is_short_of():
    assert output.fewer_rounds(5, 5) == output.fewer_rounds(6, 5) == output.uninstalled("json") == []
    assert output.fewer_rounds(2, 5) == ["3 of 5 rounds"]
    assert output.uninstalled("json", "no_such_package") == ["no_such_package (not installed)"]
    assert output.uninstalled("pytest-cov", "no-such-package") == ["no-such-package (not installed)"]


# The programs, with made-up times ---------------------------------------------------------------------------


@contextlib.contextmanager
def no_workers(threads):
    yield []


def records(case, crew, rounds):
    return [Record(o, case, library, 1.0, 1.0, 1) for o in OPERATIONS for library in LIBRARIES]


def family_records(case, crew, rounds):
    return [Record(o, case, library, 1.0, 1.0, 1) for o in family.OPERATIONS for library in family.LIBRARIES]


def epilogue_records(case, crew, rounds):
    libraries = epilogue.LIBRARIES
    return [Record(o, case, library, 1.0, 1.0, 1) for o in epilogue.OPERATIONS for library in libraries]


def scaling_records(case, crew, rounds):
    return [Record(case.operation, case, library, 1.0, 1.0, 1) for library in scaling.LIBRARIES]


def step_rows(sizes, rounds):
    return [step.Row(variant, 1000.0, 1100.0, 100.0, 110.0) for variant in step.NORMS], 1e-7


def errors():
    found = {name: {"0": 1e-7, accuracy.CONSTANT_LABEL: 1e-7} for name in accuracy.COMPARED}
    return found, found


def rows(shape, dtype, rounds):
    return [estimator.Row("transform", shape, dtype, 4.0, 4.0, 1.0, 1.0)]


def times(row, rounds):
    return dict.fromkeys((moments.OURS, moments.READ, moments.NUMPY, moments.SKLEARN), (1.0, 1.0, 1))


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs a program with options."""
    everything = {"uninstalled": lambda *packages: []}
    of_family = {"workers": lambda *_: no_workers(0), "measure": family_records, **everything}
    made_up = {
        family: of_family,
        epilogue: {**of_family, "measure": epilogue_records},
        scaling: {
            **of_family,
            **dict.fromkeys(("measure", "measure_alone"), scaling_records),
            "available_memory": lambda: None,
            "THREADS": 2,
        },
        step: {"measure": step_rows, **everything},
        report: {"workers": no_workers, "measure": records, **everything},
        accuracy: {"errors": errors, **everything},
        estimator: {"measure": rows, "errors": lambda: (0.0, 0.0)},
        moments: {"measure": times, **everything},
    }
    for program, functions in made_up.items():
        for name, function in functions.items():
            monkeypatch.setattr(program, name, function)
    monkeypatch.setenv("OMP_PROC_BIND", "true")  # moments starts again without it
    monkeypatch.setattr(moments.numba, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(machine, "_caches", lambda: "unknown")

    def main(program, *options):
        monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, options)])
        program.main()

    return main


FULL = [
    (report, (), {"report.md", "report.json", "speed.png", "speed_summary.png"}),
    (family, (), {"family.md", "family.json"}),
    (epilogue, (), {"epilogue.md", "epilogue.json"}),
    (scaling, (), {"scaling.md", "scaling.json", "scaling.png"}),
    (step, (), {"step.md", "step.json", "step.png"}),
    (accuracy, (), {"accuracy.md", "accuracy.json", "accuracy.png"}),
    (estimator, (), {"estimator.md", "estimator.json"}),
    (moments, (), {"moments.md", "moments.json"}),
]
FULL_IDS = [program.__name__ for program, *_ in FULL]


@pytest.mark.parametrize(("program", "options", "files"), FULL, ids=FULL_IDS)
def test_a_full_run(program, options, files, run, results, tmp_path, capsys):
    run(program, *options)
    assert "\n# " in "\n" + capsys.readouterr().out
    assert not names(results)
    run(program, *options, "--output", tmp_path / "other")
    assert not names(results)
    assert names(tmp_path / "other") == files
    run(program, *options, "--write")
    assert names(results) == files


@pytest.mark.parametrize(
    ("program", "options", "lacks"),
    [
        (report, ("--quick",), f"25 of {len(CASES)} rows"),
        (report, ("--rows", "NCHW"), f"of {len(CASES)} rows"),
        (report, ("--rounds", 1), "4 of 5 rounds"),
        (family, ("--rows", "layer"), f"{len(family.CASES) - 6} of {len(family.CASES)} rows"),
        (family, ("--rounds", 1), "4 of 5 rounds"),
        (epilogue, ("--rows", "^relu"), "12 of 24 rows"),
        (epilogue, ("--rounds", 1), "4 of 5 rounds"),
        (scaling, ("--quick",), "72 of 126 rows"),
        (scaling, ("--rows", "inference.*NHWC"), "112 of 126 rows"),
        (scaling, ("--rounds", 1), "2 of 3 rounds"),
        (scaling, ("--threads", 1), "27 of 126 rows"),
        (step, ("--rounds", 1), "2 of 3 rounds"),
        (step, ("--batch", 4), "28 of 32 images"),
        (estimator, ("--rounds", 1), "6 of 7 rounds"),
        (moments, ("--rounds", 1), "4 of 5 rounds"),
    ],
)
def test_a_part_of_a_run(program, options, lacks, run, results, tmp_path, capsys):
    run(program, *options)
    run(program, *options, "--output", tmp_path / "other")
    assert names(tmp_path / "other")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(program, *options, "--write")
    assert lacks in capsys.readouterr().err
    assert not names(results)


@pytest.mark.parametrize("program", [report, family, epilogue, scaling, step, accuracy, moments])
def test_a_library_that_is_missing(program, run, results, monkeypatch, capsys):
    monkeypatch.setattr(program, "uninstalled", lambda *packages: [f"{packages[0]} (not installed)"])
    with pytest.raises(SystemExit):
        run(program, "--write")
    assert "(not installed)" in capsys.readouterr().err
    assert not names(results)


@pytest.mark.parametrize("program", [report, family, epilogue])
def test_a_page_with_onednn_takes_onednn(program, run, results, monkeypatch, capsys):
    monkeypatch.setattr(program, "uninstalled", lambda *packages: list(packages))
    with pytest.raises(SystemExit):
        run(program, "--write")
    assert "onednn-cpu-gomp" in capsys.readouterr().err
    assert not names(results)


def test_onednn_is_compared_with_out(run, monkeypatch, capsys):
    ms = {"numbabn": 1.0, "numbabn out=": 2.0, "oneDNN": 3.0}

    def few(case, crew, rounds):
        libraries = [name for name in ms if name != "oneDNN" or case.norm == "layer"]
        return [Record(o, case, name, ms[name], ms[name], 1) for o in family.OPERATIONS for name in libraries]

    monkeypatch.setattr(family, "measure", few)
    run(family)
    lines = capsys.readouterr().out.splitlines()
    assert "|  | numbabn out= | PyTorch | torch.compile | JAX | oneDNN | copy |" in lines
    assert "| layer, backward | 2.00x |  |  |  | 1.50x |  |" in lines
    assert "| group, backward | 2.00x |  |  |  |  |  |" in lines
    assert "| layer 32x768 | **1** | 2 |  |  |  |  | 3 |  | 1 | 2 |" in lines


def test_a_library_that_drops_out(run, results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    monkeypatch.setattr(report, "measure", lambda *a: [r for r in records(*a) if r.library != "JAX"])
    run(report, "--write")
    assert "left out JAX" in capsys.readouterr().out
    assert not names(results)


# What workers compile ---------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_jit
def test_a_worker_passes_on_what_it_compiles(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(workers, "environment", lambda threads: {})  # it changes that of this process, too
    worker = workers.Worker("numbabn", 1)
    try:
        assert set(worker.ask("prepare", Case((32, 64), "NC"))) == set(OPERATIONS)
    finally:
        worker.close()
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("numbabn: compiled column_kernels.forward for float32") for line in lines), (
        lines
    )
