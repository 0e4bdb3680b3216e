"""Registers, spills and SASS of every kernel of the library: ``python -m tests.support.cuda.compile_report``.

Compiles as numba-cuda does at a launch, LTO-IR linked by nvJitLink with the library's limit on registers, and
needs neither a GPU nor a driver: ``python -m pip install "numba-cuda[cu13]" nvidia-cuda-nvdisasm``.

The loops over the elements of an array are found in the source: those whose variable is ``e``. Each kernel is
compiled a second time with line numbers, which change a few instructions, to find them in the machine code;
for one architecture only, since the arithmetic is that of LLVM's code, which is the same for all.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numba.cuda.dispatcher
import numpy as np
from cuda.bindings import nvjitlink
from numba import cuda
from numba.cuda.dispatcher import CUDADispatcher

from benchmarks.gpu import launches
from numbabn.backends import cuda as backend
from numbabn.backends.cuda import arguments, copies, gpu, launching, plan, running
from numbabn.backends.verbs import Population, View
from tests.support.cuda import sass

FAMILY = (
    View(8192, 1, 1, 768, 1),
    View(32, 1, 32, 8, 3136),
    View(32, 1, 64, 1, 3136),
)  # layer, group, instance
ARCHITECTURES = {"sm_80": (8, 0), "sm_90a": (9, 0, "a"), "sm_100a": (10, 0, "a"), "sm_120a": (12, 0, "a")}
LOWEST = "sm_80"
# Of a multiprocessor: registers, threads, bytes of shared memory, of which every block takes 1 KB more.
REGISTERS, THREADS = 65536, 2048
DTYPES = {type(zero): name for name, zero in arguments.ZEROS.items()}
WITH_LINES = "sm_90a"
ACCESS = re.compile("LD|ST[GSL]")
SLOW = re.compile(sass.FP64.pattern + "|CALL")
SHARED = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024, "sm_100a": 228 * 1024, "sm_120a": 100 * 1024}
RESERVED = 1024


class Loop(NamedTuple):
    """An innermost loop over elements, in machine code."""

    functions: list[str]  # whose loop it is
    instructions: int
    accesses: dict[str, int]  # to memory


@dataclass(frozen=True)
class Report:
    """What became of one kernel for one signature and architecture."""

    kernel: str
    dtype: str
    architecture: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    blocks: int  # resident on a multiprocessor
    instructions: int
    counts: dict[str, int]  # of memory instructions and of float64 arithmetic
    element_loops: list[Loop]  # the innermost ones; WITH_LINES
    slow_in_loops: list[str]  # float64 arithmetic and calls (of 64-bit divisions) there, by file and line


def kernels() -> dict[str, gpu.Kernel]:
    """Return every `Kernel` of the backend, by module and name."""
    found = {}
    for module in _modules():
        for name, value in vars(module).items():
            if isinstance(value, gpu.Kernel) and value.function.__module__ == module.__name__:
                found[f"{module.__name__.rsplit('.')[-1]}.{name}"] = value
    return found


def launched() -> list[launches.Launch]:
    """Return a launch of every kernel with every signature that the library has for it."""
    made: list[launches.Launch] = []
    shape = (32, 64, 3136)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for resident in (0, 10**6):  # in two launches and in one
            made += launches.forward(shape, dtype, resident) + launches.backward(shape, dtype, resident)
            made += launches.followed(shape, dtype, resident)
        made += launches.inference(shape, dtype, 0)
        made += launches.forward(shape, dtype, 0, clusters=True)
        made += launches.backward(shape, dtype, 0, clusters=True)
        for view, resident, followed in itertools.product(FAMILY, (0, 10**6), (False, True)):
            made += launches.family(view, dtype, resident, followed)
        with launches.recorded(0) as more:
            backend.moments(launches.Array(shape, dtype), launches.view_of(shape))
            for rank in (1, 4):
                array = launches.Array((3,) * rank, dtype)
                for of in (dtype, np.float16):
                    copies.copy(array, launches.Array((3,) * rank, of, array.strides[::-1]))
            copies.fill(launches.Array((3,), dtype), 0.0)
        made += more
    with launches.recorded(0) as more:
        known, batch, population = (tuple(launches.Array((64,), np.float64) for _ in "ab") for _ in range(3))
        running.average(known, batch, 0.1, 1.0)
        running.pool(known, Population(100, population), batch, 10)
    made += more
    return list(
        {(id(launch.kernel), launching.signature(launch.arguments)): launch for launch in made}.values()
    )


def reports(architectures: tuple[str, ...] = tuple(ARCHITECTURES)) -> Iterator[Report]:
    """Compile everything; linking and disassembling take most of the time, and run beside each other."""
    every = launched()
    with ThreadPoolExecutor() as pool:
        waiting = []
        for architecture in architectures:
            for lines in (False, True) if architecture == WITH_LINES else (False,):
                _prepare(architecture, lines)
                for launch in every:
                    if _is_compiled_for(launch, architecture) and (not lines or _shows_lines(launch)):
                        compiled = _compile(launch, architecture, lines)
                        waiting.append((launch, architecture, pool.submit(_examine, *compiled, lines)))
        found: dict[Any, dict[str, Any]] = {}
        for launch, architecture, result in waiting:
            row = found.setdefault((architecture, id(launch)), _names(launch, architecture))
            row |= result.result()
    for row in found.values():
        yield Report(**{"element_loops": [], "slow_in_loops": [], **row})


def _modules() -> list[Any]:
    names = [info.name for info in pkgutil.iter_modules(backend.__path__) if "simulated" not in info.name]
    return [importlib.import_module(f"numbabn.backends.cuda.{name}") for name in names]


def _is_compiled_for(launch: launches.Launch, architecture: str) -> bool:
    """Whether a launch is compiled for an architecture: kernels of bfloat16 for the lowest one, to save time.

    They are those of float16 but for the conversions, whose instructions are the same on later ones. The
    lowest one has no clusters.
    """
    kinds = {type(a) for a in launch.arguments}
    return not kinds & ({arguments.Cluster} if architecture == LOWEST else {np.int16})


def _names(launch: launches.Launch, architecture: str) -> dict[str, Any]:
    dtype = next((DTYPES[type(a)] for a in launch.arguments if type(a) in DTYPES), "any")
    name = next(name for name, kernel in kernels().items() if kernel is launch.kernel)
    wide = launch.named.get("wide")
    if wide is not None:
        name += " (float64 sums)" if isinstance(wide, np.float64) else " (float32 sums)"
    name += " (samples)" if isinstance(launch.named.get("geometry"), plan.SampleGeometry) else ""
    kinds = {
        arguments.Output: " (result)",
        arguments.GradientInputs: " (gradient)",
        arguments.Cluster: " (cluster)",
    }
    name += "".join(kinds.get(type(a), "") for a in launch.arguments)
    ranks = [len(a) for name, a in launch.named.items() if name == "shape"]
    return {
        "kernel": name + "".join(f" (rank {n})" for n in ranks),
        "dtype": dtype,
        "architecture": architecture,
    }


def _has_loops(launch: launches.Launch) -> bool:
    """Whether float64 arithmetic would be a mistake in some loop of this kernel: it computes in float32."""
    return (
        not {"geometry", "rows", "strips"}.isdisjoint(launch.named)
        and not isinstance(launch.named["like"], np.float64)
        and not isinstance(launch.named.get("wide"), np.float64)
    )


def _shows_lines(launch: launches.Launch) -> bool:
    return _has_loops(launch) and _links_with_lines(launch)


def _links_with_lines(launch: launches.Launch) -> bool:
    """Whether nvJitLink takes the kernel with line numbers; without them it takes every one.

    13.4 and 13.5 refuse one, "Symbol name with unsupported characters", though its names have letters, digits
    and underscores. Its other dtypes, and what writes an `arguments.Output`, have the same loops.
    """
    name, kinds = launch.kernel.function.__qualname__, {type(a) for a in launch.arguments}
    refused = name == "forward" and "affine_map" in launch.named and "rows" in launch.named
    return not (refused and np.uint16 in kinds and arguments.Output not in kinds)


def _prepare(architecture: str, lines: bool) -> None:
    """Compile device functions for an architecture from now on, as if its device were there.

    What is kept of them is LLVM's code, the same for all architectures.
    """
    device = SimpleNamespace(compute_capability=ARCHITECTURES[architecture][:2])
    numba.cuda.dispatcher.get_current_device = lambda: device
    for module in _modules():
        for value in vars(module).values():
            if isinstance(value, CUDADispatcher) and value.targetoptions["lineinfo"] != lines:
                value.targetoptions["lineinfo"] = lines
                value.overloads.clear()


def _compile(launch: launches.Launch, architecture: str, lines: bool) -> tuple[bytes, list[str], str]:
    function = launch.kernel.function
    code, _ = cuda.compile(
        function, launching.signature(launch.arguments), cc=ARCHITECTURES[architecture], device=False,
        abi="numba", output="ltoir", lineinfo=lines,
    )  # fmt: skip
    options = [f"-arch={architecture}", "-lto", "-Xptxas=-v"]
    return code, options + ["-lineinfo"] * lines, function.__name__


class _Linked(NamedTuple):
    """Machine code, what the linker said, and what `launching.with_fewest_registers` asks for."""

    cubin: bytes
    log: str
    regs_per_thread: int
    local_mem_per_thread: int


def _examine(code: bytes, options: list[str], name: str, lines: bool) -> dict[str, Any]:
    linked = launching.with_fewest_registers(lambda limit: _link(code, options, name, limit))
    listing = sass.disassemble(linked.cubin, lines)
    return _of_loops(listing) if lines else _of_log(linked.log, options) | _of_listing(listing)


def _link(code: bytes, options: list[str], name: str, limit: int | None) -> _Linked:
    """Link a kernel as numba-cuda does at a launch, with a limit of registers or None."""
    if limit is not None:
        options = [*options, f"-maxrregcount={limit}"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), name)
        try:
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            raise RuntimeError(f"{name} with {options}: {_error_log(handle)}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    text = log.decode()
    found = _of_log(text, options)
    return _Linked(bytes(cubin), text, found["registers"], found["stack_bytes"] + found["spill_bytes"])


def _error_log(handle: Any) -> str:
    log = bytearray(nvjitlink.get_error_log_size(handle))
    nvjitlink.get_error_log(handle, log)
    return log.decode()


def _of_log(log: str, options: list[str]) -> dict[str, int]:
    def number(pattern: str) -> int:
        return max((int(n) for n in re.findall(pattern, log)), default=0)

    registers, shared = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
    if not registers:
        raise RuntimeError(f"the linker says nothing of registers:\n{log}")
    return {
        "registers": registers,
        "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "stack_bytes": number(r"(\d+) bytes stack frame"),
        "shared_bytes": shared,
        "blocks": resident(registers, shared, options[0].removeprefix("-arch=")),
    }


def resident(registers: int, shared: int, architecture: str) -> int:
    """Return how many blocks a multiprocessor holds; registers are dealt out by 8 to a thread."""
    of_block = -(-registers // 8) * 8 * plan.THREADS
    return min(REGISTERS // of_block, THREADS // plan.THREADS, SHARED[architecture] // (shared + RESERVED))


def _of_listing(listing: str) -> dict[str, Any]:
    opcodes = [i.opcode for block in sass.blocks(listing) for i in block.instructions]
    shown = re.compile(r"(LD|ST|ATOM|RED|CALL|MEMBAR|SHFL|UCGABAR)|" + sass.FP64.pattern)
    counts = Counter(opcode for opcode in opcodes if shown.match(opcode) and not opcode.startswith("LDC"))
    return {"instructions": len(opcodes), "counts": dict(sorted(counts.items()))}


def _of_loops(listing: str) -> dict[str, Any]:
    """Return the innermost loops over elements, and the slow instructions of these.

    An instruction is one of a loop if it lies there in the machine code, or comes from a line of the loop.
    """
    source = element_loops()
    graph = sass.blocks(listing)
    found, leaks = [], set()
    for body in sass.loops(graph):
        instructions = [i for k in body for i in graph[k].instructions]
        here = {source[line] for i in instructions for line in i.lines if line in source}
        if here:
            accesses = Counter(i.opcode for i in instructions if ACCESS.match(i.opcode))
            found.append(Loop(sorted(here), len(instructions), dict(accesses)))
            leaks |= {i for i in instructions if SLOW.match(i.opcode)}
    everywhere = (i for block in graph for i in block.instructions)
    leaks |= {i for i in everywhere if SLOW.match(i.opcode) and any(line in source for line in i.lines)}
    if not any(i.lines for block in graph for i in block.instructions):
        raise RuntimeError("the listing has no line numbers")
    return {"element_loops": found, "slow_in_loops": sorted({_described(leak) for leak in leaks})}


def _described(leak: sass.Instruction) -> str:
    first = leak.lines[0] if leak.lines else sass.Line("unknown", 0)
    return f"{leak.opcode} of {Path(first.path).name}:{first.number}"


def element_loops() -> dict[sass.Line, str]:
    """Return the function of every line within a loop over elements."""
    found = {}
    for module in _modules():
        path = module.__file__
        for function in ast.walk(ast.parse(Path(path).read_text())):
            for loop in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                if _is_over_elements(loop):
                    lines = range(loop.body[0].lineno, loop.end_lineno + 1)
                    found |= {sass.Line(path, number): function.name for number in lines}
    return found


def _is_over_elements(loop: ast.AST) -> bool:
    """Whether this is ``for e in ...`` or ``while place.e < ...``."""
    if isinstance(loop, ast.For):
        return isinstance(loop.target, ast.Name) and loop.target.id == "e"
    return isinstance(loop, ast.While) and ast.unparse(loop.test).startswith(("e <", "place.e <"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.cuda.compile_report", description=__doc__)
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), action="append")
    options = parser.parse_args()
    found = list(reports(tuple(options.architecture or ARCHITECTURES)))
    if options.json:
        everything = {"kernels": sorted(kernels()), "reports": [asdict(report) for report in found]}
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"{'kernel':38} {'dtype':8} {'arch':5} registers spills stack shared blocks instructions")
    for r in found:
        figures = f"{r.registers:9} {r.spill_bytes:6} {r.stack_bytes:5} {r.shared_bytes:6} {r.blocks:6}"
        line = f"{r.kernel:38} {r.dtype:8} {r.architecture:5} {figures} {r.instructions:12}"
        print(" ".join([line, *r.slow_in_loops]))


if __name__ == "__main__":
    main()
