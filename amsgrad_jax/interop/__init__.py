"""State in and out of PyTorch, Keras and Optax."""

# Keras.
from amsgrad_jax.interop._keras import FromKeras as FromKeras
from amsgrad_jax.interop._keras import from_keras as from_keras
from amsgrad_jax.interop._keras import to_keras as to_keras

# Optax, and from one convention to another.
from amsgrad_jax.interop._optax import convert as convert
from amsgrad_jax.interop._optax import from_optax as from_optax
from amsgrad_jax.interop._optax import to_optax as to_optax

# PyTorch.
from amsgrad_jax.interop._torch import FromTorch as FromTorch
from amsgrad_jax.interop._torch import TorchGroup as TorchGroup
from amsgrad_jax.interop._torch import flax_transposes as flax_transposes
from amsgrad_jax.interop._torch import from_torch as from_torch
from amsgrad_jax.interop._torch import optimizer_of as optimizer_of
from amsgrad_jax.interop._torch import to_torch as to_torch

# Between a chain's state and its moments.
from amsgrad_jax.interop._trees import put as put
from amsgrad_jax.interop._trees import take as take
