"""AMSGrad for JAX, written as Optax gradient transformations.

Complete optimizers: `amsgrad`, `amsgradw`. For your own chains: `scale_by_amsgrad`.
Stochastic rounding of bfloat16 parameters: `stochastic_rounding`, `stochastic_apply_updates`.
Published conventions: `PAPER`, `PYTORCH`, `KERAS`, `OPTAX`; any other: `Convention`.
Optimizer states: `ScaleByAmsgradState`, `PackedAmsgradState`; conversions between them:
`convert_storage`, `convert_convention`.

Modules, imported on first use: `diagnostics`, `interop`, `online`, `projections`, `remedies`,
`schedules`, `sharding`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from amsgrad_jax._alias import amsgrad, amsgradw
from amsgrad_jax._apply_updates import (
    StochasticRoundingState,
    stochastic_apply_updates,
    stochastic_rounding,
)
from amsgrad_jax._conventions import KERAS, OPTAX, PAPER, PYTORCH, Convention
from amsgrad_jax._convert import convert_convention, convert_storage
from amsgrad_jax._state import PackedAmsgradState, ScaleByAmsgradState
from amsgrad_jax._transform import scale_by_amsgrad

if TYPE_CHECKING:
    from amsgrad_jax import diagnostics as diagnostics
    from amsgrad_jax import interop as interop
    from amsgrad_jax import online as online
    from amsgrad_jax import projections as projections
    from amsgrad_jax import remedies as remedies
    from amsgrad_jax import schedules as schedules
    from amsgrad_jax import sharding as sharding

__all__ = [
    "KERAS",
    "OPTAX",
    "PAPER",
    "PYTORCH",
    "Convention",
    "PackedAmsgradState",
    "ScaleByAmsgradState",
    "StochasticRoundingState",
    "amsgrad",
    "amsgradw",
    "convert_convention",
    "convert_storage",
    "scale_by_amsgrad",
    "stochastic_apply_updates",
    "stochastic_rounding",
]

_MODULES = (
    "diagnostics",
    "interop",
    "online",
    "projections",
    "remedies",
    "schedules",
    "sharding",
)

try:
    __version__ = importlib.metadata.version("amsgrad_jax")
except importlib.metadata.PackageNotFoundError:  # a copy in another project's tree
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
