"""Everything that a GPU machine can tell, in one call of under 8 minutes: ``python -m benchmarks.gpu``.

Environment, results against float64, the same bits in every run, streams and CUDA graphs, then times of
numbabn, CuPy, PyTorch, torch.compile and a copy. Needs numba-cuda and a GPU; CuPy and PyTorch are left out
where they are missing. With ``--output FOLDER`` it leaves ``gpu.md``, ``gpu.json`` and ``gpu.png`` there
after every section; with ``--write`` it replaces the committed results at the end. Without a GPU the page is
the byte model, what the kernels read and write beside the least time for that, and says that nothing was run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks import output
from benchmarks.gpu import peers, tables, targets
from benchmarks.gpu.results import Results, Row, check, message
from benchmarks.gpu.sections import SECTIONS
from benchmarks.output import Files, Output, add_options, uninstalled
from benchmarks.targets import announce

BUDGET = 460  # seconds
TAIL = 2000  # characters of what a failed section wrote


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    no_gpu = None if options.draw else _no_gpu()
    to = Output.chosen(parser, options, [] if options.draw or no_gpu else _left_out(options))
    before = read(to.folder or output.RESULTS)
    if options.draw:
        to.deliver(files(before))
    elif no_gpu:
        print(f"{tables.NOT_RUN}: {no_gpu}\n")
        model = files(Results())
        if before.ran:
            print(f"{model.page}\nNothing is written over what was measured on a GPU.")
        else:
            to.deliver(model)
    else:
        results = measure(options.sections, options.seconds, to)
        to.deliver(files(results), results.lacks)
        announce(targets.check(results))


def measure(sections: list[str], seconds: float, to: Output, command: tuple[str, ...] = ()) -> Results:
    """Run sections one after the other, each with what is left of the time, and keep what each has found."""
    rows: list[Row] = []
    end = perf_counter() + seconds
    for name in sections:
        section = SECTIONS[name]
        limit = min(section.seconds, end - perf_counter())
        if limit <= 0:
            text = f"{section.title}: left out, no time was left"
            rows.append(message(text, lacks=f"section {name}"))
            continue
        start = perf_counter()
        rows += run_section(name, limit, command)
        print(f"{section.title}: {perf_counter() - start:.0f} s", flush=True)
        to.keep(files(Results(list(rows))))
    return Results(rows)


def run_section(name: str, limit: float, command: tuple[str, ...] = ()) -> list[Row]:
    """Return the rows that a section wrote, in a process of its own, until it ended or had to be ended."""
    program = command or (sys.executable, "-m", "benchmarks.gpu.sections")
    trouble = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.touch()
        try:
            arguments = [*program, name, str(limit), str(path)]
            done = subprocess.run(
                arguments, capture_output=True, text=True, errors="replace", timeout=limit, check=False
            )
            if done.returncode:
                trouble = f"ended with {done.returncode}:\n{done.stderr[-TAIL:]}"
        except subprocess.TimeoutExpired:
            trouble = f"was ended after {limit:.0f} s"
        lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut off
    if trouble:
        print(f"{name} {trouble}", flush=True)
        rows.append(check(f"section {name}", False, trouble) | {"lacks": f"section {name}"})
    return rows


def read(folder: Path) -> Results:
    """Return the run that a folder has the numbers of."""
    path = folder / "gpu.json"
    return Results(json.loads(path.read_text())["rows"]) if path.exists() else Results()


def files(results: Results) -> Files:
    """Return what a run leaves; the figure only where times were measured."""

    def draw(folder: Path) -> None:
        from benchmarks import figures

        title = "Batch normalisation of float32 arrays on a GPU:\ntime as a multiple of a copy on the device"
        panels = figures.Panels(title, peers.OPERATIONS, columns=3, peers=peers.PEERS)
        foot = f"{results.facts.get('GPU', '')}, {results.facts.get('Date', '')}"
        figures.speed(results.run, panels, foot, folder / "gpu.png")

    page = tables.as_markdown(results, targets.check(results))
    return Files("gpu", page, results.as_json(), draw if results.of("record") else None)


def _no_gpu() -> str | None:
    """Say why nothing can be run, in a process of its own: this one never touches the device."""
    code = (
        "from numba import cuda; import sys; sys.exit(0 if cuda.is_available() else str(cuda.cuda_error()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no GPU"])[-1]


def _left_out(options: argparse.Namespace) -> list[str]:
    """Return what a full run measures and this one does not."""
    found = [f"section {name}" for name in SECTIONS if name not in options.sections]
    if options.seconds < BUDGET:
        found.append(f"{BUDGET - options.seconds:g} of {BUDGET} seconds")
    return found + uninstalled("cupy", "torch", "matplotlib")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=BUDGET, help=f"for all sections (default {BUDGET})")
    parser.add_argument(
        "--draw", action="store_true", help="write page and figure again from the folder's gpu.json"
    )
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
