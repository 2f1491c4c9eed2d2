"""The states of AMSGrad inside the state of a chain, a mask, a partition or a wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from amsgrad_jax._transform import ScaleByAmsgradState


def named(path: Any) -> str:
    """A path as a name for people: ``"dense/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nodes(state: Any) -> list[tuple[Any, ScaleByAmsgradState]]:
    """Every :class:`ScaleByAmsgradState` in a tree, with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_ours)
    return [(path, leaf) for path, leaf in leaves if _is_ours(leaf)]


def states(state: optax.OptState) -> dict[str, ScaleByAmsgradState]:
    """:func:`nodes` by the names of their paths, or raises if there is none."""
    found = {named(path): node for path, node in nodes(state)}
    if not found:
        raise ValueError(
            f"found no amsgrad_jax.ScaleByAmsgradState in the state, only {_kinds(state)}; "
            "states of other libraries come in through amsgrad_jax.interop"
        )
    return found


def map_states(
    function: Callable[[ScaleByAmsgradState], ScaleByAmsgradState], state: optax.OptState
) -> Any:
    """The tree with ``function`` of every state of AMSGrad in it."""
    states(state)  # raises if there is none
    return jax.tree.map(
        lambda node: function(node) if _is_ours(node) else node, state, is_leaf=_is_ours
    )


def _is_ours(node: Any) -> bool:
    return isinstance(node, ScaleByAmsgradState)


def _kinds(state: Any) -> str:
    """The types of states in a tree, for an error."""
    kinds = {type(state)}

    def see(node: Any) -> bool:  # is asked about every node, from the root down
        if hasattr(node, "_fields"):
            kinds.add(type(node))
        return False

    jax.tree.leaves(state, is_leaf=see)
    return names(kinds)


def names(kinds: Iterable[type]) -> str:
    """Types for an error, with their package: optax has a ScaleByAmsgradState, too."""
    return ", ".join(sorted(f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in kinds))
