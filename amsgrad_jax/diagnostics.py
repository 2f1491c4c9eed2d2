r"""Effect of the running maximum: a report, a wrapper that computes it in training, and a plot.

:func:`max_report` reads the state of an optimizer, :func:`watch` does so at regular intervals
within a compiled loop, :func:`plot` draws reports as a heat map over leaves and steps. The
remedies are in :mod:`amsgrad_jax.remedies`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax import _checks, _conventions, _names, _packed, _rule, _state
from amsgrad_jax._rule import Moments
from amsgrad_jax._transform import Hyperparameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Report",
    "WatchState",
    "last_report",
    "max_report",
    "plot",
    "watch",
]

Report: TypeAlias = dict[str, jax.Array]
"""A flat dict of float32 scalars, with keys such as ``"dense/kernel/binding"``; for a logger."""

# A maximum less than 1 % above nu is not called one that binds: rounding alone, of the bias
# correction or of a packed nu (0.2 % next to its maximum), makes differences below that.
_MARGIN: Final = 1.01

# Quantiles come from this many coordinates of a leaf, all if it has fewer, in a histogram. On
# a CPU that takes 0.5 ms a leaf, a sort of as many 4 ms, a sort of 10 million 38 steps. The rank
# of a quantile is then off by 0.4 % (standard deviation of the median: 0.5 / sqrt(16381)). A prime
# number, so that evenly spaced coordinates do not all fall into a few columns.
_SAMPLE: Final = 16381

# A bin for each float32 >= 0 that has 5 mantissa bits, which takes 14 bits in all.
_DROPPED: Final = np.uint32(18)
_BINS: Final = 1 << 13

# Coordinates are counted, and those of the sample found, in uint32.
_LARGEST: Final = 2**32 - 1


def max_report(
    state: optax.OptState,
    *,
    per: Literal["leaf", "tree"] | Callable[[str], str] = "leaf",
    quantiles: Sequence[float] = (0.5, 0.9),
    frozen: float = 100.0,
    learning_rate: Hyperparameter | None = None,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    convention: _conventions.ConventionName | _conventions.Convention = "pytorch",
) -> Report:
    r"""Reports how much the running maximum slows down each part of a model.

    A coordinate moves slower than with Adam by the factor

    .. math::

        s = \sqrt{\max(x_t, v_t) / v_t} \ge 1

    where :math:`x_t` is ``nu_max`` and :math:`v_t` is ``nu``, bias-corrected in the ``"optax"``
    convention. For every leaf or group, or for the whole tree, there are these figures, float32
    scalars:

    ==================== ===============================================================
    ``binding``          fraction of coordinates with :math:`x_t > 1.01\, v_t`
    ``frozen``           fraction whose :math:`s` is at least the argument ``frozen``
    ``nonfinite``        fraction with a moment that is infinite or NaN
    ``untouched``        fraction that has never had a gradient: all moments are 0
    ``slowdown_q50``     the median of :math:`s`; other ``quantiles`` accordingly
    ``slowdown_max``     the largest :math:`s`
    ``step_size_q50``    only with ``learning_rate``: quantiles of
                         :math:`\alpha / (\sqrt{\hat x_t} + \epsilon)`, the factor of the
                         (corrected) first moment in the last step
    ==================== ===============================================================

    Fractions are of all coordinates. Coordinates that are not finite count in no other figure.
    Untouched ones have no :math:`s` and no step size; if no coordinate has one, these figures
    are 0.

    Fractions and the largest :math:`s` are exact and take one pass over the state. Quantiles come
    from a histogram with 32 bins per factor of two, so they are up to 3 % too low, never too high.
    Leaves with more than 16,381 coordinates are sampled at that many evenly spaced ones: the rank
    of a quantile is then off by 0.4 % of all coordinates (one standard deviation), on heavy tails
    its value can be off by more, and the quantile 1 is the largest of the sample.

    For a packed state, :math:`s` is computed from the rounded :math:`\sqrt{x_t}`, which a step
    divides by: it is off by up to 3 %, and at most 2,048. ``binding`` then counts the coordinates
    whose maximum is above the rounded :math:`1.01\, v_t`.

    Outside of ``jit`` this compiles once for each shape of a leaf, inside once for each leaf.
    Within ``jax.shard_map`` the figures are reduced over the axes that a leaf is split over, so
    every device has the report of the whole arrays. This needs JAX 0.7 and ``check_vma``, the
    default; otherwise each device reports its own part.

    Args:
      state: Any tree with a state of AMSGrad in it, full or packed. If it has several, each is
        reported under its path in ``state``. For a ``flax.nnx.Optimizer``, pass its ``opt_state``.
      per: ``"leaf"`` for a set of figures for each leaf, ``"tree"`` for one set for all, or a
        function from a leaf's path, such as ``"dense/kernel"``, to the name of its group.
      quantiles: The quantiles to report, numbers in (0, 1]. 0.5 gives ``slowdown_q50``, 0.999
        gives ``slowdown_q99.9``.
      frozen: A coordinate counts as frozen if its slowdown :math:`s` is at least this; at least
        1, by default 100.
      learning_rate: The optimizer's step size :math:`\alpha_t`: a number, or a schedule, called
        with the count of the last step. None: the report has no step sizes.
      b2: The optimizer's ``b2``, in [0, 1), which its state does not contain. Used for step
        sizes, and for every figure in the ``"optax"`` convention.
      eps: The optimizer's ``eps``, not negative, in units of the gradient. Used for step sizes
        only.
      eps_root: The optimizer's ``eps_root``, not negative, in units of the squared gradient. Used
        for step sizes only.
      convention: The optimizer's convention: a name or a :class:`.Convention`. Used for step
        sizes; always pass it for ``"optax"``, whose maximum is of the bias-corrected ``nu``.

    Returns:
      A flat dict for a logger, such as ``{"dense/kernel/binding": ...}``. The keys depend only on
      the structure of ``state`` and on the arguments. Leaves without elements are left out.

    Raises:
      TypeError: If an argument is of the wrong type, ``per`` does not return a string, or the
        state was cast to other dtypes.
      ValueError: If ``state`` contains no state of AMSGrad, an argument is out of its range, two
        leaves or two states have the same name, as in ``{"a/b": ..., "a": {"b": ...}}``, a leaf
        has more than 4,294,967,295 elements, or ``state`` has several runs stacked.

    Examples:
      One gradient was 100 times as large as the others, 40 steps ago:

      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import diagnostics
      >>> optimizer = amsgrad_jax.amsgrad(0.1, b2=0.9)
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> for step in range(50):
      ...     gradients = {"w": jnp.array([1.0, 100.0 if step == 10 else 1.0])}
      ...     _, state = optimizer.update(gradients, state)
      >>> report = diagnostics.max_report(state, learning_rate=0.1, b2=0.9)
      >>> for name, value in report.items():
      ...     print(f"{name} {value:.3f}")
      w/binding 0.500
      w/frozen 0.000
      w/nonfinite 0.000
      w/untouched 0.000
      w/slowdown_q50 1.000
      w/slowdown_q90 7.500
      w/step_size_q50 0.003
      w/step_size_q90 0.100
      w/slowdown_max 7.580

    References:
      Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
      <https://arxiv.org/abs/1904.09237>`_, ICLR 2018, Algorithm 2, for :math:`x_t`.
    """
    if not callable(per) and per not in ("leaf", "tree"):
        raise ValueError(f"per must be 'leaf', 'tree' or a function of a path, got {per!r}")
    if not np.iterable(quantiles):
        raise TypeError(f"quantiles must be a sequence of numbers in (0, 1], got {quantiles!r}")
    for quantile in quantiles:
        if not 0 < _checks.real_scalar("quantiles", quantile, "numbers in (0, 1]") <= 1:
            raise ValueError(f"quantiles must be in (0, 1], got {quantile!r}")
    frozen = _checks.real_scalar("frozen", frozen, "a slowdown of at least 1")
    if not frozen >= 1:
        raise ValueError(f"frozen must be a slowdown of at least 1, got {frozen!r}")
    hyperparameters = {
        name: _checks.hyperparameter(name, value)
        for name, value in (("b2", b2), ("eps", eps), ("eps_root", eps_root))
    }
    if learning_rate is not None:
        learning_rate = _checks.hyperparameter_or_schedule("learning_rate", learning_rate)
    # Step sizes are those of the first moment as it is after its correction.
    convention = dataclasses.replace(_conventions.resolve(convention), correct_mu=False)

    found = _state.require_states(state)
    groups: dict[str, _Measured] = {}
    owners: dict[str, int] = {}
    for number, (place, node) in enumerate(found):
        _state.check_one_run(node)
        count = jnp.maximum(_state.count_of(node), 1)  # before the first step: no division by 0
        rate = learning_rate
        if callable(learning_rate):
            rate = _checks.hyperparameter("learning_rate", learning_rate(count - 1))
        _state.check(node, _state.storage_of(node))
        leaves = [leaf for leaf, _ in _names.named_leaves(_state.like_params(node))]
        for leaf, stored in zip(leaves, _state.without_paths(node), strict=True):
            size = jax.tree.leaves(stored)[0].size
            if size == 0:
                continue
            if size > _LARGEST:
                raise ValueError(
                    f"{leaf or 'the root'} has {size:,} coordinates, but a report counts up to "
                    f"{_LARGEST:,} in a leaf: leave it out with optax.masked, or report a part"
                )
            coefficients = _rule.coefficients(
                count,
                b1=0.0,  # is not used
                **hyperparameters,
                convention=convention,
                nesterov=False,
                dtype=stored.nu.dtype if isinstance(stored, Moments) else jnp.dtype("float32"),
            )
            group = leaf if per == "leaf" else "" if per == "tree" else per(leaf)
            if not isinstance(group, str):
                raise TypeError(f"per must return the name of a group, got {group!r} for {leaf!r}")
            parts = (place if len(found) > 1 else "", group)
            name = "/".join(part for part in parts if part)
            # Leaves meet in a group because `per` says so, not because their paths look alike.
            if (per == "leaf" and name in groups) or owners.setdefault(name, number) != number:
                raise ValueError(
                    f"two {'leaves' if per == 'leaf' else 'groups of two states'} have the name "
                    f"{name!r}: rename one, or pass a function as per that tells them apart"
                )
            measured = _measure(stored, coefficients, frozen, rate)
            groups[name] = _merged(groups[name], measured) if name in groups else measured
    return {
        f"{group}/{name}" if group else name: jnp.asarray(value, jnp.float32)
        for group, measured in groups.items()
        for name, value in _entries(measured, quantiles).items()
    }


class _Measured(NamedTuple):
    """The counts of a leaf, or of a group of leaves."""

    counts: dict[str, jax.Array]  # "size" is one of them
    slowdown_max: jax.Array
    reached: dict[str, jax.Array]  # how many coordinates are in each bin and those below it


@jax.jit
def _measure(
    stored: _state.Stored,
    c: _rule.Coefficients,
    frozen: jax.typing.ArrayLike,
    learning_rate: jax.typing.ArrayLike | None,
) -> _Measured:
    def view(stored: _state.Stored) -> tuple[Moments, _Seen]:
        moments = _state.numbers(stored)
        if not isinstance(stored, Moments):
            # A root below half a unit of its code reads 0; it is at most 2**-11 of the maximum's.
            moments = moments._replace(nu=jnp.maximum(moments.nu, 2**-22 * moments.nu_max))
        moments = moments._replace(nu=c.max_scale * moments.nu)
        radicand = jnp.maximum(moments.nu_max, moments.nu)
        finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, moments))
        live = finite & (radicand > 0)
        has_nu = live & (moments.nu > 0)
        # Infinite where nu has fallen to 0; not by a division, nor by a constant, of which
        # JAX's own checks would complain everywhere.
        largest = jnp.finfo(radicand.dtype).max
        ratio = 2 * jnp.where(live & ~has_nu, largest, jnp.zeros_like(radicand))
        ratio = jnp.where(has_nu, radicand / jnp.where(has_nu, moments.nu, 1), ratio)
        return moments, _Seen(radicand, finite, live, ratio)

    moments, seen = view(stored)
    level = _MARGIN * moments.nu
    if not isinstance(stored, Moments):
        level = _packed.rounded_max(level)
    flags = {
        "binding": seen.live & (moments.nu_max > level),
        "frozen": seen.live & (seen.ratio >= jnp.square(frozen)),
        "nonfinite": ~seen.finite,
        "untouched": (moments.mu == 0) & (seen.radicand == 0),
    }
    # One reduction: five of them take 16 times as long on a CPU.
    *counts, ratio_max = jax.lax.reduce(
        (*(flag.astype(jnp.uint32) for flag in flags.values()), seen.ratio),
        (*len(flags) * [jnp.uint32(0)], jnp.zeros((), seen.ratio.dtype)),
        lambda a, b: (*map(jnp.add, a[:-1], b[:-1]), jnp.maximum(a[-1], b[-1])),
        tuple(range(seen.ratio.ndim)),
    )
    _, sampled = view(jax.tree.map(_sample, stored))
    values = {"slowdown": jnp.sqrt(sampled.ratio)}
    if learning_rate is not None:
        divisor, _ = _rule.denominator(sampled.radicand, c)
        values["step_size"] = jnp.asarray(learning_rate, divisor.dtype) / divisor
    size = jnp.float32(moments.mu.size)
    # For how many coordinates one of the sample stands. It multiplies what has been counted and
    # added up in integers: sums of it would go on growing after the last bin that has any.
    each = size / sampled.live.size
    # Within `shard_map` a leaf is a part of its array: what is counted of the parts is added up,
    # in float32, for all together may be too many for integers.
    axes = _split_over(stored)
    return _Measured(
        counts={
            name: _reduced(jax.lax.psum, count.astype(jnp.float32), axes)
            for name, count in zip(("size", *flags), (size, *counts), strict=True)
        },
        slowdown_max=_reduced(jax.lax.pmax, jnp.sqrt(ratio_max), axes),
        reached={
            name: each * _reached(value, sampled.live, axes) for name, value in values.items()
        },
    )


def _split_over(stored: _state.Stored) -> tuple[str, ...]:
    """The axes of the mesh over which ``shard_map`` has split what is stored for a leaf."""

    def axes(leaf: jax.Array) -> frozenset[str]:
        kind = jax.typeof(leaf)
        if hasattr(kind, "manual_axis_type"):
            return kind.manual_axis_type.varying
        return getattr(kind, "vma", frozenset())  # its older name; JAX 0.6.0 has neither

    return tuple(sorted(frozenset().union(*map(axes, jax.tree.leaves(stored)))))


def _reduced(
    collective: Callable[..., jax.Array], value: jax.Array, axes: tuple[str, ...]
) -> jax.Array:
    # JAX 0.7 does not take a collective over no axis.
    return collective(value, axes) if axes else value


class _Seen(NamedTuple):
    """The moments of some coordinates as a step sees them."""

    radicand: jax.Array
    finite: jax.Array
    live: jax.Array
    ratio: jax.Array


def _sample(stored: jax.Array) -> jax.Array:
    """Evenly spaced elements of an array, all if it is small."""
    number = min(stored.size, _SAMPLE)
    step, rest = divmod(stored.size, number)
    index = jnp.arange(number, dtype=jnp.uint32)
    index = index * np.uint32(step) + index * np.uint32(rest) // np.uint32(number)
    indices = []
    for size in reversed(stored.shape):
        indices.insert(0, index % np.uint32(size))
        index //= np.uint32(size)
    # No reshape of the array: of a sharded one that would gather all. On a mesh with explicit
    # axes, where the sharding is part of the type, the result's must be said: replicated.
    sharding = jax.typeof(stored).sharding
    everywhere = None
    if any(axis is not None for axis in sharding.spec):
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return stored.at[tuple(indices)].get(out_sharding=everywhere)


def _reached(values: jax.Array, live: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """How many of the live values, of all parts, are in each bin and those below it."""
    codes = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32) >> _DROPPED
    histogram = jnp.zeros(_BINS, jnp.uint32).at[codes].add(live.astype(jnp.uint32))
    return jnp.cumsum(_reduced(jax.lax.psum, histogram, axes)).astype(jnp.float32)


def _quantile(reached: jax.Array, quantile: float) -> jax.Array:
    """The lower end of the bin where the counts reach this part of all."""
    part = np.float32(quantile)
    if float(part) > quantile:  # of 10 coordinates 0.7 must not be more than 7
        part = np.nextafter(part, np.float32(0))
    code = jnp.argmax(reached >= part * reached[-1]).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(code << _DROPPED, jnp.float32)


def _merged(one: _Measured, other: _Measured) -> _Measured:
    return _Measured(
        jax.tree.map(jnp.add, one.counts, other.counts),
        jnp.maximum(one.slowdown_max, other.slowdown_max),
        jax.tree.map(jnp.add, one.reached, other.reached),
    )


def _entries(measured: _Measured, quantiles: Sequence[float]) -> dict[str, jax.Array]:
    counts = dict(measured.counts)
    size = counts.pop("size")
    figures = {name: count / size for name, count in counts.items()}
    for name, reached in measured.reached.items():
        for quantile in quantiles:
            figures[f"{name}_q{100 * quantile:.12g}"] = _quantile(reached, quantile)
    return figures | {"slowdown_max": measured.slowdown_max}


class WatchState(NamedTuple):
    """State of :func:`watch`.

    Args:
      count: Number of updates so far, an int32 scalar.
      figures: The values of the last report, a float32 vector; :func:`last_report` returns
        them with their names.
      names: A checksum of the names of the figures, a uint32 scalar.
      inner_state: State of the watched transformation.
    """

    # Not the report itself: with the names of parameters in it, the state would have another
    # structure where they are wrapped (`flax.nnx`) or not there (`optax.tree.map_params`).
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    figures: jax.Array
    names: jax.Array
    inner_state: optax.OptState


def watch(
    transformation: optax.GradientTransformation,
    every: int,
    report: Callable[[optax.OptState], Report] = max_report,
) -> optax.GradientTransformationExtraArgs:
    """Wraps a transformation and keeps its latest report in the state.

    Every ``every`` updates the report is computed again, under ``jax.lax.cond``; the other steps
    do not pay for it. A training loop logs :func:`last_report`, wherever in the state the moments
    are.

    The report is stored as numbers without names. So the state has the same structure everywhere,
    and works in a ``flax.nnx.Optimizer``, in ``jax.shard_map`` with split parameters, and with
    ``optax.tree.map_params``.

    It is a wrapper, like ``optax.apply_if_finite``. ``optax.snapshot`` and ``optax.monitor`` are
    members of a chain: they see the updates, not the state of the other members.

    Args:
      transformation: The optimizer to watch, or a chain that contains it.
      every: Number of updates from one report to the next, an int of at least 1, such as 100.
        The larger, the less time reports take.
      report: Function from the state of ``transformation`` to the report: :func:`max_report`, in
        ``functools.partial`` for other arguments, or your own function that returns real arrays
        of constant shapes. They are stored in float32. In ``shard_map`` it must return the same
        on all devices, as :func:`max_report` does.

    Returns:
      The transformation, with the same updates and a :class:`WatchState`. Until the first report
      all figures are 0. For a tree without parameters the report is empty.

    Raises:
      TypeError: If an argument is of the wrong type; in ``update``, if the state is not a
        :class:`WatchState`.
      ValueError: If ``every`` is less than 1; in ``init``, what ``report`` raises; in ``update``,
        if the state was made with a report of another size.

    Examples:
      >>> import functools
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import diagnostics
      >>> report = functools.partial(diagnostics.max_report, per="tree")
      >>> optimizer = diagnostics.watch(amsgrad_jax.amsgrad(0.1, b2=0.9), 10, report)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(params)
      >>> for step in range(1, 31):
      ...     updates, state = optimizer.update(2 * params, state)
      ...     params = optax.apply_updates(params, updates)
      ...     if step % 10 == 0:
      ...         figures = diagnostics.last_report(state, report)
      ...         print(f"step {step}: slowdown {figures['slowdown_q50']:.1f}")
      step 10: slowdown 1.0
      step 20: slowdown 1.4
      step 30: slowdown 2.2
    """
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every must be an int, got {every!r}")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    inner = _checks.transformation("transformation", transformation)
    _checks.function("report", report, "a state")

    # Defined once, so that outside of jit they are compiled once.
    def renew(inner_state: Any, last: jax.Array) -> jax.Array:
        figures = [jnp.ravel(leaf) for leaf in jax.tree.leaves(report(inner_state))]
        latest = jnp.concatenate([figure.astype(jnp.float32) for figure in figures])
        if latest.shape != last.shape:
            raise ValueError(
                f"state.figures has shape {list(last.shape)}, but report makes {latest.size} "
                "figures: the state was made by a watch with another report"
            )
        return latest

    def keep(inner_state: Any, last: jax.Array) -> jax.Array:
        return last

    def init(params: optax.Params) -> WatchState:
        inner_state = inner.init(params)
        # Not the report itself: of constants XLA would compute it while it compiles.
        shapes = jax.eval_shape(report, inner_state) if jax.tree.leaves(params) else {}
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        return WatchState(
            count=jnp.zeros((), jnp.int32),
            figures=jnp.zeros(size, jnp.float32),
            names=jnp.asarray(_checksum(shapes)),
            inner_state=inner_state,
        )

    def update(
        updates: optax.Updates,
        state: Any,  # what init returned
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WatchState]:
        state = _checks.state_of(WatchState, state)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = jnp.asarray(optax.safe_increment(state.count))
        figures = state.figures
        if figures.size:
            figures = jax.lax.cond(count % every == 0, renew, keep, inner_state, figures)
        return updates, WatchState(count, figures, state.names, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def last_report(
    state: optax.OptState, report: Callable[[optax.OptState], Report] = max_report
) -> Report:
    """Returns the last report that :func:`watch` computed.

    Args:
      state: A :class:`WatchState`, or any tree with exactly one in it, such as the state of a
        chain or the ``opt_state`` of a ``flax.nnx.Optimizer``; also under ``jit``.
      report: The function that was given to :func:`watch`. It is not computed; only the names
        and shapes of its figures are used.

    Returns:
      The report, in float32. Before the first report all figures are 0.

    Raises:
      ValueError: If ``state`` contains no :class:`WatchState` or several, or one that was made
        with another report.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import diagnostics
      >>> optimizer = diagnostics.watch(amsgrad_jax.amsgrad(0.1), every=1)
      >>> params = {"w": jnp.ones(3)}
      >>> _, state = optimizer.update(params, optimizer.init(params))
      >>> float(diagnostics.last_report(state)["w/slowdown_max"])
      1.0
    """

    def is_watch(node: Any) -> bool:
        return isinstance(node, WatchState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_watch) if is_watch(node)]
    if len(found) != 1:
        raise ValueError(
            f"state must have one diagnostics.WatchState in it, got {type(state).__name__} with "
            f"{len(found)}: pass the part that has one; of an nnx.Optimizer, its opt_state"
        )
    (watched,) = found
    # Without what flax.nnx wraps them in.
    figures, names = jax.tree.leaves((watched.figures, watched.names))
    if not figures.size:
        return {}
    shapes = jax.eval_shape(report, watched.inner_state)
    if not isinstance(names, jax.core.Tracer) and names != _checksum(shapes):
        raise ValueError(
            "report must be the one that watch was given: its figures have other names"
        )
    leaves, tree = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(figures, ends[:-1])
    return tree.unflatten(
        part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    )


def _checksum(shapes: Any) -> np.uint32:
    """A checksum of the names and shapes of the figures."""
    named = [
        f"{jax.tree_util.keystr(path)} {leaf.shape}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    return np.uint32(zlib.crc32("\n".join(named).encode()))


def plot(reports: Mapping[int, Mapping[str, Any]], figure: str = "slowdown_q90") -> Figure:
    """Draws one figure of several reports as a heat map: a row per leaf, a column per report.

    The colour scale is logarithmic for slowdowns and step sizes, linear for fractions.

    Args:
      reports: A dict from step numbers to reports of :func:`max_report`, all with the same keys
        for ``figure``.
      figure: Name of the figure to draw, such as ``"slowdown_q90"`` or ``"binding"``.

    Returns:
      A matplotlib figure; its method ``savefig`` writes a file.

    Raises:
      ImportError: If matplotlib is not installed.
      TypeError: If ``reports`` is not a dict from numbers to reports of real scalars.
      ValueError: If there are no reports, a step is not finite, no key is for ``figure``, or the
        reports have different keys for it.

    Examples:
      >>> from amsgrad_jax import diagnostics
      >>> reports = {
      ...     100: {"kernel/slowdown_q90": 1.2, "bias/slowdown_q90": 1.0},
      ...     200: {"kernel/slowdown_q90": 30.0, "bias/slowdown_q90": 1.1},
      ... }
      >>> diagnostics.plot(reports).axes[0].get_title()
      'slowdown_q90'
    """
    try:
        from matplotlib import colors
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"diagnostics.plot needs matplotlib: {_checks.extra('demo')}") from error

    if not isinstance(reports, Mapping) or not all(
        isinstance(report, Mapping) for report in reports.values()
    ):
        raise TypeError(
            f"reports must be a mapping from steps to reports, got {type(reports).__name__}"
        )
    for step in reports:
        if not np.isfinite(_checks.real_scalar("the steps of reports", step, "numbers")):
            raise ValueError(f"the steps of reports must be finite, got {step!r}")
    steps = sorted(reports)
    if not steps:
        raise ValueError("reports are empty: give at least one")
    keys, *others = (
        [key for key in reports[step] if key.split("/")[-1] == figure] for step in steps
    )
    for step, other in zip(steps[1:], others, strict=True):
        if differing := sorted({*keys} ^ {*other}):
            raise ValueError(
                f"reports must all have the same keys, but of those of steps {steps[0]} and {step} "
                f"only one has {differing[0]!r}"
            )
    if not keys:
        known = sorted({key.split("/")[-1] for key in reports[steps[0]]})
        raise ValueError(f"figure must be one of the reports' {', '.join(known)}, got {figure!r}")
    values = np.array(
        [
            [_checks.real_scalar(key, reports[step][key], "a real scalar") for step in steps]
            for key in keys
        ]
    )

    drawn = Figure(figsize=(9, 1.5 + 0.3 * len(keys)), dpi=120, layout="constrained")
    axes = drawn.subplots()
    scale: dict[str, Any] = {"vmin": 0, "vmax": 1}
    if figure.startswith(("slowdown", "step_size")):
        usable = values[np.isfinite(values) & (values > 0)]
        low, high = (usable.min(), usable.max()) if usable.size else (1, 1)
        scale = {"norm": colors.LogNorm(low, max(high, 1.01 * low), clip=True)}
    image = axes.pcolormesh(
        _edges(steps), _edges(range(len(keys))), values, cmap="cividis", **scale
    )
    names = [key.rpartition("/")[0] or "all" for key in keys]
    axes.set(xlabel="step", title=figure, yticks=range(len(keys)), yticklabels=names)
    axes.invert_yaxis()  # the first leaf on top
    drawn.colorbar(image)
    return drawn


def _edges(centers: Sequence[float]) -> np.ndarray:
    """Where cells around these numbers begin and end; a single one is 1 wide."""
    at = np.asarray(centers, np.float64)
    if len(at) == 1:
        return at[0] + np.array([-0.5, 0.5])
    between = (at[1:] + at[:-1]) / 2
    first, last = 2 * at[0] - between[0], 2 * at[-1] - between[-1]
    return np.concatenate([[first], between, [last]])
