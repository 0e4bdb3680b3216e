"""The benchmarks' layer norm by oneDNN computes layer norm, and says so if oneDNN is not installed."""

from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from benchmarks import onednn_layer_norm, onednn_session
from benchmarks.family_libraries import LIBRARIES, Data, FamilyCase
from benchmarks.libraries import BACKWARD, BOTH, EPS, FORWARD, ONEDNN
from tests.support import samples
from tests.support.checks import NAMES, assert_close

needs_onednn = pytest.mark.skipif(
    not any(metadata.distributions(name=onednn_session.DISTRIBUTION)), reason="needs oneDNN's wheel"
)


@needs_onednn
@pytest.mark.parametrize("shape", [(32, 768), (3, 5, 7), (2, 3, 4, 33)])
def test_values(shape):
    """Errors are those allowed to numbabn: in rows this short, oneDNN's sums in float32 are as good.

    x has a variance of 1e-4, so that eps, which is a tenth of it, is seen.
    """
    case = FamilyCase("layer", shape)
    data = Data.of(case)
    data = replace(data, x=data.x * np.float32(0.01))
    options = (-1,), EPS, True
    operations = LIBRARIES[ONEDNN](case, data)
    y = samples.forward(data.x, data.gamma, data.beta, *options)
    error = samples.forward_error(data.x, data.gamma, data.beta, *options)
    assert_close(operations[FORWARD](), y, error, "y")
    gradients = samples.backward(data.dy, data.x, data.gamma, *options)
    errors = samples.backward_error(data.dy, data.x, data.gamma, *options)
    for operation in (BACKWARD, BOTH):
        for name, result, value, error in zip(NAMES, operations[operation](), gradients, errors, strict=True):
            assert_close(result, value, error, name)


@needs_onednn
def test_arrays_start_at_cache_lines():
    data = Data.of(FamilyCase("layer", (3, 5, 7)))
    norm = onednn_layer_norm.LayerNorm(data.x, data.dy, data.gamma, data.beta, EPS)
    for array in (norm.forward(), *norm.backward()):
        assert array.ctypes.data % onednn_session.ALIGNMENT == 0


@needs_onednn
def test_what_onednn_refuses_is_an_error():
    x = np.zeros(7, np.float32)  # one axis alone
    with pytest.raises(RuntimeError, match="layer_normalization_forward_primitive_desc_create"):
        onednn_layer_norm.LayerNorm(x, x, x, x, EPS)


@pytest.mark.parametrize("norm", ["rms", "group", "instance"])
def test_other_norms_have_no_operations(norm):
    case = FamilyCase(norm, (2, 32, 5), "NCL")
    assert LIBRARIES[ONEDNN](case, Data.of(case)) == {}


def test_without_the_wheel_the_library_is_missing(monkeypatch):
    monkeypatch.setattr(onednn_session, "DISTRIBUTION", "no-such-distribution")
    case = FamilyCase("layer", (3, 7))
    with pytest.raises(ImportError, match="no-such-distribution"):
        LIBRARIES[ONEDNN](case, Data.of(case))
