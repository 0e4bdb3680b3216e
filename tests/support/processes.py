"""Fresh interpreters that import the same numbabn and the same tests as this process."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import numbabn as nbn

ROOT = Path(__file__).parents[2]
# Seconds; long enough for a machine that stops for minutes: only a hang runs into it.
TIMEOUT = 600


def environment(folder=None, **changes):
    """Return the variables for a process that imports these tests, and this numbabn or that in ``folder``."""
    path = [folder or Path(nbn.__file__).parents[1], ROOT, os.environ.get("PYTHONPATH")]
    # Pytest in the process is no worker of pytest-xdist, where pytest-benchmark would refuse to measure.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(map(str, filter(None, path))), **changes}


def communicate(process):
    """Return what a process in a session of its own printed; after `TIMEOUT` seconds, kill the session."""
    try:
        return process.communicate(timeout=TIMEOUT)
    except BaseException:
        if hasattr(os, "killpg"):  # children too: one that hangs would hold the pipes open
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        raise


def python(*arguments, cwd=None, folder=None, **variables):
    """Run an interpreter with warnings as errors, as they are here; return how it ended."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        env=environment(folder, **variables),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        output, errors = communicate(process)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_python(code, folder=None, **variables):
    """Run code that must not fail and return what it printed; with a folder, it runs there."""
    result = python("-c", inspect.cleandoc(code), cwd=folder, folder=folder, **variables)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout
