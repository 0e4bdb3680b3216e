"""What the logger "numbabn" says when a kernel is compiled: seconds of silence would look like a hang."""

import logging
from dataclasses import dataclass

LOGGER = logging.getLogger("numbabn")


@dataclass(frozen=True)
class Compilation:
    """A kernel that was compiled; records of the level INFO have it as their message, ``record.msg``."""

    kernel: str
    dtype: str  # of the data; parameters and statistics are float64
    seconds: float
    parallel: bool = False  # whether it is the version for several threads
    folder: str | None = None  # where the machine code was kept, or None
    reason: str = ""  # why it was not kept

    def __str__(self) -> str:
        """Return the line that users read."""
        threads = " and several threads" if self.parallel else ""
        kept = f"cached in {self.folder}" if self.folder else f"not cached: {self.reason}"
        return f"compiled {self.kernel} for {self.dtype}{threads} in {self.seconds:.1f} s, {kept}"
