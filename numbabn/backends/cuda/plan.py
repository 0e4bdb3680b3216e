"""How work is cut up on the GPU: by shape alone, so that the bits depend on neither grid nor device.

An array is read as tiles that fit into a block's shared memory. A group of channels is what one row of a tile
holds: one channel where its contiguous pieces are long, else as many as fill a few memory transactions. The
tiles of a group are dealt to at most ``MAX_PARTS`` blocks, and what they sum is merged in order.

A channel here has one gamma and one beta: a member of a group of `numbabn.backends.verbs.View`, while a group
here is one or several channels, whose statistics are their own or shared by ``members`` channels. To take
statistics that are shared, a view is read with one channel for each of them, see `merged`. Every sample is
cut up in the same way, whatever their number: the bits of one do not depend on the others.
"""

import functools
import math
from typing import NamedTuple

from numba import config

from numbabn.backends.verbs import View

SIMULATED = bool(config.ENABLE_CUDASIM)

CAPABILITY = (8, 0)  # the lowest that has asynchronous copies to shared memory, and bfloat16

# A simulated thread takes some 50 us: the simulator has smaller sizes, with which small arrays are cut up.
THREADS = 32 if SIMULATED else 256  # of a block
WARP = 8 if SIMULATED else 32  # threads that exchange values without shared memory
WARPS = THREADS // WARP
REGISTER_LIMITS = 64, 80  # of a thread: 4 blocks on an SM, or 3; see `launching.with_fewest_registers`
# Of a block's shared memory: 5 blocks fit in 227 KB, 4 in 164 KB.
TILE_BYTES = 512 if SIMULATED else 32768
ROW_BYTES = THREADS * 8  # of a row of coefficients per column, or of a sum per thread
SHARED_BYTES = TILE_BYTES + 4 * ROW_BYTES
MIN_TILE_BYTES = 256 if SIMULATED else 4096  # a smaller tile is not worth a block
SPREAD = 4 if SIMULATED else 512  # blocks that a small array is cut into, for 100 to 200 multiprocessors
# Blocks that a sample is cut into where statistics are shared: there are more samples, as a rule. Where they
# are not, a sample of instance norm is also an array of batch norm, and is cut up as such.
SAMPLE_SPREAD = 2 if SIMULATED else 64
MAX_PARTS = 4 if SIMULATED else 256  # blocks of a group, whose sums are merged by one block, or by each
LINE = 8 if SIMULATED else 32  # elements of a row of a group of several channels: 128 bytes of float32
# Elements of a vector access: 16 bytes of float32, twice 16 of float64, 8 of half types. Eight of these at
# a time would be 16 bytes, but maps of 14x14 or 7x7 pixels are no multiples of 8, and threads that read eight
# coefficients each would be 32 bytes apart, so that they meet in the banks of shared memory. Only copies to
# shared memory are of eight, where shape and address allow it, see `lanes`. Not yet measured.
VECTOR = 4
# Threads of a row at least, unless it is short: of 32, no more than 4 meet in a bank of shared memory.
TEAM = 8
ALONG = 16  # from so many adjacent elements with one gamma on, these are rows themselves
# Samples that a thread adds up at least, so that its sum is worth being stored.
CHUNK = 2 if SIMULATED else 16
ALIGNMENT = 16  # bytes, of a vector access
CLUSTER_CAPABILITY = (9, 0)  # the lowest that has clusters
CLUSTER = 8  # blocks of a cluster at most, on any device that has clusters
CLUSTER_CHANNELS = 2 * LINE + VECTOR  # of a group at most, of which a block of a cluster leaves samples
CLUSTER_SIMULATED = 0  # blocks of a cluster in `simulated`: it has none
RESIDENT_SIMULATED = 1  # blocks that run at once in `simulated`, where none may wait for another


class Geometry(NamedTuple):
    """How the kernels read arrays of one shape: counts of elements, rows, channels or tiles."""

    outer: int
    channels: int
    inner: int
    span: int  # channels of a group; the last group may have fewer
    pixels: int  # side by side in a row of a tile, where a group is all channels
    rows: int  # of a tile
    pieces: int  # into which one long row is cut, or 1
    length: int  # of such a piece
    vector: int  # elements of the copies that are aligned in arrays that begin at aligned addresses, or 0
    tiles: int  # of a group
    part_tiles: int  # tiles of one part, which is what one block sums
    groups: int
    parts: int  # of a group


class SampleGeometry(NamedTuple):
    """Like `Geometry`, where samples have statistics of their own, or channels share them.

    The fields of a `Geometry` are those of one sample, but for ``groups``, which are those of all. Kernels
    are compiled anew for this type: batch norm does not pay for what the further fields cost, which is up to
    12 registers of 64. See `memory.samples_of`.
    """

    outer: int
    channels: int
    inner: int
    span: int
    pixels: int
    rows: int
    pieces: int
    length: int
    vector: int
    tiles: int
    part_tiles: int
    groups: int
    parts: int
    batch: int
    sample_groups: int
    members: int  # channels that share one statistic


class Rows(NamedTuple):
    """How rows are read that have one statistic each, and parameters that vary along them."""

    number: int  # of every sample as many as there are groups
    groups: int
    members: int  # places along a row where gamma and beta have values of their own
    inner: int  # elements side by side that share one of them
    length: int  # elements of a row: members * inner
    team: int  # threads of a row, a power of two
    height: int  # rows of a tile
    piece: int  # elements of a row that a tile has: all, or those of a piece
    pieces: int
    vector: int  # elements of the copies that are aligned in arrays that begin at aligned addresses, or 0


class Strips(NamedTuple):
    """How the samples are added up, place by place, which gives dgamma and dbeta."""

    samples: int
    groups: int  # of a sample
    length: int  # elements of a group
    lanes: int  # adjacent elements of a thread
    vector: int  # 1 if a thread reads them at once, else 0: where arrays do not begin at aligned addresses
    width: int  # threads side by side
    strips: int  # blocks side by side that a group takes
    chunk: int  # samples of a block
    chunks: int


@functools.lru_cache(1024)
def geometry(view: View, itemsize: int, arrays: int, shared: bool = False) -> Geometry | SampleGeometry:
    """Return how arrays are cut up of which a block holds tiles of ``arrays`` at the same time.

    ``shared`` says that members share statistics also where the view has them merged.
    """
    outer, channels, inner = view.outer, view.groups * view.members, view.inner
    # Where statistics are shared, half a row of coefficients is for a fifth one, see `tiles`.
    most, line = THREADS if view.members == 1 else THREADS // 2, LINE * lanes(itemsize) // VECTOR
    span, pixels = _group(outer, channels, inner, most, line)
    width = span * pixels * inner
    spread = SAMPLE_SPREAD if shared or view.members > 1 else SPREAD
    nbytes = outer * channels * inner * itemsize // spread
    room = min(max(nbytes, MIN_TILE_BYTES), TILE_BYTES // arrays) // itemsize
    lines = -(-outer // pixels)
    pieces, length, rows = 1, inner, max(1, min(lines, room // width))
    if span == 1 and inner > room:
        length = min(_whole_vectors(-(-inner // -(-inner // room)), itemsize), room)
        pieces, rows = -(-inner // length), 1
    rows = -(-lines // -(-lines // rows))  # so that all tiles of a group have as many rows, or nearly
    tiles = -(-lines // rows) * pieces
    # Lengths and distances of what a block reads: vector accesses are aligned if all are whole vectors.
    counts = [width] if span > 1 else [length] if rows > 1 or pieces > 1 else []
    if lines > 1:
        counts.append(pixels * channels * inner)
    if span < channels:
        counts += [span * inner, channels % span * inner]
    if view.batch > 1:
        counts.append(outer * channels * inner)
    part_tiles = -(-tiles // MAX_PARTS)
    groups = -(-channels // span)
    cut = Geometry(
        outer, channels, inner, span, pixels, rows, pieces, length, _vector(counts, itemsize),
        tiles, part_tiles, groups * view.batch, parts=-(-tiles // part_tiles),
    )  # fmt: skip
    return cut if view.batch == view.members == 1 else SampleGeometry(*cut, view.batch, groups, view.members)


@functools.lru_cache(1024)
def sharing(view: View, itemsize: int) -> int:
    """Return how many adjacent elements share a byte of what an activation keeps: `VECTOR`, or 1.

    They share one where a single thread writes them all, however an array is cut up: where all tiles, those
    of one array and those of two, are whole vectors. What is kept is then 1/16 of the bytes of float32, and
    1/4 of them otherwise, as in maps of 15 x 15 elements whose channels are no multiple of four.
    """
    size = math.prod(view)
    if size == 0 or size % VECTOR:
        return 1
    if runs_along(view):  # or a batch of one sample, whose rows have one element
        whole = view.inner == 1 and view.members % VECTOR == 0
    else:
        whole = all(geometry(view, itemsize, arrays).vector for arrays in (1, 2))
    return VECTOR if whole else 1


def merged(view: View) -> View:
    """Return how arrays are read to take statistics: what they are taken over as one member."""
    return view._replace(members=1, inner=view.members * view.inner)


@functools.lru_cache(1024)
def rows(view: View, itemsize: int, arrays: int) -> Rows:
    """Return how rows are read of which a block holds tiles of ``arrays`` at the same time.

    A row is members * inner elements, and nothing that its sums depend on, the team and the pieces, depends
    on how many rows there are.
    """
    count, length = view.batch * view.groups, view.members * view.inner
    room = TILE_BYTES // arrays // itemsize
    team = 1
    while team < min(TEAM, length // VECTOR):
        team *= 2
    while team < THREADS and THREADS // team * length > room:
        team *= 2
    pieces = -(-length // room)
    piece = length if pieces == 1 else _whole_vectors(-(-length // pieces), itemsize)
    height = 1 if pieces > 1 else max(1, min(THREADS // team, count // SPREAD))
    return Rows(
        count, view.groups, view.members, view.inner, length,
        team, height, piece, -(-length // piece), _vector([length], itemsize),
    )  # fmt: skip


@functools.lru_cache(1024)
def strips(view: View, vector: bool) -> Strips:
    """Return how samples are added up: the same sums whether rows are read as vectors or one by one."""
    length = view.members * view.inner
    lanes = VECTOR if length % VECTOR == 0 else 1
    width = min(THREADS, length // lanes)
    count = -(-length // (width * lanes))
    least = CHUNK * (THREADS // width)
    chunks = max(1, min(SPREAD // (view.groups * count), view.batch // least))
    chunk = -(-view.batch // chunks)
    return Strips(
        view.batch, view.groups, length, lanes, int(vector), width, count, chunk, -(-view.batch // chunk)
    )


def runs_along(view: View) -> bool:
    """Whether rows have one statistic each, and parameters that change every few elements.

    In batch norm they never do.
    """
    return view.outer == 1 and view.inner < ALONG and (view.members > 1 or view.inner == 1)


def blocks(threads: int) -> int:
    """Return how many blocks have at least so many threads."""
    return -(-threads // THREADS)


def _group(outer: int, channels: int, inner: int, most: int, line: int) -> tuple[int, int]:
    """Return (channels of a group, pixels side by side) for rows of whole vectors that are not too short.

    A row of several channels has ``most`` columns at most, and ``line`` at least if there are so many.
    """
    if channels == 1 or inner > most // VECTOR or (inner >= line and inner % VECTOR == 0):
        return 1, 1
    span = max(1, line // inner)
    span += -span % (VECTOR // math.gcd(inner, VECTOR))
    if span < channels:
        return span, 1
    pixels = VECTOR // math.gcd(channels * inner, VECTOR)
    if pixels * channels * inner > most:
        pixels = 1
    while pixels * channels * inner < line and outer >= 64 * pixels:
        pixels *= 2
    return channels, min(pixels, outer)


def lanes(itemsize: int) -> int:
    """Return how many elements a copy to shared memory has at most: `VECTOR`, but 8 of half types."""
    return max(VECTOR, ALIGNMENT // itemsize)


def aligned(vector: int, itemsize: int, *addresses: int) -> int:
    """Return how many of the ``vector`` elements of a copy it can have in arrays that begin at the addresses.

    That may be `VECTOR` elements of half types, which are 8 bytes, or none.
    """
    while vector and any(address % min(vector * itemsize, ALIGNMENT) for address in addresses):
        vector = vector // 2 if vector > VECTOR else 0
    return vector


def _vector(counts: list[int], itemsize: int) -> int:
    """Return the largest number of elements of a copy of which all counts are multiples, or 0.

    It is 8 or 4 for half types: maps of 14x14 or 7x7 pixels and many other shapes are multiples of 4 only.
    """
    vector = lanes(itemsize)
    while vector and any(n % vector for n in counts):
        vector = vector // 2 if vector > VECTOR else 0
    return vector


def _whole_vectors(n: int, itemsize: int) -> int:
    """Return the smallest number of elements from n on that is whole copies."""
    return n + -n % lanes(itemsize)
