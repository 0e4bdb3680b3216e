"""Where CUDA is simulated, `simulator` takes the place of Numba's, with a seed for every test."""

import zlib

import numba
import pytest


@pytest.fixture(scope="session", autouse=True)
def _simulator():
    if numba.config.ENABLE_CUDASIM:
        from tests.support.cuda.simulator import installed

        with installed():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _seed(request, _simulator):
    if numba.config.ENABLE_CUDASIM:
        from tests.support.cuda.simulator import seeded

        with seeded(zlib.crc32(request.node.nodeid.encode())):
            yield
    else:
        yield


def pytest_collection_modifyitems(items):
    if numba.config.ENABLE_CUDASIM:
        skip = pytest.mark.skip(reason="compiled without NUMBA_ENABLE_CUDASIM=1")
        for item in items:
            if item.get_closest_marker("compile"):
                item.add_marker(skip)
