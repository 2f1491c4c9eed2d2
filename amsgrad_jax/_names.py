"""The names of leaves, such as `"dense/kernel"`: for reports, for errors, and for the states of
other libraries.
"""

from __future__ import annotations

from typing import Any

import jax

# Flax keeps an array of NNX in a Variable and one with metadata in a box; both are nodes with the
# array under `.value`, which is no part of the parameter's name.
_WRAPPERS = {"Variable", "VariableState", "AxisMetadata"}


def of_path(path: Any) -> str:
    """The name of what is at a path; of the root it is empty."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf of a tree with its name, in the order of `jax.tree.leaves`."""
    found = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_wrapper):
        inner = jax.tree_util.tree_leaves_with_path(node) if _is_wrapper(node) else [((), node)]
        found += [(of_path((*path, *keys[1:])), leaf) for keys, leaf in inner]
    return found


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names, or raises if two have the same."""
    leaves: dict[str, Any] = {}
    for name, leaf in named_leaves(tree):
        if name in leaves:  # of {"a/b": ..., "a": {"b": ...}}
            raise ValueError(f"two leaves have the name {name!r}")
        leaves[name] = leaf
    return leaves


def like(tree: Any, leaves: dict[str, Any]) -> Any:
    """A tree with the structure of ``tree`` and the leaves of these names."""
    return jax.tree.structure(tree).unflatten([leaves[name] for name, _ in named_leaves(tree)])


def _is_wrapper(node: Any) -> bool:
    # By name: flax need not be installed.
    return any(
        kind.__name__ in _WRAPPERS and kind.__module__.partition(".")[0] == "flax"
        for kind in type(node).__mro__
    )
