"""Complete optimizers: `amsgrad` and `amsgradw`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _rule, _state
from amsgrad_jax._conventions import Convention, ConventionName
from amsgrad_jax._state import Storage
from amsgrad_jax._transform import Hyperparameter, cast_once, unrounded


def amsgrad(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter = 0.0,
    *,
    convention: ConventionName | Convention = "pytorch",
    storage: Storage = "full",
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad: Adam, divided by the root of the running maximum of its second moment.

    .. math::

        \theta_{t} = \theta_{t-1} - \alpha_t\, u_t

    with :math:`u_t` as in :func:`scale_by_amsgrad`. For PyTorch's ``weight_decay``,
    which is an L2 penalty, put ``optax.add_decayed_weights`` before it in a chain;
    for decoupled weight decay use :func:`amsgradw`.

    Args:
      learning_rate: The step size :math:`\alpha_t`, not negative; 1e-3 is a common start. A
        coordinate with steady gradients moves by about this much in each step. A float, a
        scalar array, or a schedule, called with the number of steps taken so far (0 at first).
      b1: Decay rate of the exponential moving average of the gradients (momentum), in [0, 1).
        The average covers about 1 / (1 - b1) steps, 10 for 0.9. A float, a scalar array or a
        schedule.
      b2: Decay rate of the exponential moving average of the squared gradients, in [0, 1). The
        average covers about 1 / (1 - b2) steps: 1,000 for 0.999, 100 for 0.99. A float, a
        scalar array or a schedule.
      eps: Added to the root in the denominator, in units of the gradient; not negative. A
        coordinate whose gradients are well below ``eps`` takes smaller steps. 1e-8 is the
        default of PyTorch and Optax, 1e-7 that of Keras. A float, a scalar array or a schedule.
      eps_root: Added under the root, in units of the squared gradient; not negative. Keep 0,
        unless you differentiate through steps near zero gradients. A float, a scalar array or a
        schedule.
      convention: Whose AMSGrad to reproduce: ``"pytorch"``, ``"keras"`` (with ``eps=1e-7``),
        ``"optax"``, ``"paper"``, or a :class:`Convention`. They differ in the bias corrections
        and in where ``eps`` is added.
      storage: How the state is stored: ``"full"``, three float32 moments, 12 bytes per parameter
        (24 in float64); or ``"packed"``, all three quantized into one 32-bit word, 4 bytes per
        parameter, the two averages with stochastic rounding.
      nesterov: Whether to use Nesterov momentum, as ``optax.nadam`` does. PyTorch's ``NAdam`` is
        a different rule.

    Returns:
      The transformation; add its updates with ``optax.apply_updates``. They are in the dtypes of
      the gradients, rounded to them once, after the learning rate.

    Raises:
      TypeError: As :func:`scale_by_amsgrad`, and if ``learning_rate`` is not a number.
      ValueError: As :func:`scale_by_amsgrad`, and if ``learning_rate`` is negative or not
        finite. The value of a schedule is checked if it is concrete (outside of ``jit``).

    Examples:
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> loss = lambda x: jnp.sum(x**2)
      >>> optimizer = amsgrad_jax.amsgrad(learning_rate=0.1)
      >>> params = jnp.array([1.0, -2.0, 3.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(jax.grad(loss)(params), state)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"loss {loss(params):.2f}")
      loss 12.83
      loss 11.72
      loss 10.68

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018.
    """
    return _complete(
        unrounded(b1, b2, eps, eps_root, convention=convention, storage=storage, nesterov=nesterov),
        _times_learning_rate(learning_rate),
    )


def amsgradw(
    learning_rate: Hyperparameter,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter = 0.0,
    *,
    weight_decay: jax.typing.ArrayLike = 1e-2,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    convention: ConventionName | Convention = "pytorch",
    storage: Storage = "full",
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad with decoupled weight decay: PyTorch's ``AdamW(amsgrad=True)``.

    .. math::

        \theta_{t} = \theta_{t-1} - \alpha_t\, (u_t + \lambda\, \theta_{t-1})

    with :math:`u_t` as in :func:`scale_by_amsgrad`. ``update`` needs the parameters.

    Args:
      learning_rate: The step size :math:`\alpha_t`, not negative; 1e-3 is a common start. A
        coordinate with steady gradients moves by about this much in each step. A float, a
        scalar array, or a schedule, called with the number of steps taken so far (0 at first).
      b1: Decay rate of the exponential moving average of the gradients (momentum), in [0, 1).
        The average covers about 1 / (1 - b1) steps, 10 for 0.9. A float, a scalar array or a
        schedule.
      b2: Decay rate of the exponential moving average of the squared gradients, in [0, 1). The
        average covers about 1 / (1 - b2) steps: 1,000 for 0.999, 100 for 0.99. A float, a
        scalar array or a schedule.
      eps: Added to the root in the denominator, in units of the gradient; not negative. A
        coordinate whose gradients are well below ``eps`` takes smaller steps. 1e-8 is the
        default of PyTorch and Optax, 1e-7 that of Keras. A float, a scalar array or a schedule.
      eps_root: Added under the root, in units of the squared gradient; not negative. Keep 0,
        unless you differentiate through steps near zero gradients. A float, a scalar array or a
        schedule.
      weight_decay: The decoupled weight decay :math:`\lambda`, not negative: each step subtracts
        learning_rate * weight_decay * parameter, as in PyTorch and Optax. The default, 1e-2, is
        that of PyTorch; ``optax.adamw`` has 1e-4. A float or a scalar array.
      mask: Which parameters have weight decay: a tree of bools with the structure of the
        parameters or a prefix of it, or a function from parameters to such a tree. None: all of
        them. To exclude biases and normalization scales:
        ``lambda params: jax.tree.map(lambda p: p.ndim > 1, params)``.
      convention: Whose AMSGrad to reproduce: ``"pytorch"``, ``"keras"`` (with ``eps=1e-7``),
        ``"optax"``, ``"paper"``, or a :class:`Convention`. They differ in the bias corrections
        and in where ``eps`` is added.
      storage: How the state is stored: ``"full"``, three float32 moments, 12 bytes per parameter
        (24 in float64); or ``"packed"``, all three quantized into one 32-bit word, 4 bytes per
        parameter, the two averages with stochastic rounding.
      nesterov: Whether to use Nesterov momentum, as ``optax.nadam`` does. PyTorch's ``NAdam`` is
        a different rule.

    Returns:
      The transformation; add its updates with ``optax.apply_updates``. They are in the dtypes of
      the gradients, rounded to them once, after the learning rate.

    Raises:
      TypeError: As :func:`amsgrad`, if ``weight_decay`` is not a number, or if ``mask`` is, or
        returns, anything but a tree of bools.
      ValueError: As :func:`amsgrad`, if ``weight_decay`` is negative, if ``mask`` does not match
        the parameters, or if ``update`` is called without parameters or with parameters that do
        not match the updates.

    Examples:
      Weight decay for the kernels, not for the biases:

      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> kernels = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
      >>> optimizer = amsgrad_jax.amsgradw(0.1, weight_decay=0.5, mask=kernels)
      >>> state = optimizer.init(params)
      >>> gradients = jax.tree.map(jnp.zeros_like, params)
      >>> updates, state = optimizer.update(gradients, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params["kernel"][0], params["bias"])
      [0.95 0.95] [1. 1.]

    References:
      Loshchilov and Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, ICLR 2019.
    """
    return _complete(
        unrounded(b1, b2, eps, eps_root, convention=convention, storage=storage, nesterov=nesterov),
        _plus_decayed_weights(weight_decay, mask),
        _times_learning_rate(learning_rate),
    )


# The links of the chain. Their states are those of `optax.adamw`. Their arithmetic is that of the
# first link, so that the update is rounded once, after the learning rate.


def _complete(*links: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    chain = optax.chain(*links)

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        _state.check_chain(state, len(links), updates)
        return chain.update(updates, state, params, **extra_args)

    return cast_once(optax.GradientTransformationExtraArgs(chain.init, update))


def _times_learning_rate(learning_rate: Hyperparameter) -> optax.GradientTransformation:
    """As ``optax.scale_by_learning_rate``."""
    rate_or_schedule = _checks.hyperparameter_or_schedule("learning_rate", learning_rate)

    def init(params: optax.Params) -> optax.OptState:
        del params
        if callable(rate_or_schedule):
            return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        rate = rate_or_schedule
        if callable(rate):
            count = _checks.state_of(optax.ScaleByScheduleState, state).count
            rate = _checks.hyperparameter("learning_rate", rate(count))
            state = optax.ScaleByScheduleState(jnp.asarray(optax.safe_increment(count)))

        in_dtype = _in_dtype(rate, sign=-1)

        def scaled(update: jax.Array) -> jax.Array:
            return _rule.times(in_dtype(update.dtype), update)

        return jax.tree.map(scaled, updates), state

    return optax.GradientTransformation(init, update)


def _plus_decayed_weights(
    weight_decay: jax.typing.ArrayLike, mask: Any
) -> optax.GradientTransformation:
    """As ``optax.add_decayed_weights``, but a function ``mask`` sees parameters, not updates."""
    decay = _checks.hyperparameter("weight_decay", weight_decay)
    if mask is not None:
        _checks.mask(mask)

    def init(params: optax.Params) -> optax.OptState:
        if mask is None:
            return optax.EmptyState()
        if jax.tree.leaves(params):  # optax.tree.map_params calls with a tree without any
            _checks.masked(mask, params)
        return optax.MaskedState(optax.EmptyState())

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("amsgradw needs the parameters: call update(updates, state, params)")
        beside = _checks.beside("params", params, updates)
        decays = _checks.masked(True if mask is None else mask, beside)
        if isinstance(decay, float) and decay == 0:  # also of parameters that are not finite
            return updates, state

        in_dtype = _in_dtype(decay)

        def decayed(update: jax.Array, param: Any, is_decayed: bool) -> jax.Array:
            if not is_decayed:
                return update
            wide = jnp.asarray(param).astype(update.dtype)
            return update + _rule.times(in_dtype(update.dtype), wide)

        leaves, tree = jax.tree.flatten(updates)
        return tree.unflatten(map(decayed, leaves, jax.tree.leaves(beside), decays)), state

    return optax.GradientTransformation(init, update)


def _in_dtype(number: jax.typing.ArrayLike, sign: int = 1) -> Callable[[jnp.dtype], jax.Array]:
    """A real number in the real dtype of a leaf's, made once for all leaves."""
    return functools.cache(lambda dtype: sign * jnp.asarray(number).astype(jnp.finfo(dtype).dtype))
