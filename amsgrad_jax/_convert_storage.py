"""`convert_storage`: a running optimizer's moments, held in another way.

`decoded` and `encoded_like` are the two halves of it for what works on numbers.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from amsgrad_jax import _find, _storage
from amsgrad_jax._storage import Storage
from amsgrad_jax._transform import ScaleByAmsgradState, map_moments


def convert_storage(
    state: optax.OptState,
    storage: str | Storage,
    *,
    from_storage: str | Storage | None = None,
) -> Any:
    """Changes how the moments in the state of a running optimizer are held.

    Every moment is decoded and encoded again, rounded to nearest. To ``"full"`` nothing is
    lost; what a smaller storage loses is within the bounds of its codecs
    (:mod:`amsgrad_jax.codecs`). Works under ``jit`` and keeps shardings.

    Args:
      state: A :class:`ScaleByAmsgradState`, or any tree that holds some, such as the state
        of a chain.
      storage: The storage of what is returned: a name or a :class:`Storage`. To go on, give
        the same one to the optimizer.
      from_storage: The storage of ``state``. None recognises the presets, and what is mixed
        from them, by the dtypes of the moments; codecs of your own must be given.

    Returns:
      The state, with other ``mu``, ``nu`` and ``nu_max``; those held exactly in float32 (in
      float64 only if they were).

    Raises:
      TypeError: If a storage is of the wrong type, or a moment is not held in the way that
        ``from_storage`` says.
      ValueError: If a storage is unknown, or if there is no :class:`ScaleByAmsgradState` in
        ``state``.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> params = {"w": jnp.ones(3)}
      >>> state = amsgrad_jax.amsgrad(0.1).init(params)
      >>> state = amsgrad_jax.convert_storage(state, "tiny")
      >>> smaller = amsgrad_jax.amsgrad(0.1, storage="tiny")
      >>> updates, state = smaller.update({"w": jnp.array([1.0, 2.0, 3.0])}, state)
      >>> print(state[0].mu["w"].dtype, state[0].nu["w"].dtype, state[0].nu_max["w"].dtype)
      int8 uint16 uint8
    """
    to = _storage.resolve(storage)
    source = None if from_storage is None else _storage.resolve(from_storage)
    return _find.map_states(
        lambda node: map_moments(
            lambda _, full: _storage.encode(full, _storage.for_param(full.mu, to)),
            decoded(node, source),
        ),
        state,
    )


def decoded(state: ScaleByAmsgradState, storage: Storage | None = None) -> ScaleByAmsgradState:
    """The state with its moments as numbers; None for the storage recognises the presets."""

    def of_leaf(path: Any, stored: _storage.Moments) -> _storage.Moments:
        held = _storage.of_leaf(storage, stored, path)
        return _storage.decode(stored, held, _storage.working_dtype(stored, held, jnp.float32))

    return map_moments(of_leaf, state)


def encoded_like(full: ScaleByAmsgradState, like: ScaleByAmsgradState) -> ScaleByAmsgradState:
    """The state of numbers ``full``, held as ``like`` holds its own, to nearest."""
    return map_moments(
        lambda path, moments, stored: _storage.encode(
            moments, _storage.of_leaf(None, stored, path)
        ),
        full,
        like,
    )
