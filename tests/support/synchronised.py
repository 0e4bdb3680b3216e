"""What a synchronised layer has to do, as checks that every rank makes: a thread, or a process of MPI.

Every rank makes the arrays of all ranks from one seed, gives the layer its own part, and compares with what
the whole gives. An assertion that fails on one rank ends all of them.
"""

import copy
import pickle

import numpy as np
import pytest

import numbabn as nbn
from tests.support import reference
from tests.support.checks import assert_close, assert_same_bits, unchanged
from tests.support.layers import assert_same_state, snapshot
from tests.support.problems import Problem
from tests.support.ranks import Counting

PROMISED = 1e-6  # of the terms that a result is the sum of, and that may cancel


def part(comm, sizes):
    """Rows of this rank where each has some of a batch."""
    start = sum(sizes[: comm.Get_rank()])
    return slice(start, start + sizes[comm.Get_rank()])


def raises(error, call, *arguments, **options):
    """Call, and return the message of the error that must come."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert caught.type is error
    return str(caught.value)


def assert_same_on_all_ranks(comm, array, name):
    mine = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    all_ranks = np.empty((comm.Get_size(), mine.size), np.uint8)
    comm.Allgather(mine, all_ranks)
    assert (all_ranks == mine).all(), f"{name} differs between ranks"


def layer(problem, comm=None, **options):
    """Return a layer with the parameters of a problem."""
    bn = nbn.BatchNorm(problem.channels, axis=problem.axis, eps=problem.eps, comm=comm, **options)
    for name, value in (("gamma", problem.gamma()), ("beta", problem.beta())):
        if name in bn.params:
            bn.params[name][...] = value
    return bn


def check_training(comm, problem, sizes, **options):
    """Two steps agree with the formula for the whole batch, a layer of one process, and the other ranks.

    The channels are not on axis 0, which is the one that is cut.
    """
    bn, alone = layer(problem, comm, **options), layer(problem, **options)
    rows = part(comm, sizes)
    gamma, beta = bn.params.get("gamma"), bn.params.get("beta")
    formula = {"axis": problem.axis, "eps": problem.eps}
    for step in range(2):
        x, dy = problem.x() * (1 + step), problem.dy()
        y, dx = bn(x[rows]), bn.backward(dy[rows])
        one_y, one_dx = alone(x), alone.backward(dy)
        error = reference.forward_error(x, gamma, beta, **formula)
        assert_close(y, reference.forward(x, gamma, beta, **formula)[rows], error[rows], "y")
        exact = reference.backward(dy, x, gamma, **formula)
        errors = reference.backward_error(dy, x, gamma, beta, **formula)
        assert_close(dx, exact[0][rows], errors[0][rows], "dx")
        assert_close(y, one_y[rows], PROMISED * (1 + np.abs(one_y[rows])), "y of one process")
        terms = PROMISED / reference.roundings(x.dtype) * errors[0]
        assert_close(dx, one_dx[rows], terms[rows], "dx of one process")
        for name, value, allowed in zip(("gamma", "beta"), exact[1:], errors[1:], strict=True):
            if name in bn.grads:
                assert_close(bn.grads[name], value, allowed, f"d{name}")
                terms = PROMISED / reference.roundings(x.dtype) * allowed
                assert_close(bn.grads[name], alone.grads[name], terms, f"d{name} of one process")
                assert_same_on_all_ranks(comm, bn.grads[name], f"d{name}")
    for name, value in bn.state_dict().items():
        assert_same_on_all_ranks(comm, value, name)
        expected = alone.state_dict()[name]
        assert_close(value, expected, PROMISED * (1 + np.abs(expected)), f"{name} of one process")


def some_sizes(size):
    """Return ways to share out a batch: even, uneven, with nothing for some ranks, or for all but one."""
    return (
        [3] * size,
        list(range(2, size + 2)),
        [7 * (rank % 2) for rank in range(1, size + 1)],
        [0] * (size - 1) + [5],
    )


PROBLEMS = (
    ({"axis": 1, "offset": 1e4}, (3, 4, 5), {}),
    ({"axis": -1, "dtype": np.float64}, (2, 3, 5), {"momentum": None, "dtype": np.float64}),
    ({"axis": 1}, (5,), {"scale": False}),
    ({"axis": 2, "layout": "transposed", "dy_layout": "sliced"}, (2, 3), {"center": False, "momentum": 0.5}),
    ({"axis": 1}, (1, 3, 3), {"track_running_stats": False, "scale": False, "center": False}),
)


def check_problems(comm):
    for sizes in some_sizes(comm.Get_size()):
        for fields, rest, options in PROBLEMS:
            check_training(comm, Problem((sum(sizes), *rest), **fields), sizes, **options)


def check_nothing(comm):
    """A batch that is empty on all ranks gives empty results and zero gradients, and updates nothing."""
    bn = nbn.BatchNorm(3, comm=comm)
    before = snapshot(bn)
    x = np.empty((0, 3, 2), np.float32)
    assert bn(x).shape == bn.backward(x).shape == x.shape
    assert not bn.grads["gamma"].any()
    assert not bn.grads["beta"].any()
    assert_same_state(bn, before)


def check_one_value(comm):
    """One value per channel on all ranks together is refused by all of them; one value on each is fine."""
    bn = nbn.BatchNorm(3, comm=comm)
    before = snapshot(bn)
    rank, size = comm.Get_rank(), comm.Get_size()
    x = np.ones((int(rank == size - 1), 3), np.float32)
    out = np.full_like(x, 7)
    message = raises(ValueError, bn, x, out=out)
    assert f"one value per channel on all {size} ranks" in message
    assert (out == 7).all()
    assert_same_state(bn, before)
    if size > 1:
        bn(np.full((1, 3), rank, np.float32))
        ranks = np.arange(size)
        # From 0 and 1, with weight 0.1: float32 rounds a few times.
        assert np.allclose(bn.running_mean, 0.1 * ranks.mean(), rtol=1e-6)
        assert np.allclose(bn.running_var, 0.9 + 0.1 * ranks.var(ddof=1), rtol=1e-6)


BAD_CALLS = {
    "another number of channels": (ValueError, lambda bn, x: bn(x[:, :2])),
    "rank 1": (ValueError, lambda bn, x: bn(x[0])),
    "integers": (TypeError, lambda bn, x: bn(x.astype(int))),
    "a list": (TypeError, lambda bn, x: bn(x.tolist())),
    "out of another shape": (ValueError, lambda bn, x: bn(x, out=np.empty((1, 3), np.float32))),
    "a gamma of another shape": (ValueError, lambda bn, x: _with_bad_gamma(bn, x)),
    "dy of another shape": (ValueError, lambda bn, x: bn.backward(x[:1])),
    "dx that is not needed": (ValueError, lambda bn, x: bn.backward(x, out=x, need_dx=False)),
}


def _with_bad_gamma(bn, x):
    good = bn.params["gamma"]
    bn.params["gamma"] = np.ones(2, np.float32)
    try:
        bn(x)
    finally:
        bn.params["gamma"] = good


def check_refusals(comm):
    """The rank that is wrong gets its error, the others one that names it, and the next call is good."""
    rank, size = comm.Get_rank(), comm.Get_size()
    x = np.random.default_rng(rank).standard_normal((4, 3)).astype(np.float32)
    bn = nbn.BatchNorm(3, comm=comm)
    bn(x), bn.backward(x)
    for i, (error, bad) in enumerate(BAD_CALLS.values()):
        before, wrong = snapshot(bn), i % size
        out = np.full_like(x, 7)
        backward = i >= len(BAD_CALLS) - 2
        with unchanged(x):
            if rank == wrong:
                raises(error, bad, bn, x)
            else:
                message = raises(RuntimeError, bn.backward if backward else bn, x, out=out)
                assert message.startswith(f"rank {wrong} raised an error in a ")
                assert ("backward" if backward else "forward") in message
        assert (out == 7).all()
        assert_same_state(bn, before)
        bn(x), bn.backward(x)
        assert bn.num_batches_tracked == i + 2


def check_interruption(comm):
    """Whatever ends a call before its message is sent, Ctrl-C too, is told to the other ranks."""

    class Interrupting:
        @property
        def __cuda_array_interface__(self):  # looked for in whatever is no array of NumPy
            raise KeyboardInterrupt

    bn = nbn.BatchNorm(3, comm=comm)
    if comm.Get_rank() == 0:
        raises(KeyboardInterrupt, bn, Interrupting())
    else:
        assert "rank 0 raised" in raises(RuntimeError, bn, np.ones((4, 3), np.float32))
    assert bn.num_batches_tracked == 0


def check_several_refusals(comm):
    bn = nbn.BatchNorm(3, comm=comm)
    size = comm.Get_size()
    if comm.Get_rank() < size - 1 or size == 1:
        raises(TypeError, bn, None)
    else:
        wrong = ", ".join(map(str, range(size - 1)))
        assert f"rank {wrong} raised" in raises(RuntimeError, bn, np.ones((4, 3), np.float32))


def check_out_of_step(comm):
    """Ranks in different calls all get an error, and no sum of unlike numbers."""
    x = np.random.default_rng(comm.Get_rank()).standard_normal((4, 3)).astype(np.float32)
    bn = nbn.BatchNorm(3, comm=comm)
    bn(x)
    before, last = snapshot(bn), comm.Get_size() - 1
    if last == 0:
        return
    if comm.Get_rank() == last:
        message = raises(RuntimeError, bn, x)
        assert "but rank 0" in message
        assert "in a backward call" in message
    else:
        assert f"but rank {last} in a forward call" in raises(RuntimeError, bn.backward, x)
    assert_same_state(bn, before)


def check_backward_without_forward(comm):
    bn = nbn.BatchNorm(3, comm=comm)
    assert "forward call first" in raises(RuntimeError, bn.backward, np.ones((4, 3), np.float32))


def check_messages(comm):
    """A call sends one message, forward or backward and whatever is asked for; none in evaluation mode.

    The first call sends one more, in which ranks compare their numbers of channels.
    """
    counting = Counting(comm)
    rank = comm.Get_rank()
    x = np.random.default_rng(rank).standard_normal((2 * rank + 2, 3, 4)).astype(np.float32)
    bn = nbn.BatchNorm(3, comm=counting)
    y = bn(x)
    assert counting.messages == 2
    dx = bn.backward(x)
    assert counting.messages == 3
    gradients = bn.grads

    with bn.frozen_stats():
        assert_same_bits(bn(x), y, "y with frozen statistics")
    assert counting.messages == 4
    assert bn.num_batches_tracked == 1
    # A rank that needs no dx has sums that others need.
    assert bn.backward(x, need_dx=False) is None if rank == 0 else (bn.backward(x) == dx).all()
    assert counting.messages == 5
    for name, value in bn.grads.items():
        assert_same_bits(value, gradients[name], name)

    alone = nbn.BatchNorm(3).eval()
    alone.load_state_dict(bn.state_dict())
    assert_same_bits(bn.eval()(x), alone(x), "y in evaluation mode")
    bn.train()  # backward is of the call that was
    assert_same_bits(bn.backward(x), alone.backward(x), "dx in evaluation mode")
    assert_same_bits(bn.grads["gamma"], alone.grads["gamma"], "dgamma in evaluation mode")
    nbn.BatchNorm(3, comm=counting, track_running_stats=False).eval()(x)
    assert counting.messages == 5


def check_in_place(comm):
    problem = Problem((3 * comm.Get_size(), 4, 2))
    rows = part(comm, [3] * comm.Get_size())
    bn = layer(problem, comm)
    x, dy = problem.x()[rows], problem.dy()[rows].copy()
    y, dx = bn(x), bn.backward(dy)
    assert bn.backward(dy, out=dy) is dy
    assert_same_bits(dy, dx, "dx in place")
    assert bn(x, out=x) is x
    assert_same_bits(x, y, "y in place")
    assert "out=x" in raises(ValueError, bn.backward, dx)  # on all ranks: each says what it knows itself


def check_nan(comm):
    """NaN and infinity of one rank spoil their channel on all ranks, and no bit of any other channel."""
    rank = comm.Get_rank()
    x = np.random.default_rng(rank).standard_normal((5, 4)).astype(np.float32)
    clean = nbn.BatchNorm(4, comm=comm)
    y, dx = clean(x), clean.backward(x)
    spoilt = x.copy()
    if rank == comm.Get_size() - 1:
        spoilt[0, 0], spoilt[0, 2] = np.nan, np.inf
    bn = nbn.BatchNorm(4, comm=comm)
    results = {
        "y": (bn(spoilt), y),
        "dx": (bn.backward(x), dx),
        "running_mean": (bn.running_mean, clean.running_mean),
        "running_var": (bn.running_var, clean.running_var),
        "dgamma": (bn.grads["gamma"], clean.grads["gamma"]),
    }
    for name, (value, expected) in results.items():
        assert_same_bits(value[..., [1, 3]], expected[..., [1, 3]], name)
        assert not np.isfinite(value[..., [0, 2]]).any(), name


def check_channels(comm):
    """Different numbers of channels are an error on every rank, which names all of them, and no deadlock.

    That is so as well where a rank refuses its own x; afterwards all can go on with layers that agree.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    if size == 1:
        return
    channels = [3 + (r == size - 1) for r in range(size)]
    bn = nbn.BatchNorm(channels[rank], comm=comm)
    before = snapshot(bn)
    x = np.random.default_rng(rank).standard_normal((4, channels[rank])).astype(np.float32)
    counts = ", ".join(f"{count} on rank {r}" for r, count in enumerate(channels))
    for _ in range(2):
        assert f"different numbers of channels: {counts};" in raises(RuntimeError, bn, x)
        assert_same_state(bn, before)
    if rank == 0:
        assert "num_channels=3" in raises(ValueError, bn, x[:, :2])
    else:
        assert f"different numbers of channels: {counts};" in raises(RuntimeError, bn, x)
    assert_same_state(bn, before)
    agreed = nbn.BatchNorm(2, comm=comm)
    assert_same_on_all_ranks(comm, agreed(x[:, :2]).mean(axis=0) * 0 + agreed.running_mean, "running_mean")


def check_copies(comm):
    """A copy has the same communicator; a layer from a pickle has none, and the state does not mention it."""
    rank = comm.Get_rank()
    x = np.random.default_rng(rank).standard_normal((4, 3)).astype(np.float32)
    bn = nbn.BatchNorm(3, comm=comm)
    assert bn.comm is comm
    assert "comm=" in repr(bn)
    assert "comm=" not in repr(nbn.BatchNorm(3))
    twin, shallow, loaded = copy.deepcopy(bn), copy.copy(bn), pickle.loads(pickle.dumps(bn))
    assert twin.comm is shallow.comm is comm
    assert loaded.comm is None
    assert bn.state_dict().keys() == nbn.BatchNorm(3).state_dict().keys()
    y = bn(x)
    assert_same_bits(twin(x), y, "y of a copy")
    assert_same_bits(loaded(x), nbn.BatchNorm(3)(x), "y of a layer from a pickle")
    loaded.comm = comm
    assert_same_bits(loaded(x), y, "y with the comm set")
    loaded.comm = None
    assert "forward call first" in raises(RuntimeError, loaded.backward, x)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]
CHECKS.remove(check_training)  # takes a problem
