"""Runs the examples as a user does: in a folder, by an interpreter that knows the numbabn of the tests."""

from tests.support.processes import ROOT, python

EXAMPLES = ROOT / "examples"


def run_example(name, *arguments, cwd):
    """Run a script, which must not fail, and return what it printed."""
    return _printed(run_script(EXAMPLES / name, *arguments, cwd=cwd))


def run_module(name, *arguments, cwd):
    """Run a module of the checkout, which must not fail, and return what it printed."""
    return _printed(run_script("-m", name, *arguments, cwd=cwd))


def _printed(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_script(*arguments, cwd):
    """Run an interpreter with these arguments, where plots need no screen; return how it ended."""
    return python(*arguments, cwd=cwd, MPLBACKEND="Agg")


def is_png(path):
    """Whether a file begins as images of the format PNG do."""
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
