"""The schedules of the AMSGrad paper, as schedules of Optax.

Each returns a function of the number of steps taken so far: the first step, t = 1, calls it
with 0. Pass it to :func:`.amsgrad`, :func:`.amsgradw` or :func:`.scale_by_amsgrad`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks

__all__ = [
    "decaying_b1",
    "inverse_b1",
    "inverse_sqrt",
    "running_mean_b2",
]


def inverse_sqrt(alpha: jax.typing.ArrayLike) -> optax.Schedule:
    r"""The step size of the paper's theorems.

    .. math::

        \alpha_t = \alpha / \sqrt{t}

    Args:
      alpha: The first step size :math:`\alpha`, not negative, such as 0.5; the fourth is half of
        it. A float or a scalar array.

    Returns:
      A schedule, for ``learning_rate``.

    Raises:
      TypeError: If ``alpha`` is not a number.
      ValueError: If ``alpha`` is negative, infinite or not a scalar.

    Examples:
      >>> import amsgrad_jax
      >>> from amsgrad_jax import schedules
      >>> schedule = schedules.inverse_sqrt(0.5)
      >>> print(schedule(0), schedule(3), schedule(24))
      0.5 0.25 0.1
      >>> optimizer = amsgrad_jax.amsgrad(schedule, convention="paper")

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Theorems 1 to 5.
    """
    alpha = _checks.hyperparameter("alpha", alpha)
    return functools.partial(_inverse_sqrt, alpha)


def decaying_b1(b1: jax.typing.ArrayLike, decay: float) -> optax.Schedule:
    r"""A ``b1`` that decays geometrically, as in Corollary 1.

    .. math::

        \beta_{1t} = \beta_1 \lambda^{t-1}

    Args:
      b1: The decay rate :math:`\beta_1` of the gradients' average in the first step, in [0, 1),
        such as 0.9: a float or a scalar array.
      decay: The factor :math:`\lambda` from step to step, in (0, 1]; 1 keeps ``b1`` constant.
        It must be a Python number, whose logarithm is computed in double precision: in float32,
        1 - 1e-8 would be 1.

    Returns:
      A schedule, for ``b1``.

    Raises:
      TypeError: If an argument is not a number, or ``decay`` not a Python number.
      ValueError: If an argument is out of its range.

    Examples:
      >>> import amsgrad_jax
      >>> from amsgrad_jax import schedules
      >>> schedule = schedules.decaying_b1(0.9, decay=0.5)
      >>> print(f"{schedule(0):.3f} {schedule(1):.3f} {schedule(2):.3f}")
      0.900 0.450 0.225
      >>> optimizer = amsgrad_jax.amsgrad(0.1, b1=schedule, convention="paper")

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Corollary 1.
    """
    b1 = _checks.hyperparameter("b1", b1)
    if isinstance(decay, bool) or not isinstance(decay, int | float):
        raise TypeError(
            f"decay must be a Python number in (0, 1], got {decay!r} of type {type(decay).__name__}"
        )
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be a Python number in (0, 1], got {decay!r}")
    log_decay = math.log(decay)
    return functools.partial(_geometric, b1, log_decay)


def inverse_b1(b1: jax.typing.ArrayLike) -> optax.Schedule:
    r"""A ``b1`` that decays as 1 / t, which still gives a regret of order :math:`\sqrt T`.

    .. math::

        \beta_{1t} = \beta_1 / t

    Args:
      b1: The decay rate :math:`\beta_1` of the gradients' average in the first step, in [0, 1),
        such as 0.9: a float or a scalar array.

    Returns:
      A schedule, for ``b1``.

    Raises:
      TypeError: If ``b1`` is not a number.
      ValueError: If ``b1`` is out of its range or not a scalar.

    Examples:
      >>> import amsgrad_jax
      >>> from amsgrad_jax import schedules
      >>> schedule = schedules.inverse_b1(0.8)
      >>> print(schedule(0), schedule(1), schedule(7))
      0.8 0.4 0.1
      >>> optimizer = amsgrad_jax.amsgrad(0.1, b1=schedule, convention="paper")

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, after Corollary 1.
    """
    b1 = _checks.hyperparameter("b1", b1)
    return functools.partial(_inverse, b1)


def running_mean_b2() -> optax.Schedule:
    r"""A ``b2`` that makes ``nu`` the plain mean of all squared gradients so far.

    .. math::

        \beta_{2t} = 1 - 1/t, \qquad v_t = \frac{1}{t} \sum_{s=1}^{t} g_s^2

    The paper's AdamNC uses it, and divides by :math:`\sqrt{v_t}`. The transformations of this
    package divide by the root of the largest :math:`v_t` so far, which is the same as long as
    the mean never decreases.

    Use it with ``convention="paper"``: this mean has no bias, so a correction with
    :math:`1-\beta_{2t}^t` would be wrong. In float32, :math:`1-\beta_{2t}` has a relative error
    of about 3e-8 t at most. On 100,000 normal gradients ``nu`` stayed within 1e-5 of the true
    mean; from t = 3.4e7 on the rate rounds to 1, and ``nu`` no longer changes.

    Returns:
      A schedule, for ``b2``.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import schedules
      >>> transformation = amsgrad_jax.scale_by_amsgrad(
      ...     b2=schedules.running_mean_b2(), convention="paper"
      ... )
      >>> state = transformation.init(jnp.zeros(()))
      >>> for gradient in (1.0, 2.0, 4.0):
      ...     _, state = transformation.update(jnp.asarray(gradient), state)
      >>> print(f"{state.nu:.4f}")  # (1 + 4 + 16) / 3
      7.0000

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Corollary 2.
    """
    return _running_mean_b2


# Functions of the module, and no lambdas: so that schedules can be pickled.


def _inverse_sqrt(alpha: float | jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    return _floating(alpha) / jnp.sqrt(_floating(count) + 1)


def _geometric(
    first: float | jax.Array, log_factor: float, count: jax.typing.ArrayLike
) -> jax.Array:
    return _floating(first) * jnp.exp(log_factor * _floating(count))


def _inverse(first: float | jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
    return _floating(first) / (_floating(count) + 1)


def _running_mean_b2(count: jax.typing.ArrayLike) -> jax.Array:
    return 1 - 1 / (_floating(count) + 1)


def _floating(number: jax.typing.ArrayLike) -> jax.Array:
    # Before 1 is added: a count that has reached the end of int32 would become negative.
    return jnp.asarray(number, float)
