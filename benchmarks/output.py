"""Where a run writes its files: nowhere, to a folder that the user names, or to the committed results.

README.md shows and quotes the files in ``benchmarks/results``. A run replaces them only if it is asked to
with ``--write``, and only if it measures everything that they show. Every run prints its page. With
``--output FOLDER`` a run writes its files to another folder, even if it leaves something out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def uninstalled(*packages: str) -> list[str]:
    """Return those packages that are not installed, for the list of what a run leaves out."""
    return [f"{package} (not installed)" for package in packages if not _installed(package)]


def _installed(package: str) -> bool:
    """Whether there is a module of this name, or a distribution, which need not have modules."""
    return find_spec(package) is not None or any(metadata.distributions(name=package))


def fewer_rounds(rounds: int, all_rounds: int) -> list[str]:
    """Return how many rounds of all a run does not make, for the list of what it leaves out."""
    return [f"{all_rounds - rounds} of {all_rounds} rounds"] if rounds < all_rounds else []


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a program the two options that say where its files go."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--write",
        action="store_true",
        help="replace the committed results in benchmarks/results; only a run that leaves nothing out may",
    )
    where.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write the files here (default: only print the page)"
    )


@dataclass(frozen=True)
class Files:
    """The results of a run: its page, its numbers, and a function that draws its figures into a folder."""

    name: str
    page: str
    numbers: object
    draw: Callable[[Path], None] | None = None

    def write(self, folder: Path) -> None:
        """Write the page, the numbers and, if matplotlib is installed, the figures to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(self.numbers, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.page)
        try:
            if self.draw is not None:
                self.draw(folder)
        except ImportError as error:
            print(f"no figure: {error}")


@dataclass(frozen=True)
class Output:
    """The folder that a run writes to, which is None if it only prints."""

    folder: Path | None

    @classmethod
    def chosen(
        cls, parser: argparse.ArgumentParser, options: argparse.Namespace, left_out: Sequence[str] = ()
    ) -> Output:
        """Return the output that the options ask for; exit if a part would replace the committed results."""
        if options.write and left_out:
            parser.error(
                f"--write replaces the committed results, and this run leaves out {', '.join(left_out)}; "
                "--output FOLDER writes to another folder"
            )
        if options.output is not None and options.output.resolve() == RESULTS.resolve():
            parser.error(f"{options.output} holds the committed results; --write replaces them")
        return cls(RESULTS if options.write else options.output)

    @property
    def replaces(self) -> bool:
        """Whether the run replaces the committed results."""
        return self.folder == RESULTS

    def keep(self, files: Files) -> None:
        """Write the files of an unfinished run, unless they would replace the committed results."""
        if self.folder is not None and not self.replaces:
            files.write(self.folder)

    def deliver(self, files: Files, left_out: Sequence[str] = ()) -> None:
        """Print the page and write the files.

        If the run should replace the committed results and turned out to leave something out, the files go
        to a new temporary folder instead.
        """
        print(files.page)
        folder = self.folder
        if folder is None:
            print("Nothing is written: that takes --output FOLDER, or --write for the committed results.")
            return
        if self.replaces and left_out:
            folder = Path(tempfile.mkdtemp(prefix=f"numbabn-{files.name}-"))
            print(f"{RESULTS} is not replaced: the run left out {', '.join(left_out)}.")
        files.write(folder)
        print(f"Written: {folder}")
