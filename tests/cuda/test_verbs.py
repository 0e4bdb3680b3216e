"""Both backends have the verbs of the Protocols; and the one for GPUs is not touched until it is needed."""

import importlib
import inspect
from types import FunctionType

import pytest

from numbabn.backends import cpu
from numbabn.backends.verbs import Backend, RunningVerbs, SampleVerbs
from tests.support.backends import has_gpu
from tests.support.processes import run_python

needs_numba_cuda = 'python -m pip install "numbabn[cuda]"'


def module(name):
    """Return a module of the GPU backend."""
    try:
        return importlib.import_module(f"numbabn.backends.cuda{name}")
    except ImportError as error:
        pytest.skip(str(error))


PROTOCOLS = {"": Backend, ".running": RunningVerbs, ".samples": SampleVerbs}


def parameters(function):
    """Return the parameters of a function with their kinds and defaults, without that of a method."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.name != "self"]


def verbs(protocol):
    """Return the parameters of every method of a protocol, by name."""
    return {name: parameters(f) for name, f in vars(protocol).items() if is_public(name, f)}


def offered(package):
    """Return the parameters of all public functions that are a module's own, by name.

    Those of a backend are its own or those of its module ``channels``.
    """
    own = package.__name__, f"{package.__name__}.channels"
    functions = {name: f for name, f in vars(package).items() if is_public(name, f)}
    return {name: parameters(f) for name, f in functions.items() if f.__module__ in own}


def is_public(name, thing):
    return isinstance(thing, FunctionType) and not name.startswith("_")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_verbs_of_the_cpu(name):
    assert verbs(PROTOCOLS[name])
    assert offered(importlib.import_module(f"numbabn.backends.cpu{name}")) == verbs(PROTOCOLS[name])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_verbs_of_the_gpu(name):
    assert offered(module(name)) == verbs(PROTOCOLS[name])


def test_all_verbs_are_compared():
    names = {*verbs(Backend), *vars(Backend)["__annotations__"]}
    assert "running" in names
    assert set(cpu.__all__) == names
    assert set(module("").__all__) == names


@pytest.mark.slow
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
        gpu = "numba.cuda", "numbabn.backends.cuda", "cuda"
        print([name for name in sys.modules if name.startswith(gpu)])
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
