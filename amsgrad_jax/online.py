"""Online convex optimization: the rounds, the regret, and the paper's bounds on it.

In each round the optimizer chooses a point; then a convex loss is revealed, and its value and
gradient at that point are computed. The regret is the sum of these losses minus that of the best
fixed point in hindsight. Rounds are computed by JAX; regret and bounds by NumPy in float64, on
the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax import _checks, _names

__all__ = [
    "Rounds",
    "average_regret",
    "best_linear",
    "best_quadratic",
    "play",
    "regret_bound",
    "regret_bound_decaying_b1",
]

# Rounds in one call: enough that the call costs nothing, few enough to watch the progress.
_CHUNK: Final = 100_000


class Rounds(NamedTuple):
    """Result of :func:`play`; every leaf is a NumPy array with one entry for each round.

    Args:
      points: The points :math:`x_1, x_2, \\ldots`, each chosen before its loss was known: a tree
        like the start, with a first axis of rounds.
      losses: The loss of each point, :math:`f_t(x_t)`, shape (rounds,).
      recorded: The values that ``record`` returned after each round; None without ``record``.
    """

    points: Any
    losses: np.ndarray
    recorded: Any


def _nothing(gradient: optax.Updates, state: optax.OptState) -> None:
    return None


def _whole_space(point: optax.Params) -> optax.Params:
    return point


def play(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, Any], jax.Array],
    stream: Any,
    start: optax.Params,
    *,
    project: Callable[[Any], Any] = _whole_space,
    record: Callable[[Any, Any], Any] = _nothing,
    progress: Callable[[int], object] | None = None,
) -> Rounds:
    r"""Runs an optimizer on a stream of losses, one step for each.

    .. math::

        x_1 = \Pi(\text{start}), \qquad x_{t+1} = \Pi(x_t + u_t)

    where :math:`u_t` is the optimizer's update for the gradient of
    :math:`f_t = \text{loss}(\cdot, z_t)` at :math:`x_t`. The paper projects in the metric of
    :math:`\sqrt{\hat v_t}`, which is diagonal: on a box every diagonal metric gives the
    plain clipping of ``optax.projections.projection_box``. For other sets, use
    :func:`.projected` as the optimizer, or pass a projection, whose metric then differs from the
    paper's.

    100,000 rounds run in one compiled call, on JAX's default device. For points of a few numbers
    a CPU is faster: ``with jax.default_device(jax.local_devices(backend="cpu")[0])``.

    Args:
      optimizer: A complete optimizer, learning rate and sign included, such as :func:`.amsgrad`.
      loss: ``loss(x, z)``, a real scalar, convex in ``x``, differentiable by JAX.
      stream: The data :math:`z_1, z_2, \ldots`: an array or a tree of arrays, whose first axis
        is that of the rounds.
      start: The start, projected onto the set to get the first point: any tree of real floating
        point arrays.
      project: The projection :math:`\Pi` onto the set, from a point to a point of equal
        shapes and dtypes. By default there is no constraint.
      record: ``record(gradient, state)``, called after each update; it returns a tree of arrays
        to keep of that round. By default nothing is kept.
      progress: Called with the number of rounds since its last call, every 100,000 rounds, for
        example the ``update`` of a ``tqdm`` bar.

    Returns:
      The points, the losses, and what ``record`` returned, as :class:`Rounds`.

    Raises:
      TypeError: If ``optimizer`` is not a transformation, ``loss``, ``project``, ``record`` or
        ``progress`` is not a function, ``start`` has leaves that are not real and floating point,
        or ``stream`` has leaves that are not numbers.
      ValueError: If ``stream`` is empty or its leaves differ in the number of rounds; if
        ``project`` changes the tree, a shape or a dtype; or if ``loss`` does not return a scalar.

    Examples:
      The three-step example of the paper's Theorem 1, with C = 3:

      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import optax
      >>> from amsgrad_jax import online, schedules
      >>> slopes = np.resize(np.array([3.0, -1.0, -1.0], np.float32), 3000)
      >>> for factory in (optax.adam, amsgrad_jax.amsgrad):
      ...     rounds = online.play(
      ...         factory(schedules.inverse_sqrt(0.5), b1=0.0, b2=0.1),
      ...         lambda x, slope: slope * x,
      ...         slopes,
      ...         0.0,
      ...         project=lambda x: jnp.clip(x, -1.0, 1.0),
      ...     )
      ...     best = online.best_linear(slopes, -1.0, 1.0)
      ...     regret = online.average_regret(rounds.losses, best)
      ...     print(f"x {rounds.points[-1]:+.2f}, average regret {regret[-1]:.2f}")
      x +1.00, average regret 0.67
      x -1.00, average regret 0.01

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, section 2. Zinkevich, Online Convex
      Programming and Generalized Infinitesimal Gradient Ascent, ICML 2003.
    """
    _checks.transformation("optimizer", optimizer)
    _checks.function("loss", loss, "a point and the data of a round")
    _checks.function("project", project, "a point")
    _checks.function("record", record, "a gradient and a state")
    if progress is not None:
        _checks.function("progress", progress, "a number of rounds")
    _checks.inexact("start", start)
    if any(map(jnp.iscomplexobj, jax.tree.leaves(start))):
        raise TypeError(f"start must be real, got {_signature(start)}")
    # Their dtype, and not a weak one, from which the first update would drift away.
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), start)
    stream = jax.tree.map(np.asarray, stream)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stream):
        if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool):
            raise TypeError(
                f"stream must hold arrays of numbers, got {leaf.dtype} at {_checks.at(path)}"
            )
    rounds = _count_rounds("stream", stream)
    projected = jax.eval_shape(project, start)
    if _signature(projected) != _signature(start):
        raise ValueError(
            "project must keep the tree, shapes and dtypes of a point, "
            f"got {_signature(projected)} for {_signature(start)}"
        )
    price = jax.eval_shape(loss, start, jax.tree.map(lambda z: z[0], stream))
    is_scalar = isinstance(price, jax.ShapeDtypeStruct) and price.shape == ()
    if not is_scalar or not jnp.issubdtype(price.dtype, jnp.floating):
        raise ValueError(f"loss must return a real scalar, got {_signature(price)}")

    carry = (project(start), optimizer.init(start))
    chunks = []
    for first in range(0, rounds, _CHUNK):
        chunk = jax.tree.map(lambda z, at=first: z[at : at + _CHUNK], stream)
        carry, played = _play_chunk(
            carry, chunk, optimizer=optimizer, loss=loss, project=project, record=record
        )
        chunks.append(jax.device_get(played))
        if progress is not None:
            progress(min(_CHUNK, rounds - first))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)


@functools.partial(jax.jit, static_argnames=("optimizer", "loss", "project", "record"))
def _play_chunk(
    carry: Any,
    chunk: Any,
    *,
    optimizer: optax.GradientTransformation,
    loss: Callable[[Any, Any], jax.Array],
    project: Callable[[Any], Any],
    record: Callable[[Any, Any], Any],
) -> tuple[Any, Rounds]:
    def one(carry: Any, z: Any) -> tuple[Any, Any]:
        point, state = carry
        price, gradient = jax.value_and_grad(loss)(point, z)
        update, state = optimizer.update(gradient, state, point)
        after = project(optax.apply_updates(point, update))
        return (after, state), Rounds(point, price, record(gradient, state))

    return jax.lax.scan(one, carry, chunk)


def _count_rounds(name: str, tree: Any) -> int:
    # A leaf without axes counts nothing.
    lengths = {
        _names.of_path(path) or "the root": next(iter(np.shape(leaf)), 0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"{name} must hold arrays whose first axes count the same number of rounds, "
            f"at least one; got the lengths {lengths}"
        )
    return next(iter(lengths.values()))


def _signature(tree: Any) -> Any:
    return jax.tree.map(_checks.describe, tree)


def average_regret(losses: np.ndarray, best: np.ndarray) -> np.ndarray:
    r"""The average regret after each round: the regret so far, divided by the number of rounds.

    .. math::

        \frac{R_t}{t} = \frac{1}{t} \Big( \sum_{s=1}^{t} f_s(x_s)
            - \min_x \sum_{s=1}^{t} f_s(x) \Big)

    Args:
      losses: The loss of each round, shape (rounds,), such as ``losses`` of :class:`Rounds`.
      best: The cumulative loss of the best fixed point for the rounds so far, shape (rounds,), as
        returned by :func:`best_linear` or :func:`best_quadratic`. For a fixed comparator of your
        own, pass ``np.cumsum`` of its losses.

    Returns:
      The average regret after each round, float64 of shape (rounds,).

    Raises:
      TypeError: If the two are not arrays of real numbers.
      ValueError: If they are not of one length, or empty.

    Examples:
      >>> import numpy as np
      >>> from amsgrad_jax import online
      >>> slopes = np.array([3.0, -1.0, -1.0, 3.0])
      >>> points = np.array([1.0, 1.0, -1.0, -1.0])
      >>> print(online.average_regret(slopes * points, online.best_linear(slopes, -1, 1)))
      [6.         2.         1.33333333 1.        ]
    """
    losses, best = _real("losses", losses), _real("best", best)
    if losses.ndim != 1 or losses.shape != best.shape:
        raise ValueError(
            "losses and best must be of shape (rounds,) both, "
            f"got losses of shape {losses.shape} and best of shape {best.shape}"
        )
    _count_rounds("losses", losses)
    return (np.cumsum(losses) - best) / np.arange(1, len(losses) + 1)


def best_linear(
    slopes: np.ndarray, lower: jax.typing.ArrayLike, upper: jax.typing.ArrayLike
) -> np.ndarray:
    r"""The loss of the best fixed point of a box, for linear losses :math:`\langle z_s, x \rangle`.

    .. math::

        \min_{l \le x \le u} \sum_{s \le t} \langle z_s, x \rangle
            = \sum_i \min(l_i S_{t,i},\ u_i S_{t,i}), \qquad S_t = \sum_{s \le t} z_s

    Args:
      slopes: The slopes :math:`z_s`, finite, shape (rounds, ...).
      lower: The lower bounds of the box, finite, broadcast to the shape of a point.
      upper: The upper bounds of the box, finite, not below ``lower``, broadcast to the shape of a
        point.

    Returns:
      The cumulative loss after each round, float64 of shape (rounds,).

    Raises:
      TypeError: If an argument is not an array of real numbers.
      ValueError: If ``slopes`` are empty, ``lower`` exceeds ``upper`` somewhere, one of the
        three is not finite, or the bounds do not fit the shape of a point.

    Examples:
      >>> import numpy as np
      >>> from amsgrad_jax import online
      >>> print(online.best_linear(np.array([3.0, -1.0, -1.0]), -1.0, 1.0))
      [-3. -2. -1.]
    """
    slopes = _finite("slopes", slopes)
    _count_rounds("slopes", slopes)
    low, high = _box(lower, upper, slopes.shape[1:])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"the box must be finite, got lower {lower} and upper {upper}")
    sums = np.cumsum(slopes, axis=0)
    return _over_coordinates(np.minimum(low * sums, high * sums))


def best_quadratic(
    curvatures: np.ndarray,
    centers: np.ndarray,
    lower: jax.typing.ArrayLike = -math.inf,
    upper: jax.typing.ArrayLike = math.inf,
) -> np.ndarray:
    r"""The loss of the best fixed point of a box, for separable quadratic losses.

    .. math::

        \min_{l \le x \le u} \sum_{s \le t} \sum_i \tfrac12 a_{s,i} (x_i - c_{s,i})^2

    In each coordinate the best point is the mean of the centers, weighted by the curvatures and
    clipped to the box. The sum of squares around the mean is updated by terms that are never
    negative, so there is no cancellation, however far the centers are from 0:

    .. math::

        S_t = S_{t-1} + \frac{a_t W_{t-1}}{W_t} (c_t - \bar c_{t-1})^2, \qquad
        W_t = \sum_{s \le t} a_s

    Args:
      curvatures: The curvatures :math:`a_s`, positive and finite, shape (rounds, ...).
      centers: The centers :math:`c_s`, finite, of the same shape as ``curvatures``.
      lower: The lower bounds of the box, broadcast to the shape of a point; -inf means no bound.
      upper: The upper bounds of the box, not below ``lower``, broadcast to the shape of a point;
        inf means no bound.

    Returns:
      The cumulative loss after each round, float64 of shape (rounds,).

    Raises:
      TypeError: If an argument is not an array of real numbers.
      ValueError: If the shapes differ or have no rounds, a curvature is not positive, a number
        is not finite, ``lower`` exceeds ``upper`` somewhere, or the bounds do not fit the
        shape of a point.

    Examples:
      >>> import numpy as np
      >>> from amsgrad_jax import online
      >>> print(online.best_quadratic(np.array([1.0, 1.0]), np.array([0.0, 2.0])))
      [0. 1.]

    References:
      West, `Updating Mean and Variance Estimates: An Improved Method
      <https://doi.org/10.1145/359146.359153>`_, Communications of the ACM 22, 1979.
    """
    a, c = _finite("curvatures", curvatures), _finite("centers", centers)
    if a.shape != c.shape:
        raise ValueError(
            "curvatures and centers must have one shape, "
            f"got curvatures of shape {a.shape} and centers of shape {c.shape}"
        )
    _count_rounds("curvatures", a)
    if not (a > 0).all():
        raise ValueError(f"curvatures must be positive, got {a.min()}")
    low, high = _box(lower, upper, a.shape[1:])
    # Seen from the first center: there the mean has the rounding of the spread, not of the
    # centers. An origin common to all rounds would be far from some of them.
    origin = c[0]
    c = c - origin
    weight = np.cumsum(a, axis=0)
    mean = np.cumsum(a * c, axis=0) / weight
    spread = np.zeros_like(c)
    spread[1:] = np.cumsum(a[1:] * weight[:-1] / weight[1:] * (c[1:] - mean[:-1]) ** 2, axis=0)
    beyond = np.clip(mean, low - origin, high - origin) - mean
    return _over_coordinates(0.5 * (spread + weight * beyond**2))


def _real(name: str, value: Any) -> np.ndarray:
    """Returns ``value`` as an array of float64, or raises."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise TypeError(f"{name} must be an array of real numbers, got {value!r}") from None
    if not jnp.issubdtype(array.dtype, np.floating) and not jnp.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an array of real numbers, got one of dtype {array.dtype}")
    return array.astype(np.float64)


def _finite(name: str, value: Any) -> np.ndarray:
    array = _real(name, value)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _box(
    lower: jax.typing.ArrayLike, upper: jax.typing.ArrayLike, point: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a box for points of this shape."""
    ends = []
    for name, value in (("lower", lower), ("upper", upper)):
        end = _real(name, value)
        try:
            ends.append(np.broadcast_to(end, point))
        except ValueError:
            raise ValueError(
                f"{name} of shape {end.shape} does not fit a point of shape {point}"
            ) from None
    low, high = ends
    if not (low <= high).all():
        raise ValueError(f"lower must not exceed upper, got lower {lower} and upper {upper}")
    if not ((low < math.inf) & (high > -math.inf)).all():
        raise ValueError(f"the box has no finite point, got lower {lower} and upper {upper}")
    return low, high


def _over_coordinates(costs: np.ndarray) -> np.ndarray:
    return costs.sum(axis=tuple(range(1, costs.ndim)))


def regret_bound(
    gradients: Any,
    nu_max: Any,
    *,
    alpha: float,
    b1: float | optax.Schedule,
    b2: float,
    diameter: float,
    eps: float = 0.0,
) -> np.ndarray:
    r"""The bound of the paper's Theorem 4 on AMSGrad's regret, after each round.

    .. math::

        R_T \le \frac{D_\infty^2 \sqrt{T}}{\alpha (1-\beta_1)} \sum_i \sqrt{\hat v_{T,i}}
            + \frac{D_\infty^2}{2 (1-\beta_1)} \sum_{t=1}^{T} \sum_i
                \frac{\beta_{1t} \sqrt{\hat v_{t,i}}}{\alpha_t}
            + \frac{\alpha \sqrt{1 + \log T}}{(1-\beta_1)^2 (1-\gamma) \sqrt{1-\beta_2}}
                \sum_i \lVert g_{1:T,i} \rVert_2

    with :math:`\alpha_t = \alpha/\sqrt{t}`, :math:`\beta_1 = \beta_{11}` and
    :math:`\gamma = \beta_1/\sqrt{\beta_2} < 1`, if :math:`\beta_{1t}` never increases. It is valid
    for the convention ``"paper"``, that step size, convex losses, and the projection in the
    metric :math:`\sqrt{\hat v_t}`. Divide by T for a bound on the average regret.

    For a schedule that increases in some step, the first term is half as large and the middle one
    twice as large, with :math:`\beta_1 = \max_{t \le T} \beta_{1t}`. The proof sums the increases
    of :math:`c_t r_t`, with :math:`c_t = \sqrt{\hat v_t}/\alpha_t` and
    :math:`r_t = 1/(1-\beta_{1t})`; as :math:`c_t` never decreases,

    .. math::

        c_t r_t - c_{t-1} r_{t-1} = r_t (c_t - c_{t-1}) + (r_t - r_{t-1})\, c_{t-1}
            \le \frac{c_t - c_{t-1}}{1-\beta_1} + \frac{\beta_{1t}\, c_t}{1-\beta_1}.

    Args:
      gradients: The gradients :math:`g_t`, finite: a tree of real arrays of shape (rounds, ...).
      nu_max: The running maxima :math:`\hat v_t` after each round, which never decrease: a tree
        like ``gradients``.
      alpha: The first step size :math:`\alpha`, positive; that of step t is alpha / sqrt(t).
      b1: The optimizer's ``b1``, in [0, 1): a number, or a schedule, which may decrease and
        increase.
      b2: The optimizer's ``b2``, the decay rate of the average of squared gradients, in (0, 1).
      diameter: The largest distance :math:`D_\infty` between two points of the set in one
        coordinate, positive; for the box [-1, 1] it is 2.
      eps: The optimizer's ``eps``, not negative. The bound then has
        :math:`\sqrt{\hat v} + \epsilon` in place of :math:`\sqrt{\hat v}`.

    Returns:
      The bound on the regret after each round, float64 of shape (rounds,).

    Raises:
      TypeError: If a hyperparameter is not a number, or the trees are not of real arrays.
      ValueError: If a hyperparameter is out of its range (``b1`` in any round), :math:`\gamma`
        is not below 1, ``nu_max`` decreases or is negative, a number is not finite, or the two
        trees do not match or have no rounds.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from amsgrad_jax import online, schedules
      >>> b1 = schedules.decaying_b1(0.9, 0.9)
      >>> rounds = online.play(
      ...     amsgrad_jax.amsgrad(
      ...         schedules.inverse_sqrt(0.5), b1=b1, b2=0.99, eps=0.0, convention="paper"
      ...     ),
      ...     lambda x, center: (x - center) ** 2,
      ...     np.array([0.5, -0.5], np.float32).repeat(500),
      ...     0.0,
      ...     project=lambda x: jnp.clip(x, -1.0, 1.0),
      ...     record=lambda gradient, state: (gradient, state[0].nu_max),
      ... )
      >>> bound = online.regret_bound(
      ...     *rounds.recorded, alpha=0.5, b1=b1, b2=0.99, diameter=2.0
      ... )
      >>> best = online.best_quadratic(np.full(1000, 2.0), np.array([0.5, -0.5]).repeat(500))
      >>> regret = 1000 * online.average_regret(rounds.losses, best)[-1]
      >>> bool(regret < bound[-1])
      True

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Theorem 4. A gap in its printed proof for
      decreasing ``b1``, and how to close it: Tran and Phong, `On the Convergence Proof of
      AMSGrad and a New Version <https://arxiv.org/abs/1904.03590>`_, IEEE Access 2019.
    """
    terms = _bound_terms(gradients, nu_max, alpha, b1, b2, diameter, eps)
    distance = terms.scale * terms.roots
    momentum = terms.scale / 2 * np.cumsum(terms.b1 * terms.roots)
    if (np.diff(terms.b1) <= 0).all():
        return distance + momentum + terms.gradient
    return distance / 2 + 2 * momentum + terms.gradient


def regret_bound_decaying_b1(
    gradients: Any,
    nu_max: Any,
    *,
    alpha: float,
    b1: float,
    decay: float,
    b2: float,
    diameter: float,
    eps: float = 0.0,
) -> np.ndarray:
    r"""The bound of the paper's Corollary 1, for :math:`\beta_{1t} = \beta_1 \lambda^{t-1}`.

    It is the bound of :func:`regret_bound` with another middle term,

    .. math::

        \frac{\beta_1 D_\infty^2\, d\, G_\infty}{2 \alpha (1-\beta_1) (1-\lambda)^2}

    where :math:`d` is the number of coordinates and :math:`G_\infty` the largest absolute value
    of a gradient so far.

    Args:
      gradients: The gradients :math:`g_t`, finite: a tree of real arrays of shape (rounds, ...).
      nu_max: The running maxima :math:`\hat v_t` after each round, which never decrease: a tree
        like ``gradients``.
      alpha: The first step size :math:`\alpha`, positive; that of step t is alpha / sqrt(t).
      b1: The first value :math:`\beta_1` of ``b1``, in [0, 1).
      decay: The factor :math:`\lambda` of ``b1`` from step to step, in (0, 1), as in
        :func:`.decaying_b1`.
      b2: The optimizer's ``b2``, the decay rate of the average of squared gradients, in (0, 1).
      diameter: The largest distance :math:`D_\infty` between two points of the set in one
        coordinate, positive; for the box [-1, 1] it is 2.
      eps: The optimizer's ``eps``, not negative. The bound then has
        :math:`\sqrt{\hat v} + \epsilon` in place of :math:`\sqrt{\hat v}`, and
        :math:`G_\infty + \epsilon` in place of :math:`G_\infty`.

    Returns:
      The bound on the regret after each round, float64 of shape (rounds,).

    Raises:
      TypeError: As :func:`regret_bound`.
      ValueError: As :func:`regret_bound`, and if ``decay`` is out of its range.

    Examples:
      >>> import numpy as np
      >>> from amsgrad_jax import online
      >>> one, case = np.ones(1), dict(alpha=0.5, b2=0.75, diameter=2.0)  # 16 + 16 + 9.46
      >>> print(online.regret_bound_decaying_b1(one, one, b1=0.5, decay=0.5, **case))
      [41.46410162]

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Corollary 1.
    """
    b1, decay = (float(_checks.hyperparameter(*x)) for x in (("b1", b1), ("decay", decay)))
    if not 0 < decay < 1:
        raise ValueError(f"decay must be a number in (0, 1), got {decay!r}")
    terms = _bound_terms(gradients, nu_max, alpha, b1, b2, diameter, eps)
    # From Theorem 4: v <= G^2, and sum_t lambda^(t-1) sqrt(t) <= sum_t lambda^(t-1) t =
    # 1/(1-lambda)^2, for each of the d coordinates and over alpha. Both belong to it.
    largest = np.maximum.accumulate(terms.sizes.max(axis=1, initial=0)) + float(eps)
    dimensions = terms.sizes.shape[1]
    middle = terms.scale / 2 * terms.b1 * dimensions * largest / (1 - decay) ** 2
    return terms.scale * terms.roots + middle + terms.gradient


class _Terms(NamedTuple):
    """The terms of the bounds, for each round."""

    b1: np.ndarray
    scale: np.ndarray  # D^2 / (alpha (1 - largest b1 so far))
    roots: np.ndarray  # sqrt(t) times the sum of the roots of the maxima
    sizes: np.ndarray  # of the gradients, in each coordinate
    gradient: np.ndarray  # Theorem 4's third term


def _bound_terms(
    gradients: Any,
    nu_max: Any,
    alpha: float,
    b1: float | optax.Schedule,
    b2: float,
    diameter: float,
    eps: float,
) -> _Terms:
    alpha, b2, diameter = (
        _positive(*x) for x in (("alpha", alpha), ("b2", b2), ("diameter", diameter))
    )
    eps = float(_checks.hyperparameter("eps", eps))
    g, v = _matrix("gradients", gradients), _matrix("nu_max", nu_max)
    if _signature(gradients) != _signature(nu_max):
        raise ValueError(
            "gradients and nu_max must be trees of real arrays with equal shapes and dtypes, "
            f"got {_signature(gradients)} and {_signature(nu_max)}"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(nu_max):
        if np.min(leaf, initial=0) < 0:
            raise ValueError(
                f"nu_max must not be negative, got {np.min(leaf)} at {_checks.at(path)}"
            )
        if (np.diff(_real("nu_max", leaf), axis=0) < 0).any():
            raise ValueError(
                f"nu_max decreases at {_checks.at(path)}: pass the running maximum, not nu"
            )
    t = np.arange(1, len(g) + 1)
    rates = _rates(b1, len(g))
    largest = np.maximum.accumulate(rates)
    gamma = largest / math.sqrt(b2)
    if gamma[-1] >= 1:
        raise ValueError(
            f"b1 / sqrt(b2) must be below 1, got {gamma[-1]} for b1 {largest[-1]} and b2 {b2}"
        )
    norms = np.sqrt(np.cumsum(g**2, axis=0)).sum(axis=1)
    gradient = (
        alpha * np.sqrt(1 + np.log(t)) * norms
        / ((1 - largest) ** 2 * (1 - gamma) * math.sqrt(1 - b2))
    )  # fmt: skip
    return _Terms(
        b1=rates,
        scale=diameter**2 / (alpha * (1 - largest)),
        roots=np.sqrt(t) * (np.sqrt(v) + eps).sum(axis=1),
        sizes=np.abs(g),
        gradient=gradient,
    )


def _positive(name: str, value: Any) -> float:
    number = float(_checks.hyperparameter(name, value))
    if number == 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return number


def _rates(b1: float | optax.Schedule, rounds: int) -> np.ndarray:
    """What the optimizer took for ``b1`` in each round."""
    if not callable(b1):
        return np.full(rounds, _checks.hyperparameter("b1", b1))
    _checks.hyperparameter("b1", b1(jnp.int32(0)))  # one number, of what kind and shape
    rates = np.asarray(jax.vmap(b1)(jnp.arange(rounds)), np.float64)
    wrong = ~((rates >= 0) & (rates < 1))
    if wrong.any():
        count = wrong.argmax()
        raise ValueError(
            f"b1 must be a schedule with values in [0, 1), got {rates[count]} for the count {count}"
        )
    return rates


def _matrix(name: str, tree: Any) -> np.ndarray:
    """All leaves side by side, float64 of shape (rounds, coordinates), or raises."""
    leaves = [
        _finite(f"{name} at {_checks.at(path)}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    rounds = _count_rounds(name, tree)
    return np.concatenate([leaf.reshape(rounds, math.prod(leaf.shape[1:])) for leaf in leaves], 1)
