"""Beside Optax's own ``amsgrad``, with and without its corrections, and its ``nadam``."""

import pytest

from tests.parity.comparisons import OPTAX, OPTAX_PAPER, pairs


@pytest.mark.parametrize(("comparison", "dtype"), pairs(OPTAX), ids=str)
def test_parameters_agree(comparison, dtype):
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]


@pytest.mark.skipif(
    not OPTAX_PAPER, reason="this Optax cannot leave out the bias corrections of amsgrad"
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_paper_mode_agrees(dtype):
    (comparison,) = OPTAX_PAPER
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]
