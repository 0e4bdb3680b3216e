"""What a run has found: the rows of its sections, by what they are, and the byte model beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.gpu.traffic import VERBS, Traffic, canonical, traffic
from benchmarks.measure import Record
from benchmarks.targets import Run
from tests.support.cases import CASES, RESNET50_BATCH, RESNET50_NCHW, RESNET50_NHWC, Case

Row = dict[str, Any]

# What is assumed where nothing was run.
ASSUMED = "an H200: 132 multiprocessors, 4.8 TB/s by its data sheet"
ASSUMED_MULTIPROCESSORS = 132
ASSUMED_BYTES_PER_SECOND = 4.8e12


def cases_at(batch: int) -> list[Case]:
    """Return the rows of a batch size; those that are no image batches of ResNet-50 come with the smaller."""
    resnet = (*RESNET50_NCHW, *RESNET50_NHWC)
    return list(CASES) if batch == RESNET50_BATCH else [case.with_batch(batch) for case in resnet]


def message(text: str, lacks: str | None = None) -> Row:
    """Return a row that is read, not counted; ``lacks`` names what a full run has and this one has not."""
    return {"kind": "message", "text": text} | ({"lacks": lacks} if lacks else {})


def check(name: str, passed: bool, detail: str) -> Row:
    """Return a row that says how a check went."""
    return {"kind": "check", "name": name, "passed": passed, "detail": detail}


@dataclass
class Results:
    """All that was found out, or nothing where there is no GPU."""

    rows: list[Row] = field(default_factory=list)

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def facts(self) -> dict[str, str]:
        """Return the machine and its software, as label and text."""
        return {row["label"]: row["text"] for row in self.of("fact")}

    @property
    def ran(self) -> bool:
        """Whether anything ran on a GPU."""
        return bool(self.facts)

    @property
    def lacks(self) -> list[str]:
        """Return what a full run has and this one has not."""
        return list(dict.fromkeys(row["lacks"] for row in self.rows if "lacks" in row))

    def records(self, kind: str = "record") -> list[Record]:
        """Return times on the device, or of another kind."""
        return [Record.of_row(row) for row in self.of(kind)]

    @cached_property
    def run(self) -> Run:
        """Return medians on the device."""
        return Run(self.records())

    @cached_property
    def multiprocessors(self) -> int:
        """Return how many there are, as the device said, or as assumed: a group has no more blocks."""
        found = reversed(self.of("multiprocessors"))
        return next((row["number"] for row in found), ASSUMED_MULTIPROCESSORS)

    @cached_property
    def cases(self) -> list[Case]:
        """Return every row of the benchmark."""
        return [*cases_at(32), *cases_at(128)]

    def model(self, operation: str, case: Case) -> Traffic:
        """Return what numbabn moves in a row."""
        return traffic(operation, canonical(case), np.float32, self.multiprocessors)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        model = [
            {"operation": operation, "name": case.name} | asdict(self.model(operation, case))
            for operation in VERBS
            for case in self.cases
        ]
        about = {"ran_on_hardware": self.ran, "multiprocessors": self.multiprocessors}
        return {**about, "model": model, "rows": self.rows}
