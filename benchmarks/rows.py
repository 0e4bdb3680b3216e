"""The rows of a program that times libraries in turn: which ones a run measures, and how often."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Row(Protocol):
    """One thing that all libraries do."""

    @property
    def name(self) -> str:
        """What the row is called in tables and on the command line."""


R = TypeVar("R", bound=Row)


def add_turns(parser: argparse.ArgumentParser, rounds: int, threads: int = 2) -> None:
    """Give a program the options that say how often libraries take turns, and with how many threads."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"turns of every library per row (default {rounds})"
    )
    parser.add_argument(
        "--threads", type=int, default=threads, help=f"threads of every library (default {threads})"
    )


def add_rows(parser: argparse.ArgumentParser, example: str) -> None:
    """Give a program the option that chooses rows by their names."""
    parser.add_argument(
        "--rows", default="", metavar="PATTERN", help=f"regular expression, such as '{example}'"
    )


def matching(cases: Sequence[R], pattern: str) -> list[R]:
    """Return the rows whose names match; end the program if there are none."""
    found = [case for case in cases if re.search(pattern, case.name)]
    if not found:
        raise SystemExit(f"No row matches {pattern!r}; rows are named like {cases[0].name!r}.")
    return found


def fewer_rows(measured: Sequence[Row], cases: Sequence[Row]) -> list[str]:
    """Return how many rows of all a run does not measure, for the list of what it leaves out."""
    left = len(cases) - len(measured)
    return [f"{left} of {len(cases)} rows"] if left else []
