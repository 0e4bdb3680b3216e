"""What PyTorch's compilers make of the norms: operators, without graph breaks."""

import pytest
import torch
from torch import nn

import numbabn.torch as nt
from numbabn.torch._operators import _OPERATORS
from tests.torch.tensors import assert_close, results

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


def test_graphs_have_the_operators(models):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compile(models[0], fullgraph=True, backend=backend)(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    called = [str(node.target) for node in graphs[0].graph.nodes if "numbabn" in str(node.target)]
    assert len(called) == 6


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
