"""Reset the running maximum of a run that it slows down: once, or on a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _rule, _state

_State = TypeVar("_State")

__all__ = [
    "ResetMaxWhenState",
    "reset_max",
    "reset_max_when",
]


def reset_max(state: _State) -> _State:
    r"""Resets the running maximum: it starts again from the next step's second moment.

    Sets ``nu_max`` to 0, so that the next step has

    .. math::

        x_{t+1} = \max(0, v_{t+1}) = v_{t+1}

    and is a step of Adam, from the same ``mu`` and ``nu``. This is correct in every convention.
    A packed state cannot store a maximum below ``nu``: there ``nu_max`` becomes ``nu``, and the
    words are rounded again, to nearest.

    Use it when a large gradient, or a period of large gradients, has decayed in ``nu``. After
    a gradient :math:`r` times as large as the others this takes
    :math:`\ln(r^2 (1-\beta_2)) / (1-\beta_2)` steps. Before that, ``nu`` still contains the
    large gradient, and the next step raises the maximum again; right after the large gradient a
    reset changes next to nothing.

    Args:
      state: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState`, or any tree that
        contains some, such as the state of a chain. It is not changed.

    Returns:
      A new state with a ``nu_max`` of zeros, or equal to ``nu`` if it is packed. Works under
      ``jit`` and keeps dtypes and shardings.

    Raises:
      TypeError: If the state was cast to other dtypes.
      ValueError: If ``state`` contains no state of AMSGrad.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import remedies
      >>> optimizer = amsgrad_jax.amsgrad(0.1, b2=0.9)
      >>> state = optimizer.init(jnp.zeros(()))
      >>> for gradient in [1000.0] + 200 * [1.0]:
      ...     updates, state = optimizer.update(jnp.asarray(gradient), state)
      >>> print(f"{updates:.5f}")
      -0.00032
      >>> updates, state = optimizer.update(jnp.ones(()), remedies.reset_max(state))
      >>> print(f"{updates:.5f}")
      -0.10000
    """

    def forget(path: Any, moments: _rule.Moments) -> _rule.Moments:
        del path
        return moments._replace(nu_max=jnp.zeros_like(moments.nu_max))

    return _state.map_states(lambda node: _state.map_moments(forget, node), state)


class ResetMaxWhenState(NamedTuple):
    """State of :func:`reset_max_when`.

    Args:
      count: Number of updates so far, an int32 scalar.
      inner_state: State of the wrapped transformation.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    inner_state: optax.OptState


def reset_max_when(
    transformation: optax.GradientTransformation,
    when: Callable[[jax.Array], jax.typing.ArrayLike],
) -> optax.GradientTransformationExtraArgs:
    """Resets the running maximum on a schedule.

    ``when=lambda count: count % 1000 == 0`` limits the effect of a large gradient to 1,000 steps
    after it has decayed in ``nu``. ``when=lambda count: count < 500`` is Adam for the first 500
    steps, then AMSGrad with a maximum that starts from their last ``nu``: for runs whose early
    gradients are far larger than all later ones.

    Resets give up the advantage of AMSGrad where it has one: on the problems of its paper, the
    maximum must keep a rare large gradient until the next one comes.

    Args:
      transformation: The optimizer, or a chain that contains it.
      when: Function from the number of updates so far (0 at first) to a scalar bool: whether to
        reset the maximum before the next update. The more often, the closer to Adam.

    Returns:
      The transformation, with a :class:`ResetMaxWhenState`. XLA fuses the reset into the update,
      so it needs no temporary arrays.

    Raises:
      TypeError: If ``transformation`` is not a transformation, or ``when`` is not a function or
        does not return a scalar bool; in ``update``, if the state is not a
        :class:`ResetMaxWhenState`.
      ValueError: In ``init``, if the state of ``transformation`` contains no state of AMSGrad.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import remedies
      >>> optimizer = remedies.reset_max_when(
      ...     amsgrad_jax.amsgrad(0.1, b2=0.9), when=lambda count: count % 100 == 0
      ... )
      >>> state = optimizer.init(jnp.zeros(()))
      >>> for gradient in [1000.0] + 250 * [1.0]:
      ...     updates, state = optimizer.update(jnp.asarray(gradient), state)
      >>> print(f"{updates:.5f}")
      -0.10000
    """
    inner = _checks.transformation("transformation", transformation)
    _checks.function("when", when, "the count")

    def init(params: optax.Params) -> ResetMaxWhenState:
        inner_state = inner.init(params)
        _state.require_states(inner_state)  # raises early if there is nothing to reset
        return ResetMaxWhenState(jnp.zeros((), jnp.int32), inner_state)

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ResetMaxWhenState]:
        state = _checks.state_of(ResetMaxWhenState, state)
        now = when(state.count)
        is_bool = isinstance(now, bool) or getattr(now, "dtype", None) == jnp.bool_
        if not is_bool or jnp.shape(now) != ():
            got = _checks.describe(now) if hasattr(now, "dtype") else repr(now)
            raise TypeError(f"when must return a scalar bool, got {got}")
        inner_state = jax.tree.map(
            lambda new, old: jnp.where(now, new, old),
            reset_max(state.inner_state),
            state.inner_state,
        )
        updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, ResetMaxWhenState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
