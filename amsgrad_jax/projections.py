"""Constraints: the projection in Algorithm 2 of the AMSGrad paper, in the metric of the maximum.

An optimizer's step ends at some point :math:`y`; :func:`projected` moves it to the nearest point
of a set, in a metric that gives more weight to coordinates in which AMSGrad takes smaller steps. A
set is a function from a tree and a tree of weights to a tree. The projections are reductions over
the leaves, which are neither concatenated nor sorted, so sharded parameters stay sharded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax import _checks, _conventions, _rule, _state

__all__ = [
    "Constraint",
    "Over",
    "box",
    "halfspace",
    "hyperplane",
    "l1_ball",
    "l2_ball",
    "nonnegative",
    "project",
    "projected",
    "simplex",
]

Constraint: TypeAlias = Callable[[Any, Any], Any]
"""A function from a tree and a tree of weights like it to the nearest tree in the set."""

Over: TypeAlias = Literal["tree", "leaf"]
"""Whether a constraint applies to the whole tree at once, or to each leaf on its own."""

_Arrays: TypeAlias = list[jax.Array]


def projected(
    transformation: optax.GradientTransformation,
    constraint: Constraint,
    *,
    eps: jax.typing.ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the parameters in a convex set, as Algorithm 2 of the paper does.

    With :math:`u` the update of ``transformation`` and :math:`x_t` the running maximum in
    its new state,

    .. math::

        y &= \theta_{t-1} + u \\
        \theta_t &= \underset{\theta \in F}{\text{argmin}}
                    \sum_i w_i\, (\theta_i - y_i)^2, \qquad w = \sqrt{x_t} + \epsilon

    The metric matters: with the Euclidean projection the iteration can converge to points that
    are not the minimum of the loss over the set. A common factor of all weights does not matter,
    so no convention's bias correction appears in them. For a packed state, :math:`x_t` is the
    decoded maximum, which the step also divides by. Weights span 19 orders of magnitude in
    float32 and 154 in float64: see :func:`project`.

    The parameters are in the set after the first step; to start in it, use :func:`project`.
    The constraint is satisfied up to the rounding of the sum of parameters and updates, in their
    dtypes. ``nonnegative`` is satisfied exactly, unless updates are of a narrower dtype than the
    parameters: not every float32 parameter has a bfloat16 update that takes it to 0, so a
    parameter can end below 0 by up to 0.4 % of its previous value.

    Args:
      transformation: A complete optimizer, including learning rate and sign: ``amsgrad``,
        ``amsgradw``, or a chain that ends with a learning rate, also in masks, a partition, or
        injected hyperparameters. Every parameter must have its moments in exactly one state of
        AMSGrad. To constrain only some parameters, put ``projected`` into ``optax.partition``.
      constraint: The set: a function of this module, or your own, which takes the tree :math:`y`
        and a tree of weights :math:`w` like it, float32 or float64, and returns the projection.
      eps: Added to the root of ``nu_max`` as stored, in units of the gradient; not negative. It
        is the weight of a coordinate that never had a gradient. Keep the optimizer's ``eps``:
        if its ``eps_root`` is 0, the metric is then the denominator of the update (up to a common
        factor) in ``"paper"``, ``"keras"`` and ``"optax"``; in ``"pytorch"`` that is
        :math:`\sqrt{x_t} + \epsilon \sqrt{1-\beta_2^t}`, with a smaller ``eps`` in early steps.

    Returns:
      A transformation whose state is that of ``transformation``, and whose ``update``
      needs the parameters.

    Raises:
      TypeError: If ``transformation`` or ``constraint`` is of another type, or if a
        parameter is not floating point.
      ValueError: If ``eps`` is negative, if ``update`` gets no parameters or parameters that do
        not match the updates, if the state has no moments for a parameter or has them several
        times, or if ``constraint`` changes the structure or the shapes of the tree.

    Examples:
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import projections
      >>> loss = lambda x: jnp.sum((x - jnp.array([2.0, 1.0, -1.0])) ** 2)
      >>> optimizer = projections.projected(amsgrad_jax.amsgrad(0.1), projections.simplex())
      >>> params = jnp.ones(3) / 3
      >>> state = optimizer.init(params)
      >>> for step in range(31):
      ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     if step % 10 == 0:
      ...         print(f"loss {loss(params):.2f}")
      loss 4.36
      loss 3.04
      loss 3.00
      loss 3.00

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Algorithm 2.
    """
    inner = _checks.transformation("transformation", transformation)
    _check_constraint(constraint)
    eps = _checks.hyperparameter("eps", eps)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("projected needs the parameters: call update(updates, state, params)")
        updates, state = inner.update(updates, state, params, **extra_args)
        got, expected = (jax.tree.map(jnp.shape, tree) for tree in (params, updates))
        if got != expected:
            raise ValueError(
                f"params must be a tree like the updates, whose shapes are {expected}; got {got}"
            )
        start = _wide(params)
        y = jax.tree.map(lambda p, u: p + u.astype(p.dtype), start, updates)
        x = _apply(constraint, y, _metric(state, params, eps))
        back = jax.tree.map(lambda x, p, u: (x - p).astype(u.dtype), x, start, updates)
        return back, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def project(constraint: Constraint, params: optax.Params, weights: Any = None) -> optax.Params:
    r"""Projects parameters onto a set, without an optimizer; for a start in the set.

    .. math::

        \underset{x \in F}{\text{argmin}} \sum_i w_i\, (x_i - \theta_i)^2

    Args:
      constraint: The set :math:`F`: a function of this module, such as ``simplex()``, or your
        own, as for :func:`projected`.
      params: The point to project: a tree of arrays or numbers, floating point (or complex, if
        the set allows it).
      weights: The weights :math:`w`, not negative: a tree like ``params``, or one number or
        array for all leaves. A coordinate of larger weight moves less; a common factor does not
        matter. None is the Euclidean projection. Weights below 1e-19 of the largest (1.5e-154 in
        float64), also 0, count as that much.

    Returns:
      A tree of arrays with the structure, shapes and dtypes of ``params``.

    Raises:
      TypeError: If ``params`` are not floating point, or ``constraint`` is not a function.
      ValueError: If weights are negative or NaN or do not match ``params``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> print(projections.project(projections.l2_ball(5.0), jnp.array([6.0, 8.0])))
      [3. 4.]
    """
    _check_constraint(constraint)
    weights = _numbers("weights", 1.0 if weights is None else weights)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if _is_concrete(leaf) and np.any(np.asarray(leaf) < 0):
            raise ValueError(f"weights must not be negative, got {leaf} at {_checks.at(path)}")
    y = _wide(params)
    real = jax.tree.map(jnp.real, y)
    weights = jax.tree.unflatten(jax.tree.structure(y), _beside("weights", weights, real))
    return jax.tree.map(
        lambda x, p: x.astype(jnp.result_type(p)), _apply(constraint, y, weights), params
    )


def box(lower: Any, upper: Any) -> Constraint:
    r"""The box :math:`\text{lower} \le x \le \text{upper}`.

    The projection clips each coordinate, in every diagonal metric.

    Args:
      lower: The lower bounds: a tree like the parameters, or one number or array for all
        leaves. ``-jnp.inf`` means no bound.
      upper: The upper bounds, not below ``lower``: a tree like the parameters, or one number or
        array for all leaves. ``jnp.inf`` means no bound.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: If bounds are not real numbers; in use, if parameters are complex.
      ValueError: If a lower bound is above its upper bound, a bound is NaN or allows no finite
        number, or their shapes do not match; in use, if bounds do not match the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> unit = projections.box(0.0, 1.0)
      >>> print(projections.project(unit, jnp.array([-2.0, 0.5, 3.0])))
      [0.  0.5 1. ]
    """
    lower, upper = _numbers("lower", lower), _numbers("upper", upper)
    wider = upper if _is_leaf(lower) else lower
    low, high = (v if v is wider else _same_everywhere(v, wider) for v in (lower, upper))
    if jax.tree.structure(low) != jax.tree.structure(high):
        raise ValueError(
            f"lower and upper must be trees of one structure, got {jax.tree.structure(low)} "
            f"and {jax.tree.structure(high)}"
        )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(low), jax.tree.leaves(high), strict=True
    ):
        try:
            np.broadcast_shapes(np.shape(a), np.shape(b))
        except ValueError:
            raise ValueError(
                f"lower of shape {np.shape(a)} and upper of shape {np.shape(b)} do not fit each "
                f"other at {_checks.at(path)}"
            ) from None
        if _is_concrete(a) and _is_concrete(b) and np.any(np.asarray(a) > np.asarray(b)):
            raise ValueError(
                f"lower must not be above upper, got {a} and {b} at {_checks.at(path)}"
            )
        for name, end, none in (("lower", a, np.inf), ("upper", b, -np.inf)):
            if _is_concrete(end) and np.any(np.asarray(end) == none):
                raise ValueError(f"{name} must not be {none}, got {end} at {_checks.at(path)}")

    def constraint(y: Any, weights: Any) -> Any:
        del weights
        _check_real("box", y)
        leaves, tree = jax.tree.flatten(y)
        clipped = leaves
        # Not jnp.clip, whose derivative is 1/2 on the bound.
        if not _is_infinite(upper):
            highs = _beside("upper", upper, y)
            clipped = [jnp.where(y > high, high, y) for y, high in zip(leaves, highs, strict=True)]
        if not _is_infinite(lower):
            lows = zip(leaves, _beside("lower", lower, y), clipped, strict=True)
            clipped = [jnp.where(y < low, low, x) for y, low, x in lows]
        return tree.unflatten(clipped)

    return constraint


def nonnegative() -> Constraint:
    r"""The orthant :math:`x \ge 0`: negative coordinates become 0, in every diagonal metric.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: In use, if parameters are complex.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> print(projections.project(projections.nonnegative(), jnp.array([-2.0, 0.5])))
      [0.  0.5]
    """
    return box(0.0, jnp.inf)


def simplex(total: jax.typing.ArrayLike = 1.0, *, over: Over = "tree") -> Constraint:
    r"""The simplex :math:`x \ge 0,\ \sum_i x_i = \text{total}`: mixtures and portfolios.

    The projection of :math:`y` with weights :math:`w` is

    .. math::

        x_i = \max(0,\ y_i - \lambda / w_i)

    with the only :math:`\lambda` for which the sum is ``total``. It is found up to rounding, in
    finitely many steps: coordinates that are not positive for too small a :math:`\lambda` are 0
    in the solution, too, and are left out of the sum.

    Args:
      total: The sum of all coordinates, positive; 1 for probabilities.
      over: Whether the sum is over the whole ``"tree"``, as in the paper and in
        ``optax.projections``, or over each ``"leaf"``. For each row of a matrix use
        ``jax.vmap(simplex())``.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: If ``total`` is not a number; in use, if parameters are complex.
      ValueError: If ``total`` is not positive, or ``over`` unknown.

    Examples:
      The second coordinate weighs 3 times as much, and moves a third as far:

      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> y, weights = jnp.array([1.0, 1.0]), jnp.array([1.0, 3.0])
      >>> print(projections.project(projections.simplex(), y, weights))
      [0.25 0.75]

    References:
      Michelot, `A finite algorithm for finding the projection of a point onto the
      canonical simplex of R^n <https://doi.org/10.1007/BF00938486>`_, JOTA 50, 1986, here
      with weights.
    """
    total = _positive("total", total)
    return _constraint("simplex", over, functools.partial(_simplex, total))


def l1_ball(radius: jax.typing.ArrayLike, *, over: Over = "tree") -> Constraint:
    r"""The ball :math:`\sum_i |x_i| \le \text{radius}`: sparse parameters.

    A point outside of it is projected to

    .. math::

        x_i = \text{sign}(y_i)\, \max(0,\ |y_i| - \lambda / w_i)

    whose absolute values are the projection of :math:`|y|` onto a :func:`simplex`. A point inside
    does not change.

    Args:
      radius: The largest sum of absolute values, positive. The smaller, the more coordinates
        are 0.
      over: Whether the sum is over the whole ``"tree"`` or over each ``"leaf"``. For each row of a
        matrix use ``jax.vmap(l1_ball(radius))``.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: If ``radius`` is not a number; in use, if parameters are complex.
      ValueError: If ``radius`` is not positive, or ``over`` unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> print(projections.project(projections.l1_ball(1.0), jnp.array([3.0, -2.5, 0.5])))
      [ 0.75 -0.25  0.  ]

    References:
      Duchi, Shalev-Shwartz, Singer and Chandra, `Efficient Projections onto the l1-Ball
      <https://doi.org/10.1145/1390156.1390191>`_, ICML 2008, section 4.
    """
    radius = _positive("radius", radius)

    def solve(ys: _Arrays, weights: _Arrays) -> _Arrays:
        inside = _sum(jnp.abs(y) for y in ys) <= radius
        sizes = _simplex(radius, [jnp.abs(y) for y in ys], weights)
        return [jnp.where(inside, y, jnp.sign(y) * x) for y, x in zip(ys, sizes, strict=True)]

    return _constraint("l1_ball", over, solve)


def l2_ball(radius: jax.typing.ArrayLike, center: Any = 0.0, *, over: Over = "tree") -> Constraint:
    r"""The ball :math:`\|x - c\|_2 \le \text{radius}`: bounded norms.

    With :math:`d = y - c`, a point outside of it is projected to

    .. math::

        x_i = c_i + \frac{w_i d_i}{w_i + \lambda}, \qquad
        \sum_i \Big(\frac{w_i |d_i|}{w_i + \lambda}\Big)^2 = \text{radius}^2

    and a point inside does not change. :math:`\lambda` is computed by Newton's method on the
    inverse of the norm, which is increasing and concave in :math:`\lambda`: started below the
    solution, the method never exceeds it.

    Args:
      radius: The largest distance from ``center``, positive, in units of the parameters.
      center: The center :math:`c`, finite: a tree like the parameters, or one number or array
        for all leaves. 0 bounds the norm itself.
      over: Whether the norm is of the whole ``"tree"`` or of each ``"leaf"``. For each row of a
        matrix use ``jax.vmap(l2_ball(radius))``.

    Returns:
      A constraint for :func:`projected`. It allows complex parameters.

    Raises:
      TypeError: If ``radius`` or ``center`` is not a number or tree of numbers.
      ValueError: If ``radius`` is not positive, ``center`` not finite, or ``over`` unknown;
        in use, if ``center`` does not match the parameters.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> print(projections.project(projections.l2_ball(1.0), jnp.array([3.0, -4.0])))
      [ 0.6 -0.8]

    References:
      Newton's method: More and Sorensen, `Computing a Trust Region Step
      <https://doi.org/10.1137/0904038>`_, SIAM J. Sci. Stat. Comput. 4, 1983, section 3.
    """
    radius, center = _positive("radius", radius), _numbers("center", center, real=False)
    _check_finite("center", center)
    solve = functools.partial(_l2_ball, radius)
    return _constraint("l2_ball", over, solve, allow_complex=True, center=center)


def halfspace(normal: Any, offset: jax.typing.ArrayLike, *, over: Over = "tree") -> Constraint:
    r"""The half-space :math:`\sum_i a_i x_i \le b`: a budget.

    .. math::

        x_i = y_i - \max\Big(0, \sum_j a_j y_j - b\Big)\,
              \frac{a_i / w_i}{\sum_j a_j^2 / w_j}

    Args:
      normal: The coefficients :math:`a`, finite and not all zero: a tree like the parameters, or
        one number or array for all leaves. For a budget, the prices.
      offset: The bound :math:`b`, a finite number. The larger, the larger the set (for a
        budget, the amount).
      over: Whether the sum is over the whole ``"tree"`` or over each ``"leaf"``.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: If ``normal`` or ``offset`` is not real; in use, if parameters are complex.
      ValueError: If ``normal`` is zero (for ``over="leaf"``, in one leaf), not finite, or,
        in use, does not match the parameters; if ``offset`` is not a finite number, or
        ``over`` unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> budget = projections.halfspace(jnp.array([2.0, 4.0]), 12.0)
      >>> print(projections.project(budget, jnp.array([8.0, 4.0])))
      [6. 0.]
    """
    return _linear("halfspace", normal, offset, over)


def hyperplane(normal: Any, offset: jax.typing.ArrayLike, *, over: Over = "tree") -> Constraint:
    r"""The hyperplane :math:`\sum_i a_i x_i = b`.

    .. math::

        x_i = y_i - \Big(\sum_j a_j y_j - b\Big)\, \frac{a_i / w_i}{\sum_j a_j^2 / w_j}

    Args:
      normal: The coefficients :math:`a`, finite and not all zero: a tree like the parameters, or
        one number or array for all leaves. 1 fixes the plain sum.
      offset: The value :math:`b` of the weighted sum, a finite number.
      over: Whether the sum is over the whole ``"tree"`` or over each ``"leaf"``.

    Returns:
      A constraint for :func:`projected`.

    Raises:
      TypeError: As :func:`halfspace`.
      ValueError: As :func:`halfspace`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import projections
      >>> centered = projections.hyperplane(1.0, 0.0)
      >>> print(projections.project(centered, jnp.array([1.0, 2.0, 6.0])))
      [-2. -1.  3.]
    """
    return _linear("hyperplane", normal, offset, over)


# The metric.


def _metric(state: optax.OptState, params: optax.Params, eps: float | jax.Array) -> Any:
    """The weights of all parameters, from wherever in ``state`` their moments are."""

    @functools.cache
    def coefficients(dtype: jnp.dtype) -> _rule.Coefficients:
        # Of the paper's convention, whose denominator has no correction in any step.
        return _rule.coefficients(
            jnp.int32(1),
            b1=0.0,
            b2=0.0,
            eps=eps,
            eps_root=0.0,
            convention=_conventions.PAPER,
            nesterov=False,
            dtype=dtype,
        )

    def weight(nu_max: jax.Array) -> jax.Array:
        c = coefficients(nu_max.dtype)
        divisor, unseen = _rule.denominator(nu_max, c)
        return jnp.where(unseen, c.eps, divisor)

    weights: dict[Any, jax.Array] = {}
    for _, node in _state.require_states(state):
        for path, moments in _state.leaf_moments(node):
            if path in weights:
                raise ValueError(
                    f"projected found several states of AMSGrad for {_checks.at(path)}, "
                    "so the metric to project in is ambiguous"
                )
            weights[path] = weight(moments.nu_max)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path in paths:
        if path not in weights:
            raise ValueError(
                f"projected found no moments of AMSGrad for {_checks.at(path)}: to constrain "
                "some of the parameters, put projected into optax.partition"
            )
    return jax.tree.unflatten(jax.tree.structure(params), [weights[path] for path in paths])


def _rescaled(weights: _Arrays) -> _Arrays:
    """Weights with a largest of 1, and none so small that its inverse could overflow.

    A weight of 0 becomes the smallest weight, 1e-19 of the largest (1.5e-154 in float64). An
    infinite weight becomes 8e37 (4e307).
    """
    # NumPy's rules: JAX's can be set to refuse every promotion.
    dtype = np.result_type(*(w.dtype for w in weights))
    limits = jnp.finfo(dtype)
    # The inverse of that largest number is no subnormal one, which XLA takes for 0.
    weights = [jnp.minimum(w.astype(dtype), 1 / limits.tiny) for w in weights]
    largest = _largest(weights)
    # All of them zero: all of them equal.
    return [jnp.where(largest == 0, 1, jnp.maximum(w / largest, limits.tiny**0.5)) for w in weights]


# What solves the constraints, on lists of arrays that have no empty one among them.


def _constraint(
    name: str,
    over: Over,
    solve: Callable[..., _Arrays],
    *,
    allow_complex: bool = False,
    **operands: Any,
) -> Constraint:
    """One problem for the whole tree, or one for each leaf.

    ``solve`` takes arrays, their weights from 0 (excluded) to 1, and the arrays of each operand.
    """
    _checks.literal("over", over, get_args(Over))

    def wider(array: jax.Array, dtype: Any) -> jax.Array:
        return array.astype(np.promote_types(array.dtype, dtype))

    def constraint(y: Any, weights: Any) -> Any:
        if not allow_complex:
            _check_real(name, y)
        leaves, tree = jax.tree.flatten(y)
        columns = [leaves, jax.tree.leaves(weights)]
        columns += [_beside(operand, value, y) for operand, value in operands.items()]
        filled = [i for i, leaf in enumerate(leaves) if leaf.size > 0]
        solved = list(leaves)
        for group in [filled] if over == "tree" and filled else [[i] for i in filled]:
            ys, ws, *rest = ([column[i] for i in group] for column in columns)
            ws = _rescaled(ws)
            ys, *rest = ([wider(a, ws[0].dtype) for a in arrays] for arrays in (ys, *rest))
            for i, x in zip(group, solve(ys, ws, *rest), strict=True):
                solved[i] = x.astype(leaves[i].dtype)
        return tree.unflatten(solved)

    return constraint


def _simplex(total: float | jax.Array, ys: _Arrays, weights: _Arrays) -> _Arrays:
    fixed = jax.lax.stop_gradient
    total = jnp.asarray(total, ys[0].dtype)
    inverse = [1 / w for w in weights]

    # No coordinate of the solution is above `total`, hence no multiplier below `lowest`: what
    # that one takes to 0 is 0. Taking a multiple of 1/w off y does not change the solution;
    # where y is far away, we start from the lowered point, so that the sums below do not
    # drown in the rounding of y. Near by, lowering would itself add some.
    heights = [w * (y - total) for y, w in zip(ys, weights, strict=True)]
    lowest = _largest(heights)
    highest = lowest - 4 * jnp.finfo(total.dtype).eps * jnp.abs(lowest)  # XLA may round anew
    lowered = [
        jnp.where(height >= highest, total, jnp.minimum(y - lowest * s, total))
        for y, s, height in zip(ys, inverse, heights, strict=True)
    ]
    far = jnp.abs(_largest(ys)) > total
    near = [jnp.where(far, z, y) for y, z in zip(ys, lowered, strict=True)]
    shift = jnp.where(far, lowest, 0)

    def step(zs: _Arrays, active: _Arrays, inverse: _Arrays) -> jax.Array:
        excess = _sum(jnp.where(a, z, 0) for z, a in zip(zs, active, strict=True)) - total
        return excess / _sum(jnp.where(a, s, 0) for s, a in zip(inverse, active, strict=True))

    def shrink(carry: Any) -> Any:
        zs, active, shift, _ = carry
        more = step(zs, active, fixed(inverse))
        zs = [z - more * s for z, s in zip(zs, fixed(inverse), strict=True)]
        left = [a & ~(z <= 0) for z, a in zip(zs, active, strict=True)]
        changed = _sum(a ^ b for a, b in zip(left, active, strict=True)) > 0
        return fixed((zs, left, shift + more, changed))

    # Every turn but the last takes out a coordinate. `~(z <= 0)` keeps a NaN, to be seen.
    start = fixed((near, [~(z <= 0) for z in lowered], shift, jnp.asarray(True)))
    near, active, shift, _ = jax.lax.while_loop(lambda carry: carry[-1], shrink, start)

    # The values are those of the loop, the derivatives those of `y - shift / w`, where the
    # shift and the set of positive coordinates are constants. The last step is as small as
    # rounding; it carries the derivative of the multiplier.
    moved = [y - shift * s for y, s in zip(ys, inverse, strict=True)]
    zs = [z + (m - fixed(m)) for z, m in zip(near, moved, strict=True)]
    last = step(zs, active, inverse)
    xs = [z - last * s for z, s in zip(zs, inverse, strict=True)]
    return [jnp.where(~a | (x <= 0), 0, x) for x, a in zip(xs, active, strict=True)]


def _l2_ball(radius: float | jax.Array, ys: _Arrays, weights: _Arrays, center: _Arrays) -> _Arrays:
    radius = jnp.asarray(radius, weights[0].dtype)
    offsets = [(y - c) / radius for y, c in zip(ys, center, strict=True)]
    inside = _sum(_square(d) for d in offsets) <= 1

    def shrunk(multiplier: jax.Array) -> _Arrays:
        return [d * (w / (w + multiplier)) for d, w in zip(offsets, weights, strict=True)]

    def equation(multiplier: jax.Array) -> jax.Array:
        # Inside there is nothing to solve: any equation with the root 0 and a slope.
        return jnp.where(inside, multiplier, _sum(map(_square, shrunk(multiplier))) - 1)

    def newton(carry: Any) -> Any:
        multiplier, _, turn = carry
        squares = [_square(d) for d in shrunk(multiplier)]
        norm = jnp.sqrt(_sum(squares))
        slope = _sum(q / (w + multiplier) for q, w in zip(squares, weights, strict=True))
        step = jnp.maximum(norm**2 * (norm - 1) / slope, 0)
        return multiplier + step, step, turn + 1

    def unfinished(carry: Any) -> jax.Array:
        multiplier, step, turn = carry
        rounding = jnp.finfo(multiplier.dtype).eps * multiplier
        return ~inside & (step > rounding) & (turn < 100)

    def solve(_: Any, start: jax.Array) -> jax.Array:
        largest = jnp.finfo(start.dtype).max
        return jax.lax.while_loop(unfinished, newton, (start, jnp.full_like(start, largest), 0))[0]

    # No coordinate may be outside by itself. From there on squares cannot overflow.
    start = _largest([w * (jnp.abs(d) - 1) for d, w in zip(offsets, weights, strict=True)])
    multiplier = jax.lax.custom_root(
        equation,
        jnp.maximum(start, 0),
        solve,
        lambda slope, value: value / slope(jnp.ones_like(value)),
    )
    return [
        jnp.where(inside, y, c + radius * d)
        for y, c, d in zip(ys, center, shrunk(multiplier), strict=True)
    ]


def _linear(name: str, normal: Any, offset: Any, over: Over) -> Constraint:
    normal, offset = _numbers("normal", normal), _numbers("offset", offset)
    _check_finite("normal", normal)
    _check_finite("offset", offset)
    if not _is_leaf(offset) or jnp.shape(offset) != ():
        raise ValueError(f"offset must be one number, got {offset!r}")
    paths = jax.tree_util.tree_leaves_with_path(normal)
    zero = [path for path, a in paths if _is_concrete(a) and not np.any(np.asarray(a))]
    if len(zero) == len(paths) or (zero and over == "leaf"):
        raise ValueError(f"normal must not be zero, but is at {_checks.at(zero[0])}")

    def solve(ys: _Arrays, weights: _Arrays, normal: _Arrays) -> _Arrays:
        size = _largest([jnp.abs(a) for a in normal])
        normal = [a / size for a in normal]
        excess = _sum(a * y for a, y in zip(normal, ys, strict=True)) - offset / size
        cost = _sum(a * a / w for a, w in zip(normal, weights, strict=True))
        moved = [y - excess / cost * (a / w) for y, a, w in zip(ys, normal, weights, strict=True)]
        if name == "hyperplane":
            return moved
        return [jnp.where(excess <= 0, y, x) for y, x in zip(ys, moved, strict=True)]

    return _constraint(name, over, solve, normal=normal)


# Trees and checks.


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, map(jnp.sum, arrays))


def _largest(arrays: _Arrays) -> jax.Array:
    return functools.reduce(jnp.maximum, map(jnp.max, arrays))


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _wide(params: optax.Params) -> Any:
    """The parameters in the dtype of the arithmetic."""
    _checks.inexact("params", params)
    return jax.tree.map(lambda p: jnp.asarray(p, _state.wide(jnp.result_type(p))), params)


def _apply(constraint: Constraint, y: Any, weights: Any) -> Any:
    x = constraint(y, weights)
    got, expected = (jax.tree.map(jnp.shape, tree) for tree in (x, y))
    if got != expected:
        raise ValueError(
            "the constraint must return a tree like its first argument, whose shapes are "
            f"{expected}; got {got}"
        )
    return jax.tree.map(jnp.asarray, x)  # what a constraint of one's own returned may be a number


def _check_constraint(constraint: Any) -> None:
    if not callable(constraint):
        raise TypeError(
            "constraint must be a function of a tree and weights, as of projections.simplex(), "
            f"got {constraint!r}"
        )


def _check_real(name: str, y: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"{name} has no meaning for complex parameters, but the leaf at "
                f"{_checks.at(path)} has dtype {leaf.dtype}"
            )


def _is_concrete(leaf: Any) -> bool:
    return not isinstance(leaf, jax.core.Tracer)


def _is_leaf(value: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(value))


def _is_infinite(bound: Any) -> bool:
    """Whether a bound is infinite everywhere, and so none."""
    return _is_leaf(bound) and _is_concrete(bound) and bool(np.all(np.isinf(bound)))


def _same_everywhere(value: Any, tree: Any) -> Any:
    return jax.tree.map(lambda _: value, tree) if _is_leaf(value) else value


def _positive(name: str, value: Any) -> float | jax.Array:
    value = _checks.hyperparameter(name, value)
    if _is_concrete(value) and value == 0:
        raise ValueError(f"{name} must be positive, got {float(value)!r}")
    return value


def _numbers(name: str, value: Any, *, real: bool = True) -> Any:
    """Returns ``value`` if it is a number, an array or a tree of them, without NaN, or raises."""
    expected = f"{name} must be a{' real' if real else ''} number, an array or a tree of them"
    leaves = jax.tree_util.tree_leaves_with_path(value)
    if not leaves:
        raise TypeError(f"{expected}, got {value!r}")
    for path, leaf in leaves:
        # A bool, which Python takes for a number, has a dtype that is none; so has a string.
        dtype = getattr(leaf, "dtype", type(leaf))
        kinds = (np.integer, np.floating) if real else (np.number,)
        if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
            raise TypeError(f"{expected}, got {leaf!r} at {_checks.at(path)}")
        if _is_concrete(leaf) and np.any(np.isnan(np.asarray(leaf))):
            raise ValueError(f"{name} must not be NaN, got {leaf} at {_checks.at(path)}")
    return value


def _check_finite(name: str, value: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if _is_concrete(leaf) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{name} must be finite, got {leaf} at {_checks.at(path)}")


def _beside(name: str, value: Any, tree: Any) -> _Arrays:
    """An array of ``value`` for each leaf of ``tree``, in its shape and dtype."""
    value = _same_everywhere(value, tree)
    if jax.tree.structure(value) != jax.tree.structure(tree):
        raise ValueError(
            f"{name} must be a number, an array, or a tree like the parameters, "
            f"{jax.tree.structure(tree)}, got {jax.tree.structure(value)}"
        )
    arrays = []
    for (path, leaf), part in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(value), strict=True
    ):
        if jnp.iscomplexobj(part) and not jnp.iscomplexobj(leaf):
            raise TypeError(f"{name} is complex, but the parameter at {_checks.at(path)} is real")
        try:
            if jnp.shape(part) == ():  # with the sharding of the leaf, also on explicit axes
                arrays.append(jnp.full_like(leaf, part))
            else:  # a sum: it takes the sharding of the leaf where the part is replicated
                part = jnp.broadcast_to(jnp.asarray(part, leaf.dtype), leaf.shape)
                arrays.append(part + jnp.zeros_like(leaf))
        except ValueError:
            raise ValueError(
                f"{name} of shape {jnp.shape(part)} does not fit the parameter at "
                f"{_checks.at(path)} of shape {leaf.shape}"
            ) from None
    return arrays
