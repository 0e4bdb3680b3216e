"""Set-up of the test session: a kernel cache of its own, hypothesis without a clock, markers, the simulator.

Where CUDA is simulated, `tests.support.cuda.simulator` takes the place of Numba's simulator, with a seed for
every test.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import zlib

# Before numba is imported, which reads the variables once: the suite compiles the kernels of this source and
# leaves nothing behind. Subprocesses of the tests inherit the folder, and so do those of pytest-xdist. They
# share the cores: a thread that waits leaves its core to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numbabn-tests-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

import numba
import pytest
from hypothesis import HealthCheck, settings

# Assertions that tests share name the values that differ, as those in the tests do.
pytest.register_assert_rewrite("tests.support")

SIMULATED = bool(numba.config.ENABLE_CUDASIM)

# No deadline and no health check of speed: kernels compile within some examples, and machines are shared. The
# same examples in every run; HYPOTHESIS_PROFILE=explore draws new ones, and more.
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, max_examples=100, **_ALWAYS)
settings.register_profile("explore", max_examples=2000, **_ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "large: arrays of more than 2**31 elements, in 9 GB of memory; run with -m large"
    )
    config.addinivalue_line("markers", "slow: takes seconds, most of them to compile; run with -m slow")


def pytest_collection_modifyitems(config, items):
    if "large" not in config.option.markexpr:
        _skip(items, "large", "needs 9 GB of memory; run with -m large")
    if "slow" not in config.option.markexpr:
        _skip(items, "slow", "takes seconds; run with -m slow")
    if SIMULATED:
        _skip(items, "compile", "compiled without NUMBA_ENABLE_CUDASIM=1")


@pytest.fixture(autouse=True)
def _recorded_gradients():
    """Let PyTorch record gradients again after a test of a benchmark, which turns that off."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_grad_enabled(True)


@pytest.fixture
def example(monkeypatch):
    """Import a module of the examples."""
    from tests.support.examples import EXAMPLES

    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def _skip(items, marker, reason):
    skip = pytest.mark.skip(reason=reason)
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(skip)


if SIMULATED:

    @pytest.fixture(scope="session", autouse=True)
    def _simulator():
        from tests.support.cuda.simulator import installed

        with installed():
            yield

    @pytest.fixture(autouse=True)
    def _seed(request, _simulator):
        from tests.support.cuda.simulator import seeded

        with seeded(zlib.crc32(request.node.nodeid.encode())):
            yield
