"""Complete optimizers for people in a hurry: `amsgrad` and `amsgradw`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from amsgrad_jax import _checks
from amsgrad_jax._conventions import Convention, ConventionName
from amsgrad_jax._state import Storage
from amsgrad_jax._transform import Hyperparameter, scale_by_amsgrad


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
    r"""AMSGrad: Adam with a second moment that never forgets its maximum.

    .. math::

        \theta_{t} = \theta_{t-1} - \alpha_t\, u_t

    with :math:`u_t` as in :func:`scale_by_amsgrad`. For PyTorch's ``weight_decay``,
    which is an L2 penalty, put ``optax.add_decayed_weights`` in front of it in a chain;
    for decoupled decay take :func:`amsgradw`.

    Args:
      learning_rate: The step size :math:`\alpha_t`, not negative: a float, a scalar
        array, or a schedule, called with the number of steps taken so far.
      b1: See :func:`scale_by_amsgrad`, as for everything that follows.
      b2: Decay rate of the average of squared gradients.
      eps: Added to the root.
      eps_root: Added under the root.
      convention: Whose AMSGrad: ``"pytorch"``, ``"keras"``, ``"optax"``, ``"paper"``,
        or a :class:`Convention`.
      storage: What is kept of a parameter between steps: ``"full"``, 12 bytes, or
        ``"packed"``, 4 bytes.
      nesterov: Whether to use Nesterov momentum.

    Returns:
      The transformation; add its updates with ``optax.apply_updates``.

    Raises:
      TypeError: As :func:`scale_by_amsgrad`, and if ``learning_rate`` is not a number.
      ValueError: As :func:`scale_by_amsgrad`, and if ``learning_rate`` is negative.

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
    learning_rate = _checks.hyperparameter_or_schedule("learning_rate", learning_rate)
    return optax.chain(
        scale_by_amsgrad(
            b1, b2, eps, eps_root, convention=convention, storage=storage, nesterov=nesterov
        ),
        optax.scale_by_learning_rate(learning_rate),
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
      learning_rate: The step size :math:`\alpha_t`, not negative: a float, a scalar
        array, or a schedule, called with the number of steps taken so far.
      b1: See :func:`scale_by_amsgrad`, as for ``b2``, ``eps`` and ``eps_root``.
      b2: Decay rate of the average of squared gradients.
      eps: Added to the root.
      eps_root: Added under the root.
      weight_decay: The decay :math:`\lambda`, not negative; multiplied by the learning
        rate, as in PyTorch and optax.
      mask: Which parameters decay: a tree of bools with the structure of the parameters
        or a prefix of it, or a function from parameters to one. None is all of them.
      convention: Whose AMSGrad; see :func:`scale_by_amsgrad`.
      storage: What is kept of a parameter between steps: ``"full"``, 12 bytes, or
        ``"packed"``, 4 bytes.
      nesterov: Whether to use Nesterov momentum.

    Returns:
      The transformation; add its updates with ``optax.apply_updates``.

    Raises:
      TypeError: As :func:`amsgrad`, and if ``weight_decay`` is not a number.
      ValueError: As :func:`amsgrad`, and if ``weight_decay`` is negative, or if
        ``update`` is called without parameters.

    Examples:
      Decay the kernels, not the biases:

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
    learning_rate = _checks.hyperparameter_or_schedule("learning_rate", learning_rate)
    weight_decay = _checks.hyperparameter("weight_decay", weight_decay)
    return optax.chain(
        scale_by_amsgrad(
            b1, b2, eps, eps_root, convention=convention, storage=storage, nesterov=nesterov
        ),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
