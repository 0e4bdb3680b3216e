"""Set-up of the test session: a kernel cache of its own, hypothesis without a clock, the marker `large`."""

import atexit
import os
import shutil
import tempfile

# Before numba is imported, which reads the variable once: the suite compiles the kernels of this source and
# leaves nothing behind. Subprocesses of the tests inherit the folder.
if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="numbabn-tests-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

import pytest
from hypothesis import HealthCheck, settings

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


def pytest_collection_modifyitems(config, items):
    if "large" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="needs 9 GB of memory; run with -m large")
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(skip)
