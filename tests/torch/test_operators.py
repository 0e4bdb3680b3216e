"""What PyTorch's compilers make of the norms: operators, without graph breaks."""

import functools

import pytest
import torch
from torch import nn

import numbabn.torch as nt
from numbabn.torch._compiled import _statistics
from numbabn.torch._operators import _OPERATORS
from tests.support.jit import needs_jit
from tests.torch.tensors import assert_close, formatted, leaf, results

SHAPE = (4, 6, 5, 3)
SIZES = {"batch_norm": 0, "group_norm": 3, "layer_norm": 1, "rms_norm": 1}


def arguments(name, dtype, activation, known, grad=True):
    lengths = (3,) if name in ("layer_norm", "rms_norm") else (6,)
    x, weight, bias = (
        torch.randn(each, dtype=dtype, requires_grad=grad) for each in (SHAPE, lengths, lengths)
    )
    statistics = (torch.randn(6, dtype=dtype), torch.rand(6, dtype=dtype) + 0.5) if known else (None, None)
    bias = None if name == "rms_norm" else bias
    return x, weight, bias, *statistics, SIZES[name], 1e-5, activation, 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["", "leaky_relu"])
@pytest.mark.parametrize(
    ("name", "known"), [*((name, False) for name in SIZES), ("batch_norm", True)], ids=str
)
def test_opcheck(name, known, activation, dtype):
    given = arguments(name, dtype, activation, known)
    # Bits of an activation that belong to no element have no values, so that results are not compared to the
    # bit where there are some; test_compile_without_graph_breaks does it in effect.
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    tests += [] if activation else ["test_aot_dispatch_dynamic"]
    torch.library.opcheck(_OPERATORS[name].forward, given, test_utils=tests)
    with torch.no_grad():
        x, weight, bias, *_ = constants = arguments(name, dtype, activation, known, grad=False)
        y, statistics, bits = _OPERATORS[name].forward(*constants)
        tensors = torch.randn_like(y), x, weight, bias, statistics, bits
        others = known, [True, True, bias is not None], *given[5:]
    torch.library.opcheck(_OPERATORS[name].backward, (*tensors, *others))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.InstanceNorm2d(8, track_running_stats=True),
        nn.GroupNorm(2, 8),
        nn.LayerNorm((6, 6)),
        nn.ReLU(),
        nn.RMSNorm(6),
        nn.BatchNorm2d(8).eval(),
    )


@pytest.fixture
def models():
    """A converted model, and PyTorch's with the same state."""
    original, converted = network().double(), network().double()
    converted.load_state_dict(original.state_dict())
    return nt.convert(converted, fuse=True), original


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch.compiler.reset()


# The compiler makes an object of an autograd function itself, and warns of it.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@compiles
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(models, backend):
    converted, original = models
    compiled = torch.compile(converted, fullgraph=True, backend=backend)
    for batch in (4, 5, 7):  # from the second on, a graph for any batch
        x = torch.randn(batch, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        found = results(lambda x, *_: compiled(x), x, *converted.parameters())
        expected = results(lambda x, *_: original(x), x, *original.parameters())
        assert_close(found, expected, tolerance=1e-9)  # six norms enlarge the roundings of one another
    pairs = [list(model.state_dict().values()) for model in models]
    assert_close(*pairs, tolerance=1e-9)


@compiles
def test_graphs_have_the_operators(models):
    """Of batch norm its statistics; in evaluation nothing."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compile(models[0], fullgraph=True, backend=backend)(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    inner = [module for module in graphs[0].modules() if isinstance(module, torch.fx.GraphModule)]
    called = [str(node.target) for module in inner for node in module.graph.nodes]
    names = sorted(name.split(".")[1] for name in called if name.startswith("numbabn."))
    assert names == ["batch_norm_statistics", "group_norm", "group_norm", "layer_norm", "rms_norm"]


DTYPES = [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)]


@compiles
@needs_jit
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_compiled_batch_norm_is_that_of_eager_mode(dtypes, layout):
    """Statistics, results and gradients; the offset would cost float32 digits if the mean had one part."""
    kind, of_parameters = dtypes
    x = formatted(torch.randn(SHAPE, dtype=torch.float64) + (0 if kind is torch.bfloat16 else 1000), layout)
    weight, bias = torch.randn(2, 6, dtype=of_parameters)
    pairs = []
    for compiler in (lambda f: f, functools.partial(torch.compile, fullgraph=True, backend="aot_eager")):
        running = torch.zeros(6, dtype=of_parameters), torch.ones(6, dtype=of_parameters)

        def norm(x, weight, bias, running=running):
            return nt.functional.batch_norm(x, *running, weight, bias, True, activation="leaky_relu")

        given = leaf(x.to(kind)), leaf(weight), leaf(bias)
        pairs.append((*results(compiler(norm), *given), *running))
    assert [each.dtype for each in pairs[0]] == [each.dtype for each in pairs[1]]
    # An element at 0 may be on the other side of the kink; gradients of bias are sums of 60 roundings.
    assert_close(pairs[1], pairs[0], tolerance={torch.float32: 1e-5, torch.bfloat16: 2e-2}.get(kind))
    assert pairs[0][0].stride() == pairs[1][0].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck_of_statistics(dtype):
    torch.library.opcheck(_statistics, (torch.randn(SHAPE, dtype=dtype), 1e-5))


def test_export(models):
    converted, original = models
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(converted.eval(), (x,), dynamic_shapes=({0: batch},))
    assert sum("numbabn" in str(node.target) for node in exported.graph.nodes) == 6
    for n in (4, 9):
        x = torch.randn(n, 3, 8, 8, dtype=torch.float64)
        assert_close((exported.module()(x),), (original.eval()(x),), tolerance=1e-9)


def test_operators_where_modes_look_on():
    """A mode of dispatch sees the operators, not the direct call that takes less time."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    module = nt.LayerNorm(3)
    x = torch.randn(2, 3, requires_grad=True)
    with Watching():
        module(x).sum().backward()
    assert {"numbabn.layer_norm.default", "numbabn.layer_norm_backward.default"} <= set(seen)
