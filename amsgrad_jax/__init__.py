"""AMSGrad for JAX, written as Optax gradient transformations."""

from importlib.metadata import version as _version

# Complete optimizers.
from amsgrad_jax._alias import amsgrad as amsgrad
from amsgrad_jax._alias import amsgradw as amsgradw

# Parameters in bfloat16 without a float32 copy.
from amsgrad_jax._apply_updates import StochasticRoundingState as StochasticRoundingState
from amsgrad_jax._apply_updates import stochastic_apply_updates as stochastic_apply_updates
from amsgrad_jax._apply_updates import stochastic_rounding as stochastic_rounding

# The published conventions, and the record to build one's own.
from amsgrad_jax._conventions import KERAS as KERAS
from amsgrad_jax._conventions import OPTAX as OPTAX
from amsgrad_jax._conventions import PAPER as PAPER
from amsgrad_jax._conventions import PYTORCH as PYTORCH
from amsgrad_jax._conventions import Convention as Convention

# The states, and from one storage or convention to another.
from amsgrad_jax._convert import convert_convention as convert_convention
from amsgrad_jax._convert import convert_storage as convert_storage
from amsgrad_jax._state import PackedAmsgradState as PackedAmsgradState
from amsgrad_jax._state import ScaleByAmsgradState as ScaleByAmsgradState

# The part for one's own chains.
from amsgrad_jax._transform import scale_by_amsgrad as scale_by_amsgrad

__version__ = _version("amsgrad_jax")
