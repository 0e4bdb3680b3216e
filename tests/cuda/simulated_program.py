"""Programs in a process of their own, in which Numba simulates CUDA."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_simulated(code):
    """Run code in a process where CUDA is simulated; return what it prints, as JSON."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", inspect.cleandoc(code)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
