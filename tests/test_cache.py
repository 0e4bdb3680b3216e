"""The on-disk cache of kernels: filled once, never stale, never the reason that anything fails, and logged.

Every process here runs a copy of the package whose source a test may change.
"""

import ast
import re
import shutil
from pathlib import Path

import numba
import pytest

import numbabn as nbn
from numbabn.backends.cpu import jit
from tests.support.jit import needs_jit
from tests.support.processes import run_python

pytestmark = needs_jit

# Moments of the first rows of an array, per number of rows, by a kernel that calls helpers of other files.
# An array of 8 MB takes its parallel version.
SMALL, LARGE = 7, 1 << 18
MOMENTS = """
    import gc, logging
    import numpy as np
    from numba.core.dispatcher import Dispatcher
    import numbabn as nbn

    log = []
    logging.Handler.emit = lambda self, record: log.append(f"{{record.levelname}} {{record.getMessage()}}")
    logging.getLogger("numbabn").addHandler(logging.Handler())
    logging.getLogger("numbabn").setLevel(logging.DEBUG)
    x = np.random.default_rng(0).standard_normal((1 << 18, 4))
    moments = {{rows: [v.tolist() for v in nbn.moments(x[:rows])[1:]] for rows in {rows}}}
    kernels = [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, Dispatcher) and thing.py_func.__module__.startswith("numbabn")
    ]
    print({{
        "package": nbn.__file__,
        "hits": sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels),
        "misses": sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels),
        "log": log,
        **moments,
    }})
"""


class Installation:
    """A copy of the package and a cache folder for it."""

    def __init__(self, folder):
        self.folder = folder
        self.cache = folder / "cache"
        shutil.copytree(
            Path(nbn.__file__).parent, folder / "numbabn", ignore=shutil.ignore_patterns("__pycache__")
        )

    def run(self, code, **environment):
        environment = {
            "NUMBA_CACHE_DIR": str(self.cache),
            "PYTHONDONTWRITEBYTECODE": "1",  # sources change within the resolution of a time stamp
            **environment,
        }
        return run_python(code, self.folder, **environment)

    def moments(self, rows=(SMALL,), before="", **environment):
        code = before + MOMENTS.format(rows=rows)
        found = ast.literal_eval(self.run(code, **environment).splitlines()[-1])
        assert Path(found["package"]).is_relative_to(self.folder)
        return found

    def append(self, name, code):
        """Upgrade a file of the package: code at its end replaces a function."""
        path = self.folder / "numbabn" / "backends" / "cpu" / name
        path.write_text(path.read_text() + code)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """An installation after its first run, and what that run found."""
    installation = Installation(tmp_path_factory.mktemp("filled"))
    return installation, installation.moments((SMALL, LARGE))


@pytest.fixture
def upgradable(filled, tmp_path):
    """The filled installation, put back as it was afterwards: Numba's cache knows a file by its path."""
    installation, found = filled
    shutil.copytree(installation.folder, tmp_path / "kept")
    yield installation, found
    shutil.rmtree(installation.folder)
    shutil.copytree(tmp_path / "kept", installation.folder)


def test_first_run_fills_the_cache(filled):
    installation, found = filled
    assert found["hits"] == 0
    assert found["misses"] >= 2
    assert list(installation.cache.rglob("*.nbi"))
    assert not list((installation.folder / "numbabn").rglob("*.nbi"))


def test_what_is_compiled_is_logged(filled):
    """One line a kernel, not one for every helper within."""
    installation, found = filled
    pattern = r"INFO compiled (\w+\.\w+) for float64( and several threads)? in \d+\.\d s, cached in (.*)"
    lines = [re.fullmatch(pattern, line).groups() for line in found["log"]]
    assert [line[:2] for line in lines] == [
        ("column_kernels.moments", None),
        ("welford.merge_chunks", None),
        ("column_kernels.moments", " and several threads"),
    ]
    for _, _, folder in lines:
        assert Path(folder).is_relative_to(installation.cache)
        assert list(Path(folder).glob("*.nbc"))


def test_a_mask_of_bools_is_not_the_dtype_of_the_data():
    """The line is about x; a kernel may see nothing but bools, too."""
    array = numba.types.Array
    x, mask = array(numba.float32, 1, "C"), array(numba.boolean, 1, "C")
    assert jit._dtype((numba.float64, mask, x, array(numba.float64, 2, "C"))) == "float32"
    assert jit._dtype((numba.float64, mask)) == "bool"


def test_second_run_loads_it(filled):
    installation, first = filled
    found = installation.moments((SMALL, LARGE))
    assert found["misses"] == 0
    assert found["hits"] >= 2
    assert len(found["log"]) == found["hits"]
    assert all(line.startswith("DEBUG loaded ") for line in found["log"])
    assert found[SMALL] == first[SMALL]
    assert found[LARGE] == first[LARGE]


MERGE = """

@helper
def merge_sums(count, mean, m2, n, shift, s, q):
    return count + n, 1000.0, 3.0
"""

ADD_TWICE = """

@intrinsic
def add(typingctx, a, b):
    def codegen(context, builder, signature, arguments):
        return builder.fadd(builder.fadd(*arguments), arguments[1])

    return a(a, b), codegen
"""


@pytest.mark.slow
def test_new_helper_in_another_file(upgradable):
    installation, _ = upgradable
    installation.append("welford.py", MERGE)
    for _ in range(2):  # compiled, and loaded
        found = installation.moments((SMALL, LARGE))
        assert found[SMALL][0] == [1000.0] * 4
        assert found[LARGE][0] == [1000.0] * 4
    assert found["misses"] == 0


@pytest.mark.slow
def test_new_intrinsic_in_another_file(upgradable):
    installation, before = upgradable
    installation.append("simd_vectors.py", ADD_TWICE)
    found = installation.moments()
    assert found["hits"] == 0
    assert found[SMALL] != before[SMALL]


STOP_WHILE_SAVING = """
    import os
    from numba.core.caching import IndexDataCacheFile

    def stop(self, name, data):
        os._exit(0)

    IndexDataCacheFile._save_data = stop
"""


@pytest.mark.slow
def test_an_upgrade_whose_first_run_was_killed(upgradable):
    """Numba writes its index before the machine code: killed in between, it lists the code of before."""
    installation, _ = upgradable
    installation.append("welford.py", MERGE)
    installation.run(STOP_WHILE_SAVING + MOMENTS.format(rows=(SMALL,)))
    assert installation.moments()[SMALL][0] == [1000.0] * 4


# --- a cache that does not work ----------------------------------------------------------------------------


@pytest.fixture
def blocked(tmp_path):
    """Path of a folder that nobody can make, not even the superuser: a file is in the way."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


@pytest.mark.slow
def test_cache_folder_that_cannot_be_made(upgradable, blocked):
    """Numba falls back on the __pycache__ beside the source."""
    installation, before = upgradable
    found = installation.moments(NUMBA_CACHE_DIR=str(blocked))
    assert found[SMALL] == before[SMALL]
    assert found["hits"] == 0
    found = installation.moments(NUMBA_CACHE_DIR=str(blocked))
    assert found[SMALL] == before[SMALL]
    assert found["misses"] == 0


@pytest.mark.slow
def test_no_cache_folder_anywhere(upgradable, blocked):
    """As in a container with a read-only file system: kernels compile in every process."""
    installation, before = upgradable
    (installation.folder / "numbabn" / "backends" / "cpu" / "__pycache__").write_text("in the way")
    nowhere = {name: str(blocked) for name in ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    found = installation.moments(**nowhere)
    assert found[SMALL] == before[SMALL]
    assert found["hits"] == 0
    assert found["log"]
    assert all(line.endswith(", not cached: no folder can be written to") for line in found["log"])
    assert not list(installation.folder.joinpath("numbabn").rglob("*.nb?"))
    shown = installation.run("import numbabn; numbabn.show_config()", **nowhere)
    cache = next(line for line in shown.splitlines() if line.startswith("kernel cache"))
    assert "none" in cache


LOSE_THE_FOLDER = """
    import os, shutil
    import numbabn

    shutil.rmtree(os.environ["NUMBA_CACHE_DIR"])
    with open(os.environ["NUMBA_CACHE_DIR"], "w"):
        pass
"""

FULL_DISK = """
    import errno, os
    from numba.core.caching import IndexDataCacheFile

    def full(self, name, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    IndexDataCacheFile._save_data = full
"""


@pytest.mark.slow
def test_cache_folder_lost_after_the_import(upgradable):
    installation, before = upgradable
    assert installation.moments(before=LOSE_THE_FOLDER)[SMALL] == before[SMALL]


@pytest.mark.slow
def test_full_disk(upgradable):
    installation, before = upgradable
    shutil.rmtree(installation.cache)
    found = installation.moments(before=FULL_DISK)
    assert found[SMALL] == before[SMALL]
    assert found["log"]
    assert all(re.search(r", not cached: \[Errno \d+\] No space left", line) for line in found["log"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_file_cut_short(upgradable, suffix):
    """As a crash of the machine, or a copy that was stopped, leaves it."""
    installation, before = upgradable
    paths = list(installation.cache.rglob("*" + suffix))
    assert paths
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert installation.moments()[SMALL] == before[SMALL]
    assert installation.moments()["misses"] == 0, "the file was not put right"
