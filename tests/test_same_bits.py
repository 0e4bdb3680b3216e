"""The same bits for any number of threads, and in every call."""

import json
import subprocess
import sys
from unittest import mock

import numba
import pytest

from numbabn.backends.cpu import jit
from tests.support.checks import assert_same_bits
from tests.support.digests import digests, results_of
from tests.support.jit import JIT
from tests.support.problems import Problem
from tests.support.processes import environment


@pytest.mark.skipif(not JIT, reason="interpreted kernels have no threads")
def test_same_bits_for_any_number_of_threads():
    """1, 2 and 4 threads, in processes of their own, give the bits of the serial path."""
    with mock.patch.object(jit, "use_threads", return_value=False):
        expected = digests()
    assert digests() == expected  # as many threads as there are; and it fills the cache for the others
    processes = {
        threads: subprocess.Popen(
            [sys.executable, "-m", "tests.support.digests"],
            env=environment(NUMBA_NUM_THREADS=str(threads)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in (1, 2, 4)
    }
    outputs = {threads: process.communicate()[0] for threads, process in processes.items()}
    for threads, output in outputs.items():
        running, parallel, found = json.loads(output)
        assert running == threads
        assert parallel == (threads > 1 and numba.threading_layer() in ("omp", "tbb"))
        different = [name for name in expected if found[name] != expected[name]]
        assert found.keys() == expected.keys()
        assert not different, f"{threads} threads"


def test_same_bits_again():
    """The bits do not depend on what memory held before, nor on where arrays lie."""
    problem = Problem((8, 5, 33))
    first = results_of(problem)
    for _ in range(5):
        for name, result in results_of(problem).items():
            assert_same_bits(result, first[name], name)
