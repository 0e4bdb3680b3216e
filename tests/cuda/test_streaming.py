"""Moments of arrays on a GPU: of every dtype, as those of the same array in NumPy."""

import numpy as np
import pytest

import numbabn as nbn
from tests.support.backends import BACKENDS, MissingError


@pytest.fixture(params=sorted(set(BACKENDS) - {"cpu"}))
def put(request):
    """Return what copies an array to a device."""
    try:
        return BACKENDS[request.param]().put
    except MissingError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float16, np.float32, np.float64])
def test_same_as_in_numpy(put, dtype):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((7, 5, 3)) * 50 + 100).astype(dtype)
    weights, where = rng.random((7, 5, 1)).astype(np.float32), rng.random((7, 5, 3)) < 0.5
    here = nbn.Moments().update(x).update(x, weights, where)
    there = nbn.Moments().update(put(x)).update(put(x), put(weights), put(where))
    for key, value in here.to_dict().items():
        np.testing.assert_array_equal(there.to_dict()[key], value)


def test_strided(put):
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    there = nbn.Moments(axis=0).update(put(x[::2, ::-2]))
    assert (there.mean == nbn.Moments(axis=0).update(x[::2, ::-2]).mean).all()
