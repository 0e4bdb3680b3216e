"""How arrays are cut up, with the sizes of a GPU: every element once, in the memory that there is."""

import itertools
import math
from types import SimpleNamespace

import numba
import numpy as np
import pytest

if not numba.config.ENABLE_CUDASIM:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from benchmarks.gpu.launches import view_of
from numbabn.backends.cuda import plan, tiles, walks
from numbabn.backends.verbs import View
from tests.support.processes import run_python

# As plan.py has them where CUDA is not simulated.
REAL = {
    "THREADS": 256,
    "TILE_BYTES": 32768,
    "ROW_BYTES": 256 * 8,
    "MIN_TILE_BYTES": 4096,
    "SPREAD": 512,
    "MAX_PARTS": 256,
    "LINE": 32,
}
SHAPES = [
    (32, 64, 1), (1, 7, 1), (5000, 3, 1), (4096, 32, 1), (9, 33, 1), (2, 4097, 1),
    (64, 50, 49), (16, 64, 49), (3, 70, 16), (33, 5, 4), (2, 9, 63), (5, 3, 64), (7, 30, 15), (12, 31, 3),
    (3, 2, 9001), (1, 1, 66_001), (2, 3, 40_000), (1, 2, 8192), (70_000, 1, 1),
]  # fmt: skip
HUGE = 2**31 + 3000


@pytest.fixture
def _real(monkeypatch):
    _forget()
    for name, value in REAL.items():
        monkeypatch.setattr(plan, name, value)
    yield
    _forget()


def _forget():
    plan.geometry.cache_clear()
    plan.sharing.cache_clear()


@pytest.fixture(params=["simulated", "real"])
def _constants(request):
    if request.param == "real":
        request.getfixturevalue("_real")


def offsets(tile):
    """Positions of a tile's elements in its array."""
    e = np.arange(tile.size)
    return tile.first + e // tile.width * tile.stride + e % tile.width


@pytest.mark.usefixtures("_constants")
@pytest.mark.parametrize(("itemsize", "arrays"), list(itertools.product([2, 4, 8], [1, 2])))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_element_once(shape, itemsize, arrays):
    cut = plan.geometry(view_of(shape), itemsize, arrays)
    _, channels, inner = shape
    seen = np.zeros(math.prod(shape), np.int8)
    for g in range(cut.groups):
        first = g * cut.span
        members = range(first, min(first + cut.span, channels))
        for t in range(cut.tiles):
            tile = tiles.tile_at(cut, g, t)
            assert 0 < tile.size * itemsize <= plan.TILE_BYTES // arrays
            assert tile.across == len(members)
            if cut.span > 1:
                assert 0 < tile.width <= plan.THREADS
            found = offsets(tile)
            assert [walks.place_of(tile, e).i for e in (0, tile.size - 1)] == [found[0], found[-1]]
            assert set(np.unique(found // inner % channels)) == set(members)
            # Column j of a narrow tile belongs to channel j // inner % across.
            columns = np.arange(tile.size) % tile.width // inner % tile.across
            if cut.span > 1:
                assert (first + columns == found // inner % channels).all()
            seen[found] += 1
            if cut.vector:
                assert tile.first % cut.vector == 0
                assert tile.width % cut.vector == tile.stride % cut.vector == 0 or cut.pieces > 1
    assert (seen == 1).all()
    assert cut.vector in ((0, 4, 8) if itemsize == 2 else (0, 4))
    assert (cut.parts - 1) * cut.part_tiles < cut.tiles <= cut.parts * cut.part_tiles
    assert cut.parts <= plan.MAX_PARTS


def walked(tile, lanes, start, monkeypatch):
    """Places of all threads, one list for each, from element ``start`` of a tile on."""
    found = []
    for t in range(plan.THREADS):
        index = SimpleNamespace(threadIdx=SimpleNamespace(x=t), blockDim=SimpleNamespace(x=plan.THREADS))
        monkeypatch.setattr(walks, "cuda", index)
        step = walks.step_of(tile, lanes)
        place, places = walks.first_place(tile, step, lanes, start), []
        while place.e < tile.size:
            places.append(place)
            place = walks.following(place, step, tile)
        found.append(places)
    return found


@pytest.mark.usefixtures("_constants")
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_go_through_a_tile(shape, monkeypatch):
    """Each element once, at its index in the array; and in one column where these are kept apart."""
    cut = plan.geometry(view_of(shape), 4, 1)
    for g, t in {(0, 0), (cut.groups - 1, cut.tiles - 1)}:
        tile = tiles.tile_at(cut, g, t)
        for lanes, start in ((plan.VECTOR, 0),) * bool(cut.vector) + ((1, 0), (1, tile.size - 1)):
            threads = walked(tile, lanes, start, monkeypatch)
            places = sorted(place for places in threads for place in places)
            e = np.array([place.e for place in places])
            np.testing.assert_array_equal(e, np.arange(start, tile.size, lanes))
            np.testing.assert_array_equal([place.i for place in places], offsets(tile)[e])
            np.testing.assert_array_equal([place.row for place in places], e // tile.width)
            np.testing.assert_array_equal([place.j for place in places], e % tile.width)
            if cut.span > 1:
                assert all(len({place.j for place in places}) <= 1 for places in threads)


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, HUGE), (1, 3, HUGE), (HUGE // 2, 2, 1), (HUGE // 8, 5, 20), (2, HUGE, 1), (3, HUGE // 64, 70)],
)
def test_beyond_two_to_31(shape, itemsize):
    """No index is 32 bits wide, and no grid is larger than there are."""
    if REAL["THREADS"] != plan.THREADS:
        pytest.skip("nothing that large is simulated")
    cut = plan.geometry(view_of(shape), itemsize, 2)
    size = math.prod(shape)
    assert cut.groups * cut.tiles < 2**31
    last = tiles.tile_at(cut, cut.groups - 1, cut.tiles - 1)
    assert walks.place_of(last, last.size - 1).i == size - 1
    for g, t in itertools.product((0, cut.groups // 2, cut.groups - 1), (0, cut.tiles // 3, cut.tiles - 2)):
        if 0 <= t < cut.tiles - 1:
            tile, following = (tiles.tile_at(cut, g, k) for k in (t, t + 1))
            end = walks.place_of(tile, tile.size - 1).i
            assert 0 <= tile.first <= end < following.first < size
            if cut.channels == 1:
                assert following.first == end + 1


REAL_SIZES = """
    import sys
    from types import ModuleType

    import numba

    import numbabn

    # plan.py decides when it is imported, and gpu.py later, which is to find a simulator.
    package = ModuleType("numbabn.backends.cuda")
    package.__path__ = [f"{path}/backends/cuda" for path in numbabn.__path__]
    sys.modules["numbabn.backends.cuda"] = package
    numba.config.ENABLE_CUDASIM = 0
    from numbabn.backends.cuda import plan
    numba.config.ENABLE_CUDASIM = 1
    plan.SIMULATED = True
    del sys.modules["numbabn.backends.cuda"]

    import numpy as np
    from tests.support.backends import Numba
    from tests.support.checks import check_backward, check_forward
    from tests.support.cuda.simulator import installed, seeded
    from tests.cuda.test_tiles import REAL
    from tests.support.problems import Problem
    from tests.support.sample_rows import NORMS, values as sample_values
    from tests.cuda.test_views import Device, View, check as check_view, problem as problem_of

    assert {name: getattr(plan, name) for name in REAL} == REAL
    with installed(), seeded(0):
        for shape, axis, dtype in (
            ((65, 3), 1, np.float32),
            ((5, 33), 1, np.float32),
            ((2, 1, 1030), 1, np.float64),
            ((5, 2, 7, 7), 1, np.float32),
        ):
            problem, backend = Problem(shape, axis, dtype, offset=3.0), Numba()
            x, dy = problem.x(), problem.dy()
            y, saved = backend.forward(x, problem.gamma(), problem.beta(), **problem.options)
            check_forward(y, saved, problem, x)
            check_backward(backend.backward(dy, saved), problem, False, x, dy)
        for norm, shape in zip(NORMS, ((5, 768), (3, 20)), strict=True):
            sample_values(backend, norm, shape, (-1,), np.float32, 3.0)
        for view in (View(2, 1, 1, 3, 49), View(2, 6, 2, 8, 1)):
            x, dy, gamma, beta = problem_of(view, np.float32)
            check_view(Device(), view, x, dy, gamma, beta, (np.float32, np.float32))
    print("as expected")
"""


def test_real_sizes():
    """The kernels with the constants of a GPU, on arrays of few blocks."""
    assert run_python(REAL_SIZES) == "as expected\n"


# What an activation keeps -----------------------------------------------------------------------------------

SHARED_VIEWS = [
    View(1, outer, channels, 1, inner)
    for outer, channels, inner in itertools.product(
        (1, 3, 4, 500), (1, 3, 4, 6, 33), (1, 3, 8, 49, 130, 132, 3136, 40_001, 40_004)
    )
] + [View(3, 2, 4, members, inner) for members, inner in itertools.product((1, 3, 4), (1, 16, 49, 132))]


def ends(count):
    """Return the first and the last numbers below a count."""
    return sorted({*range(min(count, 3)), *range(max(count - 3, 0), count)})


@pytest.mark.usefixtures("_real")
@pytest.mark.parametrize("itemsize", [4, 8])
def test_elements_that_share_a_byte_are_written_by_one_thread(itemsize):
    """Where four elements share a byte, every tile begins and ends between such fours."""
    several = 0
    for view in SHARED_VIEWS:
        if plan.runs_along(view) or plan.sharing(view, itemsize) == 1:
            continue
        several += 1
        for arrays in (1, 2):
            geometry = plan.geometry(view, itemsize, arrays)
            for g, t in itertools.product(ends(geometry.groups), ends(geometry.tiles)):
                tile = tiles.tile_at(geometry, g, t)
                assert tile.first % plan.VECTOR == tile.size % plan.VECTOR == 0, (view, arrays)
                assert tile.width == tile.stride or tile.width % plan.VECTOR == tile.stride % plan.VECTOR == 0
    assert several > 20
