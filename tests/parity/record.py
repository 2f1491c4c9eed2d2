"""PyTorch's trajectories, computed now or recorded earlier for machines without PyTorch.

``python -m tests.parity.record`` writes the recording anew. It holds some steps of
each case in both dtypes, PyTorch's version, and the checksum of the sequences.
"""

from __future__ import annotations

import functools
import importlib
import pathlib

import numpy as np

from tests.parity import errors, sequences, trajectories
from tests.parity.cases import CASES

PATH = pathlib.Path(__file__).with_name("torch_trajectories.npz")
STEPS = [1, 2, 10, 100, 250, 500]
DTYPES = ("float64", "float32")


@functools.cache
def torch_now(name: str, dtype: str, **options: bool) -> errors.Reference:
    """What the installed PyTorch computes for a case, at all steps."""
    return errors.reference(
        trajectories.of_torch(
            CASES[name], sequences.gradients(), sequences.start(), dtype, **options
        )
    )


def recorded(name: str, dtype: str) -> errors.Reference:
    """What PyTorch computed for a case when it was recorded, at some steps."""
    with np.load(PATH) as file:
        return errors.Reference(
            file["steps"], file[f"{name}/{dtype}/params"], file[f"{name}/{dtype}/way"]
        )


def recorded_origin() -> dict[str, str]:
    """Where the recording comes from: PyTorch, the sequences."""
    with np.load(PATH) as file:
        return {name: str(file[name]) for name in ("torch", "checksum")}


def main() -> None:
    arrays = {}
    for name in CASES:
        for dtype in DTYPES:
            kept = torch_now(name, dtype).at(STEPS)
            arrays |= {f"{name}/{dtype}/params": kept.params, f"{name}/{dtype}/way": kept.way}
    origin = {
        "torch": importlib.import_module("torch").__version__,
        "checksum": sequences.checksum(),
    }
    np.savez_compressed(PATH, steps=np.array(STEPS), **origin, **arrays)
    print(f"{PATH.name}: {len(CASES)} cases, {PATH.stat().st_size / 1000:.0f} kB, {origin}")


if __name__ == "__main__":
    main()
