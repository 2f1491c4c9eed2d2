"""How far two trajectories are apart, and how far rounding alone may take them.

The error of a parameter is its difference relative to the larger of two sizes:
the parameter, and the way that it has gone so far (the sum of its steps without
their signs). Both are sizes at which it was rounded on the way. The parameter
alone would blow up the error of those that pass through zero; one scale for a
whole array would hide the errors of its small elements. A parameter that starts
from zero, as a third of ours do, is measured by its way alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tests.parity.sequences import STEPS

DOUBLE = 1e-12  # see `tolerances`


class Reference(NamedTuple):
    """What a library computed: at which steps, the parameters, and their ways so far."""

    steps: np.ndarray
    params: np.ndarray
    way: np.ndarray

    def at(self, steps: list[int]) -> Reference:
        """The same at fewer steps."""
        kept = np.isin(self.steps, steps)
        return Reference(*(rows[kept] for rows in self))


def reference(trajectory: np.ndarray) -> Reference:
    """The reference at all steps of a trajectory."""
    steps = np.arange(1, len(trajectory))
    way = np.cumsum(np.abs(np.diff(_double(trajectory), axis=0)), axis=0)
    return Reference(steps, trajectory[steps], way)


def relative(params: np.ndarray, theirs: Reference) -> np.ndarray:
    """The errors of parameters, given at the steps of the reference."""
    right = _double(theirs.params)
    difference = np.abs(_double(params) - right)
    scale = np.maximum(np.abs(right), theirs.way)
    # Where nothing has moved yet, any difference is infinitely wrong.
    return np.divide(difference, scale, where=scale > 0, out=np.where(difference == 0, 0.0, np.inf))


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.promote_types(array.dtype, np.float64))


def tolerances(*, rounded_b2: float | None = None, decay: bool = False) -> dict[str, float]:
    """The largest error that rounding explains, by dtype.

    In float64 it is 1e-12 for all. The largest part is that libraries compute
    ``1 - b2**t`` as it stands: near 1 that is off by u = 2**-53, hence for
    ``1 - b2 = 1e-4``, the smallest here, by 1.1e-12 of itself; the root halves it.

    In float32, u = 2**-24, it is the sum of

    - sqrt(1000) u = 1.9e-6: each of 500 steps rounds the parameter on both sides, by
      up to u; with independent signs 1,000 errors add up like the root of their number;
    - u / (2 (1 - b2)) = 3.0e-5 for ``b2 = 0.999``, if the library computes
      ``1 - b2**t`` in float32 (``rounded_b2``): ``b2`` and its power are each rounded
      by u/2, 1 - b2 remains, and the root halves it. PyTorch does it in double
      precision, as we do;
    - 1.5 * 500 u = 4.5e-5 with decoupled decay: PyTorch multiplies by a factor
      ``1 - lr * weight_decay`` rounded by u/2 and rounds the product by u, and on a
      parameter that barely moves always to the same side.
    """
    u = 2.0**-24
    single = math.sqrt(2 * STEPS) * u
    if rounded_b2 is not None:
        single += u / (2 * (1 - rounded_b2))
    if decay:
        single += 1.5 * STEPS * u
    return {"float64": DOUBLE, "float32": single}
