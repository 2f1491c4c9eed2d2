"""Beside the real Keras on its JAX backend: ``Adam`` and ``AdamW`` with ``amsgrad=True``."""

import pytest

from tests.parity import report
from tests.parity.comparisons import KERAS, pairs


@pytest.mark.parametrize(("comparison", "dtype"), pairs(KERAS), ids=str)
def test_parameters_agree(comparison, dtype, record_property):
    record_property("row", report.row(comparison, dtype))
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]
