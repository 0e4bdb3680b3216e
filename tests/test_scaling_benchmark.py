"""The scaling benchmark: its arrays, its libraries, and workers that hold large arrays in turn."""

import math
import sys
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import machine, measure, scaling, scaling_libraries
from benchmarks.libraries import BACKWARD, COPY, EPS, FORWARD, INFERENCE, NUMBABN, OUT
from benchmarks.measure import Record
from benchmarks.scaling_libraries import LIBRARIES, STRONG_LIBRARIES, Data, ScalingCase
from benchmarks.scaling_tables import Rates, as_markdown, nbytes, rate
from benchmarks.workers import UnavailableError
from tests.support import reference

SHAPES = {"NCHW": (4, 16, 5, 5), "NHWC": (4, 5, 5, 16), "NC": (100, 16)}
TOLERANCE = 1e-5  # of float32 against float64, relative to the largest entry: sums of 100 values, some 1e-7

# The arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", scaling.LAYOUTS)
def test_sizes_grow_by_four_from_4_kb_to_4_gb(layout):
    sizes = [4 * math.prod(scaling.shape(layout, step)) for step in scaling.STEPS]
    assert all(larger == 4 * smaller for smaller, larger in pairwise(sizes))
    assert (sizes[0], sizes[-1]) == pytest.approx((4e3, 4e9), rel=0.08)  # between powers of 10 and of 2


def test_layouts_of_maps_have_the_same_maps():
    assert scaling.shape("NCHW", 0) == (5, 4, 7, 7)
    assert scaling.shape("NCHW", 4) == (5, 64, 28, 28)
    assert scaling.shape("NCHW", 10) == (5120, 64, 56, 56)
    for step in scaling.STEPS:
        batch, channels, *sides = scaling.shape("NCHW", step)
        assert scaling.shape("NHWC", step) == (batch, *sides, channels)


@pytest.mark.parametrize(("threads", "counts"), [(1, {1}), (2, {1, 2}), (6, {1, 2, 4, 6}), (8, {1, 2, 4, 8})])
def test_three_sizes_have_fewer_threads(threads, counts):
    rows = scaling.rows(threads)
    assert {case.threads for case in rows} == counts
    assert len(set(rows)) == len(rows) == 9 * (11 + 3 * (len(counts) - 1))


def test_a_row_is_named_by_what_it_measures():
    assert scaling.rows(2)[0].name == "train forward 5x4x7x7 NCHW threads=2"


# The libraries ----------------------------------------------------------------------------------------------


def given(result, case, library):
    """Return y, or dx, dgamma and dbeta, as NumPy arrays in the order of the axes that the case has."""
    arrays = [result[0] if isinstance(result, tuple) else result] if case.operation != BACKWARD else result
    arrays = [np.asarray(array) for array in arrays]
    if library == "PyTorch" and case.layout == "NHWC":
        arrays[0] = np.moveaxis(arrays[0], 1, -1)
    return [array if array.ndim == len(case.shape) and i == 0 else array.reshape(-1)
            for i, array in enumerate(arrays)]  # fmt: skip


@pytest.mark.parametrize("operation", scaling.OPERATIONS)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("library", [NUMBABN, OUT, "NumPy", "PyTorch"])
def test_libraries_compute_the_operation_of_the_case(library, layout, operation):
    case = ScalingCase(SHAPES[layout], layout, operation, 1)
    try:
        operations = LIBRARIES[library](case, Data.of(case))
    except ImportError as error:
        pytest.skip(f"{library}: {error}")
    assert list(operations) == [operation]
    x, dy, gamma, beta, mean, var = Data.of(case).arrays()
    if operation == FORWARD:
        expected = [reference.forward(x, gamma, beta, axis=case.axis, eps=EPS)]
    elif operation == INFERENCE:
        mean, var, gamma, beta = (
            array.astype(np.float64).reshape(case.broadcast) for array in (mean, var, gamma, beta)
        )
        expected = [(x - mean) / np.sqrt(var + EPS) * gamma + beta]
    else:
        expected = reference.backward(dy, x, gamma, axis=case.axis, eps=EPS)
    for found, value in zip(given(operations[operation](), case, library), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=TOLERANCE * np.abs(value).max())


@pytest.mark.parametrize("operation", scaling.OPERATIONS)
def test_out_and_the_copy_write_into_the_same_memory(operation):
    case = ScalingCase(SHAPES["NC"], "NC", operation, 1)
    call = LIBRARIES[OUT](case, Data.of(case))[operation]
    first, second = (given(call(), case, OUT)[0] for _ in range(2))
    assert np.shares_memory(first, second)
    LIBRARIES[COPY](case, Data.of(case))[operation]()


@pytest.mark.parametrize("operation", scaling.OPERATIONS)
def test_only_backward_has_dy(operation):
    x, dy, *_ = Data.of(ScalingCase((3, 4, 5, 5), "NCHW", operation, 1)).arrays()
    assert dy.ndim == x.ndim
    assert dy.size == (x.size if operation == BACKWARD else 0)


def test_numpy_is_left_out_where_it_takes_seconds(monkeypatch):
    case = ScalingCase((16, 64), "NC", FORWARD, 1)
    monkeypatch.setattr(scaling_libraries, "LARGEST_OF_NUMPY", case.nbytes - 1)
    assert LIBRARIES["NumPy"](case, Data.of(case)) == {}


# Workers, one after the other -------------------------------------------------------------------------------


class StubWorker:
    """A worker that calls nothing, and writes down what it is asked for."""

    def __init__(self, library, log):
        self.library, self.log, self.answers = library, log, []

    def send(self, verb, *arguments):
        self.log.append((self.library, verb))
        self.answers.append(
            {"prepare": [FORWARD], "burst": [2_000_000], "timed": [2_000_000, 4_000_000], "release": None}[
                verb
            ]
        )

    def receive(self):
        if self.library == "missing" and self.log[-1] == ("missing", "prepare"):
            raise UnavailableError("no module")
        return self.answers.pop(0)

    def ask(self, verb, *arguments):
        self.send(verb, *arguments)
        return self.receive()

    def close(self):
        self.log.append((self.library, "close"))


def test_one_worker_at_a_time_holds_its_arrays(capsys):
    log = []
    crew = [StubWorker(library, log) for library in ("a", "missing", "b")]
    case = ScalingCase((16, 64), "NC", FORWARD, 1)
    records = list(measure.measure_alone(case, crew, rounds=2))
    turn = [(name, verb) for name in "ab" for verb in ("prepare", "timed", "release")]
    assert log == [*turn[:3], ("missing", "prepare"), ("missing", "close"), *turn[3:], *turn]
    assert records == [Record(FORWARD, case, name, 3.0, 4.0, 4) for name in "ab"]
    assert [worker.library for worker in crew] == ["a", "b"]
    assert "missing is skipped: no module" in capsys.readouterr().out


def test_workers_hold_nothing_when_a_row_is_measured():
    log = []
    case = ScalingCase((16, 64), "NC", FORWARD, 1)
    records = list(measure.measure(case, [StubWorker(library, log) for library in "ab"], rounds=2))
    assert [record.library for record in records] == ["a", "b"]
    assert log[-2:] == [("a", "release"), ("b", "release")]


def test_large_rows_are_measured_one_worker_at_a_time(monkeypatch):
    """Rows go to the crew of their threads, and to the protocol of their size."""
    found = []

    @contextmanager
    def crew_of(threads, libraries, table):
        yield threads

    def protocol_of(name):
        return lambda case, crew, rounds: found.append((name, case, crew)) or []

    for name in ("measure", "measure_alone"):
        monkeypatch.setattr(scaling, name, protocol_of(name))
    monkeypatch.setattr(scaling, "workers", crew_of)
    cases = scaling.rows(2)
    assert not list(scaling._measured(cases, rounds=1))
    assert [case for _, case, _ in found] == cases
    assert all(threads == case.threads for _, case, threads in found)
    alone = {case.nbytes for protocol, case, _ in found if protocol == "measure_alone"}
    together = {case.nbytes for protocol, case, _ in found if protocol == "measure"}
    assert max(together) < 2.7e8 < 1e9 < min(alone)


@pytest.mark.parametrize(("operation", "factor"), [(FORWARD, 2), (INFERENCE, 2), (BACKWARD, 3)])
def test_rows_without_memory_are_left_out(operation, factor, monkeypatch, capsys):
    case = ScalingCase((1_000_000, 1000), "NC", operation, 1)
    small = ScalingCase((1000, 1000), "NC", operation, 1)
    monkeypatch.setattr(scaling, "available_memory", lambda: factor * 4_000_000_000 + scaling.SPARE)
    assert scaling._fitting([small, case]) == [small, case]
    monkeypatch.setattr(scaling, "available_memory", lambda: factor * 4_000_000_000 + scaling.SPARE - 1)
    assert scaling._fitting([small, case]) == [small]
    assert f"{case.name} is left out" in capsys.readouterr().out
    monkeypatch.setattr(scaling, "available_memory", lambda: 1)
    with pytest.raises(SystemExit, match="no memory"):
        scaling._fitting([small, case])
    monkeypatch.setattr(scaling, "available_memory", lambda: None)
    assert scaling._fitting([small, case]) == [small, case]


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
def test_available_memory_is_part_of_all():
    total = machine._meminfo("MemTotal")
    assert 0 < machine.available_memory() < total
    assert machine._memory() == f"{total / 2**30:.0f} GiB"


# The page and the figure ------------------------------------------------------------------------------------


def records(threads=2):
    """Return a run in which every call takes a millisecond."""
    return [
        Record(case.operation, case, library, 1.0, 1.0, 1)
        for case in scaling.rows(threads)
        for library in (LIBRARIES if case.threads == threads else STRONG_LIBRARIES)
    ]


@pytest.mark.parametrize(("operation", "rate_of"), [(FORWARD, 2.0), (INFERENCE, 2.0), (BACKWARD, 3.0)])
def test_rates_count_the_least_bytes(operation, rate_of):
    """1 MB in 1 ms is 1 GB/s for each array that is read or written once."""
    case = ScalingCase((250, 1000), "NC", operation, 1)
    assert rate(Record(operation, case, NUMBABN, 1.0, 9.0, 1)) == pytest.approx(rate_of)


@pytest.mark.parametrize(
    ("count", "text"), [(3920, "3.92 KB"), (250_880, "251 KB"), (999, "999 B"), (4_294_967_296, "4.29 GB")]
)
def test_sizes_have_three_digits(count, text):
    assert nbytes(count) == text


def test_the_page_has_rates_by_size_and_threads():
    lines = as_markdown({}, Rates(records())).splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[:2] == ["## Train forward, NCHW", "## Train forward, NHWC"]
    assert "| 5x64x28x28 | 1 MB | 2.01 | 2.01 | 2.01 | 2.01 | 2.01 |" in lines
    columns = "numbabn out=, 1 | numbabn out=, 2 | PyTorch, 1 | PyTorch, 2 | copy, 1 | copy, 2"
    assert f"| GB/s | {columns} |" in lines
    assert "| backward, 1024x1024 NC | 12.6 | 12.6 | 12.6 | 12.6 | 12.6 | 12.6 |" in lines


def test_one_thread_has_no_strong_scaling():
    assert "## Strong scaling" not in as_markdown({}, Rates(records(threads=1)))


@pytest.mark.parametrize("part", [records(), records(1), records()[:5]], ids=["all", "one thread", "one row"])
def test_the_figure_of_a_run_is_drawn(part, tmp_path):
    pytest.importorskip("matplotlib")
    facts = {"Processor": "a processor", "Caches": "L1", "Date": "2026-01-01"}
    scaling._files(facts, part).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.md", "scaling.json", "scaling.png"}
