"""To and from the states of ``optax.amsgrad`` and ``optax.adam``; between conventions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _conventions, _rule, _state
from amsgrad_jax._conventions import OPTAX, PAPER, Convention
from amsgrad_jax._state import AmsgradState, ScaleByAmsgradState
from amsgrad_jax.interop import _trees


def convert(
    state: optax.OptState,
    b2: jax.typing.ArrayLike = 0.999,
    *,
    from_convention: str | Convention,
    to_convention: str | Convention,
) -> Any:
    r"""Carries a state of this package over to another convention.

    Only ``nu_max`` can differ: where :math:`v_t` is corrected before the maximum, as in
    ``"optax"``, it is a maximum :math:`\hat x_t` of corrected moments; elsewhere a maximum
    :math:`x_t` of raw ones. From one to the other, in either direction,

    .. math::

        x_t = (1 - \beta_2^{t+1})\, \hat x_t

    so that the next step, number :math:`t + 1`, has the same denominator: it divides by
    the root of :math:`\max(\hat x_t, v_{t+1} / (1 - \beta_2^{t+1}))`, or, when it is
    corrected after the maximum, of :math:`\max(x_t, v_{t+1}) / (1 - \beta_2^{t+1})`.
    Between ``"optax"`` and ``"pytorch"`` that step is the same up to rounding, for
    ``eps_root = 0``. The steps after it are not, because each convention follows the
    maximum of its own quantity from then on; that matters less the smaller :math:`\beta_2^t` is.
    For ``"keras"`` and ``"paper"`` the next step is as different as their use of ``eps``
    and their missing correction make it. A packed maximum is rounded once more.

    Args:
      state: A state of this package, or any tree that holds some, such as the
        state of a chain.
      b2: The decay rate at the next step.
      from_convention: The convention of ``state``: a name or a :class:`.Convention`.
      to_convention: The convention of what is returned.

    Returns:
      The state, with another ``nu_max`` where the conventions need it.

    Raises:
      TypeError: If ``b2`` is not a number.
      ValueError: If there is no :class:`.ScaleByAmsgradState` in ``state``, if ``b2`` is
        out of its range, or if a convention is unknown.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import interop
      >>> old = amsgrad_jax.amsgrad(0.1, b2=0.5, convention="optax")
      >>> state = old.init(jnp.zeros(2))
      >>> _, state = old.update(jnp.array([1.0, 2.0]), state)
      >>> print(state[0].nu_max)
      [1. 4.]
      >>> new = interop.convert(state, 0.5, from_convention="optax", to_convention="pytorch")
      >>> print(new[0].nu_max)
      [0.75 3.  ]
    """
    b2 = float(_checks.hyperparameter("b2", b2))
    was_corrected = _is_corrected(from_convention)
    becomes_corrected = _is_corrected(to_convention)

    def of_node(node: AmsgradState) -> AmsgradState:
        def of_leaf(path: Any, moments: _rule.Moments) -> _rule.Moments:
            del path
            x = moments.nu_max
            c2 = _rule.correction(b2, node.count.astype(x.dtype) + 1, x.dtype)  # of the next step
            return moments._replace(nu_max=x * c2 if was_corrected else x / c2)

        return _state.map_moments(of_leaf, node)

    _state.states(state)  # raises if there is none
    if was_corrected == becomes_corrected:
        return state
    return _state.map_states(of_node, state)


def _is_corrected(convention: str | Convention) -> bool:
    return _conventions.resolve(convention).correct_nu == "before_max"


def _of_optax(bias_correction_nu: bool) -> Convention:
    _checks.flag("bias_correction_nu", bias_correction_nu)
    return OPTAX if bias_correction_nu else PAPER


def from_optax(
    state: optax.OptState,
    params: optax.Params,
    *,
    b2: jax.typing.ArrayLike = 0.999,
    convention: str | Convention = "pytorch",
    bias_correction_nu: bool = True,
) -> ScaleByAmsgradState:
    r"""Takes the state of ``optax.amsgrad`` or ``optax.adam`` over into this package.

    ``count``, ``mu`` and ``nu`` mean the same everywhere. ``nu_max`` of ``optax.amsgrad``
    is a maximum of corrected moments, which :func:`convert` carries over:

    .. math::

        x_t = (1 - \beta_2^{t+1})\, \hat x_t

    So the run goes on with ``convention="optax"`` as optax would have gone on. With
    another convention the next step has the same denominator, and later ones follow
    another maximum. Adam has no maximum yet; it starts with the current
    :math:`x_t = v_t`, as if every earlier one had been smaller.

    Args:
      state: The state of any chain with ``optax.amsgrad``, ``optax.adam`` or the like in
        it, also within ``masked``, ``partition``, ``inject_hyperparams``, ``MultiSteps``.
      params: The parameters that it optimizes, or ``jax.ShapeDtypeStruct`` for them.
        Leave out, or set to None, those that it does not.
      b2: The decay rate at the next step.
      convention: The convention to go on with, as given to :func:`.amsgrad`.
      bias_correction_nu: As given to ``optax.scale_by_amsgrad``; False is for states
        whose maximum is of raw moments.

    Returns:
      The state, in float32 (float64 for float64 parameters), on the devices of the
      parameters. :func:`put` puts it into the state of a chain.

    Raises:
      TypeError: If an argument is of the wrong type.
      ValueError: If ``state`` does not hold exactly one optimizer of optax, as after
        :func:`from_optax`; if its leaves do not fit ``params``; if ``b2`` is out of its
        range or ``convention`` unknown.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> params, gradients = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 2.0])}
      >>> old = optax.amsgrad(0.125)
      >>> _, state = old.update(gradients, old.init(params))
      >>> new = amsgrad_jax.amsgrad(0.125, convention="optax")
      >>> taken = interop.from_optax(state, params, convention="optax")
      >>> new_state = interop.put(new.init(params), taken)
      >>> updates, _ = new.update(gradients, new_state)
      >>> expected, _ = old.update(gradients, state)
      >>> print(updates["w"].round(4), expected["w"].round(4))
      [-0.125 -0.125] [-0.125 -0.125]
    """
    source = _of_optax(bias_correction_nu)
    count, mu, nu, nu_max = _trees.take(state, params, _trees.OPTAXS)
    # Of complex parameters optax holds these as complex numbers.
    nu, nu_max = jax.tree.map(jnp.real, (nu, nu_max))
    if nu_max is None:
        source, nu_max = PAPER, nu
    taken = _trees.ours(params, count, mu, nu, nu_max)
    return convert(taken, b2, from_convention=source, to_convention=convention)


def to_optax(
    state: optax.OptState,
    params: optax.Params,
    target_state: optax.OptState,
    *,
    b2: jax.typing.ArrayLike = 0.999,
    convention: str | Convention = "pytorch",
    bias_correction_nu: bool = True,
) -> Any:
    r"""Puts a state of this package into the state of ``optax.amsgrad`` or ``optax.adam``.

    The way back from :func:`from_optax`, with the same formula:

    .. math::

        \hat x_t = x_t / (1 - \beta_2^{t+1})

    For ``optax.adam`` the maximum is dropped.

    Args:
      state: A :class:`.ScaleByAmsgradState` or the state of any chain with it.
      params: The parameters that it optimizes; leave out those that it does not.
      target_state: A state of the optimizer of optax, as from its ``init``.
      b2: The decay rate at the next step.
      convention: The convention of ``state``, as given to :func:`.amsgrad`.
      bias_correction_nu: As given to ``optax.scale_by_amsgrad``.

    Returns:
      ``target_state`` with the moments and all step counts replaced, in its own dtypes:
      those of the parameters, so that float32 moments of bfloat16 parameters are rounded.

    Raises:
      TypeError: If an argument is of the wrong type.
      ValueError: If ``state`` holds no state of this package, or ``target_state`` not
        exactly one optimizer of optax; if their leaves do not fit ``params``; if ``b2``
        is out of its range or ``convention`` unknown.

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
    target = _of_optax(bias_correction_nu)
    taken = ScaleByAmsgradState(*_trees.take(state, params, _trees.OURS))
    _trees.take(target_state, params, _trees.OPTAXS)  # raises, as `put` would for others
    taken = convert(taken, b2, from_convention=convention, to_convention=target)
    return _trees.put(target_state, taken)
