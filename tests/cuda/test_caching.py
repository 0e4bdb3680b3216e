"""Kernels of the GPU on disk: compiled once for an architecture, a version of the package and a limit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

from tests.cuda import test_compile

if config.ENABLE_CUDASIM or config.DISABLE_JIT:
    pytest.skip("nothing is compiled in the CUDA simulator", allow_module_level=True)
if reason := test_compile.missing():
    pytest.skip(reason, allow_module_level=True)

from numbabn.backends import stamp
from numbabn.backends.cuda import caching, copies

ROOT = Path(__file__).parents[2]
COMPILED, FOUND = "0 1", "1 0"


def run(folder, architecture="9.0"):
    """Return how often a new process found the kernel on disk and did not, and the bytes of its code."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.cuda.cached_program", architecture],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found, missed, size = result.stdout.split()
    return f"{found} {missed}", int(size)


def test_a_second_process_finds_the_kernel_of_the_first(tmp_path):
    first = run(tmp_path)
    assert first[0] == COMPILED
    assert run(tmp_path) == (FOUND, first[1])
    assert run(tmp_path, "8.0")[0] == COMPILED
    assert run(tmp_path) == (FOUND, first[1])
    for path in tmp_path.rglob("*.nb?"):
        path.write_bytes(b"not what was saved")
    assert run(tmp_path) == (COMPILED, first[1])
    assert run(tmp_path) == (FOUND, first[1])


def test_versions_and_limits_have_files_of_their_own(monkeypatch):
    function = copies._fill.function
    names = [caching.cache_of(function, limit)._cache_file._index_name for limit in (None, 64)]
    monkeypatch.setattr(stamp, "package_stamp", lambda: "another")
    names.append(caching.cache_of(function, None)._cache_file._index_name)
    assert len(set(names)) == 3


def test_without_a_folder_nothing_is_kept(monkeypatch):
    def refused(*_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(caching.CUDACache, "__init__", refused)
    cache = caching.cache_of(copies._fill.function, None)
    assert cache.load_overload(None, None) is None
