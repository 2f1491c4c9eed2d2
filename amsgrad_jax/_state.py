"""The two states of AMSGrad: what they hold, their moments leaf by leaf, and where they are.

A storage is a class of its own, so that a state says by its structure what it is. Whatever reads
moments asks `leaf_moments`, and whatever changes them `map_moments`, of either class. The states
inside the state of a chain, a mask, a partition or a wrapper are found by `nodes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp
import optax

from amsgrad_jax import _checks, _packed
from amsgrad_jax._rule import Moments

Storage: TypeAlias = Literal["full", "packed"]
"""How a state holds its moments: in 12 or in 4 bytes per parameter."""


class ScaleByAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad` with ``storage="full"``; the names are those of optax.

    Args:
      count: Number of steps taken, an int32 scalar.
      mu: Average of the gradients, a tree like the parameters.
      nu: Average of the squared gradients, a real tree like the parameters.
      nu_max: Running maximum of ``nu`` (in the ``"optax"`` convention, of the
        bias-corrected ``nu``), a tree like ``nu``.

    The moments are in float32, in float64 for float64 parameters.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


class PackedAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad` with ``storage="packed"``.

    Args:
      count: Number of steps taken, an int32 scalar.
      packed: The three moments of each parameter in one uint32, a tree like the parameters.
        The words are not numbers: :func:`convert_storage` makes a
        :class:`ScaleByAmsgradState` of them.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (of tuple)
    packed: optax.Updates


AmsgradState: TypeAlias = ScaleByAmsgradState | PackedAmsgradState
KINDS = (ScaleByAmsgradState, PackedAmsgradState)


def resolve(storage: Any) -> Storage:
    """Returns the storage, or raises if there is none of that name."""
    return cast(Storage, _checks.one_of("storage", storage, get_args(Storage)))


def storage_of(state: AmsgradState) -> Storage:
    """The storage that makes such a state."""
    return "packed" if isinstance(state, PackedAmsgradState) else "full"


def zeros(params: Any, storage: Storage) -> AmsgradState:
    """The state before the first gradient."""
    count = jnp.zeros((), jnp.int32)
    if storage == "packed":
        check_real("params", params)
        words = jax.tree.map(lambda param: jnp.zeros_like(param, _packed.DTYPE), params)
        return PackedAmsgradState(count, words)

    def mu(param: Any) -> jax.Array:
        return jnp.zeros_like(param, wide(jnp.result_type(param)))

    def nu(param: Any) -> jax.Array:  # real, also of complex parameters
        return jnp.zeros_like(param, jnp.finfo(wide(jnp.result_type(param))).dtype)

    # Three separate trees: a buffer shared by two moments could not be donated.
    return ScaleByAmsgradState(count, *(jax.tree.map(zero, params) for zero in (mu, nu, nu)))


def like_params(state: AmsgradState) -> Any:
    """A tree of the state that has the structure and the shapes of the parameters."""
    return state.packed if isinstance(state, PackedAmsgradState) else state.mu


# What a state holds for one leaf: its words, or its three moments.
Stored: TypeAlias = jax.Array | Moments


def stored_leaves(state: AmsgradState) -> list[tuple[Any, Stored]]:
    """The path of every leaf, and what is stored for it."""
    return list(zip(paths(state), without_paths(state), strict=True))


def paths(state: AmsgradState) -> list[Any]:
    """The path of every leaf; of a thousand they take longer to make than a step to trace."""
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(like_params(state))]


def without_paths(state: AmsgradState) -> list[Stored]:
    """What is stored for every leaf."""
    stored = [jax.tree.leaves(tree) for tree in state[1:]]
    if isinstance(state, PackedAmsgradState):
        return stored[0]
    return [Moments(*moments) for moments in zip(*stored, strict=True)]


def numbers(stored: Stored) -> Moments:
    """The moments of one leaf as numbers."""
    return stored if isinstance(stored, Moments) else _packed.unpack(stored)


def from_leaves(
    count: jax.Array, stored: list[Stored], storage: Storage, unflatten: Callable[[Any], Any]
) -> AmsgradState:
    """The state that holds this for each leaf; the way back from :func:`stored_leaves`."""
    if storage == "packed":
        return PackedAmsgradState(count, unflatten(stored))
    return ScaleByAmsgradState(
        count, *(unflatten([getattr(leaf, name) for leaf in stored]) for name in Moments._fields)
    )


def leaf_moments(state: AmsgradState) -> list[tuple[Any, Moments]]:
    """The path and the moments, as numbers, of every leaf."""
    check(state, storage_of(state))
    return [(path, numbers(stored)) for path, stored in stored_leaves(state)]


def map_moments(
    function: Callable[[Any, Moments], Moments],
    state: AmsgradState,
    storage: Storage | None = None,
) -> AmsgradState:
    """The state with other moments, made of the path and the moments of each leaf.

    In a packed state they are rounded to nearest. None for ``storage`` keeps that of ``state``.
    """
    storage = storage_of(state) if storage is None else storage
    moments = [function(path, before) for path, before in leaf_moments(state)]
    stored: list[Any] = moments
    if storage == "packed":
        check_real("the moments", like_params(state))
        stored = [_packed.pack(_with_room(before)) for before in moments]
    unflatten = jax.tree.structure(like_params(state)).unflatten
    return from_leaves(state.count, stored, storage, unflatten)


def _with_room(moments: Moments) -> Moments:
    """The moments with a maximum that is not below ``nu``, as after a reset."""
    # A packed maximum can be up to 1/32 below nu, of the root; such a one stays as it is.
    is_below = moments.nu > 1.07 * moments.nu_max
    return moments._replace(nu_max=jnp.where(is_below, moments.nu, moments.nu_max))


# What is checked of a state.


def check(state: Any, storage: Storage, gradients: Any = None) -> None:
    """Raises unless this is an unharmed state of that storage."""
    if not isinstance(state, KINDS):
        raise TypeError(_refusal(state, gradients))
    if storage_of(state) != storage:
        raise TypeError(
            f"state is a {type(state).__name__}, of storage={storage_of(state)!r}, but the "
            f"optimizer has storage={storage!r}: amsgrad_jax.convert_storage(state, {storage!r}) "
            "makes the one of the other"
        )
    for field, tree in state._asdict().items():
        kind = "count" if field == "count" else storage
        if all(_was_cast(jnp.result_type(leaf), kind) is None for leaf in jax.tree.leaves(tree)):
            continue
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            dtype = jnp.result_type(leaf)
            if expected := _was_cast(dtype, kind):
                where = f" at {_checks.at(path)}" if path else ""
                raise TypeError(
                    f"state.{field}{where} is {dtype}, expected {expected}: the state was cast. "
                    "Cast parameters, not states; amsgrad_jax.convert_storage makes a state of "
                    "the other storage"
                )


@functools.cache
def _was_cast(dtype: Any, kind: str) -> str | None:
    """What a leaf of a state should be, if it is not; ``kind`` is a storage, or "count"."""
    if kind == "count":
        return None if jnp.issubdtype(dtype, jnp.integer) else "an integer"
    if kind == "packed":
        return None if dtype == _packed.DTYPE else "uint32"
    return None if dtype == wide(dtype) else "float32 or wider"


def check_chain(state: Any, length: int, gradients: Any) -> None:
    """Raises unless this can be the state of a chain of so many links."""
    is_chain = isinstance(state, tuple | list) and not hasattr(state, "_fields")
    if not is_chain or len(state) != length:
        raise TypeError(_refusal(state, gradients))


def _refusal(state: Any, gradients: Any) -> str:
    """Why this is no state, and what to do."""
    expected = "state must be what init of this optimizer returned, got"
    if state is None:
        return f"{expected} None: init(params) makes the first one"
    kinds, got = _kinds(state), f"{expected} {names([type(state)])}"
    if nodes(gradients) and not nodes(state):
        return f"{got} and a state as gradients: call update(gradients, state), in this order"
    if kinds & {optax.ScaleByAmsgradState, optax.ScaleByAdamState}:
        return f"{got}, a state of Optax: amsgrad_jax.interop.from_optax converts it"
    if nodes(state):
        return f"{got} of {names(kinds - {type(state)})}, the state of another chain or wrapper"
    return f"{got}; states of other libraries come in through amsgrad_jax.interop"


def check_one_run(state: AmsgradState, function: str = "update") -> None:
    """Raises if a state holds several runs, as ``jax.vmap(init)`` makes one."""
    if shape := jnp.shape(state.count):
        raise ValueError(
            f"the state holds several runs, its count has shape {shape}: wrap the call in "
            f"jax.vmap, as in jax.vmap({function})"
        )


def check_real(what: str, tree: Any) -> None:
    """Raises if a leaf is complex, for which a packed word has no room."""
    if not any(map(jnp.iscomplexobj, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"{what} must be real for storage='packed', but the leaf at {_checks.at(path)} is "
                f"{_checks.describe(leaf)}: optax.contrib.split_real_and_imaginary makes two real "
                "leaves of it"
            )


def wide(dtype: Any) -> Any:
    """The dtype of the moments, and of the arithmetic, for gradients of that dtype."""
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32:
        return jnp.dtype(dtype)
    return jnp.dtype("float32")


# Where states are.


def named(path: Any) -> str:
    """A path as a name for people: ``"dense/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def nodes(state: Any) -> list[tuple[Any, AmsgradState]]:
    """Every state of AMSGrad in a tree, with its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_state)
    return [(path, leaf) for path, leaf in leaves if is_state(leaf)]


def states(state: optax.OptState) -> dict[str, AmsgradState]:
    """:func:`nodes` by the names of their paths, or raises if there is none."""
    found = {named(path): node for path, node in nodes(state)}
    if not found:
        raise ValueError(
            "found no amsgrad_jax.ScaleByAmsgradState or PackedAmsgradState in the state, only "
            f"{names(_kinds(state))}; states of other libraries come in through amsgrad_jax.interop"
        )
    return found


def map_states(function: Callable[[AmsgradState], AmsgradState], state: optax.OptState) -> Any:
    """The tree with ``function`` of every state of AMSGrad in it."""
    states(state)  # raises if there is none
    return jax.tree.map(
        lambda node: function(node) if is_state(node) else node, state, is_leaf=is_state
    )


def is_state(node: Any) -> bool:
    """Whether this is a state of AMSGrad, and not a tree with some in it."""
    return isinstance(node, KINDS)


def _kinds(state: Any) -> set[type]:
    """The types of states in a tree."""
    kinds = {type(state)}

    def see(node: Any) -> bool:  # is asked about every node, from the root down
        if hasattr(node, "_fields"):
            kinds.add(type(node))
        return False

    jax.tree.leaves(state, is_leaf=see)
    return kinds


def names(kinds: Iterable[type]) -> str:
    """Types for an error, with their package: optax has a ScaleByAmsgradState, too."""
    return ", ".join(
        sorted(
            f"{kind.__module__.split('.')[0]}.{kind.__name__}".removeprefix("builtins.")
            for kind in kinds
        )
    )
