"""AMSGrad over a pytree of parameters: `scale_by_amsgrad`."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _conventions, _packed, _rounding, _rule, _state
from amsgrad_jax._conventions import Convention, ConventionName
from amsgrad_jax._state import AmsgradState, Storage

Hyperparameter: TypeAlias = jax.typing.ArrayLike | optax.Schedule


# Each leaf's work is a jit of its own, so that leaves of equal shape and dtype are traced and
# lowered once: 0.8 s for a step over 1,000 of them, where optax.amsgrad takes 1.9 s (`make
# bench`). XLA inlines the call again.
@functools.partial(jax.jit, static_argnames="nesterov")
def _update_full(
    gradient: jax.Array, moments: _rule.Moments, c: _rule.Coefficients, *, nesterov: bool
) -> tuple[jax.Array, _rule.Moments]:
    wide = gradient.astype(moments.mu.dtype)
    moments = _rule.advance(wide, moments, c)
    return _rule.direction(wide, moments, c, nesterov=nesterov), moments


@functools.partial(jax.jit, static_argnames="nesterov")
def _update_packed(
    gradient: jax.Array,
    word: jax.Array,
    c: _rule.Coefficients,
    salt: jax.Array,
    step: _rounding.Step,
    *,
    nesterov: bool,
) -> tuple[jax.Array, jax.Array]:
    def unpack(word: jax.Array) -> _rule.Moments:
        return _rule.Moments(*(moment.astype(c.b1.dtype) for moment in _packed.unpack(word)))

    wide, before = gradient.astype(c.b1.dtype), unpack(word)
    fresh = _rule.Moments(*_rule.averages(wide, before.mu, before.nu, c))
    bits = _rounding.random_bits(wide, salt, step)
    word = _packed.pack(fresh, bits, before=word)
    # A function of the new word: then XLA writes word and parameter in one pass on TPU and GPU,
    # and in two loops without temporaries on CPU. Of the moments before rounding it would need
    # a pass more (28 bytes per parameter instead of 20).
    return _rule.direction(wide, unpack(word), c, nesterov=nesterov), word


def scale_by_amsgrad(
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    eps_root: Hyperparameter = 0.0,
    *,
    convention: ConventionName | Convention = "pytorch",
    storage: Storage = "full",
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales gradients by AMSGrad, for use in a chain.

    It applies neither a learning rate nor a minus sign: add ``optax.scale_by_learning_rate``
    after it. For gradients :math:`g_t`, :math:`t = 1, 2, \ldots`, element by element,

    .. math::

        m_t &= \beta_1 m_{t-1} + (1-\beta_1)\, g_t \\
        v_t &= \beta_2 v_{t-1} + (1-\beta_2)\, |g_t|^2 \\
        x_t &= \max(x_{t-1}, v_t) \\
        u_t &= \frac{m_t / (1-\beta_1^t)}
               {\sqrt{x_t + \epsilon_\text{root}} / \sqrt{1-\beta_2^t} + \epsilon}

    in the default convention, PyTorch's. See :class:`Convention` for the others. The update of
    a coordinate that has only had zero gradients is 0 for every ``eps``, and so is its
    derivative while ``eps_root`` is 0.

    The arithmetic is in float32 (float64 for float64 parameters), whatever the dtype of the
    gradients and the storage of the moments. With ``storage="packed"`` the new moments are
    first rounded into the word; :math:`u_t` is then computed from the moments that the word
    decodes to. Updates are returned in the dtype of the gradients. For complex gradients
    :math:`v_t` is real, as in Optax; PyTorch treats the two parts as two parameters.

    Args:
      b1: Decay rate of the exponential moving average of the gradients, in [0, 1): a float, a
        scalar array, or a schedule, called with the number of steps taken so far. The average
        covers about 1 / (1 - b1) steps, 10 for 0.9. The bias correction uses the current value,
        :math:`1-\beta_{1,t}^t`.
      b2: Decay rate of the exponential moving average of the squared gradients, in [0, 1): a
        float, a scalar array or a schedule. The average covers about 1 / (1 - b2) steps, 1,000
        for 0.999. Prefer a Python float: :math:`1-\beta_2` is then computed in double precision.
      eps: Added to the root in the denominator, in units of the gradient; not negative. A
        coordinate whose gradients are well below ``eps`` gets smaller updates. A float, a scalar
        array or a schedule.
      eps_root: Added under the root, in units of the squared gradient; not negative. Keep 0,
        unless you differentiate through steps near zero gradients. A float, a scalar array or a
        schedule.
      convention: Whose AMSGrad to reproduce: ``"pytorch"``, ``"keras"`` (with ``eps=1e-7``),
        ``"optax"``, ``"paper"``, or a :class:`Convention`.
      storage: How the state is stored: ``"full"``, the three moments in float32, 12 bytes per
        parameter (24 in float64); or ``"packed"``, all three quantized into one 32-bit word, 4
        bytes per parameter, the two averages with stochastic rounding. ``"packed"`` is for real
        parameters, needs :math:`\beta_1^2 < \beta_2`, and cannot be differentiated.
      nesterov: Whether to use Nesterov momentum, as ``optax.nadam`` does. PyTorch's ``NAdam`` is
        a different rule.

    Returns:
      A transformation. Its ``init`` takes parameters and returns a
      :class:`ScaleByAmsgradState`, or a :class:`PackedAmsgradState` if ``storage`` is
      ``"packed"``. Its ``update`` takes gradients and that state; parameters are not needed,
      extra arguments are ignored.

    Raises:
      TypeError: If an argument, a parameter or a gradient is of the wrong type, if a state is
        of the other storage or was cast to other dtypes, or if packed storage is differentiated.
      ValueError: If an argument is out of its range or unknown, if the tree or the shapes of the
        gradients do not match the state, or if the state has several runs stacked, which need
        ``jax.vmap``.

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
    return cast_once(
        unrounded(b1, b2, eps, eps_root, convention=convention, storage=storage, nesterov=nesterov)
    )


def cast_once(
    transformation: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The transformation with its updates in the dtypes of the gradients."""

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide, state = transformation.update(updates, state, params, **extra_args)
        return jax.tree.map(_in_dtype_of, wide, updates), state

    return optax.GradientTransformationExtraArgs(transformation.init, update)


def _in_dtype_of(update: jax.Array, gradient: Any) -> jax.Array:
    dtype = jnp.result_type(gradient)
    return update if update.dtype == dtype else update.astype(dtype)


def unrounded(
    b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    eps_root: Hyperparameter,
    *,
    convention: ConventionName | Convention,
    storage: Storage,
    nesterov: bool,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_amsgrad` with updates in the dtype of the arithmetic, not yet cast."""
    hyperparameters = {
        name: _checks.hyperparameter_or_schedule(name, value)
        for name, value in (("b1", b1), ("b2", b2), ("eps", eps), ("eps_root", eps_root))
    }
    decisions = _conventions.resolve(convention)
    storage = _state.resolve(storage)
    if storage == "packed":
        _packed.check_decay_rates(hyperparameters["b1"], hyperparameters["b2"])
    _checks.flag("nesterov", nesterov)

    def init(params: optax.Params) -> AmsgradState:
        _checks.arrays("params", params)
        return _state.zeros(params, storage)

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AmsgradState]:
        del params, extra_args
        _state.check(state, storage, updates)
        _state.check_one_run(state)
        if storage == "packed":
            _state.check_real("gradients", updates)
            updates = _rounding.not_differentiable(updates)
        _checks.match(updates, _state.like_params(state))
        count = jnp.asarray(optax.safe_increment(state.count))
        current = {
            name: _checks.hyperparameter(name, value(state.count)) if callable(value) else value
            for name, value in hyperparameters.items()
        }

        @functools.cache
        def step() -> _rounding.Step:
            return _rounding.in_step(count)

        @functools.cache
        def coefficients(dtype: jnp.dtype) -> _rule.Coefficients:
            c = _rule.coefficients(
                count, **current, convention=decisions, nesterov=nesterov, dtype=dtype
            )
            return c if storage == "full" else _rounding.not_differentiable(c)

        def update_full(gradient: jax.Array, moments: Any) -> tuple[jax.Array, _state.Stored]:
            c = coefficients(moments.nu.dtype)
            return _update_full(gradient, moments, c, nesterov=nesterov)

        def update_packed(
            gradient: jax.Array, word: Any, path: Any
        ) -> tuple[jax.Array, _state.Stored]:
            c = coefficients(_state.wide(jnp.result_type(gradient)))
            salt = _rounding.salt(path)
            return _update_packed(gradient, word, c, salt, step(), nesterov=nesterov)

        gradients, tree = jax.tree.flatten(updates)
        stored = _state.without_paths(state)
        if storage == "packed":
            stepped = list(map(update_packed, gradients, stored, _state.paths(state)))
        else:
            stepped = list(map(update_full, gradients, stored))
        return (
            tree.unflatten([update for update, _ in stepped]),
            _state.from_leaves(count, [stored for _, stored in stepped], storage, tree.unflatten),
        )

    return optax.GradientTransformationExtraArgs(init, update)
