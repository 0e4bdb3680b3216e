"""Measure the error of batch normalisation in float32 as the data move away from zero.

``python -m benchmarks.accuracy`` prints the page; with ``--output FOLDER`` or ``--write`` it leaves
``accuracy.md``, ``accuracy.json`` and ``accuracy.png``. The oracle computes in two passes in float64 on the
same float32 input; every library computes as its users write it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.libraries import BACKWARD, EPS, FORWARD, LIBRARIES, NUMBABN, Data
from benchmarks.machine import describe
from benchmarks.output import Files, Output, add_options, uninstalled
from benchmarks.tables import bullets, page, table
from tests.support.cases import Case

CASE = Case((64, 16, 32, 32), "NCHW")
OFFSETS = (0.0, 1.0, 1e2, 1e4, 1e6)
CONSTANT = 1234.567
CONSTANT_LABEL = f"constant {CONSTANT}"
TITLES = ("y: largest absolute error", "dx: largest error over largest entry")
COMPARED = (NUMBABN, "PyTorch", "JAX", "NumPy")
Errors = dict[str, dict[str, float]]  # library -> input -> largest error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add_options(parser)
    output = Output.chosen(parser, parser.parse_args(), uninstalled("torch", "jax", "matplotlib"))
    forward, backward = errors()
    machine = describe()
    run = {"machine": machine, "shape": CASE.shape, "forward": forward, "backward": backward}

    def draw(folder: Path) -> None:
        from benchmarks.figures import accuracy

        accuracy(list(zip(TITLES, (forward, backward), strict=True)), folder / "accuracy.png")

    unmeasured = [library for library in COMPARED if library not in forward]
    output.deliver(Files("accuracy", _markdown(machine, forward, backward), run, draw), unmeasured)


def errors() -> tuple[Errors, Errors]:
    """Return the largest error of y, and of dx relative to its largest entry, per library and input."""
    inputs = _inputs()
    forward: Errors = {}
    backward: Errors = {}
    for library in COMPARED:
        try:
            found = {label: _both_errors(library, data) for label, data in inputs.items()}
        except ImportError as error:
            print(f"{library} is skipped: {error}")
            continue
        forward[library] = {label: of_y for label, (of_y, _) in found.items()}
        backward[library] = {label: of_dx for label, (_, of_dx) in found.items()}
    return forward, backward


def _both_errors(library: str, data: Data) -> tuple[float, float]:
    y, dx = exact(data)
    operations = LIBRARIES[library](CASE, data)
    of_dx = _largest(operations[BACKWARD], dx) / float(np.abs(dx).max())
    return _largest(operations[FORWARD], y), of_dx


def exact(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return y and dx, computed in float64 with the formulas of textbooks, in two passes."""
    x, dy, gamma, beta = (a.astype(np.float64) for a in (data.x, data.dy, data.gamma, data.beta))
    gamma, beta = gamma.reshape(CASE.broadcast), beta.reshape(CASE.broadcast)
    centred = x - x.mean(axis=CASE.reduced, keepdims=True)
    centred -= centred.mean(axis=CASE.reduced, keepdims=True)  # removes the rounding error of the first mean
    std = np.sqrt((centred**2).mean(axis=CASE.reduced, keepdims=True) + EPS)
    xhat = centred / std
    dgamma = (dy * xhat).mean(axis=CASE.reduced, keepdims=True)
    dbeta = dy.mean(axis=CASE.reduced, keepdims=True)
    return gamma * xhat + beta, gamma / std * (dy - dbeta - xhat * dgamma)


def _inputs() -> dict[str, Data]:
    base = Data.of(CASE)
    base = replace(base, gamma=np.ones_like(base.gamma))  # so that y has a standard deviation of 1
    moved = {f"{offset:g}": replace(base, x=base.x + np.float32(offset)) for offset in OFFSETS}
    return moved | {CONSTANT_LABEL: replace(base, x=np.full_like(base.x, CONSTANT))}


def _largest(operation: Callable[[], object], expected: np.ndarray) -> float:
    result = operation()[0]  # every library returns y, or dx, first
    return float(np.abs(np.asarray(result).astype(np.float64) - expected).max())


def _markdown(machine: dict[str, str], forward: Errors, backward: Errors) -> str:
    inputs = list(forward[NUMBABN])
    parts = ["Written by `python -m benchmarks.accuracy`.", bullets(machine)]
    for title, found in zip(TITLES, (forward, backward), strict=True):
        rows = [[library, *(f"{values[label]:.1e}" for label in inputs)] for library, values in found.items()]
        parts += [f"## {title}", table(["offset of x", *inputs], rows)]
    return page("Accuracy of numbabn and its peers", *parts)


if __name__ == "__main__":
    main()
