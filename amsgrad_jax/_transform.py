"""The rule over a pytree of parameters: `scale_by_amsgrad` and its state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _conventions, _rounding, _rule, _storage

Hyperparameter: TypeAlias = jax.typing.ArrayLike | optax.Schedule


class ScaleByAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad`; its fields have the names of optax's.

    Args:
      count: Number of steps taken, an int32 scalar.
      mu: Average of the gradients, a tree like the parameters.
      nu: Average of the squared gradients, a real tree like the parameters.
      nu_max: Running maximum of ``nu`` (in the ``"optax"`` convention, of the
        bias-corrected ``nu``), a tree like ``nu``.

    All three as their :class:`Storage` has it: numbers, or codes of equal shape, which
    :func:`convert_storage` turns into numbers.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


@functools.partial(jax.jit, static_argnames=("nesterov", "held"))
def _update_leaf(
    gradient: jax.Array,
    stored: _storage.Moments,
    coefficients: _rule.Coefficients,
    seed: _storage.Seed | None,
    *,
    nesterov: bool,
    held: _storage.LeafCodecs,
) -> tuple[jax.Array, _storage.Moments]:
    # Its own jit, so that leaves of equal shape and dtype are traced and lowered once:
    # 0.8 s for a step over 1,000 of them, where optax.amsgrad takes 1.9 s (`make bench`).
    # XLA inlines the call again.
    moments = _storage.decode(stored, held, coefficients.b1.dtype)
    update, moments = _rule.update_array(
        gradient.astype(moments.mu.dtype), moments, coefficients, nesterov
    )
    return update.astype(gradient.dtype), _storage.encode(moments, held, seed)


def scale_by_amsgrad(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter = 0.0,
    *,
    convention: str | _conventions.Convention = "pytorch",
    storage: str | _storage.Storage = "full",
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales gradients by AMSGrad, without a learning rate and without a sign.

    For gradients :math:`g_t`, :math:`t = 1, 2, \ldots`, element by element,

    .. math::

        m_t &= \beta_1 m_{t-1} + (1-\beta_1)\, g_t \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2)\, |g_t|^2 \\
        x_t &= \max(x_{t-1}, v_t) \\
        u_t &= \frac{m_t / (1-\beta_1^t)}
               {\sqrt{x_t + \epsilon_\text{root}} / \sqrt{1-\beta_2^t} + \epsilon}

    in the default convention, PyTorch's; :class:`Convention` says how the others
    correct the moments. The update of a coordinate that has only had zero gradients
    is 0 for every ``eps``, and so is its derivative while ``eps_root`` is 0.

    The arithmetic is in float32 (float64 for float64 parameters) whatever the dtype of the
    gradients and the storage of the moments. Updates come back in the dtype of the
    gradients. For complex gradients :math:`v_t` is real, as in
    optax; PyTorch treats the two parts as two parameters.

    Args:
      b1: Decay rate of the average of gradients, in [0, 1): a float, a scalar array, or
        a schedule, called with the number of steps taken so far, as everywhere in
        optax. Bias is corrected with the current value, :math:`1-\beta_{1,t}^t`.
      b2: Decay rate of the average of squared gradients, likewise. Python floats are
        more accurate than arrays: :math:`1-\beta_2` is then formed in double precision.
      eps: Added to the root, in units of the gradient; not negative. Likewise.
      eps_root: Added under the root, in units of the squared gradient; not negative.
        Likewise. Needed only to differentiate through steps near zero gradients.
      convention: ``"pytorch"``, ``"keras"``, ``"optax"``, ``"paper"``, or a
        :class:`Convention`.
      storage: How moments are held between steps: ``"full"``, ``"compact"`` or ``"tiny"``, in
        12, 5 or 4 bytes a parameter, or a :class:`Storage`. Only ``"full"`` can be
        differentiated through; the others raise.
      nesterov: Whether to use Nesterov momentum, in the meaning of ``optax.nadam``.

    Returns:
      A transformation whose ``init`` takes parameters and returns a
      :class:`ScaleByAmsgradState`, and whose ``update`` takes gradients and that state;
      parameters are not needed, extra arguments are ignored.

    Raises:
      TypeError: If an argument, a parameter or a gradient is of the wrong type.
      ValueError: If an argument is out of its range or unknown, or if gradients do not
        match the state: in their tree, or in the shape of a leaf.

    Examples:
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> loss = lambda x: jnp.sum(x**2)
      >>> optimizer = optax.chain(
      ...     optax.clip_by_global_norm(1.0),
      ...     amsgrad_jax.scale_by_amsgrad(b1=0.9, b2=0.99),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = jnp.array([1.0, -2.0, 3.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(jax.grad(loss)(params), state)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"loss {loss(params):.2f}")
      loss 12.83
      loss 11.72
      loss 10.67

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Algorithm 2. Bias correction:
      Kingma and Ba, `Adam <https://arxiv.org/abs/1412.6980>`_, ICLR 2015, Algorithm 1.
      Nesterov momentum: Dozat, `Incorporating Nesterov Momentum into Adam
      <https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ>`_, ICLR 2016 workshop.
    """
    hyperparameters = {
        name: _checks.hyperparameter_or_schedule(name, value)
        for name, value in (("b1", b1), ("b2", b2), ("eps", eps), ("eps_root", eps_root))
    }
    convention = _conventions.resolve(convention)
    storage = _storage.resolve(storage)
    _storage.check_decay_rates(storage, hyperparameters["b1"], hyperparameters["b2"])
    _checks.flag("nesterov", nesterov)

    def init(params: optax.Params) -> ScaleByAmsgradState:
        _checks.inexact("params", params)
        leaves, tree = jax.tree.flatten(params)
        moments = [_storage.empty(leaf, storage) for leaf in leaves]
        return _state(jnp.zeros((), jnp.int32), moments, tree.unflatten)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAmsgradState]:
        del params, extra_args
        if not isinstance(state, ScaleByAmsgradState):
            raise TypeError(
                f"state must be the ScaleByAmsgradState that init made, got {type(state).__name__}"
            )
        _checks.match(updates, state.mu)
        count = jnp.asarray(optax.safe_increment(state.count))
        current = {
            name: _checks.hyperparameter(name, value(state.count)) if callable(value) else value
            for name, value in hyperparameters.items()
        }

        @functools.cache
        def coefficients(dtype: jnp.dtype) -> _rule.Coefficients:
            return _rule.coefficients(
                count, **current, convention=convention, nesterov=nesterov, dtype=dtype
            )

        def step_leaf(
            path: Any, stored: _storage.Moments, gradient: jax.Array
        ) -> tuple[jax.Array, _storage.Moments]:
            held = _storage.of_leaf(storage, stored, path)
            by_chance = any(codec.stochastic for codec in held)
            return _update_leaf(
                gradient,
                stored,
                coefficients(_storage.working_dtype(stored, held, gradient.dtype)),
                (count, _rounding.salt(path)) if by_chance else None,
                nesterov=nesterov,
                held=held,
            )

        gradients, tree = jax.tree.flatten(updates)
        stepped = [
            step_leaf(path, moments, gradient)
            for (path, moments), gradient in zip(leaf_moments(state), gradients, strict=True)
        ]
        return (
            tree.unflatten([update for update, _ in stepped]),
            _state(count, [moments for _, moments in stepped], tree.unflatten),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def leaf_moments(state: ScaleByAmsgradState) -> list[tuple[Any, _storage.Moments]]:
    """The path and the moments of every leaf."""
    mu = jax.tree_util.tree_leaves_with_path(state.mu)
    rest = map(jax.tree.leaves, (state.nu, state.nu_max))
    return [
        (path, _storage.Moments(first, *others))
        for (path, first), *others in zip(mu, *rest, strict=True)
    ]


def map_moments(
    function: Callable[..., _storage.Moments],
    state: ScaleByAmsgradState,
    *others: ScaleByAmsgradState,
) -> ScaleByAmsgradState:
    """The state with other moments, made of each leaf's path and its moments in every state."""
    rest = [[moments for _, moments in leaf_moments(other)] for other in others]
    moments = [
        function(path, stored, *more)
        for (path, stored), *more in zip(leaf_moments(state), *rest, strict=True)
    ]
    return _state(state.count, moments, jax.tree.structure(state.mu).unflatten)


def _state(
    count: jax.Array, moments: list[_storage.Moments], unflatten: Callable[[list[jax.Array]], Any]
) -> ScaleByAmsgradState:
    return ScaleByAmsgradState(
        count=count,
        mu=unflatten([m.mu for m in moments]),
        nu=unflatten([m.nu for m in moments]),
        nu_max=unflatten([m.nu_max for m in moments]),
    )
