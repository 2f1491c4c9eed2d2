"""Optimizer states by the paths of parameters: take one out of a chain, put one in.

A leaf is named by its path, as in ``"dense/kernel"``. A mask or a partition spreads one
run over several states, each for some of the parameters; by path they are one again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _state
from amsgrad_jax._convert import convert_storage
from amsgrad_jax._state import ScaleByAmsgradState

Leaves: TypeAlias = dict[str, Any]
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]
WithoutMax: TypeAlias = Literal["raise", "use_nu"]

OURS = _state.KINDS
OPTAXS = (optax.ScaleByAmsgradState, optax.ScaleByAdamState)
_KNOWN = OURS + OPTAXS


def by_path(tree: Any) -> Leaves:
    """The leaves of a tree by their paths."""
    leaves: Leaves = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = _state.named(keys)
        if path in leaves:  # of {"a/b": ..., "a": {"b": ...}}
            raise ValueError(f"two leaves have the path {path!r}")
        leaves[path] = leaf
    return leaves


def like(params: Any, leaves: Leaves) -> Any:
    """A tree with the structure of ``params`` and the given leaves."""
    return jax.tree.unflatten(
        jax.tree.structure(params), [leaves[path] for path in by_path(params)]
    )


def same_paths(what: str, got: Leaves, expected: Leaves) -> None:
    """Raises unless ``got`` has a leaf of equal shape for every expected one, and no other."""
    for path in expected:
        if path not in got:
            raise ValueError(f"{what}: nothing for the parameter {path!r}")
    for path, leaf in got.items():
        if path not in expected:
            raise ValueError(f"{what}: {path!r} is no parameter")
        if jnp.shape(leaf) != jnp.shape(expected[path]):
            raise ValueError(
                f"{what}: {path!r} has shape {jnp.shape(leaf)}, "
                f"the parameter has shape {jnp.shape(expected[path])}"
            )


def check_without_max(value: Any) -> None:
    """Raises unless ``value`` says what to do about a state without a maximum."""
    if value not in get_args(WithoutMax):
        raise ValueError(f"without_max must be 'raise' or 'use_nu', got {value!r}")


def is_node(node: Any) -> bool:
    """Whether this is a state of AMSGrad or Adam, and not a tree with some in it."""
    return isinstance(node, _KNOWN)


def nodes(state: Any) -> list[Any]:
    """The states of AMSGrad or Adam in a chain's state."""
    return [node for node in jax.tree.leaves(state, is_leaf=is_node) if is_node(node)]


def _of_one_kind(state: Any, kinds: tuple[type, ...]) -> list[Any]:
    found_nodes = nodes(state)
    found = {type(node) for node in found_nodes}
    is_one_kind = len(found) == 1 or found <= set(OURS)  # of which two are only stored differently
    if not found or not is_one_kind or not found <= set(kinds):
        raise ValueError(
            f"the state must hold one of {_state.names(kinds)}, "
            f"found {_state.names(found) or 'none of these in ' + type(state).__name__}"
        )
    return found_nodes


def ours(params: Any, count: Any, mu: Any, nu: Any, nu_max: Any) -> ScaleByAmsgradState:
    """This package's state for ``params``, in its own dtypes, of four given values."""
    return put(_state.zeros(params, "full"), ScaleByAmsgradState(count, mu, nu, nu_max))


def take(
    state: Any, params: Any, kinds: tuple[type, ...] = _KNOWN
) -> tuple[jax.Array, Any, Any, Any]:
    """Takes ``count, mu, nu, nu_max`` out of a chain's state, as trees like ``params``.

    Args:
      state: Any tree with the state of this package's or optax's AMSGrad, or of optax's
        Adam, in it. Where masks or a partition spread the parameters over several, they
        are joined; they must have the same count and be of one kind.
      params: The parameters that it optimizes, or ``jax.ShapeDtypeStruct`` for them.
      kinds: The types of states to expect.

    Returns:
      The four values; arrays of ``state`` itself, or, if it is packed, the numbers of its words.
      Of Adam ``nu_max`` is None.

    Raises:
      ValueError: If there is no such state, or several that are not parts of one; or if
        their leaves do not fit ``params``.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> from amsgrad_jax import interop
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> state = amsgrad_jax.amsgradw(0.1).init(params)
      >>> count, mu, nu, nu_max = interop.take(state, params)
      >>> print(count, nu_max["bias"])
      0 [0. 0. 0.]
    """
    found = _of_one_kind(state, kinds)
    for node in filter(_state.is_state, found):
        _state.check(node, _state.storage_of(node))
    found = [_in_numbers(node) for node in found]
    counts = {int(node.count) for node in found}
    if len(counts) != 1:
        raise ValueError(f"state holds several optimizers with different counts {sorted(counts)}")
    trees = []
    for name in _moments_of(found[0]):
        leaves: Leaves = {}
        for node in found:
            for path, leaf in by_path(getattr(node, name)).items():
                if path in leaves:
                    raise ValueError(f"state holds several {name} for {path!r}")
                leaves[path] = leaf
        same_paths(f"{name} of the state", leaves, by_path(params))
        trees.append(like(params, leaves))
    mu, nu, *rest = trees
    return found[0].count, mu, nu, rest[0] if rest else None


def put(state: Any, moments: Any) -> Any:
    """Puts ``count``, ``mu``, ``nu`` and ``nu_max`` into a chain's state.

    Every state of AMSGrad or Adam in it gets its leaves by their paths, in the dtype (packed
    ones rounded to nearest) and on the devices of what they replace. Every other step
    count in it (of schedules, of injected hyperparameters, of gradient steps in
    ``MultiSteps``) becomes ``count``, too.

    Args:
      state: The state of any chain, as from its ``init``.
      moments: A :class:`.ScaleByAmsgradState` or :class:`.PackedAmsgradState`, for all
        parameters in ``state``.

    Returns:
      A new state; it shares no array with ``moments``.

    Raises:
      ValueError: If ``state`` has no place for the moments, or several kinds of it; or
        if their leaves do not fit.

    Examples:
      >>> import amsgrad_jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from amsgrad_jax import interop
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> moments = amsgrad_jax.scale_by_amsgrad().init(params)
      >>> moments = moments._replace(count=jnp.array(7))
      >>> optimizer = amsgrad_jax.amsgrad(optax.cosine_decay_schedule(0.1, 100))
      >>> state = interop.put(optimizer.init(params), moments)
      >>> print(state[0].count, state[1].count)
      7 7
    """
    found = [_in_numbers(node) for node in _of_one_kind(state, _KNOWN)]
    names = _moments_of(found[0])
    moments = _in_numbers(moments)
    given = {name: by_path(getattr(moments, name)) for name in names}
    for name in names:
        _checks.inexact(f"{name} to put in", getattr(moments, name))
        present: Leaves = {}
        for node in found:
            present |= by_path(getattr(node, name))
        same_paths(f"{name} to put in", given[name], present)

    def replace(node: Any) -> Any:
        if not is_node(node):
            return node
        numbers = _in_numbers(node)
        new = {}
        for name in names:
            old = by_path(getattr(numbers, name))
            leaves = {path: in_place_of(leaf, given[name][path]) for path, leaf in old.items()}
            new[name] = like(getattr(numbers, name), leaves)
        filled = numbers._replace(**new)
        return filled if numbers is node else convert_storage(filled, "packed")

    def set_count(path: Any, leaf: Any) -> Any:
        return in_place_of(leaf, moments.count) if _is_step_count(path, leaf) else leaf

    state = jax.tree.map(replace, state, is_leaf=is_node)
    return jax.tree_util.tree_map_with_path(set_count, state, is_leaf=_counts_otherwise)


def _in_numbers(node: Any) -> Any:
    if isinstance(node, _state.PackedAmsgradState):
        return convert_storage(node, "full")
    return node


def _moments_of(node: Any) -> tuple[str, ...]:
    return tuple(name for name in ("mu", "nu", "nu_max") if name in node._fields)


def in_place_of(old: Any, new: Any) -> jax.Array:
    """A copy of ``new`` in the dtype and on the devices of ``old``."""
    # A copy, so that donating the one state does not delete the arrays of the other.
    return jax.device_put(jnp.array(new, old.dtype), getattr(old, "sharding", None))


def _counts_otherwise(node: Any) -> bool:
    # Its count is of the steps in the present average of losses.
    return isinstance(node, optax.contrib.ReduceLROnPlateauState)


def _is_step_count(path: Any, leaf: Any) -> bool:
    # A field of that name; a parameter may be called "count", too, but stands in a dict.
    return (
        getattr(path[-1] if path else None, "name", None)
        in ("count", "gradient_step")  # the latter of MultiSteps
        and jnp.shape(leaf) == ()
        and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
    )
