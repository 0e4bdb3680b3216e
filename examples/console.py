"""What the examples do on a terminal: they say what numbabn compiles, and Ctrl-C ends them with one line."""

import logging
import os
import signal
import sys
from contextlib import contextmanager

try:
    from tqdm import tqdm
except ImportError:  # only the examples with a progress bar need it
    tqdm = None


class _Lines(logging.Handler):
    """Prints each record on a line of standard error, above the progress bar where there is one."""

    def emit(self, record):
        line = f"{record.name}: {record.getMessage()}"
        if tqdm is None:
            print(line, file=sys.stderr)
        else:
            tqdm.write(line, file=sys.stderr)


class _Recorder(logging.Handler):
    """Keeps the text of each record."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def recorded():
    """Keep the log of numbabn in a list, for another process to print."""
    log, recorder = logging.getLogger("numbabn"), _Recorder()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(recorder)
    try:
        yield recorder.lines
    finally:
        log.removeHandler(recorder)
        log.setLevel(level)


def set_up(interrupted="Interrupted."):
    """From now on print the log of numbabn, and after Ctrl-C this text in place of a traceback."""
    log = logging.getLogger("numbabn")
    log.setLevel(logging.INFO)
    log.addHandler(_Lines())

    def end(number, frame):
        # Not with KeyboardInterrupt: it would be ignored where LLVM, which compiles, calls back to Python.
        os.write(2, f"\n{interrupted}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # for the exit status of interrupted programs, 130 in shells

    signal.signal(signal.SIGINT, end)
