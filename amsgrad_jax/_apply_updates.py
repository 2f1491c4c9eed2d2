"""`stochastic_apply_updates`: training in bfloat16 without a float32 copy of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _rounding
from amsgrad_jax.codecs import BFLOAT16

# So that a parameter and its moments do not share their bits.
_SALT = 0x5BD1E995


def stochastic_apply_updates(
    params: optax.Params, updates: optax.Updates, count: jax.typing.ArrayLike
) -> Any:
    r"""Adds updates to parameters; in bfloat16 the sum is rounded up or down by chance.

    A number in bfloat16 has 8 binary digits. An update below half a unit of the last one,
    :math:`2^{-9}` of the parameter, is lost by rounding to nearest, in every step anew. Here

    .. math::

        p_{t+1} = R(p_t + u_t), \qquad \mathbb{E}\, R(x) = x,

    where :math:`R(x)` is one of the two neighbours of :math:`x` in bfloat16, so that small
    updates count in the mean. The chance is a hash of the leaf's path, the element's index
    and ``count``: a run repeats itself, and does not depend on shardings under ``jit``.

    Args:
      params: Parameters of any dtypes. The sum is made in float32 for bfloat16 leaves; all
        others are added as by ``optax.apply_updates``. None stays None.
      updates: A tree like ``params``; leaves in float32 or bfloat16.
      count: The number of the step, an integer scalar that differs from call to call, such
        as ``optax.tree.get(state, "count")``.

    Returns:
      The new parameters, in the dtypes of ``params``.

    Raises:
      TypeError: If ``count`` is not an integer scalar; when it is differentiated.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import stochastic_apply_updates
      >>> nearest = by_chance = jnp.ones(10_000, jnp.bfloat16)
      >>> updates = jnp.full(10_000, 1e-4, jnp.bfloat16)
      >>> for count in range(100):
      ...     nearest = optax.apply_updates(nearest, updates)
      ...     by_chance = stochastic_apply_updates(by_chance, updates, count)
      >>> print(nearest.astype(float).mean())
      1.0
      >>> print(by_chance.astype(float).mean().round(3))
      1.01

    References:
      Gupta, Agrawal, Gopalakrishnan and Narayanan, `Deep Learning with Limited Numerical
      Precision <https://arxiv.org/abs/1502.02551>`_, ICML 2015, section 3.
    """
    count = _checks.integer_scalar("count", count)

    def of_leaf(path: Any, param: Any, update: Any) -> Any:
        if param is None:
            return None
        if jnp.result_type(param) != jnp.bfloat16:
            return optax.apply_updates(param, update)
        total = _rounding.not_differentiable(param.astype(jnp.float32) + update.astype(jnp.float32))
        hashed = _rounding.hashed_index(total, _rounding.salt(path) ^ _SALT, count)
        return BFLOAT16.encode(total, _rounding.at_step(hashed, count, _rounding.GOLDEN))

    return jax.tree_util.tree_map_with_path(
        of_leaf, params, updates, is_leaf=lambda leaf: leaf is None
    )
