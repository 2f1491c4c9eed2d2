"""Beside trajectories recorded from the real PyTorch: runs everywhere."""

import pytest

from tests.parity import record, report, sequences
from tests.parity.comparisons import RECORDED, pairs


def test_recording_belongs_to_the_sequences():
    assert record.recorded_origin()["checksum"] == sequences.checksum(), (
        "sequences.py has changed: record again with `make record`"
    )


@pytest.mark.parametrize(("comparison", "dtype"), pairs(RECORDED), ids=str)
def test_parameters_agree(comparison, dtype, record_property):
    record_property("row", report.row(comparison, dtype))
    assert comparison.errors(dtype).max() <= comparison.tolerances[dtype]
