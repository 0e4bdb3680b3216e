"""Everything that a GPU machine can tell, in one call of under 8 minutes: ``python -m benchmarks.gpu``.

Environment, results against float64, the same bits in every run, streams and CUDA graphs, then times of
numbabn, CuPy, PyTorch, torch.compile and a copy. Needs numba-cuda and a GPU; CuPy and PyTorch are left out
where they are missing. Writes ``gpu.md``, ``gpu.json`` and ``gpu.png`` after every section. Without a GPU it
prints what the kernels read and write, beside the least time for that, and says that nothing was run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.gpu import tables, targets
from benchmarks.gpu.results import Results
from benchmarks.gpu.sections import SECTIONS

RESULTS = Path(__file__).parents[1] / "results"
BUDGET = 460  # seconds
TAIL = 2000  # characters of what a failed section wrote
Row = dict[str, Any]


def main() -> None:
    options = _options()
    if options.draw:
        _write(options.output, _read(options.output))
        return
    if reason := _no_gpu():
        results = Results()
        print(f"{tables.NOT_RUN}: {reason}\n")
        print(tables.as_markdown(results, []))
        if not _read(options.output).ran:  # never over what a GPU has said
            _write(options.output, results)
        return
    results = measure(options.sections, options.seconds, options.output)
    for target in targets.check(results):
        print("met    " if target.met else "NOT MET", target.promise, "--", target.measured)


def measure(sections: list[str], seconds: float, output: Path, command: tuple[str, ...] = ()) -> Results:
    """Run sections one after the other, each with what is left of the time, and write after each."""
    results, end = Results(), perf_counter() + seconds
    for name in sections:
        section = SECTIONS[name]
        limit = min(section.seconds, end - perf_counter())
        if limit <= 0:
            results.rows.append(_message(f"{section.title}: left out, no time was left"))
            continue
        start = perf_counter()
        results.rows += run_section(name, limit, command)
        print(f"{section.title}: {perf_counter() - start:.0f} s", flush=True)
        _write(output, results)
    return results


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
        rows.append({"kind": "check", "name": f"section {name}", "passed": False, "detail": trouble})
    return rows


def _no_gpu() -> str | None:
    """Say why nothing can be run, in a process of its own: this one never touches the device."""
    code = (
        "from numba import cuda; import sys; sys.exit(0 if cuda.is_available() else str(cuda.cuda_error()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no GPU"])[-1]


def _message(text: str) -> Row:
    return {"kind": "message", "text": text}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=BUDGET, help=f"for all sections (default {BUDGET})")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--draw", action="store_true", help="write the page and figure again from gpu.json")
    return parser.parse_args()


def _read(folder: Path) -> Results:
    path = folder / "gpu.json"
    return Results(json.loads(path.read_text())["rows"]) if path.exists() else Results()


def _write(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    (folder / "gpu.md").write_text(tables.as_markdown(results, targets.check(results)))
    if results.records:
        try:
            from benchmarks.gpu.figure import speed
        except ImportError as error:  # a machine without matplotlib: --draw on another one
            print(f"no figure: {error}")
            return
        speed(results, folder / "gpu.png")


if __name__ == "__main__":
    main()
