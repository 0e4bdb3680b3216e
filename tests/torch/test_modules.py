"""The modules against those of PyTorch: options, modes, states, errors, and what tools see of them."""

import copy
import io

import pytest
import torch
from torch import nn

import numbabn.torch as nt
from tests.torch.tensors import assert_close, formatted, results

SHAPES = {1: (6, 4, 5), 2: (6, 4, 5, 3), 3: (3, 4, 2, 3, 4)}

# Name of the class, its arguments, its options, and the shape of x.
CASES = [
    *((f"BatchNorm{rank}d", (4,), {}, shape) for rank, shape in SHAPES.items()),
    ("BatchNorm1d", (4,), {}, (6, 4)),
    ("BatchNorm2d", (4,), {"affine": False}, SHAPES[2]),
    ("BatchNorm2d", (4,), {"bias": False}, SHAPES[2]),
    ("BatchNorm2d", (4,), {"momentum": None, "eps": 1e-3}, SHAPES[2]),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, SHAPES[2]),
    *((f"InstanceNorm{rank}d", (4,), {"affine": rank < 3}, shape) for rank, shape in SHAPES.items()),
    ("InstanceNorm2d", (4,), {"track_running_stats": True, "momentum": 0.4}, SHAPES[2]),
    ("InstanceNorm2d", (4,), {}, SHAPES[2][1:]),
    ("GroupNorm", (2, 4), {}, SHAPES[2]),
    ("GroupNorm", (2, 4), {"affine": False, "eps": 1e-3}, SHAPES[1]),
    ("LayerNorm", (5,), {}, SHAPES[1]),
    ("LayerNorm", ((5, 3),), {"bias": False}, SHAPES[2]),
    ("LayerNorm", ((5, 3),), {"elementwise_affine": False}, SHAPES[2]),
    ("RMSNorm", (5,), {}, SHAPES[1]),
    ("RMSNorm", ((5, 3),), {"eps": 1e-3}, SHAPES[2]),
    ("RMSNorm", ((5, 3),), {"elementwise_affine": False}, SHAPES[2]),
]
OF_EACH = [next(case for case in CASES if case[0] == name) for name in nt.modules.__all__]


def pair(name, arguments, options, dtype=torch.float32):
    """One of numbabn's modules, and PyTorch's with the same parameters, which are no constants."""
    own = getattr(nt, name)(*arguments, **options, dtype=dtype)
    theirs = getattr(nn, name)(*arguments, **options, dtype=dtype)
    for parameter in own.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    theirs.load_state_dict(own.state_dict())
    return own, theirs


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_module_against_module(case, dtype, layout):
    """Results, gradients and states over three steps of training, and in evaluation."""
    name, arguments, options, shape = case
    parameters = torch.float32 if dtype is torch.bfloat16 else dtype
    modules = pair(name, arguments, options, parameters)
    assert isinstance(modules[0], getattr(nn, name))
    assert repr(modules[0]) == repr(modules[1])
    for step in range(4):
        if step == 3:
            [module.eval() for module in modules]
        x = formatted(torch.randn(shape).to(dtype), layout).requires_grad_()
        found, expected = (results(lambda x, *_, m=m: m(x), x, *m.parameters()) for m in modules)
        assert [each.dtype for each in found] == [each.dtype for each in expected]
        assert found[0].stride() == torch.empty_like(x).stride()
        assert_close(found, expected, tolerance=3e-2 if dtype is torch.bfloat16 else None)
        states = [module.state_dict() for module in modules]
        assert states[0].keys() == states[1].keys()
        assert_close(
            list(states[0].values()),
            list(states[1].values()),
            # PyTorch's running statistics of bfloat16 are rounded to it on the way, in instance norm.
            tolerance=1e-2 if dtype is torch.bfloat16 else 1e-6,
        )


@pytest.mark.parametrize("case", OF_EACH, ids=str)
def test_wrong_shapes_are_refused_as_by_pytorch(case):
    name, arguments, options, shape = case
    own, theirs = pair(name, arguments, options)
    for wrong in (shape[:1], (2, *shape, 2), (2, 7, *shape[2:-1], 9)):
        x = torch.ones(wrong)
        messages = []
        for module in (own, theirs):
            try:
                module(x)
                messages.append(None)
            except (ValueError, RuntimeError) as error:
                messages.append(f"{type(error).__name__}: {error}")
            except UserWarning as warning:
                messages.append(str(warning))
        assert messages[0] == messages[1]
    state = own.state_dict()
    assert all(torch.equal(state[key], each) for key, each in theirs.state_dict().items())


@pytest.mark.parametrize("case", OF_EACH, ids=str)
def test_copies_and_files(case):
    """Deep copies, and files of states and of whole modules, give the same module."""
    name, arguments, options, shape = case
    own, theirs = pair(name, arguments, options)
    file = io.BytesIO()
    torch.save(own, file)
    file.seek(0)
    x = torch.randn(shape)
    expected = theirs(x)
    for module in (copy.deepcopy(own), torch.load(file, weights_only=False)):
        assert type(module) is type(own)
        assert_close((module(x),), (expected,))


@pytest.mark.parametrize("case", OF_EACH, ids=str)
def test_symbolic_trace_keeps_the_module(case):
    name, arguments, options, shape = case
    own, theirs = pair(name, arguments, options)
    traced = torch.fx.symbolic_trace(nn.Sequential(own))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.randn(shape)
    assert_close((traced(x),), (theirs(x),))


@pytest.mark.parametrize("case", OF_EACH, ids=str)
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_scripts_and_traces_are_pytorchs(case):
    name, arguments, options, shape = case
    own, theirs = pair(name, arguments, options)
    own.eval(), theirs.eval()
    x = torch.randn(shape)
    for compiled in (torch.jit.script(own), torch.jit.trace(own, x)):
        assert_close((compiled(2 * x),), (theirs(2 * x),))
        assert "aten::" in str(compiled.inlined_graph)
        assert "PythonOp" not in str(compiled.inlined_graph)


def test_hooks_run():
    module, seen = nt.BatchNorm2d(4), []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module(torch.randn(SHAPES[2], requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]


def test_a_step_of_an_optimiser():
    """Parameters that train with both modules stay equal."""
    own, theirs = pair("BatchNorm2d", (4,), {})
    steps = [(module, torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)) for module in (own, theirs)]
    for _ in range(3):
        x = torch.randn(SHAPES[2])
        for module, optimiser in steps:
            optimiser.zero_grad()
            module(x).square().mul(x).sum().backward()
            optimiser.step()
    assert_close(list(own.state_dict().values()), list(theirs.state_dict().values()), tolerance=1e-5)
