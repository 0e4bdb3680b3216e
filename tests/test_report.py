"""The report of batch norm: oneDNN is one of its libraries, and numbabn with ``out=`` is compared with it."""

from importlib import metadata

import numpy as np
import pytest

from benchmarks import report, tables, targets
from benchmarks.libraries import (
    BACKWARD,
    BOTH,
    EPS,
    FORWARD,
    INFERENCE,
    LIBRARIES,
    NUMBABN,
    ONEDNN,
    ONEDNN_BLOCKED,
    OPERATIONS,
    OUT,
    PEERS,
    Data,
)
from benchmarks.measure import Record
from benchmarks.onednn_batch_norm import Blocked
from benchmarks.onednn_session import DISTRIBUTION
from tests.support import reference
from tests.support.cases import RESNET50_NCHW, RESNET50_NHWC, VOLUME, Case

SHAPES = {"NCHW": (4, 32, 5, 3), "NHWC": (4, 5, 3, 32), "NC": (60, 32), "NCDHW": (2, 32, 2, 5, 3)}
TOLERANCE = 1e-5  # of float32 against float64, relative to the largest entry: sums of 60 values, some 1e-7

needs_onednn = pytest.mark.skipif(
    not any(metadata.distributions(name=DISTRIBUTION)), reason="needs oneDNN's wheel"
)


# oneDNN as a library ----------------------------------------------------------------------------------------


@needs_onednn
@pytest.mark.parametrize(
    ("library", "layout"), [(ONEDNN, layout) for layout in SHAPES] + [(ONEDNN_BLOCKED, "NCHW")]
)
def test_onednn_computes_batch_norm(library, layout):
    case = Case(SHAPES[layout], layout)
    data = Data.of(case)
    operations = LIBRARIES[library](case, data)
    assert list(operations) == [FORWARD, BACKWARD, BOTH]
    expected = reference.backward(data.dy, data.x, data.gamma, axis=case.axis, eps=EPS)
    y = reference.forward(data.x, data.gamma, data.beta, axis=case.axis, eps=EPS)
    pairs = [(operations[FORWARD](), y)]
    for operation in (BACKWARD, BOTH):
        pairs += zip(operations[operation](), expected, strict=True)
    for found, value in pairs:
        found = Blocked(found.shape[-1]).restored(found) if found.ndim > value.ndim else found
        np.testing.assert_allclose(found, value, rtol=0, atol=TOLERANCE * np.abs(value).max())


@needs_onednn
@pytest.mark.parametrize("library", [ONEDNN, ONEDNN_BLOCKED])
def test_onednn_writes_into_the_same_memory(library):
    case = Case(SHAPES["NCHW"], "NCHW")
    operations = LIBRARIES[library](case, Data.of(case))
    assert operations[FORWARD]() is operations[FORWARD]()
    assert operations[BACKWARD]()[0] is operations[BOTH]()[0]


@needs_onednn
@pytest.mark.parametrize("case", [Case((4, 12, 5, 3), "NCHW"), Case((4, 5, 3, 32), "NHWC")])
def test_onednn_has_blocks_of_channels_only_where_they_are_filled(case):
    assert LIBRARIES[ONEDNN_BLOCKED](case, Data.of(case)) == {}


# The promises -----------------------------------------------------------------------------------------------


def promises(times, cases=(*RESNET50_NCHW, *RESNET50_NHWC, VOLUME)):
    """Return the targets that name oneDNN of a run with the same times in every row.

    oneDNN has no NHWC in its own layout, and of the volume it has every layout: it is outside of the promise.
    """
    records = [
        Record(operation, case, library, ms, ms, 1)
        for operation in (FORWARD, BACKWARD)
        for case in cases
        for library, ms in times.items()
        if library != ONEDNN_BLOCKED or case.layout != "NHWC"
    ]
    return [target for target in targets.check(records) if "oneDNN" in target.promise]


def test_promises_against_onednn_are_met_at_their_bounds():
    """At 0.9 for both layouts of NCHW, and 1 for NHWC; 1.0 and 1.25 are beyond the bounds of the rows."""
    met = promises({OUT: 0.9, ONEDNN: 1.0, ONEDNN_BLOCKED: 2.0})
    assert len(met) == 8
    assert all(target.met and "12 rows" in target.measured for target in met)
    assert all(target.met for target in promises({OUT: 1.0, ONEDNN: 1.0}, RESNET50_NHWC))
    assert not any(target.met for target in promises({OUT: 1.25, ONEDNN: 1.0, ONEDNN_BLOCKED: 1.0}))


@pytest.mark.parametrize("faster", [ONEDNN, ONEDNN_BLOCKED])
def test_the_faster_of_two_layouts_counts(faster):
    missed = promises({OUT: 1.5, ONEDNN: 3.0, ONEDNN_BLOCKED: 3.0, faster: 1.0}, RESNET50_NCHW)
    assert not any(target.met for target in missed)
    assert all("mean 1.50x, worst 1.50x over 12 rows" in target.measured for target in missed)


def test_without_onednn_there_is_no_promise():
    assert promises({OUT: 1.0, NUMBABN: 1.0}) == []


# The page ---------------------------------------------------------------------------------------------------


def test_the_page_compares_onednn_with_the_same_memory():
    ms = dict.fromkeys((NUMBABN, *PEERS), 1.0) | {OUT: 2.0, ONEDNN: 3.0, ONEDNN_BLOCKED: 6.0}
    case = RESNET50_NCHW[0]
    records = [
        Record(operation, case, library, time, time, 1)
        for operation in OPERATIONS
        for library, time in ms.items()
        if operation != INFERENCE or library not in (ONEDNN, ONEDNN_BLOCKED)
    ]
    lines = tables.as_markdown({}, records, targets.check(records)).splitlines()
    header = "|  | numbabn out= | NumPy | PyTorch | torch.compile | JAX | oneDNN | oneDNN blocked |"
    assert header in lines
    assert "| backward | 2.00x | 1.00x | 1.00x | 1.00x | 1.00x | 1.50x | 3.00x |" in lines
    assert "| inference | 2.00x | 1.00x | 1.00x | 1.00x | 1.00x |  |  |" in lines
    assert f"| {case.name} | **1** | 2 | **1** | **1** | **1** | **1** | 3 | 6 |" in lines


def test_the_figures_are_drawn_with_onednn(tmp_path):
    pytest.importorskip("matplotlib")
    records = [
        Record(operation, case, library, 1.0, 1.0, 1)
        for operation in OPERATIONS
        for case in (RESNET50_NCHW[0], RESNET50_NHWC[0])
        for library in LIBRARIES
        if operation != INFERENCE or library not in (ONEDNN, ONEDNN_BLOCKED)
    ]
    machine = {"Processor": "a processor", "Date": "2026-01-01"}
    report._files(machine, records, targets.check(records)).write(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}
