"""`convert_storage`: the state of a running optimizer, stored in another way."""

from __future__ import annotations

from typing import Any

import optax

from amsgrad_jax import _state
from amsgrad_jax._state import Storage


def convert_storage(state: optax.OptState, storage: Storage) -> Any:
    r"""Stores the moments in the state of a running optimizer in another way.

    From ``"packed"`` to ``"full"`` nothing is lost: the moments are the numbers that the words
    stand for. From ``"full"`` to ``"packed"`` they are rounded to nearest: with
    :math:`x_t` for ``nu_max``, the root of ``nu_max`` by at most 1/32 of itself, the root of
    ``nu`` by at most :math:`2^{-11} \sqrt{x_t}`, ``mu`` by at most 1/32 of itself and
    :math:`2^{-13} \sqrt{x_t}`. A maximum below ``nu``, as after a reset, becomes ``nu``.
    Works under ``jit`` and ``vmap`` and keeps shardings.

    Args:
      state: A :class:`ScaleByAmsgradState` or :class:`PackedAmsgradState`, or any tree that
        holds some, such as the state of a chain.
      storage: ``"full"`` or ``"packed"``, as the optimizer has it that is to continue.

    Returns:
      The state, with a :class:`ScaleByAmsgradState` or a :class:`PackedAmsgradState` in the
      place of each. Moments that were packed are in float32.

    Raises:
      TypeError: If a moment is complex and ``storage`` is ``"packed"``, or if the state was cast
        to another dtype.
      ValueError: If ``storage`` is unknown, or if ``state`` holds no state of this package.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones(3)}
      >>> state = amsgrad_jax.amsgrad(0.1).init(params)
      >>> state = amsgrad_jax.convert_storage(state, "packed")
      >>> smaller = amsgrad_jax.amsgrad(0.1, storage="packed")
      >>> updates, state = smaller.update({"w": jnp.array([1.0, 2.0, 3.0])}, state)
      >>> print(state[0].packed["w"].dtype)
      uint32
      >>> print(amsgrad_jax.convert_storage(state, "full")[0].mu["w"].round(1))
      [0.1 0.2 0.3]
    """
    storage = _state.resolve(storage)

    def convert(node: _state.AmsgradState) -> _state.AmsgradState:
        if _state.storage_of(node) == storage:
            _state.check(node, storage)
            return node
        return _state.map_moments(lambda _, moments: moments, node, storage)

    return _state.map_states(convert, state)
