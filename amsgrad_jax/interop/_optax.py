"""Conversion of the states of ``optax.amsgrad`` and ``optax.adam``."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax import _checks
from amsgrad_jax._conventions import OPTAX, PAPER, Convention, ConventionName
from amsgrad_jax._convert import convert_convention
from amsgrad_jax._state import ScaleByAmsgradState
from amsgrad_jax.interop import _moments

_State = TypeVar("_State")


def _of_optax(bias_correction_nu: bool) -> Convention:
    _checks.flag("bias_correction_nu", bias_correction_nu)
    return OPTAX if bias_correction_nu else PAPER


def from_optax(
    source: optax.OptState,
    params: optax.Params,
    *,
    b2: jax.typing.ArrayLike = 0.999,
    convention: ConventionName | Convention = "pytorch",
    bias_correction_nu: bool = True,
    without_max: _moments.WithoutMax = "raise",
) -> ScaleByAmsgradState:
    r"""Converts a state of ``optax.amsgrad`` or ``optax.adam`` into a state of this package.

    ``count``, ``mu`` and ``nu`` are the same in both. ``nu_max`` of ``optax.amsgrad`` is a
    maximum of bias-corrected moments, which :func:`.convert_convention` converts:

    .. math::

        x_t = (1 - \beta_2^{t+1})\, \hat x_t

    With ``convention="optax"`` the run continues as it would in Optax. For another convention the
    maximum is converted so that it is right for the next step; later steps follow another
    maximum. Adam has no maximum: see ``without_max``.

    Args:
      source: The state of any chain with ``optax.amsgrad`` or ``optax.adam`` in it, also
        within ``masked``, ``partition``, ``inject_hyperparams``, ``MultiSteps``. Not of other
        optimizers with the same state class, such as ``optax.adamax``, whose fields have another
        meaning. For several runs, stacked by ``jax.vmap``, use ``jax.vmap(from_optax)``.
      params: The parameters that the optimizer trains, or ``jax.ShapeDtypeStruct`` for them.
        Leave out all others, or set them to None.
      b2: The optimizer's ``b2``, in [0, 1), such as 0.999; with a schedule, its value at the
        next step.
      convention: The convention of the optimizer that continues the run, as given to
        :func:`.amsgrad`.
      bias_correction_nu: As given to ``optax.scale_by_amsgrad``. False means that the maximum in
        ``source`` is of uncorrected moments.
      without_max: What to do with a state of ``optax.adam``: ``"raise"``, or ``"use_nu"``
        to start the maximum from ``nu``, as if it had never been larger.

    Returns:
      The state, in float32 (float64 for float64 parameters), on the devices of the
      parameters. Pass it to :func:`set_moments` to put it into the state of a chain.

    Raises:
      TypeError: If an argument is of the wrong type.
      ValueError: If ``source`` does not contain exactly one optimizer of Optax (as when it was
        converted already), or it has no maximum, or ``MultiSteps`` has accumulated gradients in
        it; if its leaves do not match ``params``; if ``b2`` is out of its range, or
        ``convention`` or ``without_max`` unknown.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> params, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])}
      >>> old = optax.amsgrad(0.125)
      >>> _, state = old.update(gradients, old.init(params))
      >>> new = amsgrad_jax.amsgrad(0.125, convention="optax")
      >>> moments = interop.from_optax(state, params, convention="optax")
      >>> new_state = interop.set_moments(new.init(params), moments)
      >>> updates, _ = new.update(gradients, new_state)
      >>> expected, _ = old.update(gradients, state)
      >>> print(updates["w"].round(4), expected["w"].round(4))
      [-0.125 -0.125] [-0.125 -0.125]
    """
    _moments.check_without_max(without_max)
    from_convention = _of_optax(bias_correction_nu)
    _require_whole_steps("source", source)
    moments = _moments.join("source", source, _moments.OPTAX)
    # Of complex parameters optax holds these as complex numbers.
    moments = moments._replace(
        **jax.tree.map(jnp.real, {"nu": moments.nu, "nu_max": moments.nu_max})
    )
    if moments.nu_max is None:
        if without_max == "raise":
            raise ValueError(
                "the state is optax.adam's, which has no maximum: pass without_max='use_nu' to "
                "start it from nu"
            )
        from_convention, moments = PAPER, moments._replace(nu_max=moments.nu)
    return convert_convention(
        _moments.build(params, moments.count, moments._asdict()),
        b2,
        from_convention=from_convention,
        to_convention=convention,
    )


def to_optax(
    state: optax.OptState,
    params: optax.Params,
    target: _State,
    *,
    b2: jax.typing.ArrayLike = 0.999,
    convention: ConventionName | Convention = "pytorch",
    bias_correction_nu: bool = True,
) -> _State:
    r"""Converts a state of this package into a state of ``optax.amsgrad`` or ``optax.adam``.

    The inverse of :func:`from_optax`, with the same formula:

    .. math::

        \hat x_t = x_t / (1 - \beta_2^{t+1})

    For ``optax.adam`` the maximum is dropped.

    Args:
      state: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState`, or any tree that
        contains one, such as the state of a chain.
      params: The parameters that the optimizer trains, or ``jax.ShapeDtypeStruct`` for them.
        Leave out all others, or set them to None.
      target: A state of the optimizer of Optax that continues the run, as its ``init`` returns
        it. It is not changed.
      b2: The optimizer's ``b2``, in [0, 1), such as 0.999; with a schedule, its value at the
        next step.
      convention: The convention of ``state``, as given to :func:`.amsgrad`.
      bias_correction_nu: As given to ``optax.scale_by_amsgrad``. False means that the maximum in
        ``target`` is of uncorrected moments.

    Returns:
      ``target`` with the moments and the step counts replaced, as by :func:`set_moments`, in the
      dtypes of ``target``: those of the parameters, so float32 moments of bfloat16 parameters
      are rounded.

    Raises:
      TypeError: If an argument is of the wrong type.
      ValueError: If ``state`` contains no state of this package, or ``target`` not exactly one
        optimizer of Optax; if their leaves do not match ``params``; if ``b2`` is out of its
        range, or ``convention`` unknown.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> params, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])}
      >>> ours = amsgrad_jax.amsgrad(0.125)
      >>> _, state = ours.update(gradients, ours.init(params))
      >>> theirs = optax.amsgrad(0.125)
      >>> new_state = interop.to_optax(state, params, theirs.init(params))
      >>> updates, _ = theirs.update(gradients, new_state)
      >>> expected, _ = ours.update(gradients, state)
      >>> print(updates["w"].round(4), expected["w"].round(4))
      [-0.125 -0.125] [-0.125 -0.125]
    """
    _require_whole_steps("state", state)
    moments = _moments.join_for(state, params)
    moments = convert_convention(
        moments, b2, from_convention=convention, to_convention=_of_optax(bias_correction_nu)
    )
    return _moments.fill("target", target, moments, _moments.OPTAX)


def _require_whole_steps(what: str, state: optax.OptState) -> None:
    """Raises if ``optax.MultiSteps`` has gradients that are not in the moments yet."""
    is_multi_steps = lambda node: isinstance(node, optax.MultiStepsState)  # noqa: E731
    for node in jax.tree.leaves(state, is_leaf=is_multi_steps):
        if not is_multi_steps(node) or not _moments.is_known(node.mini_step):
            continue
        if np.any(np.asarray(node.mini_step)):
            raise ValueError(
                f"{what} has gradients that optax.MultiSteps has accumulated (mini_step is "
                f"{node.mini_step}), which would be lost: convert it after a whole step"
            )
