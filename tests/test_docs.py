"""What is written about the library is true: examples in docstrings and the README, version, tests, paths."""

import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import numbabn as nbn
from tests.support.processes import python

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GALLERY = ROOT / "examples" / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
PROMISES = ROOT / "benchmarks" / "results" / "promises.md"

MODULES = [nbn.__name__, *(module.name for module in pkgutil.walk_packages(nbn.__path__, "numbabn."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if "numbabn[" not in str(error):
            raise
        pytest.skip(str(error))  # an extra that is not installed
    assert module.__doc__, f"{name} has no docstring"
    results = doctest.testmod(module)
    assert results.failed == 0


@pytest.mark.parametrize("name", [name for name in nbn.__all__ if name != "__version__"])
def test_public_names_are_documented(name):
    """With an example, with what they take, and, if they are classes, with a text on every member."""
    member = getattr(nbn, name)
    text = inspect.getdoc(member)
    assert "Examples\n--------" in text
    assert not inspect.signature(member).parameters or re.search("(Parameters|Attributes)\n---", text)
    if inspect.isclass(member):
        public = [name for name in dir(member) if name[0] != "_" and f"\n{name} : " not in text]
        assert [name for name in public if not inspect.getdoc(getattr(member, name))] == []


def test_there_are_docstring_examples():
    found = doctest.DocTestFinder().find(importlib.import_module("numbabn.norms.batch"))
    assert sum(len(test.examples) for test in found) > 10


def python_blocks(text):
    """(line, code) of every fenced block of Python, so that errors name a line of the file."""
    for match in re.finditer(r"^```(?:python|py|pycon)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match.group(1)


def run_blocks(path):
    """Run the blocks in order in one namespace, as a reader would; return how many there were."""
    names, count = {}, 0
    for line, code in python_blocks(path.read_text(encoding="utf-8")):
        if "import torch" in code and not find_spec("torch"):
            continue  # an extra that is not installed
        count += 1
        if ">>> " in code:
            test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), line)
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
            names = test.globs
        else:
            exec(compile("\n" * line + code, path, "exec"), names)
    return count


@pytest.mark.skipif(not README.exists(), reason="no README.md")
def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(README) > 0


def test_readme_names_what_exists():
    """Extras, modules, scripts, files and headings that the README names."""
    text = README.read_text(encoding="utf-8")
    extras = set(",".join(re.findall(r'"\.\[([\w,]+)\]"', text)).split(","))
    assert extras >= {"bench", "peers", "examples", "test", "cuda"}
    assert extras <= set(project()["optional-dependencies"])
    assert commands(text)[0] >= {"numbabn", "benchmarks.report", "examples.claims"}
    headings = {line.strip("# ").lower().replace(" ", "-") for line in text.splitlines() if line[:1] == "#"}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def commands(text):
    """The modules and the scripts that commands in a text run."""
    modules = set(re.findall(r"python -m ([\w.]+)", text)) - {"pip", "pytest", "mpi4py"}
    return modules, set(re.findall(r"python (\S+\.py)", text)) - {"train.py"}


@pytest.mark.parametrize("page", [README, GALLERY], ids=["README", "gallery"])
def test_commands_and_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    modules, scripts = commands(text)
    assert modules
    for module in modules:
        assert find_spec(module), module
    for script in scripts:
        assert (ROOT / script).exists(), script
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / path).exists(), path


def test_every_example_is_tested_in_its_quick_form():
    """The scripts that a page names are run by a test, by their names; those of claims by their list."""
    tested = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*example*.py"))
    tested += (ROOT / "tests" / "test_train_fashion.py").read_text(encoding="utf-8")
    for page in (README, GALLERY):
        for script in commands(page.read_text(encoding="utf-8"))[1]:
            assert f'"{Path(script).name}"' in tested, script


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_source_archives_hold_what_the_readme_links_to():
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    included = configured["build"]["targets"]["sdist"]["include"]
    links = set(re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")))
    for path in {*links, "CHANGELOG.md", "tests", project()["readme"]}:
        assert f"/{path.split('/')[0]}" in included, path


@pytest.mark.skipif(not CHANGELOG.exists(), reason="no CHANGELOG.md")
def test_changelog_has_this_version():
    heading = rf"^#+ .*{re.escape(nbn.__version__)}\b"
    assert re.search(heading, CHANGELOG.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_promises_have_the_tests_they_name():
    path = None
    found = re.findall(r"`(?:(tests/\S+)::)?(test_\w+)`", PROMISES.read_text(encoding="utf-8"))
    assert len(found) > 10
    for path_of_row, name in found:  # a test without a path is in the file of the one before
        path = path_of_row or path
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"


def repository_files():
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":  # a file in a worktree
            yield path
    for folder in ("numbabn", "tests", "benchmarks", "examples", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def test_no_paths_of_one_machine():
    """No file names a folder of one machine or user: what is published runs anywhere."""
    places = "|".join(["work", "home", "root", "Users"])
    pattern = re.compile(rf"(?<![\w.:/~-])/({places})/")
    found = []
    for path in repository_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # an image
            continue
        where = path.relative_to(ROOT)
        found += [f"{where}:{i}: {line}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, "\n".join(found)


# The extras -------------------------------------------------------------------------------------------------

# Plugins are named, since pytest would otherwise load that of hypothesis.
COLLECTED = """
    import sys
    sys.modules |= dict.fromkeys(("dask", "greenlet", "hypothesis", "mpi4py", "pandas"))
    import pytest
    plugin = "-p", "pytest_benchmark.plugin"
    sys.exit(pytest.main(["benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider", *plugin]))
"""


def test_benchmarks_need_the_extra_bench_only():
    """They share helpers with the tests, but no package that only the extra ``test`` installs."""
    pytest.importorskip("pytest_benchmark")
    code = inspect.cleandoc(COLLECTED)
    result = python("-c", code, cwd=ROOT, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "tests collected" in result.stdout
