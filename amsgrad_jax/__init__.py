"""AMSGrad for JAX, written as Optax gradient transformations."""

from importlib.metadata import version as _version

# Complete optimizers.
from amsgrad_jax._alias import amsgrad as amsgrad
from amsgrad_jax._alias import amsgradw as amsgradw

# The published conventions, and the record to build one's own.
from amsgrad_jax._conventions import KERAS as KERAS
from amsgrad_jax._conventions import OPTAX as OPTAX
from amsgrad_jax._conventions import PAPER as PAPER
from amsgrad_jax._conventions import PYTORCH as PYTORCH
from amsgrad_jax._conventions import Convention as Convention

# The part for one's own chains.
from amsgrad_jax._transform import ScaleByAmsgradState as ScaleByAmsgradState
from amsgrad_jax._transform import scale_by_amsgrad as scale_by_amsgrad

__version__ = _version("amsgrad_jax")
