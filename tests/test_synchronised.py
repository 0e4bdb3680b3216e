"""Synchronised layers: on ranks that are threads, for any sharing out of a batch, and by a real mpiexec."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbabn as nbn
from numbabn.arrays.library import Place
from numbabn.norms import _base, _ranks
from tests.support.jit import JIT
from tests.support.problems import WRITABLE, Problem
from tests.support.processes import communicate, environment
from tests.support.ranks import on_ranks
from tests.support.synchronised import CHECKS, check_training, part

RANKS = (1, 2, 3, 4)


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("check", CHECKS)
def test_ranks(check, size):
    on_ranks(size, check)


@settings(max_examples=60 if JIT else 20)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 1),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.data(),
)
def test_any_sharing_out(sizes, rest, data):
    """Ranks do what one process does, for any sizes, shapes, dtypes, memory layouts and options."""
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    problem = Problem(
        (sum(sizes), *rest),
        axis=data.draw(st.integers(1, len(rest))),
        dtype=dtype,
        layout=data.draw(st.sampled_from(WRITABLE)),
        dy_layout=data.draw(st.sampled_from(WRITABLE)),
        offset=data.draw(st.sampled_from([0, 30, 1e4])),
        seed=data.draw(st.integers(0, 99)),
    )
    options = {
        "momentum": data.draw(st.sampled_from([0.1, 1.0, None])),
        "scale": data.draw(st.booleans()),
        "center": data.draw(st.booleans()),
        "dtype": dtype,
    }
    on_ranks(len(sizes), lambda comm: check_training(comm, problem, sizes, **options))


@pytest.mark.skipif(not JIT, reason="too many elements without the JIT")
@pytest.mark.parametrize(("shape", "axis"), [((70, 16, 40, 40), 1), ((150, 40, 160), -1)])
def test_large_batches(shape, axis):
    """Ranks do what one process does in several threads and chunks, and with arrays larger than a cache."""
    sizes = (0, shape[0] - 20, 20)
    on_ranks(3, lambda comm: check_training(comm, Problem(shape, axis, offset=100), sizes))


def test_population_of_uneven_ranks():
    """momentum=None gives every value the same weight, whichever rank and step had it."""
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal((11, 3)) * 10**i + 5 * i for i in range(4)]

    def train(comm):
        bn = nbn.BatchNorm(3, momentum=None, dtype=np.float64, comm=comm)
        for i, x in enumerate(steps):
            bn(x[part(comm, [(8, 0, 3), (1, 1, 9), (11, 0, 0), (0, 5, 6)][i])])
        return bn.state_dict()

    everything = np.concatenate(steps)
    for state in on_ranks(3, train):
        assert state["population_count"] == len(everything)
        # Merged in float64, a few roundings of the largest value.
        assert np.allclose(state["running_mean"], everything.mean(axis=0), rtol=0, atol=1e-11)
        assert np.allclose(state["running_var"], everything.var(axis=0, ddof=1), rtol=1e-12)


def test_merged_in_the_order_of_the_ranks():
    """The same bits on all ranks need the same order: that of the ranks, whoever comes first."""
    rng = np.random.default_rng(0)
    x, dy = ([rng.standard_normal((5, 3)) * 10.0**rank for rank in range(4)] for _ in range(2))

    def train(comm):
        bn = nbn.BatchNorm(3, momentum=1, dtype=np.float64, comm=comm)
        bn(x[comm.Get_rank()])
        bn.backward(dy[comm.Get_rank()])
        return bn.running_mean.tobytes(), bn.grads["beta"].tobytes()

    found = {bits for _ in range(5) for bits in on_ranks(4, train)}
    assert found == {(merged_means(x).tobytes(), added_sums(dy).tobytes())}
    (mean, beta), backwards = found.pop(), slice(None, None, -1)
    assert mean != merged_means(x[backwards]).tobytes(), "the order makes no difference"
    assert beta != added_sums(dy[backwards]).tobytes(), "the order makes no difference"


def merged_means(batches):
    """Return the mean of batches, merged from the first to the last: Chan and others (1979), eq. 2.1."""
    count, mean = 0, np.zeros(3)
    for batch in batches:
        more, more_mean, _ = nbn.moments(batch)
        count += more
        mean = mean + (more_mean - mean) * (more / count)
    return mean


def added_sums(batches):
    """Return the sum of batches, each summed by itself, added from the first to the last."""
    total = np.zeros(3)
    for batch in batches:
        _, saved = nbn.batch_norm_forward(batch, None, np.zeros(3))
        total = total + nbn.batch_norm_backward(batch, saved)[2]
    return total


# Refused communicators --------------------------------------------------------------------------------------


class Comm:
    """A communicator that fails when it is asked for anything."""

    def refused(self, *arguments):
        raise AssertionError("a message was sent")

    Get_rank = Get_size = Allgather = refused


@pytest.mark.parametrize("comm", ["COMM_WORLD", 4, object(), Comm])
def test_no_communicator(comm):
    with pytest.raises(TypeError, match=r'^comm must be an MPI .* pip install "numbabn\[mpi\]"$'):
        nbn.BatchNorm(3, comm=comm)
    bn = nbn.BatchNorm(3)
    with pytest.raises(TypeError, match=r"^comm must be"):
        bn.comm = comm
    assert bn.comm is None


def test_no_message_without_a_call():
    """Nothing that is no call of the layer waits for other ranks."""
    bn = nbn.BatchNorm(3, comm=Comm())
    bn.load_state_dict(bn.state_dict())
    bn.eval()(np.ones((4, 3), np.float32))
    bn.backward(np.ones((4, 3), np.float32))
    repr(bn)


def test_not_on_a_gpu():
    with pytest.raises(TypeError, match=r"^comm is given, but the layer is on cuda:0"):
        _ranks.ranks(Comm(), Place("cupy", 0))


def test_does_not_move_to_a_gpu(monkeypatch):
    bn = nbn.BatchNorm(3, comm=Comm())
    arrays = dict(bn.params)
    monkeypatch.setattr(_base, "place", lambda device: Place("cupy", 0))
    with pytest.raises(TypeError, match=r"^comm is given, but the layer is on cuda:0"):
        bn.to("cuda")
    assert all(bn.params[name] is array for name, array in arrays.items())


def test_message_of_another_size():
    """What MPI left of a message that was too short is refused as none of this layer."""

    class Short(Comm):
        def Get_rank(self):  # noqa: N802
            return 0

        def Get_size(self):  # noqa: N802
            return 2

        def Allgather(self, send, receive):  # noqa: N802
            receive[: 2 if send.size == 1 else 1] = send  # of the channels everything

    with pytest.raises(RuntimeError, match="but rank 1 in no call of this layer"):
        nbn.BatchNorm(3, comm=Short())(np.ones((4, 3), np.float32))


# A real MPI -------------------------------------------------------------------------------------------------

FOLDERS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
MPIEXEC = shutil.which("mpiexec", path=FOLDERS)
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="needs numbabn[mpi]"
)


def mpiexec(ranks, *arguments):
    """Run `mpi_program`, whose ranks share the cores; return (exit status, what it printed)."""
    python = [sys.executable, "-W", "error", "-m", "mpi4py", "-m", "tests.support.mpi_program"]
    with subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), *python, *arguments],
        env=environment(NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        output, _ = communicate(process)
    return process.returncode, output


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("ranks", RANKS)
def test_mpiexec(ranks):
    status, output = mpiexec(ranks)
    assert status == 0, output
    assert output.strip().endswith(f"{len(CHECKS)} checks on {ranks} ranks"), output


@needs_mpi
def test_error_outside_of_the_layer():
    """Other ranks wait for one that will never call: python -m mpi4py ends them, with its message."""
    status, output = mpiexec(2, "the data cannot be read")
    assert status != 0
    assert "ValueError: the data cannot be read" in output
