"""What users pass, for type checkers."""

from typing import Any, Protocol, TypeVar


class SupportsArray(Protocol):
    """An array of NumPy, CuPy, Numba or PyTorch, as far as a type checker can see; a list is none."""

    @property
    def shape(self) -> Any:
        """Lengths of the axes."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""


A = TypeVar("A", bound=SupportsArray)  # results are of the same kind as x
