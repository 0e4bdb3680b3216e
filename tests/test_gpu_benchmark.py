"""The GPU benchmark, as far as a machine without a GPU can tell: the byte model, the flow, the page."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numba
import numpy as np
import pytest

from tests.support import reference, table
from tests.support.cases import CASES, Case
from tests.support.jit import JIT

ROOT = Path(__file__).parents[1]
SIMULATED = bool(numba.config.ENABLE_CUDASIM)

pytest.importorskip("numba_cuda", reason='needs numba-cuda: python -m pip install "numbabn[cuda]"')

from benchmarks.gpu import __main__ as program  # noqa: E402
from benchmarks.gpu import checks, peers, tables, targets, traffic  # noqa: E402
from benchmarks.gpu.arrays import ArrayLibrary  # noqa: E402
from benchmarks.gpu.results import Results  # noqa: E402
from benchmarks.gpu.sections import SECTIONS  # noqa: E402
from benchmarks.libraries import BACKWARD, COPY, FORWARD, INFERENCE, NUMBABN, Data  # noqa: E402

NCHW, NHWC, NC = Case((32, 64, 56, 56), "NCHW"), Case((3, 5, 7, 4), "NHWC"), Case((32, 64), "NC")
MANY = 10**6  # blocks: everything that can be read once is
LARGE = Case((32, 256, 56, 56), "NCHW")


# The byte model ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(SIMULATED, reason="the simulator cuts arrays up for itself")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bytes_of_one_and_of_two_launches(dtype):
    shape = outer, channels, inner = traffic.canonical(NCHW)
    assert shape == (32, 64, 3136)
    whole = outer * channels * inner * np.dtype(dtype).itemsize

    def moved(operation, resident):
        found = traffic.traffic(operation, shape, dtype, resident)
        return found.kernels, found.read, found.written

    kernels, read, written = moved(INFERENCE, 0)
    assert kernels == ("normalize",)
    assert (read, written) == (whole + 4 * 4 * channels, whole)  # mean, var, gamma, beta of float32

    # Besides the arrays, per channel: gamma and beta of float32, statistics and sums of float64, read or
    # written; and 24 bytes for every part of it, written and read.
    for operation, arrays, fused, two, given, made in (
        (FORWARD, 1, ("forward",), ("moments", "normalize"), 4 + 4, 8 + 8),
        (BACKWARD, 2, ("backward",), ("products", "gradient"), 4 + 8 + 8, 4 + 4 + 16),
    ):
        kernels, read, written = moved(operation, MANY)
        assert kernels == fused
        partials = read - arrays * whole - given * channels
        assert partials == written - whole - made * channels
        parts, rest = divmod(partials, 24 * channels)
        assert rest == 0
        assert 2 <= parts <= 64
        kernels, read, written = moved(operation, 0)
        assert kernels == two
        # The second launch reads the parameters, and what the first has written of statistics or sums.
        assert read == 2 * arrays * whole + partials + (given + 16 + (operation == BACKWARD) * 16) * channels
        assert written == whole + partials + made * channels


def test_a_single_part_has_no_partial_sums():
    shape = (2, 3, 5)  # 30 elements: one tile a group
    found = traffic.traffic(FORWARD, shape, np.float32, 0)
    assert found.kernels == ("forward",)
    assert (found.read, found.written) == (30 * 4 + 2 * 3 * 4, 30 * 4 + 2 * 3 * 8)  # parameters, statistics
    found = traffic.traffic(BACKWARD, shape, np.float64, 0)
    assert found.kernels == ("backward",)
    # dy, x, gamma of float32 and two statistics; dx, two gradients of float32 and two sums.
    assert (found.read, found.written) == (2 * 240 + 12 + 48, 240 + 24 + 48)


@pytest.mark.skipif(SIMULATED, reason="the simulator cuts arrays up for itself")
@pytest.mark.parametrize("resident", [0, 132 * 4, MANY])
@pytest.mark.parametrize("operation", peers.OPERATIONS)
def test_never_more_than_two_reads_and_one_write(operation, resident):
    arrays = 2 if operation == BACKWARD else 1
    for case in CASES:
        found = traffic.traffic(operation, traffic.canonical(case), np.float32, resident)
        assert len(found.kernels) <= (1 if operation == INFERENCE else 2)
        small = 0.25 * case.nbytes + 64 * case.channels
        assert found.read <= 2 * arrays * case.nbytes + small, case.name
        assert case.nbytes <= found.written <= case.nbytes + small, case.name
        assert found.moved >= traffic.floor(operation, case)


def run_simulated(code):
    """Run code in a process where CUDA is simulated; return what it prints, as JSON."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", inspect.cleandoc(code)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


COUNT = """
    import json
    import threading

    import numpy as np

    import numbabn as nbn
    from benchmarks.gpu import traffic
    from benchmarks.libraries import BACKWARD, FORWARD, INFERENCE
    from numba import cuda
    from numbabn._cuda import plan, tiles

    plan.RESIDENT_SIMULATED = 0  # Numba's simulator runs one block after the other: none may wait
    lock, moved = threading.Lock(), {"read": 0, "written": 0}

    def counted(function, direction, lanes):
        def call(*arguments):
            with lock:
                moved[direction] += lanes * arguments[-1].itemsize
            return function(*arguments)

        return call

    for name, direction, lanes in (
        ("copy_async", "read", 1), ("copy_async4", "read", 4),
        ("store", "written", 1), ("store4", "written", 4),
    ):
        setattr(tiles, name, counted(getattr(tiles, name), direction, lanes))
    found = []
    for shape, dtype in (((5, 3, 5), np.float32), ((1, 1, 150), np.float64)):
        x = cuda.to_device(np.random.default_rng(0).standard_normal(shape).astype(dtype))
        y, saved = nbn.batch_norm_forward(x)
        calls = {
            FORWARD: lambda: nbn.batch_norm_forward(x),
            INFERENCE: lambda: nbn.batch_norm_inference(x, saved.mean, saved.var),
            BACKWARD: lambda: nbn.batch_norm_backward(x, saved),
        }
        for operation, call in calls.items():
            moved.update(read=0, written=0)
            call()
            model = traffic.traffic(operation, shape, dtype, 0)
            found.append([moved["read"], moved["written"], model.read, model.written, model.kernels])
    print(json.dumps(found))
"""


@pytest.mark.skipif(not JIT, reason="the other run of CI does it")
def test_the_model_is_what_kernels_do():
    found = run_simulated(COUNT)
    assert {len(kernels) for *_, kernels in found} == {1, 2}
    for read, written, model_read, model_written, kernels in found:
        small = 4000  # parameters, statistics and partial sums, which the model has besides the arrays
        assert 0 <= model_read - read <= small, kernels
        assert 0 <= model_written - written <= small, kernels
        assert read >= 5 * 3 * 5 * 4
        assert written >= 5 * 3 * 5 * 4


# The flow ---------------------------------------------------------------------------------------------------

FLOW = """
    import json
    import time

    import benchmarks.gpu.timing
    from benchmarks.gpu import arrays, checks, peers, speed
    from numbabn._cuda import plan
    from tests.support.cases import Case

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

    def breaks(case, data, library):
        def fail():
            raise ValueError("as it should")

        return dict.fromkeys(peers.OPERATIONS, fail)

    plan.RESIDENT_SIMULATED = 0
    benchmarks.gpu.timing.BURST, speed.ROUNDS, speed.SECONDS, speed.FEWEST = 1, 2, 0.0, 1
    peers.ENTRIES = {**peers.ENTRIES, "broken": (breaks, ("numba",))}
    found, names = arrays.libraries(), ("numbabn", "broken", "copy", "CuPy")
    cases = [Case((2, 3, 3), "NCL"), Case((4, 2), "NC")]
    rows = list(speed.speed(cases, names, found, Clock(), 100))
    small = {"numbabn": peers.ENTRIES["numbabn"]}
    peers.ENTRIES = small
    rows += speed.latency(found, Clock(), Case((4, 2), "NC"), bursts=1, calls=1)
    rows += checks.missing(("numba", "cupy"))
    rows += checks.whole_cases([Case((2, 3, 3), "NCL")], ("numba",))
    print(json.dumps(rows))
"""


@pytest.mark.skipif(not JIT, reason="the other run of CI does it")
def test_flow_in_the_simulator():
    results = Results(run_simulated(FLOW))
    measured = {(r.case.name, r.library, r.operation) for r in results.records}
    names = ("2x3x3 NCL", "4x2 NC")
    assert measured == {
        (name, library, operation)
        for name in names
        for library in (NUMBABN, COPY)
        for operation in peers.OPERATIONS
    }
    assert all(r.median_ms > 0 and r.calls >= 2 for r in results.records)
    assert [r.library for r in results.latencies] == ["numbabn (numba)"] * 3
    messages = " ".join(row["text"] for row in results.of("message"))
    assert "broken failed on 2x3x3 NCL" in messages
    assert "as it should" in messages
    assert messages.count("broken") == 1
    assert "CuPy is left out: it needs cupy" in messages
    assert "cupy is not checked" in messages
    assert [row["passed"] for row in results.of("check")] == [True]


@pytest.mark.skipif(not JIT or SIMULATED, reason="the other runs of CI do it")
def test_checks_on_the_cpu():
    """The same sections on NumPy's arrays: they pass, and a row that fails is told."""
    rows = [*checks.shared_table(("cpu",), large=False), *checks.whole_cases([NHWC], ("cpu",))]
    rows += checks.repeat([NC], ("cpu",))
    assert [row["name"] for row in rows] == [
        "cpu: shared table",
        "cpu: cases of the benchmark",
        "cpu: cases with the same bits in 20 runs",
    ]
    assert all(row["passed"] for row in rows)
    assert int(rows[0]["detail"].split(" of ")[0]) > 100
    assert [row["detail"] for row in rows[1:]] == ["1 of 1", "1 of 1"]


def test_a_check_that_fails(monkeypatch):
    def check(backend, which):
        assert which != "bad", "bits differ"

    table_rows = [table.Row("good row", check, ("good",)), table.Row("bad row", check, ("bad",))]
    monkeypatch.setattr(table, "rows", lambda large: table_rows)
    failed, total = checks.shared_table(("cpu",))
    assert (failed["name"], failed["passed"]) == ("cpu: bad row", False)
    assert "AssertionError: bits differ" in failed["detail"]
    assert (total["passed"], total["detail"]) == (False, "1 of 2")


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
    program.measure(list(SECTIONS), 100, tmp_path)
    assert [name for name, _ in asked] == list(SECTIONS)
    assert all(0 < limit <= SECTIONS[name].seconds for name, limit in asked)
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == len(SECTIONS)
    results = program.measure(list(SECTIONS), -1, tmp_path)
    assert len(asked) == len(SECTIONS)
    assert len(results.of("message")) == len(SECTIONS)


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


# What is made of a run --------------------------------------------------------------------------------------


def measured(times, latency_us=30.0):
    """Results of a run: times in ms by (operation, case, library)."""
    rows = [
        {"kind": "record", "operation": operation, "case": asdict(case), "library": library,
         "median_ms": ms, "p90_ms": ms, "calls": 10}
        for (operation, case, library), ms in times.items()
    ]  # fmt: skip
    host = {"case": asdict(NC), "library": "numbabn (cupy)", "p90_ms": 1.0, "calls": 1}
    rows.append({"kind": "latency", "operation": FORWARD, "median_ms": latency_us / 1e3, **host})
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
    program._write(tmp_path, results)
    page = (tmp_path / "gpu.md").read_text()
    assert "not yet run" not in page
    assert "made up" in page
    assert "| 32x256x56x56 NCHW | normalize | 50 | 60 | 70 | 50 | 1.00 |" in page
    assert "a\\|b" in page
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert program._read(tmp_path).rows == results.rows
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
    operations = peers.ENTRIES[entry][0](case, given, ArrayLibrary())

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
