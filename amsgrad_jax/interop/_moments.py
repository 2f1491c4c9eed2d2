"""Moments by the names of parameters: read from the state of any chain, and written into it.

A mask or a partition splits the moments of one run into several states, each for some of the
parameters; by name they are joined again. Between two libraries, a state is always a
:class:`.ScaleByAmsgradState` whose trees are dicts with names such as ``"dense/kernel"`` for keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from amsgrad_jax import _checks, _names, _state
from amsgrad_jax._convert import convert_storage
from amsgrad_jax._rule import Moments
from amsgrad_jax._state import AmsgradState, PackedAmsgradState, ScaleByAmsgradState

_State = TypeVar("_State")

WithoutMax: TypeAlias = Literal["raise", "use_nu"]
"""What to do with a state of Adam, which has no maximum: raise, or start it from ``nu``."""

OPTAX: Final = (optax.ScaleByAmsgradState, optax.ScaleByAdamState)

# The fields that count the updates of a run, beside those of the moments. What is not named here
# is left alone: a count of optax.ema or of reduce_on_plateau belongs to an accumulator, and is
# wrong without it.
_STEP_COUNTS: Final = {
    ("amsgrad_jax", "ResetMaxWhenState"): "count",
    ("amsgrad_jax", "StochasticRoundingState"): "count",
    ("amsgrad_jax", "WatchState"): "count",
    ("optax", "AddNoiseState"): "count",
    ("optax", "ConditionallyMaskState"): "step",
    ("optax", "ConditionallyTransformState"): "step",
    ("optax", "InjectHyperparamsState"): "count",
    ("optax", "InjectStatefulHyperparamsState"): "count",
    ("optax", "MultiStepsState"): "gradient_step",
    ("optax", "ScaleByScheduleState"): "count",
    ("optax", "WrappedScheduleState"): "count",
}


def get_moments(state: optax.OptState, params: optax.Params) -> ScaleByAmsgradState:
    """Reads the moments from the state of a chain, as trees like the parameters.

    If masks or a partition split the moments into several states, they are joined.

    Args:
      state: Any tree with the state of this package's AMSGrad in it, full or packed. For several
        runs, stacked by ``jax.vmap(optimizer.init)``, use ``jax.vmap(get_moments)``.
      params: The parameters that the optimizer trains, or ``jax.ShapeDtypeStruct`` for them.
        Leave out all others, or set them to None.

    Returns:
      The count and the moments, as arrays of ``state`` or, if it is packed, decoded.

    Raises:
      TypeError: If the state was cast to other dtypes.
      ValueError: If ``state`` contains no state of this package, or several that are not parts of
        one run; if their leaves do not match ``params``; or if it has several runs stacked.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import interop
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> state = amsgrad_jax.amsgradw(0.1).init(params)
      >>> moments = interop.get_moments(state, params)
      >>> print(moments.count, moments.nu_max["bias"])
      0 [0. 0. 0.]
    """
    joined = join_for(state, params)
    return joined._replace(
        **{field: _names.like(params, getattr(joined, field)) for field in Moments._fields}
    )


def set_moments(state: _State, moments: AmsgradState) -> _State:
    """Writes ``count``, ``mu``, ``nu`` and ``nu_max`` into the state of a chain.

    Every state of this package in it gets its leaves by their names, in its own dtypes (packed
    states rounded to nearest), on the devices of ``state``.

    All other counts of updates in it change by as much as ``count`` does, so that they all are
    equal to it if ``state`` is new: those of schedules, of ``optax.inject_hyperparams``,
    ``optax.MultiSteps``, ``optax.conditionally_mask``, ``optax.conditionally_transform``,
    ``optax.add_noise``, and of :func:`.stochastic_rounding`, :func:`.watch` and
    :func:`.reset_max_when`. A count outside of a wrapper that skips or accumulates updates is
    larger than ``count`` in the run that ``moments`` come from; set that one yourself. Everything
    else does not change, including the counts that other transformations use for their own
    averages.

    Args:
      state: The state of a chain, as its ``init`` returns it. If memory is short and the chain
        has nothing but moments and counts, pass ``jax.eval_shape(optimizer.init, params)``: then
        the arrays of ``moments`` are used without a copy, if their dtypes are right.
      moments: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState` for all parameters
        in ``state``, such as :func:`get_moments` and :func:`from_torch` return.

    Returns:
      A new state like ``state``. If ``state`` has arrays, no array is shared with ``moments``.

    Raises:
      TypeError: If ``moments`` is not a state of this package, or a moment is not a floating
        point or complex array.
      ValueError: If ``state`` contains no state of this package, or several for one parameter; if
        their leaves do not match; if either has several runs stacked (use
        ``jax.vmap(set_moments)``); or if ``state`` has shapes in place of arrays that ``moments``
        does not have.

    Examples:
      >>> import amsgrad_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> moments = amsgrad_jax.scale_by_amsgrad().init(params)
      >>> moments = moments._replace(count=jnp.array(7))
      >>> optimizer = amsgrad_jax.amsgrad(optax.cosine_decay_schedule(0.1, 100))
      >>> state = interop.set_moments(jax.eval_shape(optimizer.init, params), moments)
      >>> print(state[0].count, state[1].count)
      7 7
    """
    if not _state.is_state(moments):
        raise TypeError(
            "moments must be a ScaleByAmsgradState or a PackedAmsgradState, as get_moments and "
            f"from_torch return, got {_state.type_names([type(moments)])}"
        )
    if not jnp.issubdtype(jnp.result_type(moments.count), jnp.integer):
        raise TypeError(f"moments.count must be an integer, got {_checks.shown(moments.count)}")
    if is_known(moments.count) and np.any(np.asarray(moments.count) < 0):
        raise ValueError(f"moments.count must not be negative, got {moments.count}")
    return fill("state", state, join("moments", moments, _state.KINDS), _state.KINDS)


def fill(what: str, state: Any, moments: ScaleByAmsgradState, kinds: tuple[type, ...]) -> Any:
    """:func:`set_moments` with moments by name, for states of these kinds.

    ``what`` is the argument that ``state`` is.
    """

    def is_node(node: Any) -> bool:
        return isinstance(node, kinds)

    shapes = jax.tree.map(lambda n: _shapes(n) if is_node(n) else n, state, is_leaf=is_node)
    present = join(what, shapes, kinds)
    # The parts of one run have taken as many steps: the count of the first is that of all.
    before = _state.count_of(next(filter(is_node, jax.tree.leaves(state, is_leaf=is_node))))
    for field in _fields_of(present):
        _checks.inexact(f"{field} to set", getattr(moments, field))
        same_names(f"{field} to set", getattr(moments, field), getattr(present, field))

    def set_to(count: Any, old: Any) -> Any:
        return copy(count, old.dtype, _sharding(old))

    def moved(old: Any) -> Any:
        # Other than count, where something skips updates or accumulates gradients: by as much.
        if isinstance(old, jax.ShapeDtypeStruct) or isinstance(before, jax.ShapeDtypeStruct):
            return set_to(moments.count, old)
        return set_to(old + (moments.count - before), old)

    def in_node(node: Any) -> Any:
        if is_node(node):
            numbers = _in_numbers(_shapes(node)) if _is_packed(node) else node
            new = {"count": set_to(moments.count, node.count)}
            for field in _fields_of(numbers):
                olds, given = getattr(numbers, field), getattr(moments, field)
                leaves = {name: _fit(given[name], old) for name, old in _names.named_leaves(olds)}
                new[field] = _names.like(olds, leaves)
            if not _is_packed(node):
                return node._replace(**new)
            packed = convert_storage(ScaleByAmsgradState(**new), "packed")
            return jax.tree.map(_fit, packed, node)
        if field := _step_count(node):
            node = type(node)(*map(in_tree, node))
            return node._replace(**{field: jax.tree.map(moved, getattr(node, field))})
        return node

    def in_tree(tree: Any) -> Any:
        return jax.tree.map(in_node, tree, is_leaf=lambda n: is_node(n) or bool(_step_count(n)))

    filled = in_tree(state)
    for name, leaf in _names.named_leaves(filled):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"state has shapes in place of arrays, and has {name!r} beside moments and counts: "
                "pass what the optimizer's init returns"
            )
    return filled


def join(what: str, state: Any, kinds: tuple[type, ...]) -> ScaleByAmsgradState:
    """The moments of all states in a tree by name, as numbers; of Adam ``nu_max`` is None.

    ``what`` is the argument that ``state`` is.
    """
    every = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _state.KINDS + OPTAX))
    nodes = [node for node in every if isinstance(node, kinds)]
    if not nodes:
        others = {type(node) for node in every if isinstance(node, _state.KINDS + OPTAX)}
        hint = "; amsgrad_jax.interop.from_optax converts a state of optax"
        if kinds == OPTAX:
            hint = "; a state of amsgrad_jax is the first argument of to_optax"
        raise ValueError(
            f"{what} must contain one of {_state.type_names(kinds)}, found "
            f"{_state.type_names(others) or 'none of these in ' + type(state).__name__}"
            f"{hint if others else ''}"
        )
    found = {type(node) for node in nodes}
    if len(found) > 1 and kinds != _state.KINDS:  # of which two are only stored differently
        raise ValueError(f"{what} must contain one kind, found {_state.type_names(found)}")
    for node in nodes:
        if _state.is_state(node):
            _state.check(node, _state.storage_of(node))
        _state.check_one_run(node)
    counts = [_state.count_of(node) for node in nodes]
    known = {int(count) for count in counts if is_known(count)}
    if len(known) > 1:
        raise ValueError(f"{what} holds several optimizers, with different counts {sorted(known)}")
    nodes = [_in_numbers(node) for node in nodes]
    joined = {field: {} for field in _fields_of(nodes[0])}
    for node in nodes:
        for field, leaves in joined.items():
            for name, leaf in _names.by_name(getattr(node, field)).items():
                if name in leaves:
                    raise ValueError(f"{what} holds several {field} for {name!r}")
                leaves[name] = leaf
    nu_max: Any = joined.get("nu_max")
    return ScaleByAmsgradState(counts[0], joined["mu"], joined["nu"], nu_max)


def join_for(state: Any, params: Any) -> ScaleByAmsgradState:
    """The moments by name of a state of this package, which must be those of ``params``."""
    joined, leaves = join("state", state, _state.KINDS), leaves_of(params)
    for field in Moments._fields:
        same_names(f"{field} of the state", getattr(joined, field), leaves)
    return joined


def build(params: Any, count: Any, moments: Mapping[str, Mapping[str, Any]]) -> ScaleByAmsgradState:
    """The state for ``params`` of moments by field and name: copies in its own dtypes.

    On the devices of ``params``. The way in for every other library.
    """
    leaves, fields = leaves_of(params), {}
    for i, field in enumerate(Moments._fields):
        given = moments[field]
        same_names(field, given, leaves)
        copies = {
            name: copy(given[name], _state.moment_dtypes(leaf)[i], _sharding(leaf))
            for name, leaf in leaves.items()
        }
        fields[field] = _names.like(params, copies)
    return ScaleByAmsgradState(jnp.array(count, jnp.int32), **fields)


def leaves_of(params: Any) -> dict[str, Any]:
    """The parameters by name, or raises if one is no array."""
    leaves = _names.by_name(params)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            hint = "leave out what is not trained, as by equinox.filter"
            if hasattr(leaf, "detach"):  # a tensor of PyTorch
                hint = "jax.numpy.asarray(tensor.detach().numpy()) makes an array of a tensor"
            raise TypeError(
                f"params must have arrays for leaves, got {_state.type_names([type(leaf)])} at "
                f"{name!r}: {hint}"
            )
    _checks.inexact("params", params)
    return leaves


def same_names(what: str, got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises unless ``got`` has a leaf of equal shape for every expected one, and no other."""
    for name in expected:
        if name not in got:
            raise ValueError(f"{what}: nothing for the parameter {name!r}")
    for name, leaf in got.items():
        if name not in expected:
            raise ValueError(f"{what}: {name!r} is no parameter")
        if jnp.shape(leaf) != jnp.shape(expected[name]):
            raise ValueError(
                f"{what}: {name!r} has shape {jnp.shape(leaf)}, "
                f"the parameter has shape {jnp.shape(expected[name])}"
            )
        if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(expected[name]):
            raise ValueError(f"{what}: {name!r} is complex, the parameter is real")


def check_without_max(value: Any) -> None:
    """Raises unless ``value`` says what to do about a state without a maximum."""
    _checks.literal("without_max", value, get_args(WithoutMax))


def _is_packed(node: Any) -> bool:
    return isinstance(node, PackedAmsgradState)


def _step_count(node: Any) -> str | None:
    """The field of a state that counts the updates of the run."""
    kind = type(node)
    return _STEP_COUNTS.get((kind.__module__.partition(".")[0], kind.__name__))


def _fields_of(node: Any) -> tuple[str, ...]:
    return tuple(field for field in Moments._fields if getattr(node, field, None) is not None)


def _shapes(node: Any) -> Any:
    return jax.eval_shape(lambda tree: tree, node)


def _in_numbers(node: Any) -> Any:
    if not _is_packed(node):
        return node
    if all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(node)):
        return jax.eval_shape(lambda node: convert_storage(node, "full"), node)
    return convert_storage(node, "full")


def is_known(leaf: Any) -> bool:
    """Whether it has values: it is not traced, and no shape in their place."""
    return not isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None) if not isinstance(leaf, jax.core.Tracer) else None


def _fit(new: Any, old: Any) -> jax.Array:
    """``new`` in the dtype and on the devices of ``old``."""
    sharding = _sharding(old)
    takes_over = isinstance(old, jax.ShapeDtypeStruct) and isinstance(new, jax.Array)
    if takes_over and new.dtype == old.dtype and not new.weak_type and sharding is None:
        return new
    return copy(new, old.dtype, sharding)


def copy(new: Any, dtype: Any, sharding: Any) -> jax.Array:
    """A copy in that dtype on those devices."""
    # Of a numpy array a copy in host memory first: JAX may take that over as it is, and the
    # next step of the library that it came from would write into it.
    fresh = jnp.array if isinstance(new, jax.Array) else np.array
    return jax.device_put(fresh(new, dtype), sharding)
