"""The functions against those of PyTorch: its own samples, float64 as the reference, gradcheck, fallbacks."""

import functools
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F

import numbabn.torch.functional as ours
from tests.support.jit import needs_jit
from tests.torch.tensors import assert_close, formatted, leaf, results

NAMES = ours.__all__


@functools.cache
def operators():
    """The samples of PyTorch's own tests, by the name of the function."""
    pytest.importorskip("expecttest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated in PyTorch's tests
        from torch.testing._internal.common_methods_invocations import op_db
    return {name: next(op for op in op_db if op.name == f"nn.functional.{name}") for name in NAMES}


def called(function, sample):
    """The call of a sample, as a function of its tensors, and these."""
    places = [i for i, each in enumerate(sample.args) if isinstance(each, torch.Tensor)]
    keys = [key for key, each in sample.kwargs.items() if isinstance(each, torch.Tensor)]
    tensors = [sample.input, *(sample.args[i] for i in places), *(sample.kwargs[key] for key in keys)]

    def call(x, *others):
        args, options = list(sample.args), dict(sample.kwargs)
        for i, each in zip(places, others, strict=False):
            args[i] = each
        options.update(zip(keys, others[len(places) :], strict=True))
        return function(x, *args, **options)

    return call, tensors


# Some samples have one value per statistic: dx is 0, of which sqrt(1 / eps) = 316 times a rounding is left.
SAMPLES = {torch.float64: 1e-11, torch.float32: 3e-4, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", SAMPLES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples_of_pytorch(name, dtype):
    count = 0
    for sample in operators()[name].sample_inputs("cpu", dtype, requires_grad=True):
        tensors = called(None, sample)[1]
        running = [each for each in tensors if not each.requires_grad]
        copies = [each.clone() for each in tensors], [each.clone() for each in tensors]
        pairs = []
        for function, copied in zip((getattr(ours, name), getattr(F, name)), copies, strict=True):
            mine = [leaf(c) if t.requires_grad else c for c, t in zip(copied, tensors, strict=True)]
            pairs.append(
                (*results(called(function, sample)[0], *mine), *(m for m in mine if not m.requires_grad))
            )
        assert len(running) <= 2
        assert [each.dtype for each in pairs[0]] == [each.dtype for each in pairs[1]]
        assert_close(*pairs, tolerance=SAMPLES[dtype])
        count += 1
    assert count > 3


X = torch.ones(2, 4, 3)
REFUSED = {
    "one value per channel": lambda m: m.batch_norm(X[:1, :, 0], None, None, training=True),
    "eps of 0": lambda m: m.batch_norm(X, None, None, training=True, eps=0.0),
    "no statistics": lambda m: m.batch_norm(X, None, None),
    "one of two statistics": lambda m: m.batch_norm(X, X[0, :, 0], None),
    "weight of another length": lambda m: m.batch_norm(X, None, None, X[0, 0], training=True),
    "weight of another dtype": lambda m: m.batch_norm(X, None, None, X[0, :, 0].double(), training=True),
    "one spatial element": lambda m: m.instance_norm(X[..., :1]),
    "no axis of space": lambda m: m.instance_norm(X[..., 0]),
    "groups that do not divide": lambda m: m.group_norm(X, 3),
    "no groups": lambda m: m.group_norm(X, 0),
    "one axis": lambda m: m.group_norm(X[0, 0], 1),
    "one value per group": lambda m: m.group_norm(X[:1, :, :1], 4),
    "another shape": lambda m: m.layer_norm(X, (4,)),
    "no shape": lambda m: m.layer_norm(X, ()),
    "weight of another shape": lambda m: m.rms_norm(X, (3,), X[0, :, 0]),
    "integers": lambda m: m.layer_norm(X.int(), (3,)),
    "complex numbers": lambda m: m.batch_norm(X.to(torch.complex64), None, None, training=True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_errors_are_those_of_pytorch(reason):
    with pytest.raises(Exception) as expected:  # noqa: PT011
        REFUSED[reason](F)
    with pytest.raises(expected.type) as found:
        REFUSED[reason](ours)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_pytorch(name):
    own = list(inspect.signature(getattr(ours, name)).parameters.values())
    theirs = list(inspect.signature(getattr(F, name)).parameters.values())
    assert [(p.name, p.default, p.kind) for p in own[:-2]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [p.name for p in own[-2:]] == ["activation", "negative_slope"]


SHAPE = (4, 6, 5, 3)


def calls():
    """Each norm as a function of (functions, x, weight, bias), and the shape of the weight."""
    last = SHAPE[-2:]

    def running(dtype):
        return torch.linspace(-1, 1, 6, dtype=dtype), torch.linspace(0.5, 2, 6, dtype=dtype)

    def statistics(x, w):
        return running(x.dtype if w is None else w.dtype)

    return {
        "batch": (lambda m, x, w, b, **o: m.batch_norm(x, None, None, w, b, True, **o), (6,)),
        "batch_known": (lambda m, x, w, b, **o: m.batch_norm(x, *statistics(x, w), w, b, **o), (6,)),
        "instance": (lambda m, x, w, b, **o: m.instance_norm(x, None, None, w, b, **o), (6,)),
        "instance_known": (
            lambda m, x, w, b, **o: m.instance_norm(x, *statistics(x, w), w, b, False, **o),
            (6,),
        ),
        "group": (lambda m, x, w, b, **o: m.group_norm(x, 3, w, b, **o), (6,)),
        "layer": (lambda m, x, w, b, **o: m.layer_norm(x, last, w, b, **o), last),
        "rms": (lambda m, x, w, b, **o: m.rms_norm(x, last, w, **o), last),
    }


CALLS = calls()
CASES = pytest.mark.parametrize("case", CALLS)


def tensors(case, dtype, parameters=None, layout="contiguous"):
    shape = CALLS[case][1]
    x = formatted(torch.randn(SHAPE, dtype=torch.float64).to(dtype), layout).detach().requires_grad_()
    w, b = (torch.randn(shape, dtype=torch.float64).to(parameters or dtype).requires_grad_() for _ in "wb")
    return x, w, None if case == "rms" else b


@CASES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_against_float64(case, layout, dtypes):
    """Errors are some roundings, dtypes are those of PyTorch, y is laid out as x or a dense copy."""
    function = CALLS[case][0]
    given = tensors(case, *dtypes, layout)
    found = results(lambda *t: function(ours, *t), *given)
    wide = [leaf(each, torch.float64) for each in given]
    assert_close(found, results(lambda *t: function(F, *t), *wide))
    assert found[0].dtype is dtypes[0]
    assert found[0].stride() == torch.empty_like(given[0]).stride()
    # A float32 weight beside x of half the bits has a gradient of float32, as in PyTorch.
    assert [each.dtype for each in found[1:]] == [each.dtype for each in given if each is not None]


@CASES
def test_gradcheck(case):
    function = CALLS[case][0]
    given = tensors(case, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: function(ours, *t), given)


@CASES
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_gradgradcheck(case, activation):
    """Gradients of gradients are those of PyTorch's formula."""
    function = CALLS[case][0]
    given = tensors(case, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *t: function(ours, *t, activation=activation), given, fast_mode=True
    )


def test_gradients_of_a_weight_made_of_x():
    """Whether or not they are to be differentiated again."""
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = ours.layer_norm(x, (4,), x[0, 0].exp(), x[0, 1]).square().sum()
    once = torch.autograd.grad(y, x, retain_graph=True)
    assert_close(torch.autograd.grad(y, x, create_graph=True), once)


@CASES
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_activation(case, activation, dtype):
    function = CALLS[case][0]
    given = [each if each is None else (3 * each).detach().requires_grad_() for each in tensors(case, dtype)]
    found = results(lambda *t: function(ours, *t, activation=activation, negative_slope=0.25), *given)
    follow = {"relu": F.relu, "relu6": F.relu6, "leaky_relu": lambda y: F.leaky_relu(y, 0.25)}[activation]
    wide = [leaf(each, torch.float64) for each in given]
    assert_close(found, results(lambda *t: follow(function(F, *t)), *wide))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be None or one of 'relu', 'relu6', 'leaky_relu'"):
        ours.layer_norm(torch.randn(2, 3), (3,), activation="gelu")


@CASES
def test_gradients_are_none_where_not_needed(case):
    function = CALLS[case][0]
    x, w, b = tensors(case, torch.float32)
    function(ours, x.detach(), w, b).sum().backward()
    assert x.grad is None
    assert w.grad is not None
    w.grad = None
    function(ours, x, w.detach(), None if b is None else b.detach()).sum().backward()
    assert x.grad is not None
    assert w.grad is None


@needs_jit
@CASES
def test_a_large_result_is_no_view(case):
    """In memory that numbabn keeps: an activation may change it in place."""
    function, _ = CALLS[case]
    x, w, b = tensors(case, torch.bfloat16)
    large = x.detach().repeat(49000, 1, 1, 1).requires_grad_()
    assert large.nbytes > 32 << 20
    y = F.relu(function(ours, large, w, b), inplace=True)
    y.sum().backward()
    assert not y._is_view()
    constants = (None if each is None else each.detach() for each in (large, w, b))
    factor = torch.ones((), dtype=large.dtype, requires_grad=True)
    function(ours, *constants).mul_(factor).sum().backward()  # an error where it is a view of other dtype
    assert factor.grad is not None
    assert large.grad.shape == large.shape


@CASES
def test_in_place_change_of_the_input_is_noticed(case):
    function = CALLS[case][0]
    x, w, b = tensors(case, torch.float32)
    inner = x * 1.0
    y = function(ours, inner, w, b)
    inner.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@CASES
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which forward mode calls itself
def test_transforms_take_pytorchs_formula(case):
    function = CALLS[case][0]
    x, w, b = (None if each is None else each.detach() for each in tensors(case, torch.float64))
    stacked = torch.stack((x, 2 * x))
    found = torch.func.vmap(lambda each: function(ours, each, w, b))(stacked)
    assert_close((found,), (torch.stack([function(F, each, w, b) for each in stacked]),))
    gradient = torch.func.grad(lambda each: function(ours, each, w, b).square().sum())(x)
    assert_close((gradient,), (torch.func.grad(lambda each: function(F, each, w, b).square().sum())(x),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        pairs = [torch.autograd.forward_ad.unpack_dual(function(m, dual, w, b)) for m in (ours, F)]
    assert_close(pairs[0], pairs[1])


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(case, dtype):
    """The dtype of y is that of x, as in PyTorch."""
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # of PyTorch's rms_norm
    function = CALLS[case][0]
    given = tensors(case, dtype, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = [results(lambda *t, m=m: function(m, *t), *given) for m in (ours, F)]
    assert [each.dtype for each in pairs[0]] == [each.dtype for each in pairs[1]]
    assert_close(*pairs, tolerance=3e-2 if dtype is torch.bfloat16 else None)


@needs_jit
@CASES
def test_deterministic(case):
    """The same bits in every run and for any number of threads, and no complaint of PyTorch."""
    function = CALLS[case][0]
    x, w, b = tensors(case, torch.float32)
    large = x.detach().repeat(400, 1, 1, 1).requires_grad_()
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        first = results(lambda *t: function(ours, *t), large, w, b)
        torch.set_num_threads(1)
        second = results(lambda *t: function(ours, *t), large, w, b)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@CASES
def test_checkpoint_recomputes(case):
    function = CALLS[case][0]
    given = tensors(case, torch.float64)
    again = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    found = results(lambda *t: again(lambda *u: function(ours, *u), *t), *given)
    assert_close(found, results(lambda *t: function(F, *t), *given))


@CASES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_saved_tensors_may_come_back_elsewhere(case, layout):
    """Hooks move what is kept, and bring it back in another order of memory; what was x is overwritten."""
    function = CALLS[case][0]
    x, w, b = tensors(case, torch.float64, layout=layout)
    given, moved = x.detach().clone(memory_format=torch.preserve_format), []

    def pack(tensor):
        moved.append(tensor.dim())
        return tensor.detach().clone(memory_format=torch.contiguous_format)

    inputs = [each for each in (x, w, b) if each is not None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        y = function(ours, x, w, b)
    x.data.fill_(torch.nan)
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    found = torch.autograd.grad(y, inputs, dy)
    assert x.dim() in moved
    x.data.copy_(given)
    assert_close(found, torch.autograd.grad(function(F, x, w, b), inputs, dy))


@CASES
def test_gradients_of_y_may_be_batched(case):
    """Many gradients at once, as for Jacobians, by PyTorch's formula; none of them is recorded."""
    function = CALLS[case][0]
    given = tensors(case, torch.float64)
    pairs = []
    for module in (ours, F):
        leaves = [None if each is None else leaf(each) for each in given]
        y = function(module, *leaves)
        wanted = [each for each in leaves if each is not None]
        dy = torch.linspace(-1, 1, 3 * y.numel(), dtype=y.dtype).reshape(3, *y.shape)
        pairs.append(torch.autograd.grad(y, wanted, dy, is_grads_batched=True))
    assert_close(*pairs)
    assert not any(each.requires_grad for each in pairs[0])


@CASES
def test_a_gradient_of_y_may_have_the_negative_bit(case):
    function = CALLS[case][0]
    x, w, b = tensors(case, torch.float64)

    def call(module):
        y = function(module, x, w, b)
        return torch.autograd.grad(torch.complex(torch.zeros_like(y), y).conj().imag.square().sum(), x)

    assert_close(call(ours), call(F))


class Marked(torch.Tensor):
    """A subclass of Tensor, which PyTorch's functions return, too."""


@CASES
def test_subclasses_of_tensor_are_kept(case):
    function = CALLS[case][0]
    x, w, b = (None if each is None else each.detach() for each in tensors(case, torch.float64))
    marked = x.as_subclass(Marked)
    found = function(ours, marked, w, b)
    assert type(found) is Marked
    assert_close((found,), (function(F, x, w, b),))


@CASES
def test_meta_tensors(case):
    function = CALLS[case][0]
    x, w, b = (None if each is None else each.to("meta") for each in tensors(case, torch.float32))
    if "known" in case:
        pytest.skip("the running statistics of the test are on the CPU")
    assert function(ours, x, w, b).is_meta


@pytest.mark.parametrize("case", ["batch", "instance"])
def test_running_statistics(case):
    """After several steps they are PyTorch's; the version counts the updates."""
    x = torch.randn(5, *SHAPE)
    found, expected = ((torch.zeros(6), torch.ones(6)) for _ in range(2))
    for module, running in ((ours, found), (F, expected)):
        function = getattr(module, f"{case}_norm")
        for each in x:
            function(each, *running, None, None, True, 0.3)
    assert_close(found, expected)
    assert found[0]._version > 0


@needs_jit  # as plain Python, the square root warns
def test_negative_variance_is_nan_as_in_pytorch():
    mean, var = torch.zeros(2), torch.tensor([-1.0, 1.0])
    x = torch.ones(3, 2)
    assert_close((ours.batch_norm(x, mean, var),), (F.batch_norm(x, mean, var),))


def test_statistics_may_change_before_backward():
    mean, var = torch.zeros(2), torch.ones(2)
    x = torch.randn(3, 2, requires_grad=True)
    y = ours.batch_norm(x, mean, var, eps=1e-12)
    var.fill_(100.0)
    y.sum().backward()
    assert_close((x.grad,), (torch.ones(3, 2),))
