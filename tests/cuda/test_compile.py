"""Every kernel that the library launches, compiled for four architectures as at a launch: what came out.

The kernels are compiled once, in a process of its own: the CUDA simulator and a disabled JIT leave nothing
to compile, and the compiler is told of devices that are not there. The whole report is printed by
``python -m tests.support.cuda.compile_report``.
"""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from tests.support.cuda import sass

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
# With 256 threads a block, 64 registers of a thread let 4 blocks run on a multiprocessor, and 80 let 3.
REGISTERS, MOST_REGISTERS = 64, 80
# Shared memory for no more than 2 blocks; others have it for 4.
SMALL = "sm_120a"
HALVES = ("float16", "bfloat16")
SUMS = "strips._products"
STATIC_SHARED = 48 * 1024  # more needs a call that numba-cuda does not have
# The loops over elements of each kernel: what must be found in its machine code, or nothing has been checked.
AFFINE, GRADIENT = ["write_affine", "write_affine_fours"], ["write_gradient", "write_gradient_fours"]
FOLLOWED = ["derive_elements", "load_tile", "write_elements"]
ELEMENT_LOOPS = {
    "kernels.moments (float32 sums)": ["deviations", "load_tile"],
    "kernels.products": ["load_tile", "products"],
    "kernels.normalize": ["load_tile", *AFFINE],
    "kernels.gradient": ["load_tile", *GRADIENT],
    "kernels.forward": ["deviations", "load_tile", *AFFINE],
    "kernels.backward": ["load_tile", "products", *GRADIENT],
    "kernels.shared_gradient": ["load_tile", *GRADIENT],
    "along_kernels.forward": ["deviations", "load_tile", "write_normalized"],
    "along_kernels.backward": ["load_tile", "piece_products", "write_gradient"],
    "strips._products": ["_products"],
    "kernels.normalize (result)": ["load_tile", *AFFINE],
    "kernels.normalize (gradient)": [*FOLLOWED, *AFFINE],
    "kernels.forward (result)": ["deviations", "load_tile", *AFFINE],
    "kernels.products (gradient)": ["derive_elements", "load_tile", "products"],
    "kernels.gradient (gradient)": [*FOLLOWED, *GRADIENT],
    "kernels.backward (gradient)": [*FOLLOWED, "products", *GRADIENT],
    "kernels.shared_gradient (gradient)": [*FOLLOWED, *GRADIENT],
    "along_kernels.forward (result)": ["deviations", "load_tile", "write_normalized"],
    "along_kernels.backward (gradient)": [*FOLLOWED, "piece_products", "write_gradient"],
    "strips._products (gradient)": ["_products"],
}
# Instructions of the loops of plain float32 kernels for each access of 16 bytes, or for each element of sums
# (38 and 54 of four elements), at most: a division of indices would take twenty of them. Three of `load_tile`
# are loads of nothing that ptxas puts before every asynchronous copy for sm_90.
PER_ACCESS = {
    ("kernels.forward", "load_tile"): ("LDGSTS.E.BYPASS.128", 25),
    ("kernels.forward", "deviations"): ("LDS", 13),
    ("kernels.forward", "write_affine_fours"): ("STG.E.128", 31),
    ("kernels.normalize", "load_tile"): ("LDGSTS.E.BYPASS.128", 25),
    ("kernels.normalize", "write_affine_fours"): ("STG.E.128", 31),
    ("kernels.backward", "load_tile"): ("LDGSTS.E.BYPASS.128", 25),
    ("kernels.backward", "write_gradient_fours"): ("STG.E.128", 35),
    ("kernels.gradient", "write_gradient_fours"): ("STG.E.128", 35),
    ("along_kernels.forward", "load_tile"): ("LDGSTS.E.BYPASS.128", 17),
    ("along_kernels.forward", "deviations"): ("LDS.128", 40),
    ("along_kernels.forward", "write_normalized"): ("STG.E.128", 85),
    ("along_kernels.backward", "write_gradient"): ("STG.E.128", 85),
}
# The same for sums of which the loop over four elements is meant, not the one over those that are left.
PER_FOUR = {("kernels.forward", "deviations"): (4, 40), ("kernels.backward", "products"): (8, 56)}
WRITERS = (
    "kernels.normalize", "kernels.gradient", "kernels.shared_gradient", "kernels.forward", "kernels.backward",
    "along_kernels.forward", "along_kernels.backward",
)  # fmt: skip

WRITERS_OF_ELEMENTS = ("kernels.normalize", "kernels.gradient", "kernels.shared_gradient")


def missing():
    """What cannot be imported or found, or nothing."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed"
    try:
        from cuda.bindings import nvjitlink
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvJitLink")
        load_nvidia_dynamic_lib("nvvm")
        del nvjitlink
    except Exception as error:  # of several libraries, none of which may be there to name it
        return f"{type(error).__name__}: {error}"
    return None if sass.nvdisasm() else "nvdisasm is not installed"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    if config.DISABLE_JIT:
        pytest.skip("the JIT is off: the other run of CI compiles")
    if reason := missing():
        reason = f'{reason}: python -m pip install "numba-cuda[cu13]" nvidia-cuda-nvdisasm'
        assert "NUMBABN_MUST_COMPILE" not in os.environ, reason
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("compile") / "reports.json"
    hidden = {"NUMBA_ENABLE_CUDASIM", "NUMBA_DISABLE_JIT"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.cuda.compile_report", "--json", path],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def reports(everything):
    return everything["reports"]


def of_samples(report):
    """Whether samples have statistics of their own, for which kernels need more registers."""
    return "(samples)" in report["kernel"]


def wrong(reports, value, allowed):
    """The reports whose value is not allowed, as lines to read."""
    return [
        f"{r['kernel']} of {r['dtype']} for {r['architecture']}: {value(r)}"
        for r in reports
        if not allowed(value(r))
    ]


def count(report, opcode):
    """Number of instructions of a kind, whatever its further modifiers."""
    return sum(n for name, n in report["counts"].items() if (name + ".").startswith(opcode + "."))


def of_tiles(reports):
    return [r for r in reports if r["kernel"].startswith(("kernels.", "along_kernels."))]


@pytest.mark.slow
@pytest.mark.compile
def test_every_kernel_is_compiled(everything, reports):
    compiled = {(r["kernel"].split(" ")[0], r["architecture"]) for r in reports}
    assert len(everything["kernels"]) >= 6
    assert compiled == {(name, arch) for name in everything["kernels"] for arch in ARCHITECTURES}
    dtypes = {(r["kernel"].split(" ")[0], r["dtype"]) for r in of_tiles(reports)} - {("kernels.weigh", "any")}
    names = {kernel for kernel, _ in dtypes}
    assert dtypes == set(itertools.product(names, (*HALVES, "float32", "float64")))
    clusters = {(r["kernel"], r["architecture"]) for r in reports if r["kernel"].endswith("(cluster)")}
    kernels = ("kernels.forward (cluster)", "kernels.backward (cluster)")
    assert clusters == set(itertools.product(kernels, ARCHITECTURES[1:]))


def is_narrow(report):
    """Whether a kernel computes in float32, and all samples share their statistics."""
    return report["dtype"] in (*HALVES, "float32") and not of_samples(report)


@pytest.mark.slow
@pytest.mark.compile
def test_registers(reports):
    narrow = [r for r in reports if is_narrow(r)]
    assert not wrong(narrow, lambda r: r["registers"], lambda n: 0 < n <= REGISTERS)
    assert not wrong(reports, lambda r: r["registers"], lambda n: n <= MOST_REGISTERS)


@pytest.mark.slow
@pytest.mark.compile
def test_nothing_is_spilled(reports):
    assert not wrong(reports, lambda r: r["spill_bytes"], lambda n: n == 0)


@pytest.mark.slow
@pytest.mark.compile
def test_no_local_memory(reports):
    assert not wrong(reports, lambda r: r["stack_bytes"], lambda n: n == 0)
    assert not wrong(reports, lambda r: count(r, "LDL") + count(r, "STL"), lambda n: n == 0)


@pytest.mark.slow
@pytest.mark.compile
def test_shared_memory_and_blocks(reports):
    assert not wrong(reports, lambda r: r["shared_bytes"], lambda n: n <= STATIC_SHARED)
    large = [r for r in of_tiles(reports) if r["architecture"] != SMALL]
    narrow = [r for r in large if is_narrow(r)]
    assert not wrong(narrow, lambda r: r["blocks"], lambda n: n >= 4)
    assert not wrong(large, lambda r: r["blocks"], lambda n: n >= 3)
    assert not wrong(reports, lambda r: r["blocks"], lambda n: n >= 2)


@pytest.mark.slow
@pytest.mark.compile
def test_blocks_meet_without_full_fences(reports):
    """They release and acquire; those of a cluster have a barrier of the hardware, and no counters."""
    fences = ("MEMBAR.SC", "MEMBAR.ALL.SYS", "MEMBAR.SC.SYS")
    assert not wrong(reports, lambda r: sum(count(r, fence) for fence in fences), lambda n: n == 0)
    clusters = [r for r in reports if r["kernel"].endswith("(cluster)")]
    waiting = [r for r in reports if r["kernel"] in ("kernels.forward", "kernels.backward")]
    for opcode in ("UCGABAR_ARV", "UCGABAR_WAIT", "LD.E.64"):  # the last one reads another block's memory
        assert not wrong(clusters, lambda r, opcode=opcode: count(r, opcode), lambda n: n > 0)
        assert not wrong(waiting, lambda r, opcode=opcode: count(r, opcode), lambda n: n == 0)
    assert not wrong(waiting, lambda r: count(r, "ATOMG"), lambda n: n > 0)
    assert not wrong(clusters, lambda r: count(r, "ATOMG") + count(r, "REDG"), lambda n: n == 0)


@pytest.mark.slow
@pytest.mark.compile
def test_sums_are_exchanged_in_warps(reports):
    names = ("kernels.moments", "kernels.products", "kernels.forward", "kernels.backward", "along_kernels.")
    sums = [r for r in reports if r["kernel"].startswith(names)]
    assert not wrong(sums, lambda r: count(r, "SHFL"), lambda n: n > 0)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("opcode", ["LDGSTS.E.BYPASS.128", "LDS.128", "STG.E.128"])
def test_accesses_of_16_bytes(reports, opcode):
    # Tiles are read by asynchronous copies to shared memory, which take the place of LDG.E.128.
    tiles = [r for r in of_tiles(reports) if r["kernel"] != "kernels.weigh"]
    chosen = [r for r in tiles if opcode.startswith("LDGSTS") or r["kernel"].startswith(WRITERS)]
    if not opcode.startswith("LDGSTS"):
        chosen = [r for r in chosen if r["dtype"] not in HALVES]
    assert chosen
    assert not wrong(chosen, lambda r: count(r, opcode), lambda n: n > 0)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("opcode", ["LDGSTS.E.64", "LDS.64", "STG.E.64"])
def test_accesses_of_four_halves(reports, opcode):
    """Half types are computed four at a time, and copied so where rows are no multiples of eight."""
    chosen = [r for r in of_tiles(reports) if r["dtype"] in HALVES]
    if not opcode.startswith("LDGSTS"):  # the others read and write float64, too, which are 8 bytes
        chosen = [r for r in chosen if r["kernel"].startswith(WRITERS_OF_ELEMENTS)]
    assert {r["dtype"] for r in chosen} == set(HALVES)
    assert not wrong(chosen, lambda r: count(r, opcode), lambda n: n > 0)


@pytest.mark.slow
@pytest.mark.compile
def test_sums_over_samples_are_read_four_at_a_time(reports):
    halves = [r for r in reports if r["kernel"].startswith(SUMS) and r["dtype"] in HALVES]
    others = [r for r in reports if r["kernel"].startswith(SUMS) and r not in halves]
    assert halves
    assert others
    assert not wrong(halves, lambda r: count(r, "LDG.E.64"), lambda n: n > 0)
    assert not wrong(others, lambda r: count(r, "LDG.E.128"), lambda n: n > 0)


@pytest.mark.slow
@pytest.mark.compile
def test_residuals_are_read_16_bytes_at_a_time(reports):
    """And those of halves 8 bytes at a time, which are four, too."""
    chosen = [r for r in reports if r["kernel"].endswith("(result)")]
    halves = [r for r in chosen if r["dtype"] in HALVES]
    others = [r for r in chosen if r not in halves]
    assert {r["dtype"] for r in others} == {"float32", "float64"}
    assert {r["dtype"] for r in halves} == set(HALVES)
    assert not wrong(others, lambda r: count(r, "LDG.E.128"), lambda n: n > 0)
    assert not wrong(halves, lambda r: count(r, "LDG.E.64"), lambda n: n > 0)


@pytest.mark.slow
@pytest.mark.compile
def test_no_float64_and_no_calls_in_loops_over_elements_of_float32(reports):
    kinds = re.compile(r" \((samples|cluster)\)")
    with_loops = [r for r in reports if r["element_loops"]]
    found = {(kinds.sub("", r["kernel"]), *sorted(functions_of(r))) for r in with_loops}
    assert found == {(kernel, *sorted(loops)) for kernel, loops in ELEMENT_LOOPS.items()}
    assert not wrong(reports, lambda r: r["slow_in_loops"], lambda leaks: not leaks)


def functions_of(report):
    """The functions whose loops over elements are among the innermost loops of a kernel."""
    return {function for functions, *_ in report["element_loops"] for function in functions}


@pytest.mark.slow
@pytest.mark.compile
def test_instructions_of_loops_over_elements(reports):
    found = {}
    for r in reports:
        for (function,), instructions, accesses in r["element_loops"] if r["dtype"] == "float32" else ():
            found.setdefault((r["kernel"], function), []).append((instructions, accesses))
    counts = {
        place: [n / accesses[opcode] for n, accesses in found[place] if opcode in accesses]
        for place, (opcode, _) in PER_ACCESS.items()
    }
    assert all(counts.values()), "loops were not found"
    assert not {k: n for k, n in counts.items() if max(n) > PER_ACCESS[k][1]}
    fours = {
        place: [n for n, accesses in found[place] if accesses.get("LDS") == loads]
        for place, (loads, _) in PER_FOUR.items()
    }
    assert all(fours.values()), "loops were not found"
    assert not {k: n for k, n in fours.items() if max(n) > PER_FOUR[k][1]}


def test_loops_of_a_listing():
    listing = """
kernel:
    //## File "/a.py", line 1
        /*0000*/    MOV R1, RZ ;
.L_outer:
    //## File "/a.py", line 2 inlined at "/b.py", line 9
    //## File "/b.py", line 9
        /*0010*/    DADD R2, R2, R4 ;
.L_inner:
    //## File "/a.py", line 3
        /*0020*/    LDS.128 R4, [R1] ;
        /*0030*/    @P0 BRA `(.L_skip) ;
        /*0040*/    DFMA.RM R2, R2, R4, R6 ;
.L_skip:
        /*0050*/    BRA.U UP0, `(.L_inner) ;
        /*0060*/    @!P1 BRA `(.L_outer) ;
        /*0070*/    EXIT ;
.L_end:
        /*0080*/    BRA `(.L_end) ;
"""
    graph = sass.blocks(listing)
    inner, end = sorted(sass.loops(graph), key=min)
    opcodes = [i.opcode for k in sorted(inner) for i in graph[k].instructions]
    assert opcodes == ["LDS.128", "BRA", "DFMA.RM", "BRA.U"]
    assert [graph[k].instructions[0].opcode for k in end] == ["BRA"]
    outside = graph[min(inner) - 1].instructions[-1]
    assert outside.lines == (sass.Line("/a.py", 2), sass.Line("/b.py", 9))
    assert graph[min(inner)].instructions[0].lines == (sass.Line("/a.py", 3),)
    for opcode in ("DADD", "DFMA.RM", "DSETP.GT.AND"):
        assert sass.FP64.match(opcode)
    for opcode in ("FADD", "DEPBAR", "DADDX"):
        assert not sass.FP64.match(opcode)
