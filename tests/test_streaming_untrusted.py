"""States and files that are no states: whatever they say, no kernel works on it."""

import os
import stat
import sys
import zipfile

import numpy as np
import pytest

import numbabn as nbn
from numbabn.statistics import _file
from tests.support.checks import assert_same_bits


def state():
    """Return the state of integers, real numbers and weights in three channels."""
    rng = np.random.default_rng(0)
    m = nbn.Moments().update(rng.integers(-(2**62), 2**62, (20, 3)))
    return m.update(rng.standard_normal((20, 3)), weights=rng.random((20, 1))).to_dict()


ARRAYS = (
    "min", "max", "exact_count", "exact_total", "exact_squares", "real_moments", "real_exponent", "axis",
    "shape",
)  # fmt: skip
OTHERS = ("f2", "f4", ">f8", "g", "i1", "i4", ">i8", "u8", "u4", "?", "c16", "O", "M8[s]")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("dtype", OTHERS)
def test_only_the_exact_dtype_is_taken(name, dtype):
    given = state()
    with np.errstate(all="ignore"):
        given[name] = given[name].astype("i8").astype(dtype)
    with pytest.raises(ValueError, match=rf"^state\['{name}'\] has dtype|^state has (axis|shape|format)"):
        nbn.Moments.from_dict(given)


@pytest.mark.parametrize("name", ARRAYS)
def test_integers_and_floats_of_the_same_size_are_no_substitutes(name):
    given = state()
    other = "i8" if given[name].dtype == np.float64 else "f8"
    with pytest.raises(ValueError, match=rf"^state\['{name}'\] has dtype"):
        nbn.Moments.from_dict(given | {name: np.ones_like(given[name], other)})


@pytest.mark.parametrize("name", ARRAYS)
def test_the_order_of_an_array_does_not_matter(name):
    given = state()
    padded = np.zeros((*given[name].shape, 2), given[name].dtype)
    padded[..., 0] = given[name]
    twin = nbn.Moments.from_dict(given | {name: padded[..., 0]})
    assert_same_bits(twin.to_dict()[name], given[name], name)
    twin.update(np.ones((4, 3)))


def changed(name, place, value):
    given = state()
    array = given[name].copy()
    array[place] = value
    return given | {name: array}


VALUES = {
    "negative count": ("exact_count", 1, -1, "exact sums of channel 1"),
    "digit too large": ("exact_total", (0, 2), 1 << 32, "exact sums of channel 2"),
    "negative digit": ("exact_squares", (1, 0), -1, "exact sums of channel 0"),
    "negative squares": ("exact_squares", (5, 0), -1, "exact sums of channel 0"),
    "total too large": ("exact_total", (3, 0), 1 << 40, "exact sums of channel 0"),
    "least of int64": ("exact_total", (3, 0), np.iinfo(np.int64).min, "exact sums of channel 0"),
    "squares too small for the sum": ("exact_squares", (slice(None), 1), 0, "exact sums of channel 1"),
    "negative weight": ("real_moments", (0, 1), -1.0, "moments of channel 1"),
    "NaN weight": ("real_moments", (0, 1), np.nan, "moments of channel 1"),
    "infinite weight": ("real_moments", (0, 1), np.inf, "moments of channel 1"),
    "infinite low part": ("real_moments", (1, 1), np.inf, "moments of channel 1"),
    "NaN low part": ("real_moments", (1, 1), np.nan, "moments of channel 1"),
    "negative low part": ("real_moments", (1, 1), -5.0, "moments of channel 1"),
    "large low part": ("real_moments", (1, 1), 2.0**62, "moments of channel 1"),
    "least above greatest": ("min", 1, 1e30, "a range of channel 1"),
    "negative m2": ("real_moments", (4, 2), -1.0, "moments of channel 2"),
    "exponent too large": ("real_exponent", 2, 1 << 40, "moments of channel 2"),
    "exponent too small": ("real_exponent", 2, np.iinfo(np.int64).min, "moments of channel 2"),
    "negative length": ("shape", ..., -2, r"shape \[-2\]"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_no_data_can_have(case):
    name, place, value, message = VALUES[case]
    with pytest.raises(ValueError, match=message):
        nbn.Moments.from_dict(changed(name, place, value))


def test_axes():
    given = nbn.Moments((0, 1)).update(np.ones((2, 3, 4))).to_dict()
    with pytest.raises(ValueError, match=r"axis \[0, 0\], which names an axis twice"):
        nbn.Moments.from_dict(given | {"axis": np.array([0, 0])})
    with pytest.raises(ValueError, match=r"shape \[-2, -3\]"):
        nbn.Moments.from_dict(given | {"shape": np.array([-2, -3])})


@pytest.mark.parametrize("count", [1.5, 2.0**63, 2.0**70])
def test_what_is_no_count_has_weights(count):
    given = nbn.Moments().update(np.ones((2, 1))).to_dict()
    given["real_moments"][0] = count
    with pytest.raises(ValueError, match="moments of channel 0"):
        nbn.Moments.from_dict(given)


def test_an_exponent_has_weights():
    given = nbn.Moments().update(np.ones((2, 1))).to_dict()
    given["real_exponent"][0] = 1
    with pytest.raises(ValueError, match="moments of channel 0"):
        nbn.Moments.from_dict(given)


def test_a_compressed_file_is_refused_before_it_is_read(tmp_path):
    """A bomb: 3 GB of zeros in 3 MB. Reading it would take 10 s and all of that memory."""
    path = tmp_path / "state"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in state():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros(1 << 16))
    with pytest.raises(ValueError, match=r"format\.npy is compressed"):
        nbn.Moments.load(path)


def save(path):
    nbn.Moments().update(np.ones((2, 3))).save(path)


def test_names_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert nbn.Moments.load(path).shape == (3,)


posix = pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")


@posix
def test_permissions_stay(tmp_path):
    path = tmp_path / "state"
    save(path)
    mask = os.umask(0o22)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o600)
    save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("there", [True, False])
def test_links_stay(there, tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(target)
    save(link)
    assert link.is_symlink()
    assert nbn.Moments.load(target).shape == (3,)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files without a name are Linux'")
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_new_file_has_no_name_until_it_is_whole(unnamed, tmp_path, monkeypatch):
    if not unnamed:  # as on a file system that has no such files
        monkeypatch.delattr(os, "O_TMPFILE")
    path, sync, seen = tmp_path / "state", os.fsync, []

    def spy(descriptor):
        status = os.fstat(descriptor)
        folder = stat.S_ISDIR(status.st_mode)
        seen.append((None if folder else status.st_size, len(list(tmp_path.iterdir()))))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    save(path)
    # All of the file is brought to the disk, here still without a name; then the folder with the new name.
    assert seen == [(path.stat().st_size, 0 if unnamed else 1), (None, 1)]


def test_what_was_not_yet_written_is_flushed_first(tmp_path, monkeypatch):
    """Of a file that is brought to the disk, nothing may be left in Python's buffer."""
    sizes = []
    monkeypatch.setattr(_file.np, "savez", lambda file, **_: file.write(b"in the buffer"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    save(tmp_path / "state")
    assert sizes[0] == len("in the buffer")


def test_a_save_beside_a_left_over_file(tmp_path):
    left = tmp_path / ".numbabn-0123456789abcdef.tmp"
    left.write_text("of a process that was killed")
    save(tmp_path / "state")
    assert nbn.Moments.load(tmp_path / "state").shape == (3,)
    assert left.read_text() == "of a process that was killed"


@pytest.mark.parametrize("where", [np.True_, np.False_, True, False])
def test_where_is_one_bool_of_any_kind(where):
    m = nbn.Moments().update(np.ones((2, 3)), where=where)
    assert m.count.tolist() == [2 * bool(where)] * 3
