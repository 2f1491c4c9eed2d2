"""How far we are from a library, as a row of the table that `make parity` prints.

The errors are those of the tests (see `errors`): the largest over all steps and
parameters. For float32 two more columns say how far we, and how far the library
itself, are in float32 from what the library computes in float64.
"""

from __future__ import annotations

import importlib.metadata

from tests.parity import errors, record
from tests.parity.comparisons import Comparison

ROW = "{:<26} {:<30} {:<10} {:>5} {:>9} {:>9} {:>12} {:>12}"
HEADER = ROW.format(
    "library", "variant", "dtype", "steps", "error", "allowed", "ours to f64", "its to f64"
)


def _version(library: str) -> str:
    if library == "recorded torch":
        return record.recorded_origin()["torch"]
    return importlib.metadata.version(library)


def row(comparison: Comparison, dtype: str) -> str:
    """One line of the table."""
    theirs = comparison.theirs(dtype)
    far_from_double = ["", ""]
    if dtype == "float32":
        double = comparison.theirs("float64")
        far_from_double = [
            f"{errors.relative(params, double).max():.1e}"
            for params in (comparison.ours(dtype)[theirs.steps], theirs.params)
        ]
    return ROW.format(
        f"{comparison.library} {_version(comparison.library)}",
        comparison.variant,
        dtype,
        theirs.steps[-1],
        f"{comparison.errors(dtype).max():.1e}",
        f"{comparison.tolerances[dtype]:.1e}",
        *far_from_double,
    )
