"""What is asked of the library of an array. For each library one adapter answers.

Once recognised by `numbabn.arrays.of`, an array is either an ``ndarray`` of NumPy, or a
`DeviceArray`, which has what is used of an ``ndarray`` under the same names. What differs is asked of the
adapter.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

from numbabn.backends.verbs import Array, Backend, Pair

AnyArray: TypeAlias = Any  # numpy.ndarray or DeviceArray


class Place(NamedTuple):
    """Where arrays are: the name of a library, and the number of a device, 0 for the CPU."""

    library: str
    device: int

    def __str__(self) -> str:
        return "cpu" if self == HOST else f"cuda:{self.device}"


HOST = Place("numpy", 0)


class Library(Protocol):
    """An array library: what it is called, and what it does with its arrays."""

    name: str  # its name in a `Place`
    maker: str  # the function that makes an array, for messages
    on_host: bool  # whether its arrays are NumPy's, which are read without synchronising with a device

    @property
    def backend(self) -> Backend:
        """The backend that works on the memory of its arrays."""

    def place(self, array: AnyArray) -> Place:
        """Return where an array is."""

    def to_host(self, array: AnyArray) -> Array:
        """Return a copy in NumPy; bfloat16 becomes float32."""

    def put(self, host: Array, device: int) -> Any:
        """Return a copy of a NumPy array on a device, as an array of the library."""

    def dense(self, array: AnyArray) -> AnyArray:
        """Return the array if it fills memory without gaps, in native byte order, else such a copy.

        A dense array that is read-only is returned as ``writable`` gives it.
        """

    def writable(self, array: AnyArray) -> AnyArray:
        """Return an array over the same memory that may be written to, though nobody does."""

    def empty_like(self, array: AnyArray, dtype: Any = None) -> AnyArray:
        """Return memory for a result: shape, dtype and memory order of the array, or another dtype."""

    def empty_in_order(self, like: AnyArray, order: tuple[int, ...] | range) -> AnyArray:
        """Return memory for a copy of ``like`` whose axes lie in this order, the slowest first."""

    def empty_vector(self, like: AnyArray) -> AnyArray:
        """Return memory for a gradient: C order, shape and dtype of ``like``, in native byte order."""

    def constants(self, beside: AnyArray, count: int, values: tuple[float, float]) -> Pair:
        """Return a pair of ``count`` equal values each, in float64, where the array is."""

    def pair(self, first: AnyArray | None, second: AnyArray | None, count: int, dtype: Any = ...) -> Pair:
        """Return two arrays of ``count`` values as the backend takes them; None is all 1, and all 0.

        They have this dtype on the CPU, float64 unless given, and their own one on a GPU.
        """

    def pairs(self, first: tuple[Any, Any], second: tuple[Any, Any], count: int) -> tuple[Pair, Pair]:
        """Return ``pair`` of both."""

    def assign(self, target: AnyArray, source: AnyArray) -> None:
        """Copy the elements of one array to another of the same shape, whatever their strides."""

    def address(self, array: AnyArray) -> int:
        """Return the address of the first element."""

    def addresses(self, array: AnyArray) -> Array:
        """Return a NumPy array at the same addresses: to compare them, never to read what lies there."""

    def location_text(self, array: AnyArray) -> str:
        """Say what an array is and where, for messages."""

    def cast_text(self, name: str, dtype: str) -> str:
        """Return how one writes the array ``name`` in another dtype, for messages."""


def type_name(array: object) -> str:
    """Return the name of an object's type, with its module, for messages."""
    return f"{type(array).__module__}.{type(array).__qualname__}"
