"""Beside Optax's own ``amsgrad``, with and without its corrections, and its ``nadam``."""

import pytest

from tests.parity import report
from tests.parity.comparisons import OPTAX, OPTAX_PAPER, pairs


@pytest.mark.parametrize(("comparison", "dtype"), pairs(OPTAX), ids=str)
def test_parameters_agree(comparison, dtype, record_property):
    record_property("row", report.row(comparison, dtype))
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]


@pytest.mark.skipif(
    not OPTAX_PAPER, reason="this Optax cannot leave out the bias corrections of amsgrad"
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_paper_mode_agrees(dtype, record_property):
    (comparison,) = OPTAX_PAPER
    record_property("row", report.row(comparison, dtype))
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]
