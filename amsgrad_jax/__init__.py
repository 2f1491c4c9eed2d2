"""AMSGrad for JAX, written as Optax gradient transformations."""

from importlib.metadata import version as _version

# Complete optimizers.
from amsgrad_jax._alias import amsgrad as amsgrad
from amsgrad_jax._alias import amsgradw as amsgradw

# Parameters in bfloat16 without a float32 copy.
from amsgrad_jax._apply_updates import stochastic_apply_updates as stochastic_apply_updates

# The published conventions, and the record to build one's own.
from amsgrad_jax._conventions import KERAS as KERAS
from amsgrad_jax._conventions import OPTAX as OPTAX
from amsgrad_jax._conventions import PAPER as PAPER
from amsgrad_jax._conventions import PYTORCH as PYTORCH
from amsgrad_jax._conventions import Convention as Convention

# How moments are held between steps; the codecs are in amsgrad_jax.codecs.
from amsgrad_jax._convert_storage import convert_storage as convert_storage
from amsgrad_jax._storage import COMPACT as COMPACT
from amsgrad_jax._storage import FULL as FULL
from amsgrad_jax._storage import TINY as TINY
from amsgrad_jax._storage import Storage as Storage

# The part for one's own chains.
from amsgrad_jax._transform import ScaleByAmsgradState as ScaleByAmsgradState
from amsgrad_jax._transform import scale_by_amsgrad as scale_by_amsgrad

__version__ = _version("amsgrad_jax")
