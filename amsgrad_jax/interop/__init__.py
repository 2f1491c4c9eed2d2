"""Conversion of optimizer states from and to PyTorch, Keras and Optax."""

from amsgrad_jax.interop._keras import FromKeras, from_keras, to_keras
from amsgrad_jax.interop._moments import get_moments, set_moments
from amsgrad_jax.interop._optax import from_optax, to_optax
from amsgrad_jax.interop._torch import (
    FromTorch,
    TorchGroup,
    flax_transposes,
    from_torch,
    names_of,
    optimizer_of,
    to_torch,
)

__all__ = [
    "FromKeras",
    "FromTorch",
    "TorchGroup",
    "flax_transposes",
    "from_keras",
    "from_optax",
    "from_torch",
    "get_moments",
    "names_of",
    "optimizer_of",
    "set_moments",
    "to_keras",
    "to_optax",
    "to_torch",
]
