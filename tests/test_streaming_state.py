"""What Moments keeps: files that survive a kill, copies, refused calls, arrays on disk, threads."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import numbabn as nbn
from numbabn.statistics import _file
from tests.support.checks import assert_same_bits
from tests.support.jit import JIT, needs_jit
from tests.support.processes import run_python


def mixed(axis=-1):
    """Integers, floats with weights, NaN left out: every part of a state."""
    rng = np.random.default_rng(0)
    m = nbn.Moments(axis, nan_policy="omit").update(rng.integers(-(2**62), 2**62, (20, 3)))
    x = rng.standard_normal((20, 3))
    x[3, 1] = np.nan
    return m.update(x, weights=rng.random((20, 1)))


STATES = {
    "nothing": lambda: nbn.Moments((1, 2), nan_policy="raise"),
    "no values": lambda: nbn.Moments().update(np.empty((0, 4))),
    "no channels": lambda: nbn.Moments().update(np.empty((4, 0))),
    "one result": lambda: nbn.Moments(()).update(np.arange(6.0)),
    "integers": lambda: nbn.Moments().update(np.array([[np.iinfo(np.uint64).max]])),
    "mixed": mixed,
}


def assert_same_state(a, b):
    left, right = a.to_dict(), b.to_dict()
    assert left.keys() == right.keys()
    assert a.axis == b.axis
    for name, value in left.items():
        assert_same_bits(value, right[name], name)


def through_file(m, folder):
    m.save(folder / "state")
    return nbn.Moments.load(str(folder / "state"))


COPIES = {
    "dict": lambda m, _: nbn.Moments.from_dict(m.to_dict()),
    "file": through_file,
    "pickle": lambda m, _: pickle.loads(pickle.dumps(m)),
    "copy": lambda m, _: copy.copy(m),
    "deepcopy": lambda m, _: copy.deepcopy(m),
    "method": lambda m, _: m.copy(),
    "empty + m": lambda m, _: nbn.Moments(m.axis, nan_policy=m.nan_policy) + m,
    "m + empty": lambda m, _: m + nbn.Moments(m.axis, nan_policy=m.nan_policy),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_the_same_and_independent(state, how, tmp_path):
    m = STATES[state]()
    twin = COPIES[how](m, tmp_path)
    assert_same_state(twin, m)
    assert repr(twin) == repr(m)
    before = m.to_dict()
    shape = (2, *(m.shape or (3,) * len(m.axis)))
    twin.axis = tuple(range(1, len(shape)))
    twin.update(np.ones(shape))
    for name, value in m.to_dict().items():
        assert_same_bits(value, before[name], name)


def test_a_resumed_run_has_the_same_bits(tmp_path):
    chunks = np.random.default_rng(1).standard_normal((9, 50, 3))
    m = nbn.Moments()
    for chunk in chunks:
        m = through_file(m, tmp_path).update(chunk)
    assert_same_state(m, nbn.Moments.from_chunks(chunks))


def test_dictionary_is_a_copy():
    m = mixed()
    state = m.to_dict()
    for value in state.values():
        value[...] = value.dtype.type() if value.dtype.kind != "U" else "x"
    assert_same_state(m, mixed())


def test_file_is_readable_without_pickle(tmp_path):
    mixed().save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        assert {"format", "axis", "exact_total", "real_moments"} <= set(file.files)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_what_is_saved_are_the_arrays_and_nothing_else(tmp_path):
    """NumPy 2.0 and 2.1 store what they do not know as a keyword of savez as one more array."""
    keywords = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_file.np, "savez", lambda file, **given: keywords.update(given))
        mixed().save(tmp_path / "state")
    assert keywords.keys() == mixed().to_dict().keys()


def assert_no_state(path):
    with pytest.raises(ValueError, match=r"state is not a state that Moments\.save wrote: "):
        nbn.Moments.load(path)


@pytest.mark.parametrize("other", ["empty", "text", "truncated", "array", "objects", "arrays"])
def test_a_file_that_is_something_else(other, tmp_path):
    path = tmp_path / "state"
    mixed().save(path)
    whole = path.read_bytes()
    with path.open("wb") as file:
        if other == "array":
            np.save(file, np.ones(3))
        elif other == "objects":
            np.savez(file, format=np.array([None]))
        elif other == "arrays":
            np.savez(file, format=np.ones(3))
        else:
            file.write({"empty": b"", "text": b"mean,var\n", "truncated": whole[:-100]}[other])
    assert_no_state(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        nbn.Moments.load(tmp_path / "state")


def test_a_damaged_file_is_refused_or_has_the_whole_state(tmp_path):
    """A flipped byte is found by the checksums, or is in what nobody reads, as the time of day."""
    path = tmp_path / "state"
    mixed().save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            m = nbn.Moments.load(path)
        except ValueError:
            assert_no_state(path)
            refused += 1
        else:
            assert_same_state(m, mixed())
    assert refused > len(whole) / 7 / 2


SAVER = """
    import sys, numpy as np, numbabn as nbn
    a, b = (nbn.Moments().update(np.full((2, 100_000), v)) for v in (1, 2))
    print("ready", flush=True)
    while True:
        a.save(sys.argv[1])
        b.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state"
    nbn.Moments().update(np.full((2, 100_000), 1)).save(path)
    for delay in (0.0, 0.003, 0.011, 0.017, 0.03):
        command = [sys.executable, "-c", textwrap.dedent(SAVER), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        mean = nbn.Moments.load(path).mean
        assert mean.shape == (100_000,)
        assert mean[0] in (1, 2)
        assert (mean == mean[0]).all()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "state"
    mixed().save(path)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (_file.Path, "replace")), fail)
    with pytest.raises(OSError, match="no space"):
        nbn.Moments().save(path)
    monkeypatch.undo()
    assert_same_state(nbn.Moments.load(path), mixed())
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


# Refused calls ----------------------------------------------------------------------------------------------

X = np.arange(6.0).reshape(2, 3)

REFUSED = [
    (lambda m: m.update([[1.0]]), TypeError, "chunk must be a NumPy array"),
    (lambda m: m.update(X.astype(complex)), TypeError, "chunk.real"),
    (lambda m: m.update(X.astype(np.longdouble)), TypeError, "float64 are supported"),
    (lambda m: m.update(np.zeros((2, 3), "V2")), TypeError, r"pass chunk.view\(ml_dtypes.bfloat16\)"),
    (lambda m: m.update(np.zeros((3, 2), ml_dtypes.float8_e5m2)), TypeError, "chunk has dtype float8_e5m2"),
    (lambda m: m.update(X.astype(object)), TypeError, "dtype object"),
    (lambda m: m.update(X[:, :2]), ValueError, r"shape \(2,\).* have shape \(3,\)"),
    (lambda m: m.update(np.array(1.0)), ValueError, "axis must be"),
    (lambda m: m.update(X, where=X), TypeError, "where has dtype float64"),
    (lambda m: m.update(X, where=np.ones(2, bool)), ValueError, r"reshape\(-1, 1\)"),
    (lambda m: m.update(X, weights=np.ones(2)), ValueError, "does not broadcast"),
    (lambda m: m.update(X, weights=np.ones((1, 2, 3))), ValueError, "does not broadcast"),
    (lambda m: m.update(X, weights=np.ones(3, bool)), TypeError, "pass where="),
    (lambda m: m.update(X, weights=np.ones(3, complex)), TypeError, "weights has dtype complex"),
    (lambda m: m.update(X, weights=2.0), TypeError, "weights must be a NumPy array"),
    (lambda m: m.update(X, weights=np.array([1, -1, 1])), ValueError, r"weights\[1\] is -1"),
    (lambda m: m.update(X, weights=np.array([1, 1, np.nan])), ValueError, r"weights\[2\] is nan"),
    (lambda m: m.update(X, weights=np.array([[np.inf], [1]])), ValueError, r"weights\[0, 0\] is inf"),
    (lambda m: m.merge(X), TypeError, "other must be a Moments"),
    (lambda m: m + 1, TypeError, "unsupported operand"),
    (lambda m: m.merge(nbn.Moments().update(X[:, :2])), ValueError, "other has channels of shape"),
    (lambda m: m.merge(nbn.Moments((0, 1))), ValueError, "cannot be merged with the axes"),
    (
        lambda m: m.merge(nbn.Moments(nan_policy="omit")),
        ValueError,
        "other has nan_policy='omit', which cannot be merged with 'propagate'",
    ),
    (lambda m: m.var("1"), TypeError, "ddof must be a real number"),
    (lambda m: m.std(np.inf), ValueError, "ddof must be a finite number"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_a_refused_call_changes_nothing(call, error, message):
    m = nbn.Moments().update(X, weights=np.ones(1))
    before = m.to_dict()
    with pytest.raises(error, match=message):
        call(m)
    for name, value in m.to_dict().items():
        assert_same_bits(value, before[name], name)


@pytest.mark.parametrize(
    ("chunk", "weights"),
    [(np.array([[1.0, np.nan, 2.0]]), None), (X, np.array([-1.0, 1, 1])), (X.astype(complex), None)],
    ids=["NaN", "weights", "dtype"],
)
def test_a_refused_first_chunk_does_not_fix_the_channels(chunk, weights):
    m = nbn.Moments(nan_policy="raise")
    with pytest.raises((TypeError, ValueError)):
        m.update(chunk, weights)
    assert m.shape is None
    assert "nothing seen" in repr(m)
    assert m.update(np.ones((4, 2))).count.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nbn.Moments(1.5), TypeError, "axis must be an integer"),
        (lambda: nbn.Moments((0, "1")), TypeError, "axis must be an integer"),
        (lambda: nbn.Moments((0, -2)).update(X), ValueError, "names one of 2 axes twice"),
        (lambda: nbn.Moments(nan_policy="ignore"), ValueError, "nan_policy must be one of 'propagate'"),
        (lambda: nbn.Moments().mean, ValueError, "nothing was seen yet"),
        (lambda: nbn.Moments.from_dict([]), TypeError, "state must be a dictionary"),
        (lambda: nbn.Moments.from_dict({}), ValueError, r"missing keys \['axis', 'format', 'nan_policy'\]"),
        (lambda: nbn.Moments.from_dict(mixed().to_dict() | {"a": 1}), ValueError, r"unknown keys \['a'\]"),
        (lambda: nbn.Moments.from_dict(mixed().to_dict() | {"format": 2}), ValueError, "state has format 2"),
        (lambda: nbn.Moments.from_dict(mixed().to_dict() | {"min": 2.0}), ValueError, r"state\['min'\]"),
        (lambda: nbn.Moments.from_dict(mixed().to_dict() | {"axis": [1, 2]}), ValueError, "state has axis"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Progress, arrays on disk, threads --------------------------------------------------------------------------


def test_progress_bar(capsys):
    m = nbn.Moments.from_chunks([X, X], axis=0, nan_policy="raise", progress=True)
    assert m.count.tolist() == [6, 6]
    assert m.nan_policy == "raise"
    assert "2/2" in capsys.readouterr().err


def test_no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r'pip install "numbabn\[progress\]"'):
        nbn.Moments.from_chunks([X], progress=True)


MAPPED = """
    import resource, sys, numpy as np, numbabn as nbn
    x = np.load(sys.argv[1], mmap_mode="r")
    def counts(x):
        strided, masked = nbn.Moments(1).update(x[..., ::2]), nbn.Moments(1).update(x, where=x[0] == 1)
        print(nbn.Moments(1).update(x).count, strided.count[0])
        print(nbn.Moments((1, 3)).update(x).mean.sum(), masked.count)
    counts(x[:32])  # compiles, which takes more memory than the rest
    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20), -1))
    try:
        np.array(x)
    except MemoryError:
        counts(x)
"""


@pytest.mark.slow
@needs_jit
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA and /proc")
def test_a_mapped_array_larger_than_the_memory_is_never_loaded_whole(tmp_path):
    """128 MB on disk, read, copied in part and masked with 32 MB at hand, in which the array does not fit."""
    path = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", np.float32, (256, 8, 128, 128))
    x[...] = 1
    x.flush()
    code = textwrap.dedent(MAPPED).replace("sys.argv[1]", repr(str(path)))
    first, second = run_python(code, NUMBA_NUM_THREADS="2").splitlines()[2:]
    assert first == f"{[256 * 128 * 128] * 8} {256 * 128 * 64}".replace(",", "")
    assert second == f"1024.0 {[256 * 128 * 128] * 8}".replace(",", "")


def bits_with_threads(threads):
    return run_python(
        f"""
        import hashlib, numba, numpy as np, numbabn as nbn
        numba.set_num_threads({threads})
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 32, 40, 40), np.float32)
        for a in (x, (x * 50).astype(np.int8)):
            for axis in (1, -1, (1, 2, 3), ()):
                m = nbn.Moments(axis).update(a)
                print(hashlib.sha256(b"".join(v.tobytes() for v in m.to_dict().values())).hexdigest())
        """,
        NUMBA_NUM_THREADS="4",
    )


@needs_jit
@pytest.mark.slow
def test_same_bits_for_any_number_of_threads():
    assert bits_with_threads(1) == bits_with_threads(2) == bits_with_threads(4)


def test_many_threads_at_once():
    """Threads that each have a Moments of their own get the same bits, on parallel kernels too."""
    x = np.random.default_rng(0).standard_normal((400_000 if JIT else 40, 3), np.float32)
    alone = nbn.Moments().update(x)
    with ThreadPoolExecutor(4) as pool:
        for m in pool.map(lambda _: nbn.Moments().update(x), range(8)):
            assert_same_state(m, alone)
