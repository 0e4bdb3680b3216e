"""The GPU benchmark, as far as a machine without a GPU can tell: its sections, the page, the peers."""

import json
import subprocess
import sys

import numba
import numpy as np
import pytest

from tests.support import reference, table
from tests.support.cases import Case
from tests.support.strategies import JIT

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

pytest.importorskip("numba_cuda", reason='needs numba-cuda: python -m pip install "numbabn[cuda]"')

from benchmarks import output  # noqa: E402
from benchmarks.gpu import __main__ as program  # noqa: E402
from benchmarks.gpu import peers, tables, targets, traffic  # noqa: E402
from benchmarks.gpu.results import Results  # noqa: E402
from benchmarks.gpu.sections import SECTIONS  # noqa: E402
from benchmarks.libraries import BACKWARD, COPY, FORWARD, INFERENCE, NUMBABN, OUT, Data  # noqa: E402
from benchmarks.measure import Record  # noqa: E402
from benchmarks.output import Output  # noqa: E402
from tests.cuda import runner  # noqa: E402
from tests.cuda.simulated_program import ROOT, run_simulated  # noqa: E402

NHWC, NC = Case((3, 5, 7, 4), "NHWC"), Case((32, 64), "NC")
LARGE = Case((32, 256, 56, 56), "NCHW")


# The sections -----------------------------------------------------------------------------------------------

FLOW = """
    import json
    import time

    import benchmarks.gpu.timing
    from benchmarks.gpu import peers, sections, speed
    from tests.support.cases import Case
    from tests.cuda import runner

    class Clock:
        def burst(self, calls):
            times = []
            for call in calls:
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1e3)
            return times

        def nothing(self):
            return 0.0

        def wait(self):
            pass

    def breaks(case, data):
        def fail():
            raise ValueError("as it should")

        return dict.fromkeys(peers.OPERATIONS, fail)

    benchmarks.gpu.timing.BURST, speed.ROUNDS, speed.SECONDS, speed.FEWEST = 1, 2, 0.0, 1
    peers.ENTRIES = {**peers.ENTRIES, "broken": (breaks, ("numba",))}
    found, names = runner.usable(), ("numbabn", "numbabn out=", "broken", "copy", "CuPy")
    cases = [Case((2, 3, 3), "NCL"), Case((4, 2), "NC")]
    rows = list(speed.speed(cases, names, found, Clock(), 100))
    small = {"numbabn": peers.ENTRIES["numbabn"]}
    peers.ENTRIES = small
    rows += speed.latency(found, Clock(), Case((4, 2), "NC"), bursts=1, calls=1)
    rows += sections.missing(("numba", "cupy"))
    rows += sections.checks(runner.whole_cases([Case((2, 3, 3), "NCL")], ("numba",)))
    print(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(not JIT, reason="the other run of CI does it")
def test_flow_in_the_simulator():
    results = Results(run_simulated(FLOW))
    measured = {(r.case.name, r.library, r.operation) for r in results.records()}
    names = ("2x3x3 NCL", "4x2 NC")
    assert measured == {
        (name, library, operation)
        for name in names
        for library in (NUMBABN, OUT, COPY)
        for operation in peers.OPERATIONS
    }
    assert all(r.median_ms > 0 and r.calls >= 2 for r in results.records())
    assert [r.library for r in results.records("latency")] == ["numbabn (numba)"] * 3
    messages = " ".join(row["text"] for row in results.of("message"))
    assert "broken failed on 2x3x3 NCL" in messages
    assert "as it should" in messages
    assert messages.count("broken") == 1
    assert "CuPy is left out: it needs cupy" in messages
    assert "cupy is not checked" in messages
    assert [row["passed"] for row in results.of("check")] == [True]
    assert results.lacks == ["CuPy", "broken", "cupy"]


@pytest.mark.skipif(not JIT or SIMULATED, reason="the other runs of CI do it")
def test_checks_on_the_cpu(monkeypatch):
    """The same sections on NumPy's arrays pass; of the table every fourth row: `test_table` runs all."""
    rows = table.rows(large=False)[::4]
    monkeypatch.setattr(table, "rows", lambda large: rows)
    outcomes = [*runner.shared_table(("cpu",), large=False), *runner.whole_cases([NHWC], ("cpu",))]
    outcomes += runner.repeat([NC], ("cpu",))
    assert [outcome.name for outcome in outcomes] == [
        "cpu: shared table",
        "cpu: cases of the benchmark",
        "cpu: cases with the same bits in 20 runs",
    ]
    assert all(outcome.passed for outcome in outcomes)
    assert int(outcomes[0].detail.split(" of ")[0]) == len(rows) > 50
    assert [outcome.detail for outcome in outcomes[1:]] == ["1 of 1", "1 of 1"]


def test_a_check_that_fails(monkeypatch):
    def check(backend, which):
        assert which != "bad", "bits differ"

    table_rows = [table.Row("good row", check, ("good",)), table.Row("bad row", check, ("bad",))]
    monkeypatch.setattr(table, "rows", lambda large: table_rows)
    failed, total = runner.shared_table(("cpu",))
    assert (failed.name, failed.passed) == ("cpu: bad row", False)
    assert "AssertionError: bits differ" in failed.detail
    assert (total.passed, total.detail) == (False, "1 of 2")


def test_a_check_that_says_something(monkeypatch):
    monkeypatch.setattr(table, "rows", lambda large: [table.Row("row", lambda backend: "3 replays", ())])
    said, total = runner.shared_table(("cpu",))
    assert said == ("cpu: row", True, "3 replays")
    assert total == ("cpu: shared table", True, "1 of 1")


def test_nothing_of_the_benchmark_needs_pytest():
    """A machine with a GPU may have numba-cuda, CuPy and PyTorch, and nothing of what the tests install."""
    names = ("pytest", "hypothesis", "matplotlib", "tqdm", "sklearn")
    code = f"import sys; sys.modules.update(dict.fromkeys({names})); import benchmarks.gpu.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def script(tmp_path, body):
    path = tmp_path / "section.py"
    path.write_text(f"import sys, time\nfile = open(sys.argv[3], 'a')\n{body}\n")
    return (sys.executable, str(path))


ROW = '{"kind": "message", "text": "x"}'


def test_rows_of_a_section(tmp_path):
    rows = program.run_section("any", 20, script(tmp_path, f"file.write('{ROW}\\n')"))
    assert rows == [json.loads(ROW)]


def test_a_section_that_fails_keeps_its_rows(tmp_path, capsys):
    body = f"file.write('{ROW}\\n' + '{{\"kind\": \"rec')\nfile.flush()\nraise ValueError('broken')"
    rows = program.run_section("any", 20, script(tmp_path, body))
    assert rows[0] == json.loads(ROW)
    assert len(rows) == 2
    assert not rows[1]["passed"]
    assert "ValueError: broken" in rows[1]["detail"]
    assert rows[1]["lacks"] == "section any"
    assert "ValueError: broken" in capsys.readouterr().out


def test_a_section_that_hangs_is_ended(tmp_path):
    body = f"file.write('{ROW}\\n')\nfile.flush()\ntime.sleep(60)"
    rows = program.run_section("any", 2, script(tmp_path, body))
    assert rows[0] == json.loads(ROW)
    assert rows[1]["detail"] == "was ended after 2 s"


def test_all_sections_run_and_are_written(tmp_path, monkeypatch, capsys):
    asked = []

    def section(name, limit, command):
        asked.append((name, limit))
        return [{"kind": "fact", "label": "GPU", "text": name}]

    monkeypatch.setattr(program, "run_section", section)
    results = program.measure(list(SECTIONS), 100, Output(tmp_path))
    assert results.lacks == []
    assert [name for name, _ in asked] == list(SECTIONS)
    assert all(0 < limit <= SECTIONS[name].seconds for name, limit in asked)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == len(SECTIONS)
    results = program.measure(list(SECTIONS), -1, Output(tmp_path))
    assert len(asked) == len(SECTIONS)
    assert len(results.of("message")) == len(SECTIONS)
    assert results.lacks == [f"section {name}" for name in SECTIONS]


def test_without_a_gpu_nothing_is_claimed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "_no_gpu", lambda: "no driver")
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    program.main()
    for text in (capsys.readouterr().out, (tmp_path / "gpu.md").read_text()):
        assert "not yet run on hardware" in text
        assert "32x64x56x56 NCHW" in text
    assert not json.loads((tmp_path / "gpu.json").read_text())["ran_on_hardware"]
    (tmp_path / "gpu.json").write_text('{"rows": [{"kind": "fact", "label": "GPU", "text": "one"}]}')
    (tmp_path / "gpu.md").write_text("measured")
    program.main()
    assert (tmp_path / "gpu.md").read_text() == "measured"
    assert "Nothing is written over what was measured" in capsys.readouterr().out


# Where it is written ----------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(tmp_path, monkeypatch):
    """Return what runs the program on a made-up GPU, and the folder in the place of the committed results."""
    results = tmp_path / "results"
    monkeypatch.setattr(output, "RESULTS", results)
    monkeypatch.setattr(program, "_no_gpu", lambda: None)
    monkeypatch.setattr(program, "uninstalled", lambda *packages: [])
    monkeypatch.setattr(
        program, "run_section", lambda name, *_: [{"kind": "fact", "label": "GPU", "text": "made up"}]
    )

    def main(*options):
        monkeypatch.setattr(sys, "argv", ["gpu", *map(str, options)])
        program.main()

    return main, results


def test_only_a_full_run_replaces_the_results(on_a_gpu, tmp_path, capsys):
    main, results = on_a_gpu
    main()
    main("--sections", "latency", "--output", tmp_path / "other")
    assert (tmp_path / "other" / "gpu.md").exists()
    for options, lacks in ((("--sections", "latency"), "section table"), (("--seconds", 60), "400 of 460")):
        with pytest.raises(SystemExit):
            main(*options, "--write")
        assert lacks in capsys.readouterr().err
    assert not results.exists()
    main("--write")
    assert "made up" in (results / "gpu.md").read_text()


def test_a_run_that_loses_a_section_keeps_the_results(on_a_gpu, tmp_path, monkeypatch, capsys):
    main, results = on_a_gpu
    monkeypatch.setattr(output.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    monkeypatch.setattr(
        program, "run_section", lambda name, *_: [program.check(name, False, "") | {"lacks": name}]
    )
    main("--write")
    assert "left out environment, cases" in capsys.readouterr().out
    assert not results.exists()
    assert (tmp_path / "numbabn-gpu-" / "gpu.json").exists()


def test_a_run_is_drawn_again(on_a_gpu, capsys):
    main, results = on_a_gpu
    main("--write")
    page = (results / "gpu.md").read_text()
    (results / "gpu.md").write_text("old")
    main("--draw", "--write")
    assert (results / "gpu.md").read_text() == page


# What is made of a run --------------------------------------------------------------------------------------


def measured(times, latency_us=30.0):
    """Results of a run: times in ms by (operation, case, library)."""
    rows = [{"kind": "record", **Record(*key, ms, ms, 10).as_row()} for key, ms in times.items()]
    host = Record(FORWARD, NC, "numbabn (cupy)", latency_us / 1e3, 1.0, 1)
    rows.append({"kind": "latency", **host.as_row()})
    rows.append({"kind": "fact", "label": "GPU", "text": "made up"})
    rows.append({"kind": "check", "name": "a|b", "passed": True, "detail": ""})
    return Results(json.loads(json.dumps(rows)))


def times(ours, native, cudnn, copy=0.05):
    by_library = {NUMBABN: ours, peers.NATIVE: native, peers.CUDNN: cudnn, COPY: copy}
    return {(INFERENCE, LARGE, library): ms for library, ms in by_library.items()}


@pytest.mark.parametrize(
    ("ours", "native", "cudnn", "latency_us", "missed"),
    [
        (0.05, 0.06, 0.07, 39, []),
        (0.05 / 0.84, 0.07, 0.08, 39, ["bandwidth"]),
        (0.05, 0.052, 0.08, 39, ["geometric mean"]),
        (0.05, 0.049, 0.08, 39, ["as fast as PyTorch native", "geometric mean"]),
        (0.05, 0.08, 0.04, 39, ["as fast as PyTorch cuDNN", "geometric mean"]),
        (0.05, 0.06, 0.07, 41, ["host time"]),
    ],
)
def test_targets(ours, native, cudnn, latency_us, missed):
    found = targets.check(measured(times(ours, native, cudnn), latency_us))
    assert len(found) == 6
    misses = [target.promise for target in found if not target.met]
    assert len(misses) == len(missed)
    for promise, fragment in zip(misses, missed, strict=True):
        assert fragment in promise


def test_share_of_the_copy_counts_the_bytes_of_the_model(monkeypatch):
    # A copy moves 2 arrays in 50 us. A backward that moves 5 in 125 us is as fast, per byte.
    results = measured({(BACKWARD, LARGE, NUMBABN): 0.125, (BACKWARD, LARGE, COPY): 0.05})
    model = traffic.Traffic(4 * LARGE.nbytes, LARGE.nbytes, ("products", "gradient"))
    monkeypatch.setattr(results, "model", lambda *_: model)
    assert targets.of_copy(results, BACKWARD, LARGE) == pytest.approx(1.0)
    assert targets.of_copy(results, FORWARD, LARGE) is None


def test_page_and_figure(tmp_path):
    results = measured(times(0.05, 0.06, 0.07))
    program.files(results).write(tmp_path)
    page = (tmp_path / "gpu.md").read_text()
    assert "not yet run" not in page
    assert "made up" in page
    assert "| 32x256x56x56 NCHW | normalize | 50 | 60 | 70 | 50 | 1.00 |" in page
    assert "a\\|b" in page
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert program.read(tmp_path).rows == results.rows
    assert tables.NOT_RUN in tables.as_markdown(Results(), [])


# Peers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [peers.NATIVE, peers.CUDNN, peers.CUPY])
@pytest.mark.parametrize("case", [Case((4, 5, 6, 7), "NCHW"), NHWC, Case((9, 4), "NC")], ids=lambda c: c.name)
def test_peers_compute_batch_norm(entry, case, monkeypatch):
    """On the CPU, where PyTorch takes its own kernels whatever is asked, and NumPy stands for CuPy."""
    data = Data.of(case)
    given = data
    if entry != peers.CUPY:
        torch = pytest.importorskip("torch")
        given = Data(**{name: torch.from_numpy(value) for name, value in vars(data).items()})
        monkeypatch.setattr(torch, "set_grad_enabled", lambda _: None)  # not for the other tests
    operations = peers.ENTRIES[entry][0](case, given)

    def values(array):
        array = np.asarray(array)
        moved = entry != peers.CUPY and case.layout == "NHWC" and array.ndim == 4
        return np.moveaxis(array, 1, -1) if moved else array

    y, *_ = operations[FORWARD]()
    np.testing.assert_allclose(
        values(y), reference.forward(data.x, data.gamma, data.beta, axis=case.axis), rtol=1e-4, atol=1e-5
    )
    dx, dgamma, dbeta = operations[BACKWARD]()
    expected = reference.backward(data.dy, data.x, data.gamma, axis=case.axis)
    for result, value in zip(
        (values(dx), values(dgamma).ravel(), values(dbeta).ravel()), expected, strict=True
    ):
        np.testing.assert_allclose(result, value, rtol=1e-3, atol=1e-4)
    known = {"mean": data.mean, "var": data.var}
    expected = reference.forward(data.x, data.gamma, data.beta, axis=case.axis, **known)
    np.testing.assert_allclose(values(operations[INFERENCE]()), expected, rtol=1e-4, atol=1e-5)
