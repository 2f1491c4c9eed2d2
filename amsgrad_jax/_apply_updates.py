"""Training in bfloat16 without a float32 copy of the parameters: the sum is rounded stochastically.

`stochastic_apply_updates` replaces ``optax.apply_updates``; `stochastic_rounding` is the last
transformation of a chain, for libraries that apply updates themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _rounding

# So that a parameter and its moments do not share their bits.
_SALT = 0x5BD1E995


def stochastic_apply_updates(
    params: optax.Params, updates: optax.Updates, count: jax.typing.ArrayLike
) -> Any:
    r"""Adds updates to parameters; in bfloat16 the sum is rounded stochastically.

    A number in bfloat16 has 8 binary digits. Rounding to nearest loses every update smaller than
    half a unit in the last place, such as all below :math:`2^{-9}` of the parameter. Here

    .. math::

        p_{t+1} = R(p_t + u_t), \qquad \mathbb{E}\, R(x) = x,

    where :math:`R(x)` is one of the two neighbours of :math:`x` in bfloat16, so that small
    updates have the right effect on average. The random bits are computed from the leaf's path,
    the element's index and ``count``: runs are reproducible, and under ``jit`` do not depend on
    the sharding.

    Args:
      params: A tree of parameters of any dtypes. For bfloat16 leaves the sum is computed in
        float32 and rounded stochastically; other leaves are added as by
        ``optax.apply_updates``. None stays None.
      updates: The updates, a tree like ``params``; for bfloat16 leaves in float32 or bfloat16.
      count: The number of the step, an integer scalar. It must differ from call to call, or the
        random bits repeat. :func:`stochastic_rounding` counts by itself.

    Returns:
      The new parameters, in the dtypes of ``params``.

    Raises:
      TypeError: If ``count`` is not an integer scalar, or if the sum is differentiated.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import stochastic_apply_updates
      >>> nearest = stochastic = jnp.ones(10_000, jnp.bfloat16)
      >>> updates = jnp.full(10_000, 1e-4, jnp.bfloat16)
      >>> for count in range(100):
      ...     nearest = optax.apply_updates(nearest, updates)
      ...     stochastic = stochastic_apply_updates(stochastic, updates, count)
      >>> print(nearest.astype(float).mean())
      1.0
      >>> print(stochastic.astype(float).mean().round(3))
      1.01

    References:
      Gupta, Agrawal, Gopalakrishnan and Narayanan, `Deep Learning with Limited Numerical
      Precision <https://arxiv.org/abs/1502.02551>`_, ICML 2015, section 3.
    """
    count = _checks.integer("count", count)

    def apply(path: Any, param: Any, update: Any) -> Any:
        return _rounded_sum(path, param, update, count)

    return _map(apply, optax.apply_updates, params, updates)


class StochasticRoundingState(NamedTuple):
    """State of :func:`stochastic_rounding`.

    Args:
      count: Number of updates so far, an int32 scalar.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)


def stochastic_rounding() -> optax.GradientTransformationExtraArgs:
    r"""Stochastic rounding of bfloat16 parameters, as the last transformation of a chain.

    Replaces an update :math:`u_t` of a parameter :math:`p_t` in bfloat16 by

    .. math::

        u'_t = R(p_t + u_t) - p_t

    in float32, with :math:`R` of :func:`stochastic_apply_updates`. ``optax.apply_updates``
    computes :math:`p_t + u'_t` in float32 and rounds it to the nearest bfloat16, which is exactly
    :math:`R(p_t + u_t)`. Flax's ``TrainState`` and ``nnx.Optimizer`` call
    ``optax.apply_updates``, too. Updates of parameters in other dtypes are not changed.

    Put it last, outside of wrappers: ``optax.apply_if_finite`` does not allow updates to
    change their dtype, and ``optax.flatten`` hides the dtypes of the parameters.

    Returns:
      A transformation whose ``update`` needs the parameters, with a
      :class:`StochasticRoundingState`.

    Raises:
      TypeError: If an update is differentiated.
      ValueError: If ``update`` is called without parameters.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> optimizer = optax.chain(
      ...     amsgrad_jax.amsgrad(1e-4, storage="packed"), amsgrad_jax.stochastic_rounding()
      ... )
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> state = optimizer.init(params)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(-params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.dtype, params.astype(float).mean().round(3))
      bfloat16 1.01

    References:
      As of :func:`stochastic_apply_updates`.
    """

    def init(params: optax.Params) -> StochasticRoundingState:
        del params
        return StochasticRoundingState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        del extra_args
        if params is None:
            raise ValueError("stochastic_rounding needs the parameters: update(..., params)")

        def difference(path: Any, param: Any, update: Any) -> Any:
            rounded = _rounded_sum(path, param, update, state.count)
            moved = rounded.astype(jnp.float32) - param.astype(jnp.float32)
            return jnp.where(rounded == param, jnp.zeros_like(moved), moved)  # also of infinity

        updates = _map(difference, lambda param, update: update, params, updates)
        return updates, StochasticRoundingState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformationExtraArgs(init, update)


def _map(
    function: Callable[[Any, Any, Any], Any],
    otherwise: Callable[[Any, Any], Any],
    params: Any,
    updates: Any,
) -> Any:
    """Applies ``function`` to the leaves of bfloat16 parameters, ``otherwise`` to all others."""

    def of_leaf(path: Any, param: Any, update: Any) -> Any:
        if param is None or update is None:
            return otherwise(param, update)
        if jnp.result_type(param) != jnp.bfloat16:
            return otherwise(param, update)
        return function(path, param, update)

    return jax.tree_util.tree_map_with_path(
        of_leaf, params, updates, is_leaf=lambda leaf: leaf is None
    )


def _rounded_sum(path: Any, param: Any, update: Any, count: jax.Array) -> jax.Array:
    total = _rounding.not_differentiable(param.astype(jnp.float32) + update.astype(jnp.float32))
    step = _rounding.in_step(count)
    bits = _rounding.random_bits(total, _rounding.salt(path) ^ _SALT, step)
    return _rounding.to_bfloat16(total, bits)
