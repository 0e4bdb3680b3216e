"""Reads what nvdisasm lists of a kernel: its instructions, the source lines they come from, and its loops."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_INSTRUCTION = re.compile(
    r"\s+/\*[0-9a-f]+\*/\s+(?P<guard>@\S+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<rest>.*?)\s*;"
)
_LABEL = re.compile(r"(?P<label>[.$\w]+):\s*$")
_TARGET = re.compile(r"`\((?P<label>[.$\w]+)\)")
_SOURCE = re.compile(r'\s*//## File "(?P<path>[^"]*)", line (?P<line>\d+)')

FP64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b")


class Line(NamedTuple):
    """A line of source."""

    path: str
    number: int


class Instruction(NamedTuple):
    """One instruction: what it is, where it may jump, and the calls of source lines that it comes from."""

    opcode: str
    guarded: bool
    target: str | None
    lines: tuple[Line, ...]


class Block(NamedTuple):
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: tuple[Instruction, ...]
    next: tuple[int, ...]


def blocks(listing: str) -> list[Block]:
    """Return the basic blocks of a listing; calls are taken to return, as they do."""
    pieces: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for item in _items(listing):
        if isinstance(item, str):
            if pieces[-1]:
                pieces.append([])
            labels[item] = len(pieces) - 1
        else:
            pieces[-1].append(item)
            if _leaves(item):
                pieces.append([])
    return [
        Block(tuple(piece), tuple(_next(piece, k, len(pieces), labels))) for k, piece in enumerate(pieces)
    ]


def loops(graph: list[Block]) -> list[frozenset[int]]:
    """Return the innermost loops, as the blocks that each is made of."""
    before: list[list[int]] = [[] for _ in graph]
    for k, block in enumerate(graph):
        for other in block.next:
            before[other].append(k)
    dominators = _dominators(graph, before)
    found: dict[int, set[int]] = {}
    for k, block in enumerate(graph):
        for head in block.next:
            if dominators[k] >> head & 1:
                found.setdefault(head, {head}).update(_body(k, head, before))
    bodies = {frozenset(body) for body in found.values()}
    return [body for body in bodies if not any(other < body for other in bodies)]


def _items(listing: str) -> Iterator[str | Instruction]:
    """Labels and instructions in turn."""
    lines: list[Line] = []
    fresh = True  # whether the next source line begins a new chain
    for text in listing.splitlines():
        if source := _SOURCE.match(text):
            if fresh:
                lines, fresh = [], False
            lines.append(Line(source["path"], int(source["line"])))
        elif found := _INSTRUCTION.match(text):
            fresh = True
            target = _TARGET.search(found["rest"])
            guarded = bool(found["guard"]) or (target is not None and not found["rest"].startswith("`"))
            yield Instruction(found["opcode"], guarded, target and target["label"], tuple(lines))
        elif label := _LABEL.match(text):
            yield label["label"]


def _leaves(instruction: Instruction) -> bool:
    kind = instruction.opcode.split(".")[0]
    return kind in ("BRA", "EXIT", "RET", "BRX", "JMP")


def _next(piece: list[Instruction], k: int, count: int, labels: dict[str, int]) -> Iterator[int]:
    last = piece[-1] if piece else None
    leaves = last is not None and _leaves(last)
    if leaves and last.target is not None:
        yield labels[last.target]
    if (not leaves or last.guarded) and k + 1 < count:
        yield k + 1


def _dominators(graph: list[Block], before: list[list[int]]) -> list[int]:
    """For every block the set of those that are on every way to it, as the bits of an integer."""
    everything = (1 << len(graph)) - 1
    found = [1] + [everything] * (len(graph) - 1)
    changed = True
    while changed:
        changed = False
        for k in range(1, len(graph)):
            common = everything
            for other in before[k]:
                common &= found[other]
            common |= 1 << k
            if common != found[k]:
                found[k], changed = common, True
    return found


def _body(tail: int, head: int, before: list[list[int]]) -> Iterable[int]:
    """Blocks from which ``tail`` can be reached without passing ``head``."""
    body, todo = {head}, [tail]
    while todo:
        k = todo.pop()
        if k not in body:
            body.add(k)
            todo += before[k]
    return body


def disassemble(cubin: bytes, lines: bool = False) -> str:
    """Return nvdisasm's listing."""
    program = nvdisasm()
    if program is None:
        raise FileNotFoundError("nvdisasm is missing: python -m pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        options = ["-c", "-gi"] if lines else ["-c"]
        return subprocess.run(
            [program, *options, file.name], capture_output=True, text=True, check=True
        ).stdout


def nvdisasm() -> str | None:
    """Return the path of nvdisasm in the nvidia-cuda-nvdisasm wheel."""
    folders = {Path(entry) for entry in sys.path if entry.endswith("site-packages")}
    found = (path for folder in folders for path in folder.glob("nvidia/*/bin/nvdisasm"))
    return next((str(path) for path in found), None)
