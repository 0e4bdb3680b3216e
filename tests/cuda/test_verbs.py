"""The two backends offer the same verbs; and the one for GPUs is not touched until it is needed."""

import importlib
import inspect
from types import FunctionType

import pytest

from numbabn import _cpu
from tests.support.backends import has_gpu
from tests.support.processes import run_python

needs_numba_cuda = 'python -m pip install "numbabn[cuda]"'


def module(name):
    """Return a module of the GPU backend."""
    try:
        return importlib.import_module(f"numbabn.backends.cuda{name}")
    except ImportError as error:
        pytest.skip(str(error))


def verbs(package):
    """Return (name, parameters with their defaults) of all public functions defined there."""
    return {
        name: [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
        for name, function in vars(package).items()
        if isinstance(function, FunctionType)
        and function.__module__ == package.__name__
        and not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["", ".running"])
def test_same_signatures(name):
    here, there = importlib.import_module(f"numbabn.backends.cpu{name}"), module(name)
    assert verbs(here)
    assert verbs(there) == verbs(here)


def test_all_verbs_are_compared():
    assert set(verbs(_cpu)) == set(_cpu.__all__) - {"running"}


def test_cpu_never_imports_cuda():
    code = """
        import sys
        import numpy as np
        import numbabn as nbn

        bn = nbn.BatchNorm(3)
        bn(np.ones((4, 3)))
        bn.backward(np.ones((4, 3)))
        bn.eval()(np.ones((4, 3)))
        bn.load_state_dict(bn.state_dict())
        nbn.moments(np.ones((4, 3)))
        for call in (lambda: nbn.moments([1.0]), lambda: nbn.moments(np.ones(3)), lambda: nbn.BatchNorm("3")):
            try:
                call()
            except (TypeError, ValueError):
                pass
        print([name for name in sys.modules if name.startswith(("numba.cuda", "numbabn.backends.cuda", "cuda"))])
    """
    assert run_python(code) == "[]\n"


CALLS = """
    import sys
    import numba
    import numpy as np
    import numbabn as nbn
    from tests.support.cuda import libraries

    sys.modules["cupy"] = libraries.cupy()
    array = sys.modules["cupy"].array(np.ones((4, 3)))
    %s
    for call in (lambda: nbn.moments(array), lambda: nbn.BatchNorm(3, device="cuda")):
        try:
            call()
        except (ImportError, RuntimeError) as error:
            print(type(error).__name__, *str(error).split())
"""


@pytest.mark.parametrize(
    "missing",
    [
        "sys.modules['numba.cuda'] = None",  # a Numba without any
        "import numba.cuda; vars(numba.cuda).pop('implementation', None)",  # with the one that is its own
    ],
)
def test_without_numba_cuda(missing):
    lines = run_python(CALLS % missing, NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("ImportError")
        assert "numba-cuda" in line
        assert needs_numba_cuda in line


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_driver():
    pytest.importorskip("numba_cuda")
    lines = run_python(CALLS % "", NUMBA_ENABLE_CUDASIM="0").splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("RuntimeError")
        assert "driver" in line
        assert needs_numba_cuda in line
