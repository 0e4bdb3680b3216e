"""What every backend promises: the table, on the CPU, in the simulator, and on a GPU where there is one.

A row of a table (`tests.support.table`, of group and instance norm `tests.support.group_table`, and of what
follows a norm `tests.support.epilogue_rows`) is a check and its arguments. A backend that this process does
not have is skipped: the simulator needs NUMBA_ENABLE_CUDASIM=1, the others a GPU and their library.
"""

import pytest

from tests.support import epilogue_rows
from tests.support.backends import BACKENDS, SIMULATED, MissingError, has_gpu
from tests.support.group_table import rows as group_rows
from tests.support.jit import JIT
from tests.support.table import rows


@pytest.fixture(scope="session", params=["numba"] if SIMULATED else BACKENDS)
def backend(request):
    try:
        return BACKENDS[request.param]()
    except MissingError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("row", rows(large=has_gpu()), ids=lambda row: row.name)
def test_table(backend, row):
    row.check(backend, *row.arguments)


@pytest.mark.parametrize("row", group_rows(), ids=lambda row: row.name)
def test_table_of_group_norm(backend, row):
    row.check(backend, *row.arguments)


def epilogues():
    """Return the rows of `epilogue_rows`, most of which wait for the compiler where they are compiled."""
    found = []
    for check, arguments, few in epilogue_rows.checks():
        text = ", ".join(getattr(argument, "__name__", str(argument)) for argument in arguments)
        marks = () if few or SIMULATED or not JIT else pytest.mark.slow
        found.append(pytest.param(check, arguments, id=f"{check.__name__}: {text}", marks=marks))
    return found


@pytest.mark.parametrize(("check", "arguments"), epilogues())
def test_table_of_epilogues(backend, check, arguments):
    check(backend, *arguments)
