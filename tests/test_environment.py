"""What importing numbabn does to a process, what it says about itself, and that it works without the JIT."""

import errno
import gc
import importlib
import inspect
import json
import logging
import mmap
import os
import re
import sys
from importlib.resources import files

import numba
import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary
from numba.core.cpu_options import ParallelOptions
from numba.core.dispatcher import Dispatcher

import numbabn as nbn
from numbabn.backends.cpu import jit
from numbabn.backends.cpu.intermediate import KernelCompiler
from numbabn.backends.cpu.streaming import doubled
from tests.support.jit import needs_jit
from tests.support.processes import run_python

# --- importing ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported():
    """What one import of numbabn changed in a process that had imported Numba before."""
    code = """
        import gc, json, logging, sys, threading, warnings
        import numba
        import numpy as np
        from numba.core import event
        from numba.core.dispatcher import Dispatcher

        environment_calls = []
        sys.addaudithook(
            lambda event, arguments: event in ("os.putenv", "os.unsetenv") and environment_calls.append(event)
        )

        def settings():
            config = {name: repr(getattr(numba.config, name)) for name in dir(numba.config) if name.isupper()}
            return {
                "environment": list(environment_calls),  # what the tests themselves imported may have set it
                "numba.config": config,
                "numpy.errstate": np.geterr(),
                "warnings": [str(line) for line in warnings.filters],
                "threads": threading.active_count(),
            }

        modules, before = set(sys.modules), settings()
        with event.install_recorder("numba:compile") as recorder:
            import numbabn
        kernels = [
            thing
            for thing in gc.get_objects()
            if isinstance(thing, Dispatcher) and thing.py_func.__module__.startswith("numbabn")
        ]
        after = settings()
        try:
            pool = numba.threading_layer()
        except ValueError:
            pool = None
        log = logging.getLogger("numbabn")
        print(json.dumps({
            "modules": sorted(set(sys.modules) - modules),
            "changed": [name for name in before if before[name] != after[name]],
            "compilations": len(recorder.buffer),
            "kernels": len(kernels),
            "signatures": sum(len(kernel.signatures) for kernel in kernels),
            "pool": pool,
            "log": [[type(handler).__name__ for handler in log.handlers], log.level, log.propagate],
        }))
    """
    return json.loads(run_python(code))


def test_logging_is_left_to_the_user(imported):
    assert imported["log"] == [["NullHandler"], logging.NOTSET, True]


@needs_jit
def test_import_compiles_nothing(imported):
    assert imported["kernels"] > 10
    assert imported["signatures"] == 0
    assert imported["compilations"] == 0


def kernels():
    """Return all kernels of the CPU, and what they call."""
    return [
        thing
        for thing in gc.get_objects()
        # Not isinstance, which asks proxies of other libraries for the class they stand for.
        if issubclass(type(thing), Dispatcher) and thing.py_func.__module__.startswith("numbabn.backends")
    ]


@needs_jit
def test_kernels_fuse_multiplications_with_additions_and_take_no_other_liberty():
    """Sums in another order would lose what doubled numbers carry; see the comment in jit.py."""
    found = [each for each in kernels() if each.py_func.__module__.startswith("numbabn.backends.cpu")]
    assert len(found) > 50
    for each in found:
        assert each.targetoptions["fastmath"] == {"contract"}, each


@needs_jit
def test_no_instruction_takes_another_liberty():
    """What LLVM is told of every operation, vectors included; of one kernel, compiled without the cache."""
    options = {name: doubled.merge.targetoptions[name] for name in ("nogil", "error_model", "fastmath")}
    kernel = numba.njit(**options)(doubled.merge.py_func)
    kernel(np.ones((6, 3)), np.ones((6, 3)))
    (code,) = kernel.inspect_llvm().values()
    operations = re.findall(r"= (fadd|fsub|fmul|fdiv|fcmp) ((?:[a-z]+ )*)(?:<|double)", code)
    assert {name for name, _ in operations} >= {"fadd", "fsub", "fdiv", "fcmp"}
    liberties = {"fast", "reassoc", "arcp", "nnan", "ninf", "nsz", "afn"}
    assert not [each for each in operations if liberties & set(each[1].split())]


@needs_jit
def test_compiling_leaves_the_options_of_a_kernel():
    """Numba empties a dictionary of parallel options when it compiles with it: the next dtype has none."""
    options = [each.targetoptions["parallel"] for each in kernels() if "parallel" in each.targetoptions]
    assert options
    for option in options:
        before = repr(ParallelOptions(option)._get_values())  # what the compiler does first
        assert repr(ParallelOptions(option)._get_values()) == before


@jit.helper
def doubled_value(x, i):
    return 2 * x[i]


def double_all(x):
    for i in numba.prange(len(x)):
        x[i] = doubled_value(x, i)


@needs_jit
@pytest.mark.parametrize("parallel", [False, True])
def test_machine_code_is_made_of_kernels_alone(parallel, monkeypatch):
    loaded, load = [], JITCodeLibrary._finalize_specific
    monkeypatch.setattr(
        JITCodeLibrary, "_finalize_specific", lambda self: load(self) or loaded.append(self.name)
    )
    x = np.arange(5.0)
    numba.njit(parallel=parallel, pipeline_class=KernelCompiler, **jit.OPTIONS)(double_all)(x)
    np.testing.assert_array_equal(x, [0, 2, 4, 6, 8])
    assert set(loaded) - {"nrt"} == {"double_all"}  # nrt: Numba's runtime, once in a process


def test_import_starts_no_threads(imported):
    assert imported["pool"] is None


def test_import_changes_no_settings(imported):
    assert imported["changed"] == []


def test_import_adds_only_its_own_packages(imported):
    packages = {name.partition(".")[0] for name in imported["modules"]}
    assert packages - sys.stdlib_module_names <= {"numbabn", "numba", "llvmlite", "numpy"}
    assert not [name for name in imported["modules"] if name.startswith("numba.cuda")]


def test_import_as_the_first_thing():
    assert run_python("import numbabn; print(numbabn.__version__)").strip() == nbn.__version__


# --- the public names --------------------------------------------------------------------------------------


def test_all_is_complete():
    public = {
        name for name, value in vars(nbn).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public | {"__version__"} == set(nbn.__all__)
    assert len(nbn.__all__) == len(set(nbn.__all__))


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+([abrc.].*)?", nbn.__version__)


def test_types_are_shipped():
    assert files("numbabn").joinpath("py.typed").is_file()


def sections(docstring):
    """Sections of a numpydoc docstring, each with its text."""
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return {"Summary": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(text):
    """Names that a section defines: the lines that are not indented, ``gamma, beta : ndarray``."""
    lines = [line.split(" : ")[0] for line in text.splitlines() if line and not line[0].isspace()]
    return [name for line in lines for name in line.split(", ")]


def public_objects():
    for name in nbn.__all__:
        value = getattr(nbn, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            for member, method in vars(value).items():
                if callable(method) and (not member.startswith("_") or member == "__call__"):
                    yield f"{name}.{member}", method


OBJECTS = dict(public_objects())


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring(name):
    value = OBJECTS[name]
    assert value.__doc__, f"{name} has no docstring"
    found = sections(value.__doc__)
    summary = found["Summary"].split("\n\n")[0]
    assert "\n" not in summary, f"the summary of {name} is more than one line"
    assert summary.endswith(".") or ". " in summary

    signature = inspect.signature(value)
    parameters = [parameter for parameter in signature.parameters if parameter != "self"]
    if parameters and name != "Saved":  # nobody makes a Saved
        assert documented(found.get("Parameters", "")) == parameters, f"Parameters of {name}"
    is_function = inspect.isfunction(value) and "." not in name
    if is_function and signature.return_annotation is not None:
        assert "Returns" in found
    if is_function and parameters:
        assert "Raises" in found
    if "." not in name and name != "Saved":
        assert ">>> " in found["Examples"]


# --- show_config -------------------------------------------------------------------------------------------


def facts(text):
    """Lines of show_config as a dictionary."""
    return dict(re.match(r"(\S+(?: \S+)*)\s{2,}(.*)", line + "  ").groups() for line in text.splitlines())


def check_facts(text):
    found = facts(text)
    assert found["numbabn"].strip() == nbn.__version__
    assert found["numpy"].strip() == np.__version__
    assert found["numba"].strip() == numba.__version__
    expected = {"python", "platform", "processor", "threads", "threading layer", "jit", "kernel cache"}
    assert expected <= found.keys()
    assert all(found[name].strip() for name in expected)
    assert any("cuda" in name for name in found)
    return found


def test_show_config(capsys):
    nbn.show_config()
    found = check_facts(capsys.readouterr().out)
    assert found["threads"].startswith(str(numba.get_num_threads()))
    assert numba.threading_layer() in found["threading layer"]


def test_show_config_without_jit():
    found = check_facts(run_python("import numbabn; numbabn.show_config()", NUMBA_DISABLE_JIT="1"))
    assert "off" in found["jit"]
    assert "NUMBA_DISABLE_JIT" in found["jit"]


@needs_jit
def test_show_config_in_a_forked_child():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    code = """
        import os, sys, warnings
        import numpy as np
        import numbabn
        numbabn.batch_norm_forward(np.zeros((8, 64, 40, 40), np.float32))  # with more than one thread
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads and fork
        child = os.fork()
        if child == 0:
            numbabn.show_config()
            sys.stdout.flush()
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    check_facts(run_python(code))


@needs_jit
def test_show_config_compiles_nothing():
    code = """
        from numba.core import event
        import numbabn
        with event.install_recorder("numba:compile") as recorder:
            numbabn.show_config()
        assert not recorder.buffer
    """
    run_python(code)


# --- systems that lack something ---------------------------------------------------------------------------


def test_kernel_without_huge_pages(monkeypatch):
    """Linux without transparent huge pages, as with real-time scheduling, refuses advice about them."""
    memory = pytest.importorskip("numbabn.arrays.memory")

    class Plain(mmap.mmap):
        def madvise(self, *arguments):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(memory.mmap, "mmap", Plain)
    monkeypatch.setattr(memory, "_frees", memory._frees.__wrapped__)
    monkeypatch.setattr(memory, "_pool", memory._Pool(1 << 30))
    monkeypatch.setattr(memory, "SMALLEST_BLOCK", 0)
    monkeypatch.setattr(memory, "LARGEST_RESIDENT", 0)
    x = np.zeros((2, 3), np.float32)
    x[1] = 2
    for _ in range(2):  # in a new block, and in one that was kept without being marked free
        assert (nbn.batch_norm_inference(x, np.ones(3), np.ones(3), eps=0.0) == x - 1).all()


# --- without the JIT ---------------------------------------------------------------------------------------

# Shape, channel axis. Between them: rows and columns, more than one segment of a row, whole and partial
# vectors, fewer values than a vector, copies of pixels side by side and pixels left over.
PATHS = (
    ((7, 5), 1),
    ((33, 16), 1),
    ((131, 3), -1),
    ((2, 5, 4, 3), -1),
    ((3, 4, 5, 5), 1),
    ((2, 3, 3, 3), 1),
    ((3, 2, 4, 4), 1),
    ((2, 2, 5003), 1),
    ((1, 2, 66000), 1),
    ((40, 1), 1),
    ((2, 3, 4, 5, 2), 2),
)


def results(shape, axis, memory_order):
    """Every result of every function for one float32 array."""
    rng = np.random.default_rng(list(shape))
    x = np.asarray(rng.standard_normal(shape) + 3, np.float32, order=memory_order)
    dy = np.asarray(rng.standard_normal(shape), np.float32, order=memory_order)
    channels = shape[axis]
    gamma, beta = rng.standard_normal((2, channels))
    mean, var = rng.standard_normal(channels), rng.uniform(0.5, 2, channels)
    y, saved = nbn.batch_norm_forward(x, gamma, beta, axis=axis)
    frozen, given = nbn.batch_norm_forward(x, gamma, beta, axis=axis, mean=mean, var=var)
    layer = nbn.BatchNorm(channels, axis=axis, momentum=None)
    return [
        y,
        saved.mean,
        saved.var,
        *nbn.batch_norm_backward(dy, saved),
        *nbn.batch_norm_backward(dy, saved, need_dx=False)[1:],
        frozen,
        *nbn.batch_norm_backward(dy, given),
        nbn.batch_norm_inference(x, mean, var, axis=axis),
        *nbn.moments(x, axis=axis)[1:],
        layer(x),
        layer.eval()(x),
        layer.running_mean,
        layer.running_var,
    ]


def all_results():
    return [array for shape, axis in PATHS for order in "CF" for array in results(shape, axis, order)]


def lower_the_thresholds(patch):
    """Send small arrays down the paths of large ones: phases, several chunks, stores past the cache."""
    plan = importlib.import_module("numbabn.backends.cpu.plan")
    patch(plan, "PARALLEL_BYTES", 1)
    patch(plan, "STREAM_BYTES", 1)
    patch(plan, "CHUNK_BYTES", 256)
    patch(plan, "FUSED_TASKS", 4)
    patch(plan, "columns", inspect.unwrap(plan.columns))  # without what it planned before


def save_all_results(path, large):
    if large:
        lower_the_thresholds(setattr)
    np.savez(path, *all_results())


@pytest.mark.slow
@needs_jit
@pytest.mark.parametrize("large", [False, True], ids=["small", "paths of large arrays"])
def test_same_results_without_jit(large, tmp_path, monkeypatch):
    path = tmp_path / "results.npz"
    code = f"from {__name__} import save_all_results; save_all_results({str(path)!r}, {large})"
    run_python(code, NUMBA_DISABLE_JIT="1")
    if large:
        lower_the_thresholds(monkeypatch.setattr)
    compiled = all_results()
    with np.load(path) as archive:
        interpreted = list(archive.values())
    for a, b in zip(compiled, interpreted, strict=True):
        assert a.dtype == b.dtype
        # Some roundings of float32, which sums within a segment have too, whatever the dtype of the result.
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * np.abs(b).max())
