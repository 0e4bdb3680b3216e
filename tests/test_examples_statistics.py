"""The example dataset_statistics.py: any data, a run that is killed and goes on, what it refuses or skips."""

import gzip
import importlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.preprocessing import StandardScaler

from tests.support.examples import EXAMPLES, run_example, run_script


def photos(folder, number=70):
    """Write images of several sizes to a folder and one within; return the (mean, std) of all pixels."""
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    pixels = []
    for i in range(number):
        image = rng.integers(0, 256, (rng.integers(1, 9), 5, 3), np.uint8)
        Image.fromarray(image).save(folder / ("more" if i % 2 else "") / f"{i}.png")
        pixels.append(image.reshape(-1, 3))
    pixels = np.concatenate(pixels).astype(np.float64)
    return pixels.mean(axis=0), pixels.std(axis=0)


@pytest.fixture
def statistics(monkeypatch, tmp_path, capsys):
    """Run dataset_statistics.py with small chunks and return what it printed; in this process, to be fast."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    example = importlib.import_module("dataset_statistics")
    monkeypatch.setattr(importlib.import_module("dataset_files"), "CHUNK_BYTES", 1000)

    def run(*options):
        monkeypatch.setattr("sys.argv", ["dataset_statistics.py", *options])
        example.main(example.parse_args())
        return capsys.readouterr().out

    return run


def line_to_paste(mean, std):
    mean, std = (", ".join(f"{value:.8g}" for value in values) for values in (mean, std))
    return f"transforms.Normalize(mean=[{mean}], std=[{std}])"


def test_statistics_of_an_image_folder(tmp_path):
    mean, std = photos(tmp_path / "photos")
    (tmp_path / "photos" / "readme.txt").write_text("no image")
    output = run_example("dataset_statistics.py", "--data", "photos", cwd=tmp_path)
    assert "photos: 70 images" in output
    assert line_to_paste(mean / 255, std / 255) in output.splitlines()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_npz(path, x):
    np.savez(path, x)


# (file, how to write it, shape, channel axis)
FILES = [
    ("nhwc.npy", np.save, (20, 4, 5, 3), 3),
    ("nchw.npy", np.save, (20, 3, 4, 5), 1),
    ("floats.npz", write_npz, (20, 3, 4, 5), 1),
    ("images-idx3-ubyte", lambda path, x: path.write_bytes(idx(x)), (20, 6, 7), None),
    ("images-idx3-ubyte.gz", lambda path, x: path.write_bytes(gzip.compress(idx(x))), (20, 6, 7), None),
]


@pytest.mark.parametrize(("name", "write", "shape", "axis"), FILES, ids=[row[0] for row in FILES])
def test_statistics_of_a_file(name, write, shape, axis, tmp_path, statistics):
    x = np.random.default_rng(0).integers(0, 256, shape).astype("f8" if "floats" in name else "u1")
    write(tmp_path / name, x)
    output = statistics("--data", name)
    others = tuple(i for i in range(x.ndim) if i != axis)
    scale = 255 if x.dtype == np.uint8 else 1
    mean, std = (np.atleast_1d(value) / scale for value in (x.mean(axis=others), x.std(axis=others)))
    assert line_to_paste(mean, std) in output.splitlines()


def numbers(line):
    """The numbers in a line like ``mean_ = [1, 2]``."""
    return np.array(line.partition("= ")[2].strip("[]").split(", "), float)


@pytest.mark.parametrize("features", [4, 10])
def test_statistics_of_a_feature_matrix(features, statistics):
    x = np.random.default_rng(0).normal(3, 2, (50, features))
    x[:, 1] = 7
    np.save("features.npy", x)
    lines = statistics("--data", "features.npy").splitlines()
    assert not [line for line in lines if "transforms" in line or "keras" in line or "channel " in line]
    assert [line for line in lines if line.startswith("feature  ")]
    scaler = StandardScaler().fit(x)
    for name in ("n_samples_seen_", "mean_", "var_", "scale_"):
        (line,) = [line for line in lines if line.startswith(f"{name} = ")]
        # Eight digits are printed.
        np.testing.assert_allclose(numbers(line), getattr(scaler, name), rtol=1e-7, atol=1e-12)


def test_statistics_of_many_features_are_in_the_output_file(statistics):
    x = np.random.default_rng(0).normal(3, 2, (50, 11))
    np.save("features.npy", x)
    lines = statistics("--data", "features.npy", "--output", "features.json").splitlines()
    assert lines[-1] == "and 1 more; --output FILE writes all of them"
    assert len(json.loads(Path("features.json").read_text())["mean"]) == 11


def save_each(folder, arrays):
    folder.mkdir()
    for i, array in enumerate(arrays):
        np.save(folder / f"{i}.npy", array)


def images_of(shape, number=40):
    """Images whose sides that are None in the shape vary."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, [n or rng.integers(1, 9) for n in shape], np.uint8).astype("u1")
        for _ in range(number)
    ]


@pytest.mark.parametrize(
    ("shape", "options", "axis"),
    [
        ((None, None, 3), (), 2),
        ((3, None, None), (), 0),
        ((None, 3, 6, 5), (), 1),
        ((None, 6, 5, 3), (), 3),
        ((None, 4, 5), ("--axis", "1"), 1),
        ((None, None, 5), (), None),
        ((None, 4, 3), ("--axis", "none"), None),
    ],
)
def test_statistics_of_a_folder_of_arrays(shape, options, axis, tmp_path, statistics):
    arrays = images_of(shape)
    save_each(tmp_path / "arrays", arrays)
    output = statistics("--data", "arrays", *options)
    assert f"arrays: {len(arrays)} .npy files of uint8" in output
    if axis is None:
        arrays, axis = [array[..., None] for array in arrays], -1
    values = [np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]) for array in arrays]
    values = np.concatenate(values).astype(np.float64)
    assert line_to_paste(values.mean(axis=0) / 255, values.std(axis=0) / 255) in output.splitlines()


@pytest.mark.parametrize("shape", [(5,), (None, 5)])
def test_statistics_of_a_folder_of_features(shape, tmp_path, statistics):
    arrays = [array.astype(np.float32) for array in images_of(shape)]
    save_each(tmp_path / "arrays", arrays)
    lines = statistics("--data", "arrays").splitlines()
    (line,) = [line for line in lines if line.startswith("mean_ = ")]
    expected = np.concatenate([array.reshape(-1, 5) for array in arrays]).mean(axis=0, dtype=float)
    np.testing.assert_allclose(numbers(line), expected, rtol=1e-7)  # eight digits are printed


def test_statistics_of_installed_images(tmp_path, monkeypatch, statistics):
    """The names of Fashion-MNIST stand for the files where Debian's package puts them."""
    files = importlib.import_module("dataset_files")
    assert {path.parent for path in files.INSTALLED.values()} == {Path("/usr/share/datasets/fashion-mnist")}
    x = np.random.default_rng(0).integers(0, 256, (20, 6, 7))
    for name, path in files.INSTALLED.items():
        monkeypatch.setitem(files.INSTALLED, name, tmp_path / path.name)
        with pytest.raises(SystemExit, match=rf"{path.name}; Debian's package dataset-fashion-mnist"):
            statistics("--data", name)
        (tmp_path / path.name).write_bytes(gzip.compress(idx(x)))
        assert line_to_paste([x.mean() / 255], [x.std() / 255]) in statistics("--data", name).splitlines()
    assert statistics().startswith("train-images-idx3-ubyte.gz: uint8 (20, 6, 7), no channels")


@pytest.mark.parametrize("name", ["digits", "sample-images"])
def test_statistics_of_what_is_there(name, statistics):
    assert "transforms.Normalize(mean=" in statistics("--data", name)


# The example with small chunks, killed when it has written a state for the fourth time, but before that takes
# the place of the old one.
KILLED = f"""
import os, sys
from pathlib import Path

sys.path.insert(0, {str(EXAMPLES)!r})
import dataset_files, dataset_statistics

replace, writes = Path.replace, []

def replace_or_die(self, target):
    writes.append(target)
    if len(writes) == 4:
        os._exit(9)  # like a kill: no handler, no clean-up
    return replace(self, target)

Path.replace = replace_or_die
dataset_files.CHUNK_BYTES = 1000
dataset_statistics.main(dataset_statistics.parse_args())
"""


def overwrite(path, offset, value):
    """Change bytes from an offset on, and neither the file's size nor its time."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def photos_and_break(folder):
    photos(folder)
    return lambda: overwrite(folder / "0.png", 0, b"no image")  # of the first chunk: to be read no more


def floats_and_break(path):
    np.save(path, np.random.default_rng(0).normal(1e3, 1, (100, 7)))
    return lambda: overwrite(path, 128, np.full((20, 7), np.nan).tobytes())  # 128: the length of the header


def assert_same_states(path, expected_path):
    with np.load(expected_path) as expected, np.load(path) as state:
        assert set(state.files) == set(expected.files)
        for key in expected.files:
            assert state[key].tobytes() == expected[key].tobytes(), key


@pytest.mark.parametrize(
    ("name", "prepare"), [("photos", photos_and_break), ("floats.npy", floats_and_break)]
)
def test_statistics_after_a_kill(name, prepare, tmp_path, statistics):
    damage = prepare(tmp_path / name)
    options = "--data", name, "--save-every", "0", "--state"
    expected = statistics(*options, "whole.npz")
    killed = run_script("-c", KILLED, *options, "killed.npz", cwd=tmp_path)
    assert killed.returncode == 9, killed.stderr
    with np.load("killed.npz") as state:
        assert state["done"] == 3
    damage()
    assert statistics(*options, "killed.npz").splitlines()[1:] == expected.splitlines()[1:]
    assert_same_states("killed.npz", "whole.npz")
    assert {path.name for path in tmp_path.iterdir()} == {name, "whole.npz", "killed.npz"}


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


# What makes other data of a folder, though its name and its number of images stay.
CHANGES = {
    "touched": touch,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"?"),
    "renamed": lambda path: path.rename(path.with_stem("other")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_refuses_a_changed_folder(change, tmp_path, statistics):
    photos(tmp_path / "photos", number=4)
    options = "--state", "state.npz", "--data", "photos"
    assert statistics(*options).splitlines()[1:] == statistics(*options).splitlines()[1:]
    CHANGES[change](tmp_path / "photos" / "0.png")
    with pytest.raises(SystemExit, match=r"state.npz is the state of other data, photos: 4 images at"):
        statistics(*options)


def test_statistics_refuses_other_data(tmp_path, statistics):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        np.save(f"{folder}/x.npy", np.zeros((20, 2)))
    state = "--state", "state.npz", "--data"
    statistics(*state, "a/x.npy")
    refused = pytest.raises(SystemExit, match=r"state.npz is the state of other data, x.npy")
    with refused:  # of another folder, though as old
        stat = Path("a/x.npy").stat()
        os.utime("b/x.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        statistics(*state, "b/x.npy")
    with refused:
        touch(Path("a/x.npy"))
        statistics(*state, "a/x.npy")


@pytest.mark.parametrize(
    "image", [np.full((4, 4), 1000, np.uint16), np.full((4, 4), 70000, np.int32), np.ones((4, 4), np.float32)]
)
def test_statistics_refuses_images_of_more_than_8_bits(image, tmp_path, statistics):
    photos(tmp_path / "photos", number=2)
    Image.fromarray(image).save("photos/deep.tif")
    with pytest.raises(
        SystemExit, match=r"cannot use .*deep.tif: its pixels, of mode [IF].* more than 8 bits"
    ):
        statistics("--data", "photos")


UNUSABLE = {
    "x.bin": (lambda path: path.write_bytes(b"what is this"), "cannot use .*x.bin: it is neither"),
    "empty": (lambda path: path.mkdir(), "cannot use .*empty: it has no .npy files and no images"),
    "gone": (lambda path: None, "there is no gone"),
    "rows.npy": (lambda path: np.save(path, np.zeros((0, 3))), r"rows.npy: it has no rows .*\(0, 3\)"),
    "rows.npz": (lambda path: np.savez(path, np.zeros((0, 3))), r"rows.npz: it has no rows .*\(0, 3\)"),
    "scalar.npy": (lambda path: np.save(path, 3.0), r"scalar.npy: it has no rows .*\(\)"),
    "text.npy": (lambda path: path.write_text("text"), "cannot use .*text.npy"),
    "text.npz": (lambda path: path.write_text("text"), "cannot use .*text.npz"),
    "text.gz": (lambda path: path.write_text("text"), "cannot use .*text.gz"),
    "words.npy": (lambda path: np.save(path, np.array(["a", "b"])), "words.npy: .*dtype"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_statistics_of_no_data(name, tmp_path, statistics):
    write, message = UNUSABLE[name]
    write(tmp_path / name)
    with pytest.raises(SystemExit, match=message):
        statistics("--data", name)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_statistics_name_an_unreadable_image(content, tmp_path, statistics):
    photos(tmp_path / "photos", number=2)
    Path("photos/bad.png").write_bytes(content)
    with pytest.raises(SystemExit, match=r"cannot use .*bad.png"):
        statistics("--data", "photos")


def test_statistics_with_a_state_in_no_folder(statistics):
    with pytest.raises(SystemExit, match="there is no folder gone for the state file"):
        statistics("--data", "no data are looked for", "--state", "gone/state.npz")


def test_statistics_with_a_broken_state(tmp_path, statistics):
    options = "--data", "digits", "--state"
    statistics(*options, "whole.npz")
    whole = Path("whole.npz").read_bytes()
    np.savez("other.npz", x=1)
    np.save("array.npy", 1)
    for name, content in (("empty", b""), ("cut", whole[:100]), ("text", b"what is this")):
        Path(name).write_bytes(content)
    for name in ("other.npz", "array.npy", "empty", "cut", "text", "."):
        with pytest.raises(SystemExit, match=rf"^{name} is no state file, or broken"):
            statistics(*options, name)


def test_statistics_by_workers_without_dask(monkeypatch, statistics):
    for name in ("dask", "dask.distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r'python -m pip install "numbabn\[dask\]"'):
        statistics("--data", "digits", "--workers", "2")


@pytest.mark.slow
def test_statistics_by_workers(tmp_path):
    pytest.importorskip("dask.distributed")
    mean, std = photos(tmp_path / "photos")
    output = run_example("dataset_statistics.py", "--data", "photos", "--workers", "1", cwd=tmp_path)
    assert line_to_paste(mean / 255, std / 255) in output.splitlines()


@pytest.mark.slow
def test_statistics_that_workers_go_on_with(tmp_path, statistics):
    """A run of two parts, one by workers, has the same bits as one without; of floats, which round."""
    pytest.importorskip("dask.distributed")
    floats_and_break(tmp_path / "floats.npy")
    options = "--data", "floats.npy", "--save-every", "0", "--state"
    statistics(*options, "whole.npz")
    assert run_script("-c", KILLED, *options, "killed.npz", cwd=tmp_path).returncode == 9
    by_workers = KILLED.replace("len(writes) == 4", "False")
    result = run_script("-c", by_workers, *options, "killed.npz", "--workers", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same_states("killed.npz", "whole.npz")


@pytest.mark.slow
def test_statistics_name_an_unreadable_image_of_a_worker(tmp_path):
    pytest.importorskip("dask.distributed")
    photos(tmp_path / "photos", number=2)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    result = run_script(
        EXAMPLES / "dataset_statistics.py", "--data", "photos", "--workers", "1", cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("photos: cannot use ")
    assert "bad.png" in result.stderr.splitlines()[-1]


# Files that are skipped -------------------------------------------------------------------------------------


def break_files(folder):
    """Put files between those of a folder that cannot be used; return their names."""
    (folder / "10x.png").write_bytes(b"no image")
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(folder / "deep.tif")
    (folder / "more" / "zz.jpg").write_bytes(b"")
    return ["10x.png", "deep.tif", "zz.jpg"]


def test_statistics_skip_broken_images(tmp_path, statistics):
    mean, std = photos(tmp_path / "photos")
    names = break_files(tmp_path / "photos")
    output = statistics("--data", "photos", "--skip-broken", "--output", "photos.json")
    assert "\n3 files skipped:\n" in output
    assert line_to_paste(mean / 255, std / 255) in output.splitlines()
    skipped = json.loads(Path("photos.json").read_text())["skipped"]
    assert len(skipped) == 3
    for name, line, printed in zip(names, skipped, output.splitlines()[-3:], strict=True):
        assert line == printed
        assert line.startswith("cannot use ")
        assert name in line


def test_statistics_skip_arrays_of_another_kind(tmp_path, statistics):
    """What does not go with the first file is named; it would not be known which of them is wrong."""
    arrays = images_of((None, None, 3), number=20)
    save_each(tmp_path / "arrays", arrays)
    for name, array in (("5x", arrays[0][..., :1]), ("6x", arrays[0].astype("f4")), ("7x", arrays[0][0])):
        np.save(f"arrays/{name}.npy", array)
    whole = Path("arrays/8.npy").read_bytes()
    Path("arrays/0.npy").write_bytes(whole[: len(whole) // 2])  # the first of all
    with pytest.raises(SystemExit, match=r"arrays: cannot use .*0.npy"):
        statistics("--data", "arrays")
    lines = statistics("--data", "arrays", "--skip-broken").splitlines()
    values = np.concatenate([array.reshape(-1, 3) for array in arrays[1:]]).astype(float)
    assert line_to_paste(values.mean(axis=0) / 255, values.std(axis=0) / 255) in lines
    assert lines[-5] == "4 files skipped:"
    for name, line in zip(("0", "5x", "6x", "7x"), lines[-4:], strict=True):
        assert f"{name}.npy: " in line
    assert lines[-1].endswith("and does not go with 1.npy, which is uint8 of 3 axes with 3 channels")


def test_statistics_of_broken_files_alone(tmp_path, statistics):
    for name, message in (
        ("x.png", "all 1 files are broken, the first: cannot use .*x.png"),
        ("x.npy", "none of its 1 .npy files can be read, not even x.npy: "),
    ):
        folder = tmp_path / name.replace(".", "")
        folder.mkdir()
        (folder / name).write_bytes(b"what is this")
        with pytest.raises(SystemExit, match=message):
            statistics("--data", str(folder), "--skip-broken")


def test_statistics_of_images_without_pillow(tmp_path):
    """It is not the images that are broken: none is skipped, and no state says that they were read."""
    photos(tmp_path / "photos", number=2)
    path = str(EXAMPLES / "dataset_statistics.py")
    code = f"""if True:
        import runpy, sys
        sys.modules["PIL"] = None
        sys.path.insert(0, {str(EXAMPLES)!r})
        sys.argv[0] = {path!r}
        runpy.run_path({path!r}, run_name="__main__")
    """
    options = "--data", "photos", "--skip-broken", "--state", "state.npz"
    result = run_script("-c", code, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == 'images need Pillow: python -m pip install "numbabn[examples]"'
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_statistics_of_broken_files_only_leave_no_state(tmp_path, statistics):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"what is this")
    with pytest.raises(SystemExit, match=r"all 1 files are broken, the first: cannot use .*a\.png"):
        statistics("--data", "photos", "--skip-broken", "--save-every", "0", "--state", "state.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_statistics_of_a_mixed_folder(tmp_path, statistics):
    photos(tmp_path / "photos", number=2)
    np.save("photos/x.npy", np.zeros(3))
    with pytest.raises(
        SystemExit, match=r"cannot use .*photos: it has 2 images and 1 .npy files; name a folder of"
    ):
        statistics("--data", "photos")


def test_statistics_know_what_was_skipped_before_a_kill(tmp_path, statistics):
    photos(tmp_path / "photos")
    break_files(tmp_path / "photos")
    options = "--data", "photos", "--skip-broken", "--save-every", "0", "--state"
    expected = statistics(*options, "whole.npz")
    assert run_script("-c", KILLED, *options, "killed.npz", cwd=tmp_path).returncode == 9
    assert statistics(*options, "killed.npz").splitlines()[1:] == expected.splitlines()[1:]
    assert_same_states("killed.npz", "whole.npz")


@pytest.mark.slow
def test_statistics_by_workers_skip_broken_images(tmp_path):
    pytest.importorskip("dask.distributed")
    photos(tmp_path / "photos", number=20)
    break_files(tmp_path / "photos")
    options = "--data", "photos", "--workers", "1", "--skip-broken"
    assert "\n3 files skipped:\n" in run_example("dataset_statistics.py", *options, cwd=tmp_path)


# The output file --------------------------------------------------------------------------------------------


def test_statistics_in_a_file(tmp_path, statistics):
    x = np.random.default_rng(0).normal(3, 2, (20, 3, 4, 5))
    x[0, 1, 0, 0] = np.nan
    np.save("x.npy", x)
    statistics("--data", "x.npy", "--output", "x.json")
    found = json.loads(Path("x.json").read_text())
    assert found["data"] == "x.npy: float64 (20, 3, 4, 5), channel axis 1"
    assert found["count"] == [400] * 3
    assert found["skipped"] == []
    for name, of in (("mean", np.mean), ("std", np.std), ("var", np.var), ("min", np.min), ("max", np.max)):
        assert found[name][1] is None, "NaN is no JSON"
        expected = [of(x[:, 0]), of(x[:, 2])]
        np.testing.assert_allclose(found[name][::2], expected, rtol=1e-13)  # NumPy's roundings
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.json"}


def test_statistics_with_an_output_in_no_folder(statistics):
    with pytest.raises(SystemExit, match="there is no folder gone for the output file"):
        statistics("--data", "no data are looked for", "--output", "gone/x.json")


# Ctrl-C -----------------------------------------------------------------------------------------------------

# The example as a user starts it, with Ctrl-C at its third chunk.
INTERRUPTED = f"""
import runpy, signal, sys

sys.path.insert(0, {str(EXAMPLES)!r})
import dataset_files

arrays, chunks = dataset_files.ArrayData.arrays, []

def arrays_or_interrupt(self, i):
    chunks.append(i)
    if len(chunks) == 3:
        signal.raise_signal(signal.SIGINT)
    return arrays(self, i)

dataset_files.ArrayData.arrays = arrays_or_interrupt
dataset_files.CHUNK_BYTES = 1000
sys.argv[0] = {str(EXAMPLES / "dataset_statistics.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--state", "state.npz"), "run the same command to go on"),
        ((), "nothing is kept without --state FILE"),
    ],
)
def test_statistics_after_ctrl_c(options, text, tmp_path, statistics):
    floats_and_break(tmp_path / "floats.npy")
    expected = statistics("--data", "floats.npy").splitlines()[1:]
    options = ["--data", "floats.npy", "--save-every", "0", *options]
    result = run_script("-c", INTERRUPTED, *options, cwd=tmp_path)
    assert result.returncode == -signal.SIGINT, result.stderr  # which shells show as 130
    assert result.stderr.splitlines()[-1] == f"Interrupted; {text}."
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert statistics(*options).splitlines()[1:] == expected
