"""A run as it grows: the rows of its sections, by what they are, and the byte model beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.gpu.speed import cases
from benchmarks.gpu.traffic import VERBS, Traffic, canonical, traffic
from benchmarks.measure import Record
from benchmarks.targets import Run
from tests.cases import Case

Row = dict[str, Any]

# What is assumed where nothing was run; tests/cuda/test_compile.py says how many blocks fit.
ASSUMED = "an H200: 132 multiprocessors, 4 blocks on each, 4.8 TB/s by its data sheet"
ASSUMED_BLOCKS = 132 * 4
ASSUMED_BYTES_PER_SECOND = 4.8e12


@dataclass
class Results:
    """All that was found out, or nothing where there is no GPU."""

    rows: list[Row] = field(default_factory=list)

    def of(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def ran(self) -> bool:
        """Whether anything ran on a GPU."""
        return bool(self.of("fact"))

    @property
    def records(self) -> list[Record]:
        """Return times on the device."""
        return [_record(row) for row in self.of("record")]

    @property
    def latencies(self) -> list[Record]:
        """Return times of the host."""
        return [_record(row) for row in self.of("latency")]

    @property
    def run(self) -> Run:
        """Return medians on the device."""
        return Run(self.records)

    @property
    def blocks(self) -> int:
        """Return how many blocks run at once, as the device said, or as assumed."""
        return next((row["blocks"] for row in reversed(self.of("resident"))), ASSUMED_BLOCKS)

    @cached_property
    def cases(self) -> list[Case]:
        """Return every row of the benchmark."""
        return [*cases(32), *cases(128)]

    def model(self, operation: str, case: Case) -> Traffic:
        """Return what numbabn moves in a row."""
        return traffic(operation, canonical(case), np.float32, self.blocks)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        model = [
            {
                "operation": operation,
                "name": case.name,
                "read": t.read,
                "written": t.written,
                "kernels": t.kernels,
            }
            for operation in VERBS
            for case in self.cases
            for t in (self.model(operation, case),)
        ]
        return {
            "ran_on_hardware": self.ran,
            "resident_blocks": self.blocks,
            "model": model,
            "rows": self.rows,
        }


def _record(row: Row) -> Record:
    fields = {name: value for name, value in row.items() if name != "kind"}
    shape, layout = fields["case"]["shape"], fields["case"]["layout"]
    return Record(**{**fields, "case": Case(tuple(shape), layout)})
