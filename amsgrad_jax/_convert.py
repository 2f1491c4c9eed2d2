"""Conversion of the state of a running optimizer to another storage or convention."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import jax

from amsgrad_jax import _checks, _conventions, _rule, _state
from amsgrad_jax._conventions import Convention, ConventionName
from amsgrad_jax._state import AmsgradState, PackedAmsgradState, ScaleByAmsgradState, Storage

_State = TypeVar("_State")


@overload
def convert_storage(state: AmsgradState, storage: Literal["full"]) -> ScaleByAmsgradState: ...
@overload
def convert_storage(state: AmsgradState, storage: Literal["packed"]) -> PackedAmsgradState: ...
@overload
def convert_storage(state: _State, storage: Storage) -> _State: ...
def convert_storage(state: Any, storage: Storage) -> Any:
    r"""Converts the state of a running optimizer to full or packed storage.

    From ``"packed"`` to ``"full"`` is exact: the moments are the decoded words. From ``"full"``
    to ``"packed"`` the moments are rounded to nearest. With :math:`x_t` for ``nu_max``, the
    errors are at most 1/32 of the root of ``nu_max``, :math:`2^{-11} \sqrt{x_t}` in the root of
    ``nu``, and 1/32 of ``mu`` plus :math:`2^{-13} \sqrt{x_t}` in ``mu``. A maximum below ``nu``,
    as after a reset, becomes ``nu``. Works under ``jit`` and ``vmap`` and keeps shardings.

    Args:
      state: A :class:`ScaleByAmsgradState` or :class:`PackedAmsgradState`, or any tree that
        contains some, such as the state of a chain.
      storage: ``"full"`` or ``"packed"``: the storage of the optimizer that continues the run.

    Returns:
      The same tree, with a :class:`ScaleByAmsgradState` or a :class:`PackedAmsgradState` in
      place of each. Moments that were packed are in float32.

    Raises:
      TypeError: If a moment is complex and ``storage`` is ``"packed"``, or if the state was cast
        to another dtype.
      ValueError: If ``storage`` is unknown, or if ``state`` contains no state of this package.

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


def convert_convention(
    state: _State,
    b2: jax.typing.ArrayLike = 0.999,
    *,
    from_convention: ConventionName | Convention,
    to_convention: ConventionName | Convention,
) -> _State:
    r"""Converts the state of a running optimizer to another convention.

    Only ``nu_max`` can differ. If :math:`v_t` is corrected before the maximum, as in
    ``"optax"``, it is the maximum :math:`\hat x_t` of corrected moments; otherwise it is the
    maximum :math:`x_t` of uncorrected ones. In either direction

    .. math::

        x_t = (1 - \beta_2^{t+1})\, \hat x_t

    so that the next step, number :math:`t + 1`, has the same denominator: it divides by
    the root of :math:`\max(\hat x_t, v_{t+1} / (1 - \beta_2^{t+1}))`, or, with the
    correction after the maximum, of :math:`\max(x_t, v_{t+1}) / (1 - \beta_2^{t+1})`.

    Between ``"optax"`` and ``"pytorch"`` that step is the same up to rounding, for
    ``eps_root = 0``. The steps after it differ, because each convention then takes the
    maximum of its own quantity. The difference is smaller the later you convert, as
    :math:`\beta_2^t` is smaller. With ``"keras"`` and ``"paper"`` the next step differs only by
    their use of ``eps`` and, for ``"paper"``, by the missing bias corrections. In a packed state
    the maximum is rounded once more.

    Args:
      state: A state of this package, or any tree that contains some, such as the state of a
        chain. Several runs stacked, as by ``jax.vmap(optimizer.init)``, have counts with
        leading axes; each run is converted with its own count.
      b2: The optimizer's ``b2``, in [0, 1), such as 0.999; with a schedule, its value at the
        next step. Used only if exactly one of the two conventions corrects before the maximum.
      from_convention: The convention of ``state``: a name, such as ``"optax"``, or a
        :class:`.Convention`.
      to_convention: The convention of the optimizer that continues the run: a name or a
        :class:`.Convention`.

    Returns:
      The same tree, with ``nu_max`` converted where the two conventions differ in it.

    Raises:
      TypeError: If ``b2`` is not a number, or if the state was cast to another dtype.
      ValueError: If ``state`` contains no state of this package, if ``b2`` is out of its range,
        if a convention is unknown, or if the leading axes of a count do not match those of
        the moments.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> old = amsgrad_jax.amsgrad(0.1, b2=0.5, convention="optax")
      >>> state = old.init(jnp.zeros(2))
      >>> _, state = old.update(jnp.array([1.0, 2.0]), state)
      >>> print(state[0].nu_max)
      [1. 4.]
      >>> state = amsgrad_jax.convert_convention(
      ...     state, 0.5, from_convention="optax", to_convention="pytorch"
      ... )
      >>> print(state[0].nu_max)
      [0.75 3.  ]
    """
    b2 = _checks.hyperparameter("b2", b2)
    was_corrected = _is_corrected(from_convention)
    becomes_corrected = _is_corrected(to_convention)

    def of_node(node: AmsgradState) -> AmsgradState:
        count = _state.count_of(node)

        def of_leaf(path: Any, moments: _rule.Moments) -> _rule.Moments:
            x = moments.nu_max
            if x.shape[: count.ndim] != count.shape:
                raise ValueError(
                    f"state.count has shape {count.shape}, which the moments at "
                    f"{_checks.at(path)} of shape {x.shape} do not begin with"
                )
            c2 = _rule.correction(b2, count.astype(x.dtype) + 1, x.dtype)  # of the next step
            c2 = c2.reshape(count.shape + (1,) * (x.ndim - count.ndim))
            return moments._replace(nu_max=x * c2 if was_corrected else x / c2)

        return _state.map_moments(of_leaf, node)

    if was_corrected == becomes_corrected:
        _state.require_states(state)
        return state
    return _state.map_states(of_node, state)


def _is_corrected(convention: ConventionName | Convention) -> bool:
    return _conventions.resolve(convention).correct_nu == "before_max"
