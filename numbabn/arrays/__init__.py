"""Arrays of every library: recognised once, by `of`, then the same for everything that follows."""

from numbabn.arrays.door import (
    beside,
    follow,
    host_copy,
    library_of,
    location_text,
    native,
    of,
    of_library,
    on_host,
    to_numpy,
    values_beside,
)
from numbabn.arrays.library import AnyArray, type_name

__all__ = [
    "AnyArray", "beside", "follow", "host_copy", "library_of", "location_text", "native", "of", "of_library",
    "on_host", "to_numpy", "type_name", "values_beside",
]  # fmt: skip
