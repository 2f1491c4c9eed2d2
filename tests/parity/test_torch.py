"""Beside the real PyTorch, at all steps: ``Adam`` and ``AdamW`` with ``amsgrad=True``."""

import pytest

from tests.parity import errors, record, report
from tests.parity.comparisons import RECORDED, TORCH, pairs

pytest.importorskip("torch", reason="these tests run the real PyTorch; test_recorded.py does not")


@pytest.mark.parametrize(("comparison", "dtype"), pairs(TORCH), ids=str)
def test_parameters_agree(comparison, dtype, record_property):
    record_property("row", report.row(comparison, dtype))
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]


@pytest.mark.parametrize(("comparison", "dtype"), pairs(RECORDED), ids=str)
def test_recording_is_what_torch_computes(comparison, dtype):
    recorded = comparison.theirs(dtype)
    now = record.torch_now(comparison.variant, dtype).at(record.STEPS)
    # Up to rounding: with the same vector instructions other processors differ in last bits.
    assert errors.relative(now.params, recorded).max() <= comparison.tolerances[dtype]
