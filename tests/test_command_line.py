"""The commands ``info`` and ``warm-up`` of ``python -m numbabn``: what they print, do and return."""

import inspect
import logging
import re
import signal
import sys

import numba
import pytest

import numbabn as nbn
from numbabn import __main__ as command
from numbabn._warm_up import DTYPES, OPERATIONS, SHAPES, Step, steps
from numbabn.backends.compilation import LOGGER, Compilation
from tests.support.jit import needs_jit
from tests.support.processes import python, run_python


@pytest.fixture
def run(monkeypatch):
    """Run a command in this process and return its exit status; afterwards Ctrl-C does what it did before."""
    handler = signal.getsignal(signal.SIGINT)

    def main(*arguments):
        try:
            return command.main(arguments)
        except SystemExit as end:
            return end.code

    yield main
    signal.signal(signal.SIGINT, handler)


def test_info_is_show_config(run, capsys):
    nbn.show_config()
    expected = capsys.readouterr().out
    assert run("info") == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("arguments", [["--help"], ["warm-up", "--help"]])
def test_help(arguments, run, capsys):
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    for word in (
        [*SHAPES, *DTYPES, *OPERATIONS, "Left out", "exit status"]
        if len(arguments) > 1
        else ["info", "warm-up"]
    ):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["warmup"], "invalid choice: 'warmup'"),
        (["warm-up", "--layouts", "NCWH"], "invalid choice: 'NCWH'"),
        (["warm-up", "--dtypes"], "expected at least one argument"),
        (["warm-up", "--dtypes", "uint8", "--operations", "training"], "uint8 has no training"),
        (
            ["warm-up", "--layouts", "rows", "--dtypes", "uint8"],
            "rows and groups have neither uint8 nor statistics",
        ),
        (
            ["warm-up", "--layouts", "rows", "--operations", "statistics"],
            "rows and groups have neither uint8 nor",
        ),
    ],
)
def test_wrong_options(arguments, message, run, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_steps_of_every_choice():
    every = steps(SHAPES, DTYPES, OPERATIONS)
    assert {step.layout for step in every} == set(SHAPES)
    for layout in SHAPES:
        by_sample = layout in ("rows", "NCHW-groups", "NHWC-groups")
        floats = ("training", "inference") if by_sample else OPERATIONS
        assert {(step.dtype, step.operation) for step in every if step.layout == layout} == {
            *((dtype, operation) for dtype in ("float32", "float64") for operation in floats),
            *(("uint8", operation) for operation in ("inference", "statistics") if not by_sample),
        }


@pytest.mark.slow
@pytest.mark.parametrize("step", steps(["NC", "rows"], ["float32", "uint8"], OPERATIONS)[::2], ids=str)
@needs_jit
def test_steps_run(step):
    step.run()


# What a real warm-up is good for ----------------------------------------------------------------------------

REAL_CALLS = """
    import logging, sys
    logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
    logging.getLogger("numbabn").setLevel(logging.DEBUG)
    import numpy as np
    import numbabn as nbn

    def features():
        for shape in ((32, 64), (8192, 512)):
            nbn.BatchNorm(shape[1]).eval()(np.zeros(shape, np.float32))

    def rows():
        for layer in (nbn.LayerNorm, nbn.RMSNorm):
            for shape in ((32, 64), (3, 5, 7), (8, 128, 512), (2, 200_000)):
                norm = layer(shape[-1])
                norm.backward(norm(np.zeros(shape, np.float32)))

    def groups():
        for shape in ((32, 64, 7, 7), (4, 32, 56, 56), (2, 8, 300, 300)):
            for norm in (nbn.GroupNorm(4, shape[1]), nbn.InstanceNorm(shape[1], scale=True)):
                norm.backward(norm(np.zeros(shape, np.float32)))

    def last():
        for shape in ((32, 7, 7, 64), (4, 56, 56, 32), (1, 300, 300, 8)):
            for norm in (nbn.GroupNorm(4, shape[-1], axis=-1), nbn.InstanceNorm(shape[-1], axis=-1)):
                norm.backward(norm(np.zeros(shape, np.float32)))

    def images():
        for shape in ((2, 8, 8, 3), (8, 64, 64, 3), (2, 8, 8, 64)):
            x = np.zeros(shape, np.uint8)
            channels = shape[-1]
            nbn.batch_norm_inference(x, [0.5] * channels, [1.0] * channels, axis=-1, dtype=np.float32)
            nbn.Moments(axis=-1).update(x).normalize(x)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (("--layouts", "NC", "--dtypes", "float32", "--operations", "inference"), "features"),
        (("--layouts", "rows"), "rows"),
        (("--layouts", "NCHW-groups", "--operations", "training"), "groups"),
        (("--layouts", "NHWC-groups", "--operations", "training"), "last"),
        (("--layouts", "NHWC", "--dtypes", "uint8"), "images"),
    ],
)
@needs_jit
def test_after_a_warm_up_nothing_is_compiled(options, calls, tmp_path):
    result = python("-m", "numbabn", "warm-up", *options, NUMBA_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("numbabn: compiled ")]
    number = int(re.match(r"(\d+) kernels compiled in \d+ s, cache: ", result.stdout)[1])
    assert len(lines) == number > 0
    assert str(tmp_path) in result.stdout
    lines = run_python(f"{REAL_CALLS}\n    {calls}()", NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert lines
    assert all(line.startswith("numbabn: loaded ") for line in lines), lines


@needs_jit
def test_ctrl_c_ends_a_warm_up(tmp_path):
    code = """
        import runpy, signal, sys
        from numbabn._warm_up import Step
        Step.run = lambda self: signal.raise_signal(signal.SIGINT)
        sys.argv = ["numbabn", "warm-up"]
        runpy.run_module("numbabn", run_name="__main__")
    """
    result = python("-c", inspect.cleandoc(code), NUMBA_CACHE_DIR=str(tmp_path))
    assert result.returncode == -signal.SIGINT
    text = "Interrupted. What is compiled is kept: run the same command to go on."
    assert result.stderr.split("\n") == ["", text, ""]


# Warm-ups of nothing ----------------------------------------------------------------------------------------


@pytest.fixture
def compiling(monkeypatch):
    """Let a warm-up make one call, which logs what it is given; no kernel is compiled."""

    def compiles(*found):
        monkeypatch.setattr(command, "steps", lambda *_: [Step("NC", (1, 1), "float32", "training")])
        monkeypatch.setattr(Step, "run", lambda self: [LOGGER.info(compilation) for compilation in found])

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 0)
    return compiles


KEPT = Compilation("rows.forward", "float32", 2.0, folder="/cache")
LOST = Compilation("rows.backward", "float32", 2.0, reason="No space left on device")


def test_a_kernel_that_is_not_cached_is_a_failure(run, compiling, capsys):
    compiling(KEPT)
    assert run("warm-up") == 0
    compiling(KEPT, LOST)
    assert run("warm-up") == 1
    printed = capsys.readouterr()
    assert "2 kernels compiled in 0 s" in printed.out
    assert "1 kernels are not cached: No space left on device" in printed.err
    assert (LOGGER.level, [type(handler) for handler in LOGGER.handlers]) == (0, [logging.NullHandler])


def test_a_warm_up_shows_a_progress_bar(run, compiling, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    compiling(KEPT)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("warm-up") == 0
    assert "100%" in capsys.readouterr().err


def test_a_warm_up_needs_no_tqdm(run, compiling, monkeypatch):
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    compiling(KEPT)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("warm-up") == 0


def test_a_warm_up_with_one_thread_says_what_is_missing(run, compiling, monkeypatch, capsys):
    compiling(KEPT)
    monkeypatch.setattr(command, "use_threads", lambda nbytes: False)
    assert run("warm-up") == 0
    assert "Kernels for several threads are left out" in capsys.readouterr().err


def test_a_warm_up_without_the_jit_is_a_failure(run, monkeypatch, capsys):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert run("warm-up") == 1
    assert "NUMBA_DISABLE_JIT" in capsys.readouterr().err
